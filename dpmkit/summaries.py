"""Tables and words that are made of records and of nothing else, with what the paper reports beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

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


def methods_table(record: dict[str, Any], protocol: str) -> pd.DataFrame:
    """The method table of a `methods` record as text: WA, UA, WF1 with intervals, the gain in WA with its p (Holm
    over the table), and what each row hears; rows that were not run say so."""
    results = record["results"]
    rows = {row["method"]: row for row in results["protocols"][protocol]["methods"]}
    published, title = ("meld", "paper, MELD (WF1)") if record["corpus"] == "meld" else (
        "iemocap", "paper, IEMOCAP (WA / UA / WF1)")  # the paper's first corpus stands beside any other
    out = []
    for listed in results.get("listed") or [{"method": m, "hears": results["hears"][m]} for m in rows]:
        method = listed["method"]
        line = {"method": method, **({"group": listed["group"]} if "group" in listed else {})}
        line |= dict.fromkeys(MEASURES, "not run") | {"WA against window": "", "p (Holm)": ""}
        if row := rows.get(method):
            line |= {m: _interval(row[m], row[f"{m}_interval"]) for m in MEASURES}
            line["WA against window"] = ("–" if method == "window" else
                                         _interval(row["WA_gain"], row["WA_gain_interval"], "+.1f"))
            line["p (Holm)"] = f"{row['WA_gain_p_holm']:.2g}" if "WA_gain_p_holm" in row else ""
        paper = PAPER_TABLE_1[published].get(method, {}).get(protocol)
        line[title] = " / ".join(f"{v:.2f}" for v in paper) if paper else ""
        out.append(line | {"hears": listed["hears"]})
    return pd.DataFrame(out)


def stepping_table(record: dict[str, Any]) -> pd.DataFrame:
    """Table 3 of the paper from an `ablations` record: WF1 of each stepping and its speed against a step a
    sentence, beside the paper's on MELD."""
    rows = {r["value"]: r for r in record["results"]["rows"] if r["setting"] == "stepping"}
    steppings = list(dict.fromkeys([*rows, *PAPER_TABLE_3]))
    return pd.DataFrame([{
        "stepping": name,
        "WF1": _interval(rows[name]["WF1"], rows[name]["WF1_interval"]) if name in rows else "not run",
        "speed": (f"{rows['sentence']['seconds_a_sentence'] / rows[name]['seconds_a_sentence']:.2f}"
                  if name in rows else ""),
        "paper, MELD: WF1": f"{PAPER_TABLE_3[name][0]:.2f}" if name in PAPER_TABLE_3 else "",
        "paper: speed": f"{PAPER_TABLE_3[name][1]:.2f}" if len(PAPER_TABLE_3.get(name, ())) > 1 else "",
    } for name in steppings])


def windows_table(record: dict[str, Any]) -> pd.DataFrame:
    """Table 4 of the paper from a `context` record: the SLLM at once, with so many tokens of history."""
    rows = [{"history, tokens": r["tokens"], **{m: _interval(r[m], r[f"{m}_interval"]) for m in MEASURES},
             "paper, IEMOCAP (WA / UA / WF1)": ""} for r in record["results"]["windows"]]
    rows += [{"history, tokens": tokens, **dict.fromkeys(MEASURES, "not run"),
              "paper, IEMOCAP (WA / UA / WF1)": " / ".join(f"{v:.2f}" for v in paper)}
             for tokens, paper in PAPER_TABLE_4.items()]
    return pd.DataFrame(rows)


def quoted_table() -> pd.DataFrame:
    """Table 2 of the paper: others' results, as it quotes them."""
    return pd.DataFrame([{"method": name, "IEMOCAP: WA": wa, "UA": ua, "WF1": wf1, "MELD: WF1": meld}
                         for name, (wa, ua, wf1, meld) in PAPER_TABLE_2.items()]).astype(object).fillna("–")


def _interval(middle: float, interval: Sequence[float], form: str = ".1f") -> str:
    return f"{middle:{form}} [{interval[0]:{form}}, {interval[1]:{form}}]"


def spread_table(made: list[dict[str, Any]], what: str, protocol: str = "all-lengths") -> pd.DataFrame:
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


