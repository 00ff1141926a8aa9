"""Tables and words that are made of records and of nothing else, with what the paper reports beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from .metrics import MEASURES

# Paper, Table 1, in %: on IEMOCAP WA, UA, WF1, on MELD WF1; the methods' names are ours.
PAPER_TABLE_1 = {
    "iemocap": {
        "dpm": {"complete": (79.38, 79.62, 79.34), "all-lengths": (75.38, 74.67, 74.99)},
        "at-once": {"complete": (72.82, 73.34, 73.58), "all-lengths": (73.15, 71.98, 73.12)},
        "classifier": {"complete": (70.96, 70.51, 70.64), "all-lengths": (66.19, 63.40, 65.22)},
    },
    "meld": {
        "dpm": {"complete": (51.22,), "all-lengths": (52.82,)},
        "at-once": {"complete": (47.90,), "all-lengths": (52.53,)},
        "classifier": {"complete": (44.78,), "all-lengths": (46.84,)},
    },
}

# Paper, Table 2, its audio-only rows for others: WA, UA, WF1 on IEMOCAP (None: not given), WF1 on MELD.
PAPER_TABLE_2 = {
    "ESA-CRF": (73.17, 74.47, None, None), "MER-HAN": (73.33, 74.20, 73.66, 40.50),
    "Mi-CGA": (None, None, 73.77, None), "MER-TL": (75.76, 76.07, None, None),
    "GatedxLSTM": (76.34, None, 75.97, None), "MERITS-L": (None, None, 77.95, 49.32),
}
# Paper, Table 3: stepping on MELD, WF1 and (where given) speed against a step a sentence.
PAPER_TABLE_3 = {"sentence": (51.22, 1.0), "stride-64": (49.61,), "stride-128": (49.64,), "stride-256": (47.63,),
                 "stride-512": (43.25, 6.26), "stride-1024": (37.87, 12.72)}
# Paper, Table 4: the SLLM at once on IEMOCAP, by its window in tokens: WA, UA, WF1.
PAPER_TABLE_4 = {4096: (69.59, 72.07, 69.57), 32768: (72.85, 73.34, 75.58)}


def methods(record: dict[str, Any], protocol: str) -> pd.DataFrame:
    """The method table of a `methods` record as text: WA, UA, WF1 with intervals over conversations (over speakers
    where conversations share a memory), the gain in WA against `window` with both intervals, and what each row
    hears; rows that were not run say so."""
    results = record["results"]
    rows = {row["method"]: row for row in results["protocols"][protocol]["methods"]}
    out = []
    for listed in results.get("listed") or [{"method": m, "hears": results["hears"][m]} for m in rows]:
        method = listed["method"]
        line = {"method": method, **({"group": listed["group"]} if "group" in listed else {})}
        line |= dict.fromkeys(MEASURES, "not run") | {"WA against window": "", "over speakers": ""}
        if row := rows.get(method):
            line |= {m: _interval(row[m], row[f"{m}_interval"]) for m in MEASURES}
            if method != "window":
                line["WA against window"] = _interval(row["WA_gain"], row["WA_gain_interval"], "+.1f")
                line["over speakers"] = _range(row.get("WA_gain_speakers"))
        out.append(line | {"hears": listed["hears"]})
    return pd.DataFrame(out)


def contrasts(record: dict[str, Any], protocol: str) -> pd.DataFrame:
    """The declared contrasts of a `methods` record as text: WA in points, both intervals, and p, adjusted by Holm
    over the rows that have one; on single targets McNemar's, with the targets that one of the two alone answers
    rightly."""
    out = []
    for row in record["results"]["protocols"][protocol].get("contrasts", []):
        line = {"contrast": row["contrast"], "asks": row["asks"], "WA, points": f"{row['WA']:+.1f}",
                "over conversations": _range(row["WA_interval"]), "over speakers": _range(row["WA_speakers"])}
        if protocol == "complete":
            line |= {"only the first is right": str(row.get("a_only", "")),
                     "only the second": str(row.get("b_only", ""))}
        out.append(line | {"p (Holm)": _p(row) if "p" in row else "no test"})
    return pd.DataFrame(out)


def attribution(record: dict[str, Any]) -> pd.DataFrame:
    """The paper's contrast, dpm - at-once, the two that it is made of, and its other one, in points, beside the
    differences of the paper's own figures (WF1 where the corpus is MELD, else WA): a row per contrast."""
    corpus, m, published = (("MELD", "WF1", PAPER_TABLE_1["meld"]) if record["corpus"] == "meld" else
                            ("IEMOCAP", "WA", PAPER_TABLE_1["iemocap"]))
    parts = {protocol: {r["contrast"]: r for r in part.get("contrasts", [])}
             for protocol, part in record["results"]["protocols"].items()}
    out = []
    for name, words in (("dpm - at-once", "the paper's contrast"), ("window - at-once", "= a short window"),
                        ("dpm - window", "+ the memory"), ("at-once - classifier", "the paper's other contrast")):
        line = {"contrast": name, "is": words}
        for protocol, title in (("all-lengths", "every utterance"), ("complete", "complete dialogues")):
            row = parts[protocol].get(name)
            line[f"{title}: {m}, points"] = _interval(row[m], row[f"{m}_interval"], "+.1f") if row else "not run"
            of, than = (published.get(method, {}).get(protocol) for method in name.split(" - "))
            line[f"paper, {corpus}, {title}"] = f"{of[0] - than[0]:+.2f}" if of and than else "not reported"
        out.append(line)
    return pd.DataFrame(out)


