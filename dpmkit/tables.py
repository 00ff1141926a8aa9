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
# Paper, Table 3: stepping on MELD, WF1 and (where given) speed against a step per sentence.
PAPER_TABLE_3 = {"sentence": (51.22, 1.0), "stride-64": (49.61,), "stride-128": (49.64,), "stride-256": (47.63,),
                 "stride-512": (43.25, 6.26), "stride-1024": (37.87, 12.72)}
# Paper, Table 4: the SLLM at once on IEMOCAP, by its window in tokens: WA, UA, WF1.
PAPER_TABLE_4 = {4096: (69.59, 72.07, 69.57), 32768: (72.85, 73.34, 75.58)}


def shown(table: pd.DataFrame) -> Styler:
    """The table as a notebook shows it: no index, words from the left."""
    return table.style.hide(axis="index").set_properties(**{"text-align": "left"})


def markdown(table: pd.DataFrame) -> str:
    """The table as Markdown."""
    head = [f"| {' | '.join(table.columns)} |", f"|{'---|' * len(table.columns)}"]
    return "\n".join(head + [f"| {' | '.join(map(str, row))} |" for row in table.itertuples(index=False)])


def _range(interval: Sequence[float | None] | None, form: str = "+.1f") -> str:
    return f"[{interval[0]:{form}}, {interval[1]:{form}}]" if interval and None not in interval else "–"


def value(row: dict[str, Any], key: str, form: str = ".1f") -> str:
    """What stands under `key`, with its interval."""
    return f"{row[key]:{form}} {_range(row[f'{key}_interval'], form)}"


def _p(row: dict[str, Any]) -> str:
    return f"{'< ' if row.get('floor') else ''}{row['p_holm']:.2g}"


def _by(rows: Sequence[dict[str, Any]], key: str) -> dict[Any, dict[str, Any]]:
    return {row[key]: row for row in rows}


def methods(record: dict[str, Any], protocol: str) -> pd.DataFrame:
    """The methods of a `methods` record: WA, UA, WF1 with intervals over conversations (over speakers where these
    share a memory), the gain in WA against `window` with both intervals, and what each row hears."""
    rows, out = _by(record["results"]["protocols"][protocol]["methods"], "method"), []
    for listed in record["results"]["listed"]:
        row = rows.get(listed["method"])
        gains = row is not None and listed["method"] != "window"
        out.append({"method": listed["method"], "group": listed["group"],
                    **{m: value(row, m) if row else "not run" for m in MEASURES},
                    "WA against window": value(row, "WA_gain", "+.1f") if gains else "",
                    "over speakers": _range(row["WA_gain_speakers"]) if gains else "", "hears": listed["hears"]})
    return pd.DataFrame(out)


def contrasts(record: dict[str, Any], protocol: str) -> pd.DataFrame:
    """The declared contrasts of a `methods` record: WA in points, both intervals, and p, adjusted by Holm over the
    rows that have one; on single targets McNemar's, with the targets that one of the two alone answers rightly."""
    out = []
    for row in record["results"]["protocols"][protocol]["contrasts"]:
        line = {"contrast": row["contrast"], "asks": row["asks"], "WA, points": f"{row['WA']:+.1f}",
                "over conversations": _range(row["WA_interval"]), "over speakers": _range(row["WA_speakers"])}
        if protocol == "complete":
            line |= {"only the first is right": str(row.get("a_only", "")),
                     "only the second": str(row.get("b_only", ""))}
        out.append(line | {"p (Holm)": _p(row) if "p" in row else "no test"})
    return pd.DataFrame(out)


