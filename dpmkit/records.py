"""One JSON record a run: what came out, and all that it came from.

comparison: A run beside the committed reference: how far each figure lies from it, and how a run becomes the
reference.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from . import machine, runs
from .settings import Settings, UserError

# -- records -------------------------------------------------------------------

KINDS = ("data", "backbone", "methods", "ablations", "context")  # notebooks 01 to 05
# What may differ between two equal runs: when, how fast, from which commit.
TIMED = frozenset({"made", "seconds", "commit", "cost", "real_time_factor", "machine", "bench", "peak_bytes",
                   "origins", "seconds_per_sentence", "seconds_per_hour", "protocol_seconds", "crossings"})


# The committed results, absent where the package alone is installed; a user's own stand in `Settings.own_path`.
REFERENCE = Path(__file__).resolve().parent.parent / "results"


def path(settings: Settings, kind: str) -> Path:
    """Where a record is written: <profile>-<corpus>/records/<kind>-<run name>.json of a user's own results."""
    return settings.results_path / "records" / f"{kind}-{settings.run_name}.json"


def save(settings: Settings, kind: str, results: dict[str, Any], inputs: dict[str, str], seconds: float) -> Path:
    """Write a record; `inputs` are the keys of the artefacts that it was made from, `seconds` the wall time of the
    notebook (short where artefacts were reused); `origins` says which packages, machine and commit made each of
    them, where these were not the record's own. Returns its path."""
    if kind not in KINDS:
        raise ValueError(f"record kind {kind!r} is not known; choose one of {', '.join(KINDS)}")
    record = _record(settings, kind, results, seconds)
    origins = {name: {k: v for k, v in runs.made(settings, key).items() if v != record[k]}
               for name, key in inputs.items()}
    runs.write_json(path(settings, kind), record | {"inputs": inputs, "origins": origins})
    return path(settings, kind)


def save_bench(settings: Settings, name: str, results: dict[str, Any], seconds: float) -> Path:
    """Write bench/<name>-<profile>.json (with changed settings their digits) of a user's results; its path."""
    target = settings.own_path / _bench_name(settings, name)
    runs.write_json(target, _record(settings, f"bench {name}", results, seconds))
    return target


def _bench_name(settings: Settings, name: str) -> str:
    return f"bench/{name}-{settings.profile}{settings.variant}.json"


def _record(settings: Settings, kind: str, results: dict[str, Any], seconds: float) -> dict[str, Any]:
    flat = {name: settings.shown(name, value) for name, value in settings.flat().items() if name != "home"}
    return {"kind": kind, "profile": settings.profile, "corpus": settings.corpus, "fold": settings.fold,
            "seed": settings.seed, "run": settings.run_name,
            "changed": _plain({name: flat[name] for name in settings.changed}),
            "results": _plain(results), "settings": _plain(flat), **machine.origin(), "seconds": round(seconds, 1),
            "made": datetime.now(UTC).isoformat(timespec="seconds")}


def run_of(record: dict[str, Any]) -> str:
    """The run name of a record; those made before settings had a part in it are of a profile's own values."""
    return record.get("run", f"fold{record['fold']}-seed{record['seed']}")


def load(settings: Settings, kind: str) -> dict[str, Any]:
    """The record that `save` wrote; UserError names the notebook that makes it."""
    if not (target := path(settings, kind)).is_file():
        raise UserError(f"record {target.name} is absent: run notebook {KINDS.index(kind) + 1:02d} with the same "
                        "profile, corpus, fold, seed and settings first")
    return read(target)


def load_bench(settings: Settings, name: str) -> dict[str, Any] | None:
    """The bench of these settings, the user's own before the reference's; None where neither is there."""
    for root in (settings.own_path, REFERENCE):
        if (target := root / _bench_name(settings, name)).is_file():
            return read(target)
    return None


def benches(root: Path) -> dict[str, dict[str, Any]]:
    """File name -> bench record, below a folder of results."""
    return {p.name: read(p) for p in sorted((root / "bench").glob("*.json"))}


