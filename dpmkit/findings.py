"""What a notebook's record says, in sentences: the closing cell of each notebook, written of the record alone.

A difference is said to be one where its interval leaves 0 out; elsewhere there is `no measurable difference`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import tables

Record = Mapping[str, Any]


def learnt(record: Record) -> str:
    """A record's findings as a Markdown list, of what kind it may be, with the run that they are of."""
    of = KINDS[record["kind"]](record)
    run = f"{record['profile']} on {record['corpus']}, fold {record['fold']}, seed {record['seed']}"
    return "\n".join([f"Of this run ({run}), from its record:\n", *(f"- {sentence}" for sentence in of)])


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


def _methods(record: Record) -> list[str]:
    results = record["results"]
    part, groups = results["protocols"]["all-lengths"], {r["method"]: r["group"] for r in results["listed"]}
    rows = {row["method"]: row for row in part["methods"]}
    shares = {}
    for a, b in (("dpm", "at-once"), ("window", "at-once"), ("dpm", "window")):
        of, interval = tables.difference(record, "all-lengths", a, b)
        shares[f"{a} - {b}"] = tables.value({"WA": of, "WA_interval": interval}, "WA", "+.1f")
    said = [f"The paper's contrast, `dpm - at-once`, is {shares['dpm - at-once']} points of WA here, of "
            f"{part['targets']} utterances in {part['conversations']} conversations: `window - at-once`, a short "
            f"window, {shares['window - at-once']}, and `dpm - window`, the memory, {shares['dpm - window']}."]
    said += [sentence for sentence in tables.verdict(record) if sentence.startswith("By L_t")]
    heard = [row for m, row in rows.items() if groups[m] not in ("bound", "control")]
    best = max(heard, key=lambda row: row["WA"])
    said.append(f"The highest WA of what no true label helps is that of `{best['method']}`, "
                f"{tables.value(best, 'WA')} %; `window` has {tables.value(rows['window'], 'WA')} %. "
                "With true labels " + ", ".join(
                    f"`{m}` {row['WA']:.1f} %" for m, row in rows.items() if groups[m] == "bound") + ".")
    return said


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
