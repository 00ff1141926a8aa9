"""One JSON record per run: what came out, and all that it came from; and how a user's run becomes the reference."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from . import machine, runs
from .settings import Settings, UserError
from .tables import markdown

KINDS = ("data", "backbone", "methods", "ablations", "context")  # notebooks 01 to 05
# The committed results, absent where the package alone is installed; a user's own stand in `Settings.own_path`.
REFERENCE = Path(__file__).resolve().parent.parent / "results"
ROUNDING = 0.1  # points: no tolerance is below what the tables show


def path(settings: Settings, kind: str) -> Path:
    """Where a record is written: <profile>-<corpus>/records/<kind>-<run name>.json of a user's own results."""
    return settings.results_path / "records" / f"{kind}-{settings.run_name}.json"


def save(settings: Settings, kind: str, results: dict[str, Any], inputs: dict[str, str], seconds: float) -> Path:
    """Write a record; its path. `inputs` are the keys of the artefacts that it was made from, `seconds` the wall
    time of the notebook (short where artefacts were reused); `origins` says which packages, machine and commit made
    each of them, where these were not the record's own."""
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
            "results": _plain(results), "settings": _plain(flat), **machine.origin(),
            "seconds": round(seconds, 1), "made": datetime.now(UTC).isoformat(timespec="seconds")}


def _plain(value: Any) -> Any:
    """`value` as JSON knows it; NaN becomes null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, pd.DataFrame):
        return _plain(value.to_dict("records"))
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def load(settings: Settings, kind: str) -> dict[str, Any]:
    """The record that `save` wrote; UserError names the notebook that makes it."""
    if not (target := path(settings, kind)).is_file():
        raise UserError(f"record {target.name} is absent: run notebook {KINDS.index(kind) + 1:02d} with the same "
                        "profile, corpus, fold, seed and settings first")
    return read(target)


def load_bench(settings: Settings, name: str) -> dict[str, Any] | None:
    """The bench of these settings, the user's own before the reference's; None where neither is there."""
    files = (root / _bench_name(settings, name) for root in (settings.own_path, REFERENCE))
    return next((read(file) for file in files if file.is_file()), None)


def benches(root: Path) -> dict[str, dict[str, Any]]:
    """File name -> bench record, below a folder of results."""
    return {p.name: read(p) for p in sorted((root / "bench").glob("*.json"))}


def load_all(root: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Every record below a folder of results in order of its path, each run once; and the files that do not count,
    as their names are not those of their runs: copies."""
    made, copies = [], []
    for file in sorted(root.glob("*/records/*.json")):
        record = read(file)
        name = f"{record['profile']}-{record['corpus']}/records/{record['kind']}-{record['run']}.json"
        if file == root / name:
            made.append(record)
        else:
            copies.append(file.relative_to(root).as_posix())
    return made, copies


def alike(own: dict[str, Any], root: Path) -> list[dict[str, Any]]:
    """The `methods` records below `root` of this profile, corpus, fold and settings: every seed, and what other
    processors made of them, at <profile>-<corpus>/processors/<machine>/; those of the same run come first."""
    elsewhere = [read(file) for file in sorted(root.glob("*/processors/*/methods-*.json"))]
    same = [r for r in (*load_all(root)[0], *elsewhere) if r["kind"] == "methods"
            and all(r[k] == own[k] for k in ("profile", "corpus", "fold", "changed"))]
    return sorted(same, key=lambda r: r["run"] != own["run"])