def load_all(root: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Every record below a folder of results in order of its path, each run once; and the files that do not count,
    as their names are not those of their runs: copies."""
    made, copies = [], []
    for file in sorted(root.glob("*/records/*.json")):
        record = read(file)
        name = f"{record['profile']}-{record['corpus']}/records/{record['kind']}-{run_of(record)}.json"
        if file == root / name:
            made.append(record)
        else:
            copies.append(file.relative_to(root).as_posix())
    return made, copies


def processors(root: Path) -> list[dict[str, Any]]:
    """What other processors made of runs: <profile>-<corpus>/processors/<machine>/methods-<run name>.json."""
    return [read(p) for p in sorted(root.glob("*/processors/*/methods-*.json"))]


def read(file: Path) -> dict[str, Any]:
    """A record; UserError names a file that is none."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if {"kind", "profile", "corpus", "fold", "seed", "results"} <= record.keys():
            return record
        reason = "it lacks kind, profile, corpus, fold, seed or results"
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error)
    raise UserError(f"{file} is no record ({reason}): move it away, or run its notebook again")


def without_times(record: Any) -> Any:
    """A record less what two equal runs may differ in."""
    if isinstance(record, dict):
        return {k: without_times(v) for k, v in record.items() if k not in TIMED}
    return [without_times(v) for v in record] if isinstance(record, list) else record