def rungs_table(results: dict) -> pd.DataFrame:
    """A bench's rungs as text: sentences a second, ratio to the loop, change in the answers of the trained SLLM."""
    rows, changes = [], {c["rung"]: c for c in results["changes"]}
    for row in results["rates"]:
        used = row["rate"] * row["flops_a_sentence"] / results["peak"][row["precision"]]
        line = {"backbone": row["shape"], "rung": row["rung"], "streams": row["streams"],
                "sentences/s": _interval(row["rate"], row["rate_range"]),
                "times the PEFT loop": _interval(row["ratio"], row["ratio_range"], ".2f"),
                "of the matmul peak": f"{100 * used:.0f} %",
                "WA against exact": "", "answers changed": ""}
        change = changes.get(row["rung"])
        if change and row["shape"] == results["rates"][0]["shape"]:  # the other's weights are random
            line["WA against exact"] = _interval(change["WA_gain"], change["WA_gain_interval"], "+.1f")
            line["answers changed"] = f"{100 * change['changed']:.1f} %"
        rows.append(line)
    return pd.DataFrame(rows)


def stream_table(results: dict[str, Any]) -> pd.DataFrame:
    """A bench's long stream as text, a row a part."""
    rows = pd.DataFrame(results["rows"])
    return pd.DataFrame({
        "hours": rows["hours"].map("{:.2f}".format), "codes": rows["codes"],
        "ms a sentence": (1000 * rows["seconds_a_sentence"]).map("{:.1f}".format),
        "processor ms": (1000 * rows["processor_seconds_a_sentence"]).map("{:.1f}".format),
        "resident MB": (rows["resident_bytes"] / 1e6).map("{:.0f}".format),
        "norm": rows["norm"].map("{:.3f}".format), "L_t": rows["L_t"].map("{:.3f}".format),
        "WA": rows["WA"].map("{:.1f}".format)})


def plan_table(results: dict[str, Any]) -> pd.DataFrame:
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


def rows_table(results: dict[str, Any]) -> pd.DataFrame:
    """Validation losses and accuracy an epoch, from a `rows` record."""
    return pd.DataFrame([{
        "new rows start": r["rows"], "epoch": h["epoch"],
        "L_a": f"{h['eval_l_a']:.3f}", "L_e": f"{h['eval_l_e']:.3f}",
        "WA": f"{100 * h['eval_wa']:.1f}", "UA": f"{100 * h['eval_ua']:.1f}",
    } for r in results["rows"] for h in r["history"]])


def context_table(results: dict[str, Any]) -> pd.DataFrame:
    """A bench's cost against history as text, a row a length: seconds / MB of each path."""
    rows = pd.DataFrame(results["rows"])
    rows["cost"] = (rows["seconds"].map("{:.2f} s / ".format) + (rows["peak_bytes"] / 1e6).map("{:.0f} MB".format))
    return rows.pivot(index="codes", columns="path", values="cost")[list(dict.fromkeys(rows["path"]))].reset_index()


def verdict(record: dict[str, Any], protocol: str = "all-lengths") -> str:
    """What the intervals say of DPM, at the paper's rate and at the one that validation chose, and its controls."""
    rows = {r["method"]: r for r in record["results"]["protocols"][protocol]["methods"]}

    def against_window(method: str) -> str:
        low, high = rows[method]["WA_gain_interval"]
        said = "beats" if low > 0 else "is worse than" if high < 0 else "cannot be told from"
        return f"{said} the same frozen SLLM without a memory ({words(method)})"

    def words(method: str) -> str:
        low, high = rows[method]["WA_gain_interval"]
        return f"{rows[method]['WA_gain']:+.1f} points WA [{low:+.1f}, {high:+.1f}]"

    text = f"DPM {against_window('dpm')}; the control, a memory of another conversation: {words('dpm-swapped')}."
    if "dpm-tuned" in rows:
        text += (f" At the learning rate that validation chose, DPM {against_window('dpm-tuned')}; its control: "
                 f"{words('dpm-tuned-swapped')}.")
    if "speaker-memory-kept" in rows:
        best = max(("window", "current", "at-once", "kv-window"), key=lambda m: rows.get(m, {"WA": 0})["WA"])
        text += (" The extension that remembers speakers, told who speaks, against the window: "
                 f"{words('speaker-memory')}; with another's offsets: {words('speaker-memory-swapped')}; kept from "
                 f"conversation to conversation: {words('speaker-memory-kept')}; its bounds, told the emotions of "
                 f"what the speaker said before: {words('speaker-told')}, with offsets from all true labels: "
                 f"{words('speaker-oracle')}. The best SLLM without a memory is {best} ({rows[best]['WA']:.1f}).")
    return text