def losses(record: dict[str, Any]) -> pd.DataFrame:
    """Mean L_t of later sentences under their own, a swapped and no memory, nats per token, as text."""
    return pd.DataFrame([{"method": name, "L_t under": row["difference"], "sentences": row["n"],
                          "difference, nats": _interval(row["mean"], row["interval"], "+.4f")}
                         for name, rows in record["results"].get("losses", {}).items() for row in rows])


def processors(made: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """`methods` records of one run from several processors, a row each: levels, and differences in points of WA."""
    out = []
    for record in made:
        rows = {row["method"]: row for row in record["results"]["protocols"]["all-lengths"]["methods"]}
        out.append({"processor": record["machine"]["processor"],
                    **{f"{m}: WA": f"{rows[m]['WA']:.1f}" for m in ("window", "at-once", "dpm") if m in rows},
                    **{f"{m} - window": f"{rows[m]['WA_gain']:+.1f}" for m in ("at-once", "dpm") if m in rows}})
    return pd.DataFrame(out)


def stepping(record: dict[str, Any]) -> pd.DataFrame:
    """Table 3 of the paper from an `ablations` record: WF1 of each stepping and its speed against a step a
    sentence, beside the paper's on MELD."""
    rows = {r["value"]: r for r in record["results"]["rows"] if r["setting"] == "stepping"}
    steppings = list(dict.fromkeys([*rows, *PAPER_TABLE_3]))
    return pd.DataFrame([{
        "stepping": name,
        "WF1": _interval(rows[name]["WF1"], rows[name]["WF1_interval"]) if name in rows else "not run",
        "speed": (f"{rows['sentence']['seconds_per_sentence'] / rows[name]['seconds_per_sentence']:.2f}"
                  if name in rows else ""),
        "paper, MELD: WF1": f"{PAPER_TABLE_3[name][0]:.2f}" if name in PAPER_TABLE_3 else "",
        "paper: speed": f"{PAPER_TABLE_3[name][1]:.2f}" if len(PAPER_TABLE_3.get(name, ())) > 1 else "",
    } for name in steppings])


def windows(record: dict[str, Any]) -> pd.DataFrame:
    """Table 4 of the paper from a `context` record: the SLLM at once, with so many tokens of history."""
    rows = [{"history, tokens": r["tokens"], **{m: _interval(r[m], r[f"{m}_interval"]) for m in MEASURES},
             "paper, IEMOCAP (WA / UA / WF1)": ""} for r in record["results"]["windows"]]
    rows += [{"history, tokens": tokens, **dict.fromkeys(MEASURES, "not run"),
              "paper, IEMOCAP (WA / UA / WF1)": " / ".join(f"{v:.2f}" for v in paper)}
             for tokens, paper in PAPER_TABLE_4.items()]
    return pd.DataFrame(rows)


def quoted() -> pd.DataFrame:
    """Table 2 of the paper: others' results, as it quotes them."""
    return pd.DataFrame([{"method": name, "IEMOCAP: WA": wa, "UA": ua, "WF1": wf1, "MELD: WF1": meld}
                         for name, (wa, ua, wf1, meld) in PAPER_TABLE_2.items()]).astype(object).fillna("–")


def _interval(middle: float, interval: Sequence[float | None], form: str = ".1f") -> str:
    return f"{middle:{form}} {_range(interval, form)}"


def _range(interval: Sequence[float | None] | None, form: str = "+.1f") -> str:
    return f"[{interval[0]:{form}}, {interval[1]:{form}}]" if interval and None not in interval else "–"


def _p(row: dict[str, Any]) -> str:
    return f"{'< ' if row.get('floor') else ''}{row['p_holm']:.2g}"


def spread(made: list[dict[str, Any]], what: str, protocol: str = "all-lengths") -> pd.DataFrame:
    """`methods` records that differ in `what` alone, seeds or folds: mean WA and mean gain over them, with the
    lowest and the highest (the spread of training or of test speakers; one record's intervals are the spread of its
    conversations)."""
    out: dict[str, dict[str, list[float]]] = {}
    for record in made:
        for row in record["results"]["protocols"][protocol]["methods"]:
            kept = out.setdefault(row["method"], {"WA": [], "WA_gain": []})
            kept["WA"].append(row["WA"])
            kept["WA_gain"].append(row["WA_gain"])
    return pd.DataFrame([{
        "method": method, f"WA, mean of {len(made)} {what}": f"{np.mean(v['WA']):.1f}",
        "lowest to highest": f"{min(v['WA']):.1f} to {max(v['WA']):.1f}",
        "WA against window, mean": f"{np.mean(v['WA_gain']):+.1f}",
        "lowest to highest gain": f"{min(v['WA_gain']):+.1f} to {max(v['WA_gain']):+.1f}",
    } for method, v in out.items() if len(v["WA"]) == len(made)])


def rungs(results: dict) -> pd.DataFrame:
    """A bench's rungs as text: sentences a second, ratio to the loop, change in the answers of the trained SLLM."""
    rows, changes = [], {c["rung"]: c for c in results["changes"]}
    for row in results["rates"]:
        used = row["rate"] * row["flops_per_sentence"] / results["peak"][row["precision"]]
        line = {"backbone": row["shape"], "rung": row["rung"], "streams": row["streams"],
                "sentences/s": _interval(row["rate"], row["rate_range"]),
                "times the PEFT loop": _interval(row["ratio"], row["ratio_range"], ".2f"),
                "of the matmul peak": f"{100 * used:.0f} %", **_conversation(row),
                "WA against exact": "", "answers changed": ""}
        change = changes.get(row["rung"])
        if change and row["shape"] == results["rates"][0]["shape"]:  # the other's weights are random
            line["WA against exact"] = _interval(change["WA_gain"], change["WA_gain_interval"], "+.1f")
            line["answers changed"] = f"{100 * change['changed']:.1f} %"
        rows.append(line)
    return pd.DataFrame(rows)


def _conversation(row: dict) -> dict[str, Any]:
    """What was timed, where the record has it."""
    if "sentences" not in row:
        return {}
    return {"conversation": f"{row['sentences']} sentences of {row['codes']} codes", "threads": row["threads"],
            "rounds": row["n"]}


def stream(results: dict[str, Any]) -> pd.DataFrame:
    """A bench's long stream as text, a row a part."""
    rows = pd.DataFrame(results["rows"])
    return pd.DataFrame({
        "hours": rows["hours"].map("{:.2f}".format), "codes": rows["codes"],
        "ms per sentence": (1000 * rows["seconds_per_sentence"]).map("{:.1f}".format),
        "processor ms": (1000 * rows["processor_seconds_per_sentence"]).map("{:.1f}".format),
        "resident MB": (rows["resident_bytes"] / 1e6).map("{:.0f}".format),
        "norm": rows["norm"].map("{:.3f}".format), "L_t": rows["L_t"].map("{:.3f}".format),
        "WA": rows["WA"].map("{:.1f}".format)})


def plan(results: dict[str, Any]) -> pd.DataFrame:
    """GPU hours of each corpus' grid, from a `plan` record."""
    out = []
    for r in results["rows"]:
        cells = r["cells"]
        shares = {w: sum(c[w] for c in cells) for w in ("training", "writing", "reading")}
        out.append({
            "corpus": r["corpus"], "profile": r["profile"], "folds x seeds": f"{len(cells)} x {r['seeds']}",
            "PFLOP a cell: 02, writes, reads": ", ".join(f"{v / len(cells) / 1e15:,.0f}" for v in shares.values()),
            "GB in training": f"{max(c['gigabytes'] for c in cells):.0f}",
            "rate": f"{r['teraflops']:.3g} TFLOP/s {'measured here' if r['measured_here'] else 'given'}, "
                    f"{r['utilisation']:.0%} of it reached",
            "GPU hours": f"{r['gpu_hours']:.1f}",
            **{f"hours on {n} GPU{'s' * (n != '1')}": f"{h:.1f}" for n, h in r["hours_on"].items()},
            "cost": f"{r['gpu_hours'] * r['price']:,.0f} at {r['price']:g} a GPU hour" if r["price"] else ""})
    return pd.DataFrame(out)


def threads(results: dict[str, Any]) -> pd.DataFrame:
    """How threads wait: a bench's median rates as text, with the lowest and highest."""
    rates = {"sentences/s": "sentences_per_second", "steps/s": "steps_per_second"}
    return pd.DataFrame([{
        "machine": r["machine"], "waiting": r["waiting"], "n": r["n"], "chose": ", ".join(r["chose"]),
        **{k: _interval(float(np.median(r[v])), (min(r[v]), max(r[v]))) for k, v in rates.items()}}
        for r in results["rows"]])


def context(results: dict[str, Any]) -> pd.DataFrame:
    """A bench's cost against history as text, a row a length: seconds / MB of each path."""
    rows = pd.DataFrame(results["rows"])
    rows["cost"] = (rows["seconds"].map("{:.2f} s / ".format) + (rows["peak_bytes"] / 1e6).map("{:.0f} MB".format))
    return rows.pivot(index="codes", columns="path", values="cost")[list(dict.fromkeys(rows["path"]))].reset_index()


def verdict(record: dict[str, Any], protocol: str = "all-lengths") -> str:
    """What a `methods` record's declared contrasts, losses and rows say, in sentences made of them alone. `above`
    and `below`: the contrast's p, adjusted by Holm, is under 1 - confidence; else `no measurable difference`."""
    part = record["results"]["protocols"][protocol]
    rows, tests = ({r[key]: r for r in part.get(kind, [])} for kind, key in (("methods", "method"),
                                                                            ("contrasts", "contrast")))
    alpha = round(1 - record["settings"]["evaluation.confidence"], 9)

    def figure(row: dict[str, Any]) -> str:
        return _interval(row["WA"], row["WA_interval"], "+.1f")

    def said(name: str, first: str, second: str) -> list[str]:
        if name not in tests:
            return []
        row = tests[name]
        words = ("no measurable difference between {} and {}" if row["p_holm"] >= alpha else
                 "{} is above {}" if row["WA"] > 0 else "{} is below {}").format(first, second)
        return [f"{words[0].upper()}{words[1:]} ({figure(row)} points WA, p {_p(row)})."]

    lines = said("dpm - at-once", "DPM", "the same SLLM given all at once, the paper's contrast")
    if {"window - at-once", "dpm - window"} <= {*tests}:
        lines += [f"Of that, a short window makes {figure(tests['window - at-once'])}, the memory "
                  f"{figure(tests['dpm - window'])}."]
    lines += said("dpm - window", "DPM", "the same SLLM and window without a memory")
    lines += said("dpm - dpm-swapped", "its own memory", "another conversation's")
    lines += said("dpm-tuned - window", "DPM at the rate that validation chose", "the window")
    lines += said("dpm-tuned - dpm-tuned-swapped", "its own memory", "another conversation's")
    if protocol == "all-lengths":
        lines += [_stored(name, made) for name, made in record["results"].get("losses", {}).items()]
    lines += said("speaker-memory - speaker-head + filter", "the memory of speakers (told who speaks)",
                  "its head under the filter without one")
    lines += said("speaker-memory - speaker-memory-swapped", "its own offsets", "another's")
    if not lines:
        return "This record has no declared contrasts: run notebook 03 again."
    groups = {r["method"]: r["group"] for r in record["results"].get("listed", [])}
    better = [f"{m} {r['WA_gain']:+.1f}" for m, r in rows.items()
              if groups.get(m) in ("method", "extension", "filter")
              and min(i[0] or 0 for i in (r["WA_gain_interval"], r["WA_gain_speakers"]) if i) > 0]
    lines += [f"Above the window by their intervals, untested: {', '.join(better)}."] if better else []
    if bounds := [f"{m} {r['WA']:.1f}" for m, r in rows.items() if groups.get(m) == "bound"]:
        lines += [f"WA of the bounds, given true labels: {', '.join(bounds)}; of the window "
                  f"{rows['window']['WA']:.1f}."]
    return " ".join(lines)


def _stored(name: str, rows: Sequence[dict[str, Any]]) -> str:
    """What a memory has stored, by L_t of the conversation's later sentences."""
    by = {r["difference"]: r for r in rows}
    none, swapped = (by[f"own - {other}"] for other in ("none", "swapped"))
    what = ("of this conversation" if swapped["interval"][1] < 0 and none["interval"][1] < 0 else
            "of how such conversations sound, and nothing measurable of this one" if none["interval"][1] < 0 else
            "nothing measurable")
    return (f"By L_t of later sentences `{name}` stores {'something ' if what[0] == 'o' else ''}{what}: "
            f"{none['mean']:+.4f} {_range(none['interval'], '+.4f')} nats under its own memory against none, "
            f"{swapped['mean']:+.4f} {_range(swapped['interval'], '+.4f')} against another's.")


def shown(table: pd.DataFrame) -> Styler:
    """The table as a notebook shows it: no index, words from the left."""
    return table.style.hide(axis="index").set_properties(**{"text-align": "left"})


def markdown(table: pd.DataFrame) -> str:
    head = [f"| {' | '.join(table.columns)} |", f"|{'---|' * len(table.columns)}"]
    return "\n".join(head + [f"| {' | '.join(str(v) for v in row)} |" for row in table.itertuples(index=False)])