def compared(own: dict[str, Any], made: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A run beside the reference, a row per method and measure (WA, and its gain over `window`): `reference` (the
    first of `made`), `own`, `difference`, `tolerance`, in points, `borrowed`, and `within` (None: not judged).

    The tolerance is two sample deviations over `made`, not below ROUNDING; of a row with a single run, the largest
    of its group (`borrowed`).
    """
    wide = pd.concat([pd.DataFrame(r["results"]["protocols"]["all-lengths"]["methods"]).set_index("method")[
        ["WA", "WA_gain"]].stack() for r in (*made, own)], axis=1, sort=False)
    wide = wide.drop(index=("window", "WA_gain")).rename_axis(["method", "measure"])  # 0 by definition
    rows = pd.DataFrame({"reference": wide.iloc[:, 0], "own": wide.iloc[:, -1],
                         "tolerance": (2 * wide.iloc[:, :-1].std(axis=1)).clip(lower=ROUNDING)}).reset_index()
    groups = {listed["method"]: listed["group"] for listed in made[0]["results"]["listed"]}
    rows["borrowed"], group = rows["tolerance"].isna(), rows["method"].map(groups).fillna("")
    for by in (["measure", group], ["measure"]):
        rows["tolerance"] = rows["tolerance"].fillna(rows.groupby(by)["tolerance"].transform("max"))
    rows["difference"] = rows["own"] - rows["reference"]
    known = rows[["difference", "tolerance"]].notna().all(axis=1)
    rows["within"] = (rows["difference"].abs() <= rows["tolerance"] + 1e-9).astype(object).where(known, None)
    return rows


def beside(own: dict[str, Any], root: Path | None = None) -> str:
    """Markdown: a run beside the reference row by row, the rule, and how many figures lie within tolerance; or that
    there is no reference of this run."""
    made = alike(own, root or REFERENCE)
    name = f"`{own['profile']}` on `{own['corpus']}`, {own['run']}"
    if not made or made[0]["run"] != own["run"]:
        return f"No reference for {name}: nothing to compare it with."
    rule = "The reference has one run of this fold: its spread, and so a tolerance, is not known."
    if len(made) > 1:
        chance = 2 * stats.t.cdf(math.sqrt(2), len(made) - 1) - 1
        seeds = ", ".join(sorted({str(r["seed"]) for r in made}))
        processors = ", ".join(sorted({r["machine"]["processor"] for r in made}))
        rule = (f"Tolerance: two sample standard deviations over the reference's {len(made)} runs of this fold "
                f"(seeds {seeds}; {processors}), not below {ROUNDING} points; * of a row with a single run, the "
                f"largest of its group. By chance alone, some {chance:.0%} of two such runs' rows are within.")
    moved = [f"{key} {value} (here {own['settings'][key]})" for key, value in made[0]["settings"].items()
             if own["settings"].get(key, value) != value and key not in ("seed", "root", "device")
             and not key.startswith("grid.")]
    if moved:
        rule += f" The reference was made with other settings: {', '.join(moved)}."
    rows = compared(own, made)
    judged = rows[rows["within"].notna()]
    counts = [f"{part['within'].sum():.0f} of {len(part)}" for part in (
        judged, judged[judged["measure"] == "WA"], judged[judged["measure"] == "WA_gain"])]
    known = rows["tolerance"].notna()
    table = pd.DataFrame({
        "method": rows["method"], "figure": rows["measure"].map({"WA": "WA", "WA_gain": "gain"}),
        "reference": _points(rows["reference"], "no reference"), "own": _points(rows["own"], "not run"),
        "difference": _points(rows["difference"], "–", "+.1f"),
        "tolerance": _points(rows["tolerance"], "–") + np.where(rows["borrowed"] & known, "*", ""),
        "within": rows["within"].map({True: "yes", False: "NO"}).fillna("–")})
    return "\n\n".join([
        f"## Beside the reference: {name}",
        f"WA of every labelled utterance, and its gain over `window`, in points. {rule}", markdown(table),
        f"reproduced: {counts[0]} within tolerance (WA {counts[1]}, gains {counts[2]})" if len(judged) else
        "reproduced: not judged, as there is no tolerance"])


def _points(values: pd.Series, absent: str, form: str = ".1f") -> pd.Series:
    return values.map(lambda v: absent if math.isnan(v) else f"{v:{form}}")


def read(file: Path) -> dict[str, Any]:
    """A record; UserError names a file that is none."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if {"kind", "profile", "corpus", "fold", "seed", "run", "changed", "results"} <= record.keys():
            return record
        reason = "it lacks kind, profile, corpus, fold, seed, run, changed or results"
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error)
    raise UserError(f"{file} is no record ({reason}): move it away, or run its notebook again")


def publish(own: Path, root: Path) -> list[str]:
    """Copy records, figures, pages and benches from `own` into the reference at `root`, in place of those of the
    same run; the `smoke` profile, a test, stays out. Returns the runs; UserError where there is none."""
    kinds: dict[tuple[str, str], set[str]] = {}
    for record in load_all(own)[0]:
        if record["profile"] != "smoke":
            kinds.setdefault((f"{record['profile']}-{record['corpus']}", record["run"]), set()).add(record["kind"])
    measured = [f"bench/{name}" for name, record in benches(own).items() if record["profile"] != "smoke"]
    if not kinds and not measured:
        raise UserError(f"{own} holds nothing to publish: run `make reproduce` first (smoke is not published)")
    files = [own / name for name in measured]
    for (folder, run), made in kinds.items():
        old = {p.name.removesuffix(f"-{run}.json") for p in (root / folder / "records").glob(f"*-{run}.json")}
        if old <= made:  # all of it is made anew: no figure or page of the earlier run stays
            for file in _files(root / folder, run):
                file.unlink()
        files += _files(own / folder, run)
    for file in files:
        with runs.atomic(root / file.relative_to(own)) as temporary:
            shutil.copyfile(file, temporary)
    return [*map(" ".join, kinds), *measured]


def _files(folder: Path, run: str) -> Iterator[Path]:
    """A run's records, figures and pages."""
    for pattern in (f"records/*-{run}.json", f"figures/*-{run}.png", f"{run}/*"):
        yield from sorted(file for file in folder.glob(pattern) if file.is_file())