def _plain(value: Any) -> Any:
    """`value` as JSON knows it; NaN becomes null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, pd.DataFrame):
        return _plain(value.to_dict("records"))
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value


# -- comparison ----------------------------------------------------------------

MEASURES = {"WA": "WA", "WA_gain": "gain"}
ROUNDING = 0.1  # points: no tolerance is below what the tables show


def spread(own: dict[str, Any], root: Path) -> list[dict[str, Any]]:
    """The reference's `methods` records of this profile, corpus, fold and settings: every seed, and what other
    processors made of them, at <profile>-<corpus>/processors/<machine>/; the run of the same name comes first."""
    same = [r for r in load_all(root)[0] + processors(root)
            if r["kind"] == "methods" and all(r[k] == own[k] for k in ("profile", "corpus", "fold"))
            and r.get("changed", {}) == own.get("changed", {})]
    return sorted(same, key=lambda r: run_of(r) != run_of(own))


def compared(own: dict[str, Any], made: list[dict[str, Any]], protocol: str = "all-lengths") -> pd.DataFrame:
    """A row a method and measure: `reference` (the first of `made`), `own`, `difference`, `tolerance` in points,
    `borrowed` (the tolerance is its group's largest) and `within`; NaN where there is nothing to compare with.

    The tolerance: two sample deviations over `made`; of a row with a single run, the largest of its group.
    """
    groups = {row["method"]: row.get("group") for row in made[0]["results"].get("listed", [])}
    by_run = [{row["method"]: row for row in r["results"]["protocols"][protocol]["methods"]} for r in (own, *made)]
    rows = []
    for method in dict.fromkeys([*by_run[1], *by_run[0]]):
        for measure, name in MEASURES.items():
            if method == "window" and measure == "WA_gain":
                continue  # 0 by definition
            first, *others = (run.get(method, {}).get(measure, math.nan) for run in by_run)
            known = [v for v in others if not math.isnan(v)]
            rows.append({"method": method, "measure": name, "group": groups.get(method) or "", "own": first,
                         "reference": others[0],
                         "tolerance": max(ROUNDING, 2 * np.std(known, ddof=1)) if len(known) > 1 else math.nan})
    out = pd.DataFrame(rows)
    out["borrowed"] = out["tolerance"].isna()
    for by in (["measure", "group"], ["measure"]):
        out["tolerance"] = out["tolerance"].fillna(out.groupby(by)["tolerance"].transform("max"))
    out["difference"] = out["own"] - out["reference"]
    known = out[["difference", "tolerance"]].notna().all(axis=1)
    out["within"] = (out["difference"].abs() <= out["tolerance"] + 1e-9).astype(object).where(known, None)
    return out


def compared_lines(own: dict[str, Any], root: Path | None = None) -> list[str]:
    """Markdown: the rule, the table row by row, and how many figures lie within tolerance; or that there is no
    reference of this run."""
    made, run = spread(own, root or REFERENCE), run_of(own)
    name = f"`{own['profile']}` on `{own['corpus']}`, {run}"
    if not made or run_of(made[0]) != run:
        return [f"No reference for {name}: nothing to compare it with.", ""]
    rows = compared(own, made)
    seeds = ", ".join(str(s) for s in sorted({r["seed"] for r in made}))
    processors = ", ".join(sorted({r["machine"]["processor"] for r in made}))
    if len(made) > 1:
        chance = 2 * stats.t.cdf(math.sqrt(2), len(made) - 1) - 1
        rule = (f"Tolerance: two sample standard deviations over the reference's {len(made)} runs of this fold "
                f"(seeds {seeds}; {processors}), not below {ROUNDING} points; * of a row with a single run, the "
                f"largest of its group. By chance alone, some {chance:.0%} of two such runs' rows are within.")
    else:
        rule = "The reference has one run of this fold: its spread, and so a tolerance, is not known."
    judged = rows[rows["within"].notna()]
    counts = [f"{part['within'].sum():.0f} of {len(part)}" for part in (
        judged, judged[judged["measure"] == "WA"], judged[judged["measure"] == "gain"])]
    return [f"## Beside the reference: {name}", "",
            f"WA of every labelled utterance, and its gain over `window`, in points. {rule}"
            f"{_otherwise(own, made[0])}", "", _markdown(rows), "",
            f"reproduced: {counts[0]} within tolerance (WA {counts[1]}, gains {counts[2]})" if len(judged) else
            "reproduced: not judged, as there is no tolerance", ""]


def _otherwise(own: dict[str, Any], other: dict[str, Any]) -> str:
    """What a profile's own values were when the reference was made, where they have moved since."""
    moved = [f"{name} {value} (here {own['settings'][name]})" for name, value in other["settings"].items()
             if own["settings"].get(name, value) != value and name not in ("seed", "root", "device")
             and not name.startswith("grid.")]
    return f" The reference was made with other settings: {', '.join(moved)}." if moved else ""


def _markdown(compared: pd.DataFrame) -> str:
    def number(value: float, form: str, absent: str) -> str:
        return absent if math.isnan(value) else f"{value:{form}}"

    def cells(row: pd.Series | None) -> list[str]:
        if row is None:
            return [""] * 5
        form = ".1f" if row["measure"] == "WA" else "+.1f"
        judged = row["within"] is not None
        verdict = "–" if not judged else "yes" if row["within"] else "NO"
        star = "*" if judged and row["borrowed"] else ""
        return [number(row["reference"], form, "no reference"), number(row["own"], form, "not run"),
                number(row["difference"], "+.1f", "–"), number(row["tolerance"], ".1f", "–") + star, verdict]

    head = ["method", *(f"{m}{c}" for m in ("WA, ", "gain, ") for c in ("reference", "own", "difference",
                                                                     "tolerance", "within"))]
    out = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for method, part in compared.groupby("method", sort=False):
        by = {row["measure"]: row for _, row in part.iterrows()}
        out.append(f"| {' | '.join([method, *cells(by['WA']), *cells(by.get('gain'))])} |")
    return "\n".join(out)


def publish(own: Path, root: Path) -> list[str]:
    """Copy records, figures, pages and benches from `own` into the reference at `root`, in place of those of the
    same run; the `smoke` profile, a test, stays out. Returns the runs; UserError where there is none."""
    by_run: dict[tuple[str, str], list[str]] = {}
    for record in load_all(own)[0]:
        if record["profile"] != "smoke":
            where = f"{record['profile']}-{record['corpus']}", run_of(record)
            by_run.setdefault(where, []).append(record["kind"])
    measured = [name for name, record in benches(own).items() if record["profile"] != "smoke"]
    if not by_run and not measured:
        raise UserError(f"{own} holds nothing to publish: run `make reproduce` first (smoke is not published)")
    for (folder, run), kinds in by_run.items():
        old = {p.name.removesuffix(f"-{run}.json") for p in (root / folder / "records").glob(f"*-{run}.json")}
        if old <= set(kinds):  # all of it is made anew: no figure or page of the earlier run stays
            _each(root / folder, run, Path.unlink)
        _each(own / folder, run, lambda file: _copy(file, root / file.relative_to(own)))
    for name in measured:
        _copy(own / "bench" / name, root / "bench" / name)
    return [f"{folder} {run}" for folder, run in by_run] + [f"bench/{name}" for name in measured]


def _each(folder: Path, run: str, work: Callable[[Path], Any]) -> None:
    """`work` of every file of a run: its records, figures and pages."""
    for pattern in (f"records/*-{run}.json", f"figures/*-{run}.png", f"{run}/*"):
        for file in sorted(folder.glob(pattern)):
            if file.is_file():
                work(file)


def _copy(file: Path, target: Path) -> None:
    with runs.atomic(target) as temporary:
        shutil.copyfile(file, temporary)
