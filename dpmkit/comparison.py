"""A run beside the committed reference: how far each figure lies from it, and how a run becomes the reference."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from . import records, runs
from .settings import UserError

MEASURES = {"WA": "WA", "WA_gain": "gain"}
ROUNDING = 0.1  # points: no tolerance is below what the tables show


def spread(own: dict[str, Any], root: Path) -> list[dict[str, Any]]:
    """The reference's `methods` records of this profile, corpus, fold and settings: every seed, and what other
    processors made of them, at <profile>-<corpus>/processors/<machine>/; the run of the same name comes first."""
    same = [r for r in records.load_all(root)[0] + records.processors(root)
            if r["kind"] == "methods" and all(r[k] == own[k] for k in ("profile", "corpus", "fold"))
            and r.get("changed", {}) == own.get("changed", {})]
    return sorted(same, key=lambda r: records.run_of(r) != records.run_of(own))


def table(own: dict[str, Any], made: list[dict[str, Any]], protocol: str = "all-lengths") -> pd.DataFrame:
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


def lines(own: dict[str, Any], root: Path | None = None) -> list[str]:
    """Markdown: the rule, the table row by row, and how many figures lie within tolerance; or that there is no
    reference of this run."""
    made, run = spread(own, root or records.REFERENCE), records.run_of(own)
    name = f"`{own['profile']}` on `{own['corpus']}`, {run}"
    if not made or records.run_of(made[0]) != run:
        return [f"No reference for {name}: nothing to compare it with.", ""]
    compared = table(own, made)
    seeds = ", ".join(str(s) for s in sorted({r["seed"] for r in made}))
    processors = ", ".join(sorted({r["machine"]["processor"] for r in made}))
    if len(made) > 1:
        chance = 2 * stats.t.cdf(math.sqrt(2), len(made) - 1) - 1
        rule = (f"Tolerance: two sample standard deviations over the reference's {len(made)} runs of this fold "
                f"(seeds {seeds}; {processors}), not below {ROUNDING} points; * of a row with a single run, the "
                f"largest of its group. By chance alone, some {chance:.0%} of two such runs' rows are within.")
    else:
        rule = "The reference has one run of this fold: its spread, and so a tolerance, is not known."
    judged = compared[compared["within"].notna()]
    counts = [f"{part['within'].sum():.0f} of {len(part)}" for part in (
        judged, judged[judged["measure"] == "WA"], judged[judged["measure"] == "gain"])]
    return [f"## Beside the reference: {name}", "",
            f"WA of every labelled utterance, and its gain over `window`, in points. {rule}"
            f"{_otherwise(own, made[0])}", "", _markdown(compared), "",
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
    for record in records.load_all(own)[0]:
        if record["profile"] != "smoke":
            where = f"{record['profile']}-{record['corpus']}", records.run_of(record)
            by_run.setdefault(where, []).append(record["kind"])
    measured = [name for name, record in records.benches(own).items() if record["profile"] != "smoke"]
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
