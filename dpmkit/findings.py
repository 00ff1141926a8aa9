"""What a notebook's record says, in sentences: the closing cell of each notebook, written of the record alone.

A difference is said to be one where its interval leaves 0 out; elsewhere there is `no measurable difference`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from . import tables
from .pooled import Group

Record = Mapping[str, Any]
Kinds = Mapping[str, Record]


def learnt(record: Record) -> str:
    """A record's findings as a Markdown list, of what kind it may be, with the run that they are of."""
    of = KINDS[record["kind"]](record)
    run = f"{record['profile']} on {record['corpus']}, fold {record['fold']}, seed {record['seed']}"
    return "\n".join([f"Of this run ({run}), from its record:\n", *(f"- {sentence}" for sentence in of)])


def told(made: Sequence[Record]) -> str:
    """What records say, for a terminal, with the methods of those that have them."""
    methods = (tables.methods(r, "all-lengths").drop(columns="hears") for r in made if r["kind"] == "methods")
    return "\n\n".join([*map(learnt, made), *map(tables.markdown, methods)])


def _than(a: str, b: str, row: Record) -> str:
    """How a method stands to another in WA, by a row of `metrics.compare` with the gain over that other one."""
    low, high = row["WA_gain_interval"]
    found = (f"{a} is above {b}" if low > 0 else f"{a} is below {b}" if high < 0
             else f"no measurable difference between {a} and {b}")
    return f"{found} ({tables.value(row, 'WA_gain', '+.1f')} points of WA)"


def _data(record: Record) -> list[str]:
    of = record["results"]
    names, stays = of["emotions"], [of["transitions"][i][i] for i in range(len(of["emotions"]))]
    least, most = min(range(len(names)), key=stays.__getitem__), max(range(len(names)), key=stays.__getitem__)
    wa = {row["method"]: 100 * row["WA"] for row in of["reference"]["test"]}
    alone, filtered, offset = (wa[name] for name in (
        "single utterance", "single utterance + filter", "ORACLE speaker offset + filter"))
    published = [row for row in of["published"] if row["published"] is not None]
    found = f"{sum(r['found'] for r in published)} of {sum(r['published'] for r in published)} published labels"
    return [
        f"{of['conversations']} conversations of {of['utterances']} utterances, {of['hours']:.2f} h of speech by "
        f"{of['speakers']} speakers; {found if published else 'made here, so nothing is published'}; "
        f"{of['skipped_count']} items were left out.",
        f"From one utterance of a speaker to the next, an emotion stays with a probability of {stays[least]:.2f} "
        f"({names[least]}) to {stays[most]:.2f} ({names[most]}).",
        f"One utterance of an unseen speaker gives a logistic regression {alone:.1f} % WA on the test fold, and "
        f"{filtered:.1f} % with the inertia filter over it. Were it told each speaker's offset, {offset:.1f} %: "
        f"knowing the speakers is worth {offset - filtered:+.1f} points to it."]


def _backbone(record: Record) -> list[str]:
    of = record["results"]
    kept = next(row for row in of["history"] if row["epoch"] == of["best_epoch"])
    emotions = of["per_emotion"]["validation"]
    order = sorted(emotions, key=lambda e: emotions[e]["recall"])
    counts = of["confusion"]["validation"]
    wrong = [(counts[i][j] / max(sum(counts[i]), 1), i, j) for i in range(len(counts)) for j in range(len(counts))
             if i != j]
    share, i, j = max(wrong)
    last = "the last one: more epochs may help" if of["best_epoch"] == len(of["history"]) else "it is the one kept"
    return [
        f"The SLLM has {of['parameters'] / 1e6:.2f} M parameters, of which {of['trained_parameters'] / 1e6:.2f} M "
        f"were trained. L_e on validation conversations was lowest ({kept['eval_l_e']:.3f} nats) in epoch "
        f"{of['best_epoch']} of {len(of['history'])}, {last}.",
        f"There it answers {100 * kept['eval_wa']:.1f} % of the validation utterances rightly (UA "
        f"{100 * kept['eval_ua']:.1f} %).",
        f"It recalls {order[-1]} best ({100 * emotions[order[-1]]['recall']:.0f} %) and {order[0]} worst "
        f"({100 * emotions[order[0]]['recall']:.0f} %); most often it takes {of['emotions'][i]} for "
        f"{of['emotions'][j]} ({100 * share:.0f} % of them)."]