def attribution(record: dict[str, Any]) -> pd.DataFrame:
    """The paper's contrast, dpm - at-once, the two that it is made of, and its other one, in points, beside the
    differences of the paper's own figures (WF1 where the corpus is MELD, else WA)."""
    corpus, m = ("MELD", "WF1") if record["corpus"] == "meld" else ("IEMOCAP", "WA")
    out = []
    for name, words in (("dpm - at-once", "the paper's contrast"), ("window - at-once", "= a short window"),
                        ("dpm - window", "+ the memory"), ("at-once - classifier", "the paper's other contrast")):
        line = {"contrast": name, "is": words}
        for protocol, title in (("all-lengths", "every utterance"), ("complete", "complete dialogues")):
            row = _by(record["results"]["protocols"][protocol]["contrasts"], "contrast").get(name)
            line[f"{title}: {m}, points"] = value(row, m, "+.1f") if row else "not run"
            of, than = (PAPER_TABLE_1[corpus.lower()].get(method, {}).get(protocol) for method in name.split(" - "))
            line[f"paper, {corpus}, {title}"] = f"{of[0] - than[0]:+.2f}" if of and than else "not reported"
        out.append(line)
    return pd.DataFrame(out)


def losses(record: dict[str, Any]) -> pd.DataFrame:
    """Mean L_t of later sentences under their own, a swapped and no memory, nats per token."""
    return pd.DataFrame([{"method": name, "L_t under": row["difference"], "sentences": row["n"],
                          "difference, nats": f"{row['mean']:+.4f} {_range(row['interval'], '+.4f')}"}
                         for name, rows in record["results"]["losses"].items() for row in rows])


# Contrast -> what is above, below or no different from what, in the verdict.
COMPARED = {
    "dpm - at-once": ("DPM", "the same SLLM given all at once, the paper's contrast"),
    "dpm - window": ("DPM", "the same SLLM and window without a memory"),
    "dpm - dpm-swapped": ("its own memory", "another conversation's"),
    "dpm-tuned - window": ("DPM at the rate that validation chose", "the window"),
    "dpm-tuned - dpm-tuned-swapped": ("its own memory", "another conversation's"),
    "speaker-memory - speaker-head + filter": ("the memory of speakers (which knows who speaks)",
                                               "its head under the filter without one"),
    "speaker-memory - speaker-memory-swapped": ("its own offsets", "another's"),
}


def verdict(record: dict[str, Any], protocol: str = "all-lengths") -> str:
    """What a `methods` record's declared contrasts, losses and rows say, in sentences made of them alone. `above`
    and `below`: the contrast's p, adjusted by Holm, is under 1 - confidence; else `no measurable difference`."""
    results, part = record["results"], record["results"]["protocols"][protocol]
    rows, tested = _by(part["methods"], "method"), _by(part["contrasts"], "contrast")
    if not tested:
        return "This record has no declared contrasts: run notebook 03 again."
    alpha = round(1 - record["settings"]["evaluation.confidence"], 9)
    lines = {name: _sentence(tested[name], *words, alpha) for name, words in COMPARED.items() if name in tested}
    if {"dpm - at-once", "window - at-once", "dpm - window"} <= {*tested}:
        window, memory = (value(tested[of], "WA", "+.1f") for of in ("window - at-once", "dpm - window"))
        lines["dpm - at-once"] += f" Of that, a short window makes {window}, the memory {memory}."
    stored = results["losses"].items() if protocol == "all-lengths" else ()
    said = [*(line for name, line in lines.items() if not name.startswith("speaker")),
            *(_stored(name, _by(made, "difference")) for name, made in stored),
            *(line for name, line in lines.items() if name.startswith("speaker"))]
    groups = {r["method"]: r["group"] for r in results["listed"]}
    better = [f"{m} {r['WA_gain']:+.1f}" for m, r in rows.items()
              if groups.get(m) in ("method", "extension", "filter")
              and min(i[0] or 0 for i in (r["WA_gain_interval"], r["WA_gain_speakers"]) if i) > 0]
    if better:
        said.append(f"Above the window by their intervals, untested: {', '.join(better)}.")
    if bounds := [f"{m} {r['WA']:.1f}" for m, r in rows.items() if groups.get(m) == "bound"]:
        said.append(f"WA of the bounds, given true labels: {', '.join(bounds)}; of the window "
                    f"{rows['window']['WA']:.1f}.")
    return " ".join(said)


