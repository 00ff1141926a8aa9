"""Several runs of one corpus as one `methods` record, which tables and figures take as they take a run's: folds by
the predictions beside their records, over all targets; else means over runs, with ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import metrics, records
from .settings import Settings

Record = dict[str, Any]
SHOWN = ("window", "at-once", "own-answers", "dpm", "speaker-memory")  # of runs with other settings


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


def others(group: Group, root: Path) -> list[Record]:
    """What runs of methods with other settings than the group's came to: of each change and seed the SHOWN methods
    over all folds' targets, as one record (as they are, where predictions do not stand beside all of them). Its
    `against`: the row of `window`, whose gain is over `window` of the group's own runs of the same folds and seed;
    only where these answered the same targets."""
    def alike(record: Record) -> tuple[int, str, int]:
        return len(record["changed"]), str(record["changed"]), record["seed"]

    def answers(record: Record) -> dict[str, pd.DataFrame]:
        return {name: of for name, of in records.load_answers(root, record).items() if name in SHOWN}

    def asked(of: dict[str, pd.DataFrame]) -> list[list[str]]:
        return sorted(metrics.targets(of["window"])[["utterance", "emotion"]].to_numpy().tolist()) if of else []

    methods = [r for r in group.made if r["kind"] == "methods"]
    own = {(r["fold"], r["seed"]): r for r in methods if r["changed"] == group.changed}
    made: list[Record] = []
    for _, of in groupby(sorted((r for r in methods if r["changed"] != group.changed), key=alike), alike):
        some, parts = list(of), []
        for record in some:
            beside = own.get((record["fold"], record["seed"]))
            ours, theirs = answers(record), answers(beside) if beside else {}
            parts.append(ours)
            if ours and asked(ours) == asked(theirs):
                ours["own"] = theirs["window"]
        if all(parts):
            tables, emotions = metrics.joined(parts, "all-lengths")
            base = "own" if "own" in tables else "window"
            rows = metrics.compare(tables, emotions, base, _how(some[0]).evaluation)
            one = some[0] | {"runs": _runs(some, "fold", "seed"), "results": {"protocols": {"all-lengths": {
                "methods": [row for row in rows if row["method"] in SHOWN]}}}}
            if "own" in tables:
                one["against"] = next(row for row in rows if row["method"] == "window")
            some = [one]
        made += some
    return made


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


def _runs(some: Sequence[Record], name: str, other: str) -> str:
    """Which folds of one seed, or seeds of one fold, these are, in order."""
    of = [r[name] for r in some]
    row = 2 < len(of) == of[-1] - of[0] + 1
    many = f"s {f'{of[0]} to {of[-1]}' if row else ', '.join(map(str, of))} of" if len(of) > 1 else f" {of[0]},"
    return f"{name}{many} {other} {some[0][other]}"


def _how(record: Record) -> Settings:
    """The settings by which a run's answers are scored."""
    return Settings().override({name: record["settings"][name] for name in
                                ("evaluation.bootstrap", "evaluation.confidence")})


def _one(root: Path, some: list[Record], name: str, other: str) -> Record:
    results, runs = some[0]["results"], _runs(some, name, other)
    # Seeds answer the same targets: to pool them would count these again.
    answers = [records.load_answers(root, record) for record in some if name == "fold"]
    if answers and all(answers):
        tables, emotions = metrics.joined(answers, "all-lengths")
        parts = {p: metrics.scored(tables, p, emotions, _how(some[0])) for p in results["protocols"]}
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