def answer(record: Record) -> list[str]:
    """What a `methods` record, of a run or `pooled`, answers, a sentence each: does DPM beat the SLLM at once, what
    does the memory add, and what does help? Of what was run."""
    part, found, of = record["results"]["protocols"]["all-lengths"], {}, {}
    for a, b in (*tables.SHARES.values(), ("dpm", "dpm-swapped"), ("speaker-memory", "speaker-head + filter")):
        if row := tables.difference(record, "all-lengths", a, b):
            p = f" (p {tables.adjusted(row)} by Holm)" if "p_holm" in row else ""
            found[f"{a} - {b}"] = tables.sign(row, record)
            of[f"{a} - {b}"] = tables.value(row, "WA", "+z.1f") + p
    said = []
    if "dpm - at-once" in found:
        beats, adds = (VERDICTS[found[f"dpm - {other}"]] for other in ("at-once", "window"))
        said += [
            f"**{beats[0]}**: `dpm - at-once` is {of['dpm - at-once']}, points of WA of {part['targets']:,} "
            f"utterances in {part['conversations']} conversations. That is `window - at-once`, a short window, "
            f"{of['window - at-once']}, plus `dpm - window`, the memory, {of['dpm - window']}.",
            f"**The memory {adds[1]}**; written from its own conversation, not another's (`dpm - dpm-swapped`), "
            f"it is worth {of['dpm - dpm-swapped']}: {VERDICTS[found['dpm - dpm-swapped']][2]}."]
    helping = {name: of[f"{name} - window"] for name in ("window + filter", "speaker-memory")
               if found.get(f"{name} - window") == "yes"}
    own = "speaker-memory - speaker-head + filter"
    told = ", ".join(f"`{name}` {gain}" for name, gain in helping.items()) or "nothing of the filter and memories"
    adds = (f"; `speaker-memory` adds to its own head and filter {of[own]}: {VERDICTS[found[own]][2]}"
            if own in of else "")
    return [*said, f"**What helps** against `window`: {told}{adds}."]


def further(record: Record) -> list[str]:
    """What else a `methods` record, of a run or `pooled`, shows, a sentence each: what the memory stores, what it
    adds where it is told true emotions, and how simpler methods stand. Of what was run."""
    said, made = [], record.get("of", [record])
    if all("dpm" in of["results"]["losses"] for of in made):
        said.append(f"**What it holds.** {tables.stored(made, 'dpm')}")
    rows = {name: row for name in ("dpm-told", "classifier", "lstm", "current + filter")
            if (row := tables.difference(record, "all-lengths", name, "window"))}
    gains = {name: tables.value(row, "WA", "+z.1f") for name, row in rows.items()}
    if row := rows.pop("dpm-told", None):
        found = tables.sign(row, record)
        said.append(f"**Told true emotions** (`dpm-told`, a bound), the same memory {VERDICTS[found][1]}, "
                    f"{gains['dpm-told']}" + ": it can hold what helps, and lacks labels." * (found == "yes")
                    + "." * (found != "yes"))
    if rows:
        said.append(f"**Simpler methods** against `window`: {', '.join(f'`{m}` {gains[m]}' for m in rows)}; `lstm` "
                    "is of acoustics, `current` of each utterance alone.")
    return said