def _sentence(row: dict[str, Any], first: str, second: str, alpha: float) -> str:
    words = (f"no measurable difference between {first} and {second}" if row["p_holm"] >= alpha else
             f"{first} is {'above' if row['WA'] > 0 else 'below'} {second}")
    return f"{words[0].upper()}{words[1:]} ({value(row, 'WA', '+.1f')} points WA, p {_p(row)})."


def _stored(name: str, by: dict[str, dict[str, Any]]) -> str:
    """What a memory has stored, by L_t of the conversation's later sentences."""
    none, swapped = (by[f"own - {other}"] for other in ("none", "swapped"))
    what = "nothing measurable"
    if none["interval"][1] < 0:
        what = ("something of this conversation" if swapped["interval"][1] < 0 else
                "something of how such conversations sound, and nothing measurable of this one")
    return (f"By L_t of later sentences `{name}` stores {what}: "
            f"{none['mean']:+.4f} {_range(none['interval'], '+.4f')} nats under its own memory against none, "
            f"{swapped['mean']:+.4f} {_range(swapped['interval'], '+.4f')} against another's.")


def spread(made: Sequence[dict[str, Any]], what: str) -> pd.DataFrame:
    """`methods` records that differ in `what` alone, seeds or folds: mean WA and mean gain over them, with the
    lowest and the highest: the spread of training or of test speakers."""
    rows = pd.concat([pd.DataFrame(r["results"]["protocols"]["all-lengths"]["methods"]) for r in made])
    return pd.DataFrame([{
        "method": method, f"WA, mean of {len(made)} {what}": f"{part['WA'].mean():.1f}",
        "lowest to highest": f"{part['WA'].min():.1f} to {part['WA'].max():.1f}",
        "WA against window, mean": f"{part['WA_gain'].mean():+.1f}",
        "lowest to highest gain": f"{part['WA_gain'].min():+.1f} to {part['WA_gain'].max():+.1f}",
    } for method, part in rows.groupby("method", sort=False) if len(part) == len(made)])


