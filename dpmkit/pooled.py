"""Several runs of one corpus as one `methods` record, which tables and figures take as they take a run's: folds by
the predictions beside their records, over all targets; else means over runs, with ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from . import metrics, records
from .settings import Settings

Record = dict[str, Any]


@dataclass(frozen=True)
class Group:
    """Every record of one profile and corpus. What stands for it are runs of the same settings: the profile's own,
    or, where none of these has methods, what most such runs have `changed`. `over`: those of methods as one record:
    all folds of the first seed, then all seeds of the first fold; a run that is alone as it is. `kinds`: the first
    of these, and of every other kind the first that there is."""

    title: str
    folder: str
    changed: dict[str, Any]
    made: list[Record]
    over: list[Record]
    kinds: dict[str, Record]


def groups(made: Sequence[Record], root: Path) -> list[Group]:
    """The groups of the records below `root`: real voices first, then the more speakers, the more targets."""
    def where(record: Record) -> tuple[str, str]:
        return record["profile"], record["corpus"]

    found = []
    for (profile, corpus), of in groupby(sorted(made, key=where), where):
        every = sorted(of, key=lambda r: (r["seed"], r["fold"]))
        methods = [r for r in every if r["kind"] == "methods"]
        each = [r["changed"] for r in methods]
        chosen = max(methods or every, key=lambda r: (not r["changed"], each.count(r["changed"])))
        alike = [r for r in every if r["changed"] == chosen["changed"]]
        over = _over(root, [r for r in alike if r["kind"] == "methods"])
        kinds = {r["kind"]: r for r in (*reversed(alike), *over[:1])}
        part = over[0]["results"]["protocols"]["all-lengths"] if over else {}
        group = Group(titled(chosen), f"{profile}-{corpus}", chosen["changed"], every, over, kinds)
        found.append((corpus == "demo", -part.get("speakers", 0), -part.get("targets", 0), group.title, group))
    return [group for *_, group in sorted(found)]


def changes(record: Record) -> str:
    """The settings that a run has other than its profile."""
    return ", ".join(f"`{name}` = {of}" for name, of in record["changed"].items())


def titled(record: Record) -> str:
    """A record's corpus and profile, and what it has other than that."""
    return ", ".join(filter(None, [record["corpus"], f"`{record['profile']}`", changes(record)]))


def told(record: Record) -> str:
    """Which run, or runs, a record is of."""
    return record.get("runs", f"fold {record['fold']}, seed {record['seed']}")


def _over(root: Path, some: Sequence[Record]) -> list[Record]:
    made = []
    for name, other in (("fold", "seed"), ("seed", "fold")):
        alike = [r for r in some if r[other] == some[0][other]]
        made += [_one(root, alike, name, other)] if len(alike) > 1 else []
    return made or [r | {"of": [r]} for r in some[:1]]


def _one(root: Path, some: list[Record], name: str, other: str) -> Record:
    results = some[0]["results"]
    of = [r[name] for r in some]
    row = 2 < len(of) == of[-1] - of[0] + 1
    runs = f"{name}s {f'{of[0]} to {of[-1]}' if row else ', '.join(map(str, of))} of {other} {some[0][other]}"
    # Seeds answer the same targets: to pool them would count these again.
    answers = [records.load_answers(root, record) for record in some if name == "fold"]
    if answers and all(answers):
        how = {key: some[0]["settings"][key] for key in ("evaluation.bootstrap", "evaluation.confidence")}
        tables, emotions = metrics.joined(answers, "all-lengths")
        parts = {p: metrics.scored(tables, p, emotions, Settings().override(how)) for p in results["protocols"]}
    else:
        runs = f"mean of {runs}"
        parts = {p: _means([r["results"]["protocols"][p] for r in some]) for p in results["protocols"]}
    return some[0] | {"of": some, "runs": runs, "run": f"{name}s-{other}{some[0][other]}",
                      "results": results | {"protocols": parts}}


def _means(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The methods that all parts have, and their contrasts: means over the parts, with ranges."""
    def over(values: dict[str, list[float]]) -> dict[str, Any]:
        return {m: float(np.mean(of)) for m, of in values.items()} | {
            f"{m}_range": (min(of), max(of)) for m, of in values.items()}

    by = [{row["method"]: row for row in part["methods"]} for part in parts]
    shared = [name for name in by[0] if all(name in one for one in by)]
    return {name: of for name, of in parts[0].items() if isinstance(of, int)} | {  # how many were answered
        "methods": [{"method": name} | over(
            {m: [one[name][m] for one in by] for m in ("WA", "UA", "WF1", "WA_gain")}) for name in shared],
        "contrasts": [{"contrast": f"{a} - {b}", "asks": asks} | over(
            {m: [one[a][m] - one[b][m] for one in by] for m in ("WA", "WF1")})
            for (a, b), asks in (metrics.DECLARED | metrics.UNTESTED).items() if {a, b} <= {*shared}]}