VERDICTS = {  # of a difference: of dpm and at-once, of the memory and none, of any
    "yes": ("DPM beats the SLLM at once", "adds to the same window", "above 0"),
    "no, below": ("DPM is below the SLLM at once", "takes from the same window", "below 0"),
    "no measurable difference": ("No measurable difference between DPM and the SLLM at once",
                                 "adds nothing measurable to the same window", "no measurable difference"),
    "differs by run": ("Whether DPM beats the SLLM at once differs by run", "adds or takes, by run",
                       "differs by run")}


def _methods(record: Record) -> list[str]:
    results = record["results"]
    part, groups = results["protocols"]["all-lengths"], {r["method"]: r["group"] for r in results["listed"]}
    rows = {row["method"]: row for row in part["methods"]}
    said = answer(record) + [tables.stored([record], name) for name in results["losses"]]
    best = max((row for m, row in rows.items() if groups[m] not in ("bound", "control")), key=lambda row: row["WA"])
    bounds = ", ".join(f"`{m}` {row['WA']:.1f} %" for m, row in rows.items() if groups[m] == "bound")
    return [*said, f"The highest WA of what no true label helps is that of `{best['method']}`, "
                   f"{tables.value(best, 'WA')} %; `window` has {tables.value(rows['window'], 'WA')} %."
                   + (f" With true labels {bounds}." if bounds else "")]


def _ablations(record: Record) -> list[str]:
    of = record["results"]
    rows, best, final = of["rows"], of["best"], {row["method"]: row for row in of["final"]}
    ends = [row["WA_gain_interval"] for row in rows]
    said = [f"Of {len(rows)} configurations on {of['conversations']} validation conversations, the interval of the "
            f"gain over no memory lies above 0 for {sum(low > 0 for low, _ in ends)} and below 0 for "
            f"{sum(high < 0 for _, high in ends)}.",
            f"The best of them ({', '.join(f'{k} = {v}' for k, v in best['memory'].items())}), on the test fold: "
            f"{_than('it', 'no memory', final['dpm'])}; its swapped control: "
            f"{_than('it', 'no memory', final['dpm-swapped'])}."]
    by = {}
    for row in of["disturbed"]:
        by.setdefault(row["method"], {})[row["kind"], row["level"]] = row["WA"]
    if worst := [(name, min(levels, key=levels.get), levels) for name, levels in by.items()]:
        said.append("The lowest WA under disturbance: " + "; ".join(
            f"`{name}` {levels[at]:.1f} % ({at[0]} {at[1]:g})" for name, at, levels in worst) + ".")
    return said


def _context(record: Record) -> list[str]:
    of = record["results"]
    last, first = of["windows"][-1], of["windows"][0]
    said = [f"The SLLM at once, {last['tokens']} tokens of history against {first['tokens']}: "
            f"{_than('the longer', 'the shorter', last)}."]
    for name in dict.fromkeys(row["method"] for row in of["positions"]):
        bins = [row for row in of["positions"] if row["method"] == name]
        if name in ("window", "dpm-tuned", "speaker-memory") and len(bins) > 1:
            said.append(f"`{name}` by turn: {tables.value(bins[0], 'WA')} % in turns {bins[0]['turns']}, "
                        f"{tables.value(bins[-1], 'WA')} % in turns {bins[-1]['turns']}.")
    cost = {row["method"]: row for row in of["methods"]}
    ratio = cost["dpm-tuned"]["seconds_per_sentence"] / cost["window"]["seconds_per_sentence"]
    said.append(f"A sentence costs {1000 * cost['dpm-tuned']['seconds_per_sentence']:.1f} ms with the memory, "
                f"{ratio:.1f} times that of `window`.")
    dpm = sorted((row for row in of["cost"] if row["path"] == "dpm"), key=lambda row: row["codes"])
    said.append("Its peak memory: " + ", ".join(f"{row['peak_bytes'] / 1e6:.1f} MB after {row['codes']:,} codes"
                                                for row in (dpm[0], dpm[-1])) + ".")
    return said