def processors(made: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """`methods` records of one run from several processors, a row each: levels, and differences in points of WA."""
    out = []
    for record in made:
        rows = _by(record["results"]["protocols"]["all-lengths"]["methods"], "method")
        out.append({"processor": record["machine"]["processor"],
                    **{f"{m}: WA": f"{rows[m]['WA']:.1f}" for m in ("window", "at-once", "dpm") if m in rows},
                    **{f"{m} - window": f"{rows[m]['WA_gain']:+.1f}" for m in ("at-once", "dpm") if m in rows}})
    return pd.DataFrame(out)


def stepping(record: dict[str, Any]) -> pd.DataFrame:
    """Table 3 of the paper from an `ablations` record: WF1 of each stepping and its speed against a step per
    sentence, beside the paper's on MELD."""
    rows, out = _by([r for r in record["results"]["rows"] if r["setting"] == "stepping"], "value"), []
    for name in dict.fromkeys([*rows, *PAPER_TABLE_3]):
        row, paper = rows.get(name), PAPER_TABLE_3.get(name, ())
        speed = rows["sentence"]["seconds_per_sentence"] / row["seconds_per_sentence"] if row else 0
        out.append({"stepping": name, "WF1": value(row, "WF1") if row else "not run",
                    "speed": f"{speed:.2f}" if row else "", "paper, MELD: WF1": f"{paper[0]:.2f}" if paper else "",
                    "paper: speed": f"{paper[1]:.2f}" if len(paper) > 1 else ""})
    return pd.DataFrame(out)


def windows(record: dict[str, Any]) -> pd.DataFrame:
    """Table 4 of the paper from a `context` record: the SLLM at once, with so many tokens of history."""
    paper = "paper, IEMOCAP (WA / UA / WF1)"
    rows = [{"history, tokens": r["tokens"], **{m: value(r, m) for m in MEASURES}, paper: ""}
            for r in record["results"]["windows"]]
    return pd.DataFrame(rows + [{"history, tokens": tokens, **dict.fromkeys(MEASURES, "not run"),
                                 paper: " / ".join(f"{v:.2f}" for v in values)}
                                for tokens, values in PAPER_TABLE_4.items()])


def quoted() -> pd.DataFrame:
    """Table 2 of the paper: others' results, as it quotes them."""
    table = pd.DataFrame.from_dict(PAPER_TABLE_2, orient="index", columns=["IEMOCAP: WA", "UA", "WF1", "MELD: WF1"])
    return table.astype(object).fillna("–").rename_axis("method").reset_index()


def best(results: dict[str, Any]) -> str:
    """What came of the best configuration of an `ablations` record on the test fold."""
    top, final = results["best"], _by(results["final"], "method")
    chosen = ", ".join(f"{name} {set_to}" for name, set_to in top["memory"].items())
    return (f"Of {top['tried']} configurations, {chosen} had the highest WA on validation "
            f"({top['validation_WA']:.1f}); on the test fold, once: {value(final['dpm'], 'WA_gain', '+.1f')} "
            f"points over no memory, its swapped control {final['dpm-swapped']['WA_gain']:+.1f}.")


def corpus(results: dict[str, Any]) -> str:
    """What a `data` record says of its corpus."""
    return (f"**Corpus**: {results['conversations']} conversations, {results['utterances']} utterances, "
            f"{results['hours']:.2f} h, {results['speakers']} speakers; skipped: {results['skipped_count']}.")


def references(results: dict[str, Any], split: str) -> str:
    """The reference classifiers of a `data` record."""
    rows = [f"{r['method']} {100 * r['WA']:.1f} / {100 * r['UA']:.1f}" for r in results["reference"][split]]
    return ("Reference classifiers (logistic regression on an utterance's pooled acoustics; oracles are given "
            f"true labels), {split} fold, WA / UA in %: {'; '.join(rows)}.")


def backbone(results: dict[str, Any]) -> str:
    """What a `backbone` record says of its SLLM."""
    kept = _by(results["history"], "epoch")[results["best_epoch"]]
    return (f"**SLLM**: {results['parameters'] / 1e6:.2f} M parameters, "
            f"{results['trained_parameters'] / 1e6:.2f} M trained, best epoch {results['best_epoch']} of "
            f"{len(results['history'])}; validation there: L_a {kept['eval_l_a']:.3f}, "
            f"L_e {kept['eval_l_e']:.3f}, WA {100 * kept['eval_wa']:.1f}, UA {100 * kept['eval_ua']:.1f}.")


def rungs(results: dict[str, Any]) -> pd.DataFrame:
    """A bench's rungs: sentences per second, ratio to the loop, change in the answers of the trained SLLM."""
    rows, changes = [], _by(results["changes"], "rung")
    for row in results["rates"]:
        used = row["rate"] * row["flops_per_sentence"] / results["peak"][row["precision"]]
        line = {"backbone": row["shape"], "rung": row["rung"], "streams": row["streams"],
                "sentences/s": f"{row['rate']:.1f} {_range(row['rate_range'], '.1f')}",
                "times the PEFT loop": f"{row['ratio']:.2f} {_range(row['ratio_range'], '.2f')}",
                "of the matmul peak": f"{100 * used:.0f} %"}
        if "sentences" in row:  # what was timed, where the record has it
            line |= {"conversation": f"{row['sentences']} sentences of {row['codes']} codes",
                     "threads": row["threads"], "rounds": row["n"]}
        # The other backbone's weights are random.
        change = changes.get(row["rung"]) if row["shape"] == results["rates"][0]["shape"] else None
        rows.append(line | {"WA against exact": value(change, "WA_gain", "+.1f") if change else "",
                            "answers changed": f"{100 * change['changed']:.1f} %" if change else ""})
    return pd.DataFrame(rows)


def stream(results: dict[str, Any]) -> pd.DataFrame:
    """A bench's long stream, a row per part."""
    rows = pd.DataFrame(results["rows"])
    shown = {"hours": (rows["hours"], "{:.2f}"), "codes": (rows["codes"], "{}"),
             "ms per sentence": (1000 * rows["seconds_per_sentence"], "{:.1f}"),
             "processor ms": (1000 * rows["processor_seconds_per_sentence"], "{:.1f}"),
             "resident MB": (rows["resident_bytes"] / 1e6, "{:.0f}"), "norm": (rows["norm"], "{:.3f}"),
             "L_t": (rows["L_t"], "{:.3f}"), "WA": (rows["WA"], "{:.1f}")}
    return pd.DataFrame({name: values.map(form.format) for name, (values, form) in shown.items()})


def plan(results: dict[str, Any]) -> pd.DataFrame:
    """GPU hours of each corpus' grid, from a `plan` record."""
    out = []
    for r in results["rows"]:
        cells = pd.DataFrame(r["cells"])
        shares = cells[["training", "writing", "reading"]].mean() / 1e15
        out.append({
            "corpus": r["corpus"], "profile": r["profile"], "folds x seeds": f"{len(cells)} x {r['seeds']}",
            "PFLOP per cell: 02, writes, reads": ", ".join(f"{v:,.0f}" for v in shares),
            "GB in training": f"{cells['gigabytes'].max():.0f}",
            "rate": f"{r['teraflops']:.3g} TFLOP/s {'measured here' if r['measured_here'] else 'given'}, "
                    f"{r['utilisation']:.0%} of it reached",
            "GPU hours": f"{r['gpu_hours']:.1f}",
            **{f"hours on {n} GPU{'s' * (n != '1')}": f"{h:.1f}" for n, h in r["hours_on"].items()},
            "cost": f"{r['gpu_hours'] * r['price']:,.0f} at {r['price']:g} per GPU hour" if r["price"] else ""})
    return pd.DataFrame(out)


def threads(results: dict[str, Any]) -> pd.DataFrame:
    """How threads wait: a bench's median rates, with the lowest and highest."""
    rates = {"sentences/s": "sentences_per_second", "steps/s": "steps_per_second"}
    return pd.DataFrame([{
        "machine": r["machine"], "waiting": r["waiting"], "n": r["n"], "chose": ", ".join(r["chose"]),
        **{k: f"{np.median(r[v]):.1f} {_range((min(r[v]), max(r[v])), '.1f')}" for k, v in rates.items()}}
        for r in results["rows"]])


def context(results: dict[str, Any]) -> pd.DataFrame:
    """A bench's cost against history, a row per length: seconds / MB of each path."""
    rows = pd.DataFrame(results["rows"])
    rows["cost"] = rows["seconds"].map("{:.2f} s / ".format) + (rows["peak_bytes"] / 1e6).map("{:.0f} MB".format)
    return rows.pivot(index="codes", columns="path", values="cost")[rows["path"].unique()].reset_index()


# Kind of bench -> its title, its table, and what is to be known of it.
BENCHES = {
    "memory": ("the memory's rungs", rungs,
               "Sentences per second, one write and one read each: medians of rounds in which the arms take turns, "
               "with the lowest and highest; the matmul peak is that of a large product in the same precision. The "
               "loop is Algorithm 1 written with PEFT, a fresh adapter and AdamW per conversation. WA and answers: "
               "the trained SLLM on validation conversations."),
    "context": ("cost against history", context,
                "Until the last sentence of a recording has its label, after so many codes of history: seconds, "
                "and peak memory beyond the model."),
    "plan": ("plan of a whole reproduction", plan,
             "Counted from shapes and lengths, not run: FLOPs of notebooks 02 and 03 of every fold and seed, a "
             "cell on one GPU; cost is GPU hours at the price that was given."),
    "threads": ("how threads wait", threads,
                "How torch's threads wait, beside other work and not: sentences of the memory and steps of "
                "training per second, medians of rounds in which the arms take turns, lowest to highest."),
    "stream": ("", stream, "One stream that is never reset, lr {lr:g}: validation conversations one after the "
                           "other, over and over."),
}