KINDS = {"data": _data, "backbone": _backbone, "methods": _methods, "ablations": _ablations, "context": _context}


def claims(found: Sequence[Group]) -> pd.DataFrame:
    """What the paper claims, and what the records of each group show of it: verdict and numbers; the scale of
    both."""
    return pd.DataFrame([{"the paper's claim": claim} | {
        group.title: judged(group.kinds) if kind in group.kinds else "not run" for group in found}
        | {"the paper's scale": scale} for claim, kind, judged, scale in CLAIMS])


def _beats(kinds: Kinds) -> str:
    record = kinds["methods"]
    row = tables.difference(record, "all-lengths", "dpm", "at-once")
    if not row:
        return "not run"
    sign = tables.sign(row, record)
    every = " in every run" * ("WA_range" in row and sign != "differs by run")
    return f"{sign}{every}: {tables.value(row, 'WA', '+z.1f')}"


def _steps(kinds: Kinds) -> str:
    """By the gains over the same window, which are paired: a difference where their intervals lie apart."""
    steps = {r["value"]: r for r in kinds["ablations"]["results"]["rows"] if r["setting"] == "stepping"}
    own, best = steps.pop("sentence", None), max(steps.values(), key=lambda r: r["WA"], default=None)
    if not (own and best):
        return "not run"
    (low, high), (least, most) = own["WA_gain_interval"], best["WA_gain_interval"]
    sign = "yes" if low > most else "no, below" if high < least else "no measurable difference"
    return f"{sign}: WA {own['WA']:.1f}, {best['WA']:.1f} at {best['value']}"


def _longer(kinds: Kinds) -> str:
    first, *_, last = kinds["context"]["results"]["windows"]
    row = {"WA": last["WA_gain"], "WA_interval": last["WA_gain_interval"]}
    return (f"{tables.sign(row, kinds['context'])}: {tables.value(row, 'WA', '+z.1f')}, "
            f"{last['tokens']} tokens against {first['tokens']}")


def _flat(kinds: Kinds) -> str:
    cost = sorted((r["codes"], r["peak_bytes"]) for r in kinds["context"]["results"]["cost"] if r["path"] == "dpm")
    (few, least), (many, most) = cost[0], cost[-1]
    return (f"{'yes' if most < 2 * least else 'no'}: {least / 1e6:.0f} MB after {few:,} codes, {most / 1e6:.0f} MB "
            f"after {many:,}")


def scale(kinds: Kinds) -> str:
    """How large the evidence of a group is, as far as its records tell."""
    said, record = [], kinds["methods"]
    if "backbone" in kinds:
        said.append(f"{kinds['backbone']['results']['parameters'] / 1e6:.1f} M parameters")
    said.append(f"n_r {record['settings']['memory.prefix']} of {record['settings']['backbone.window']} tokens")
    if "data" in kinds:
        of = kinds["data"]["results"]
        said[-1] += f" ({record['settings']['memory.prefix'] / of['codes']['frame_rate']:.1f} s)"
        said.append(f"{of['hours']:.1f} h of {of['speakers']} speakers")
    part = record["results"]["protocols"]["all-lengths"]
    return "; ".join([*said, f"{part['targets']:,} targets in {part['conversations']} conversations"])


CLAIMS = (  # claim, kind of record, verdict, the paper's scale
    ("DPM beats the SLLM at once (Table 1)", "methods", _beats, "n_r 1,024 of 32,768 tokens"),
    ("A step per sentence beats longer ones (Table 3; here validation)", "ablations", _steps, "64 to 1,024 tokens"),
    ("A longer window helps at once (Table 4)", "context", _longer, "32,768 against 4,096 tokens"),
    ("Audio of any length fits", "context", _flat, "not reported"),
    ("*scale of the evidence*", "methods", scale, "7 B parameters; IEMOCAP, MELD"))
