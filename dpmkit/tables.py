"""Tables and sentences that are made of records and of nothing else, with what the paper reports beside them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from IPython.display import HTML

from .metrics import MEASURES
from .pooled import SHOWN, changes, titled, told

Record = dict[str, Any]
Row = Mapping[str, Any]

# The paper's figures in %; the methods' and steppings' names are ours.
PAPER_1 = {  # WA on IEMOCAP, WF1 on MELD
    "complete": {"IEMOCAP": {"dpm": 79.38, "at-once": 72.82, "classifier": 70.96},
                 "MELD": {"dpm": 51.22, "at-once": 47.90, "classifier": 44.78}},
    "all-lengths": {"IEMOCAP": {"dpm": 75.38, "at-once": 73.15, "classifier": 66.19},
                    "MELD": {"dpm": 52.82, "at-once": 52.53, "classifier": 46.84}}}
PAPER_3 = {  # stepping on MELD: WF1, speed against a step per sentence
    "sentence": (51.22, 1.0), "stride-64": (49.61,), "stride-128": (49.64,), "stride-256": (47.63,),
    "stride-512": (43.25, 6.26), "stride-1024": (37.87, 12.72)}
PAPER_4 = {4096: "69.59 / 72.07 / 69.57", 32768: "72.85 / 73.34 / 75.58"}  # at once, by window: WA, UA, WF1
TARGETS = {"all-lengths": "every utterance", "complete": "complete dialogues"}  # by protocol
SHARES = {  # what `attribution` tells apart: its title -> the two methods
    "`dpm - at-once`, the paper's contrast": ("dpm", "at-once"),
    "= `window - at-once`, a short window": ("window", "at-once"),
    "+ `dpm - window`, the memory": ("dpm", "window"),
    "the inertia filter on `window`": ("window + filter", "window"),
    "`speaker-memory`, this kit's, against `window`": ("speaker-memory", "window")}

BENCH_COLUMNS = {  # others are called as in the record
    "n": "rounds", "rate": "sentences per second", "ratio": "times the PEFT loop", "gain": "gain, points of WA",
    "flops_per_sentence": "GFLOP per sentence", "share_of_the_matmul_peak": "share of a large product's rate",
    "WA": "WA, %", "WA_gain": "WA against exact, points", "changed": "share of answers that changed",
    "largest_change": "largest change of a probability", "peak_bytes": "peak memory, MB", "n_r": "n_r, tokens",
    "teraflops": "TFLOP/s of a large product", "utilisation": "share of it that is reached",
    "L_e, nats": "L_e, nats", "gpu_hours": "GPU hours", "longest_hours": "hours of the longest cell",
    "gigabytes": "GB per GPU"}
BENCH_UNITS = {"flops_per_sentence": 1e9, "peak_bytes": 1e6}  # of what the record has in single ones


def shown(table: pd.DataFrame, escape: bool = True) -> HTML:
    """The table as a notebook shows it: no index, words from the left, no interval on two lines; cells are HTML
    where `escape` is false. No style sheet, which a repository's page drops; words stand at the left there, too."""
    with pd.option_context("display.max_colwidth", None):
        html = table.to_html(index=False, border=0, na_rep="", justify="left", float_format="{:g}".format,
                             escape=escape)
    html = re.sub(r"<td>[^<]*\[[^<]*</td>", lambda cell: cell[0].replace(" ", "&nbsp;"), html)
    return HTML(html.replace("<td>", '<td style="text-align: left">'))


def rounded(table: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """The columns of `names` (own name -> shown name), in their order, fractions as text: shares, where the shown
    name ends in `, %`, in percent with one decimal, others with three."""
    out = table[list(names)].rename(columns=names)
    for name in out.select_dtypes("float"):
        share = name.endswith(", %")
        out[name] = (out[name] * (100 if share else 1)).map(f"{{:.{1 if share else 3}f}}".format)
    return out


def markdown(table: pd.DataFrame) -> str:
    """The table as Markdown."""
    head = [f"| {' | '.join(table.columns)} |", f"|{'---|' * len(table.columns)}"]
    return "\n".join(head + [f"| {' | '.join(map(str, row))} |" for row in table.itertuples(index=False)])


def value(row: Row, key: str, form: str = ".1f") -> str:
    """What a row has under `key`, with its interval or range where it has one; empty where it has nothing."""
    of, ends = row.get(key, ""), row.get(f"{key}_interval") or row.get(f"{key}_range")
    text = of if isinstance(of, str) else f"{of:{form}}"
    return f"{text} {_ends(ends, form)}" if ends else text


def _ends(interval: Sequence[float | None] | None, form: str = "+z.1f") -> str:
    return f"[{interval[0]:{form}}, {interval[1]:{form}}]" if interval and None not in interval else "–"


def adjusted(row: Row) -> str:
    """The p of a contrast, adjusted by Holm; `<` where it cannot be known below that."""
    return f"{'< ' if row.get('floor') else ''}{row['p_holm']:.2g}"


def _table(rows: Sequence[Row], columns: Mapping[str, str]) -> pd.DataFrame:
    """Text of `rows`; `columns`: title -> `key` or `key:format`. A column that no row has is left out."""
    known = {title: spec.split(":") for title, spec in columns.items()}
    return pd.DataFrame([{title: value(row, key, *form or [""]) for title, (key, *form) in known.items()
                          if any(key in other for other in rows)} for row in rows])


def _by(rows: Sequence[Row], key: str) -> dict[Any, Row]:
    return {row[key]: row for row in rows}


def methods(record: Record, protocol: str) -> pd.DataFrame:
    """The methods of a `methods` record: WA, UA, WF1, the gain in WA against `window`, and what each row hears."""
    made, rows = _by(record["results"]["protocols"][protocol]["methods"], "method"), []
    for listed in record["results"]["listed"]:
        row = dict(made.get(listed["method"], dict.fromkeys(MEASURES, "not run")))
        if listed["method"] == "window":  # gains nothing, by definition
            row = {key: of for key, of in row.items() if "gain" not in key}
        elif "WA_gain_speakers" in row:  # a mean over runs has none
            row["speakers"] = _ends(row["WA_gain_speakers"])
        rows.append(row | listed)
    return _table(rows, {"method": "method", "group": "group", **{m: f"{m}:.1f" for m in MEASURES},
                         "WA against window": "WA_gain:+z.1f", "over speakers": "speakers", "numbers kept": "keeps",
                         "hears": "hears"})


def contrasts(record: Record, protocol: str) -> pd.DataFrame:
    """The contrasts of a `methods` record, as `metrics.contrasts` made them, beside the paper's own differences."""
    corpus, measure = ("MELD", "WF1") if record["corpus"] == "meld" else ("IEMOCAP", "WA")
    paper, rows = PAPER_1[protocol][corpus], []
    for row in record["results"]["protocols"][protocol]["contrasts"]:
        a, b = row["contrast"].split(" - ")
        if "WA_speakers" in row:  # a mean over runs has none, and is not tested
            row = row | {"speakers": _ends(row["WA_speakers"]), "p": adjusted(row) if "p" in row else "no test"}
        rows.append(row | {"paper": f"{paper[a] - paper[b]:+.2f}" if {a, b} <= {*paper} else "not reported"})
    return _table(rows, {
        "contrast": "contrast", "asks": "asks", "WA, points": "WA:+z.1f", "over speakers": "speakers",
        "only the first is right": "a_only", "only the second": "b_only", "p (Holm)": "p",
        "WF1, points": "WF1:+z.1f", f"paper, {corpus}: {measure}": "paper"})


def attribution(made: Sequence[Record], protocol: str, speakers: bool = False) -> pd.DataFrame:
    """What the paper's contrast is made of, and what else history gives, in points of WA: a column for each record
    of `pooled`; with `speakers` its intervals over speakers, too."""
    columns: dict[str, list[str]] = {"points of WA": list(SHARES)}
    for record in made:
        cells = columns[f"{titled(record)}, {told(record)}"] = []
        for pair in SHARES.values():
            row = difference(record, protocol, *pair) or {}
            over = row.get("WA_speakers") if speakers else None
            cells.append(value(row, "WA", "+z.1f") + (f"<br>speakers: {_ends(over)}" if over else ""))
    return pd.DataFrame(columns)


def papers(protocol: str) -> str:
    """How `attribution` is read, and the paper's own contrast on the targets of a protocol."""
    of = {name: paper["dpm"] - paper["at-once"] for name, paper in PAPER_1[protocol].items()}
    return (f"[95 % over conversations]; of a mean [lowest, highest]. The paper's own `dpm - at-once`, "
            f"{TARGETS[protocol]}: {of['IEMOCAP']:+.1f} on IEMOCAP (WA), {of['MELD']:+.1f} on MELD (WF1); it "
            "reports no other row.")


def difference(record: Record, protocol: str, a: str, b: str) -> Row | None:
    """`WA` of one method less another's, with the intervals that a record has of it; None where one was not run."""
    part = record["results"]["protocols"][protocol]
    of = _by(part["methods"], "method")
    if row := _by(part["contrasts"], "contrast").get(f"{a} - {b}"):
        return row
    if not {a, b} <= {*of}:
        return None
    ends = {f"WA_{name}": of[a].get(f"WA_gain_{name}") for name in ("interval", "range", "speakers")}
    return {"WA": of[a]["WA"] - of[b]["WA"]} | (ends if b == "window" else {})


def settings(made: Sequence[Record]) -> pd.DataFrame:
    """What `methods` records of other settings than their profile's came to: WA of every utterance; and `window`
    against that of the runs that stand for the corpus, on the same targets."""
    rows = []
    for record in made:
        of = _by(record["results"]["protocols"]["all-lengths"]["methods"], "method")
        rows.append({"changed": changes(record) or "nothing", "run": told(record)} | {
            m: value(row, "WA") for m, row in of.items()})
        if "against" in record:
            rows[-1]["against"] = value(record["against"], "WA_gain", "+z.1f")
    return _table(rows, {"changed": "changed", "run": "run", "window": "window",
                         "against the window above, on the same targets": "against", **{m: m for m in SHOWN[1:]}})


def sign(row: Row, record: Record) -> str:
    """Whether a difference is above 0: by its p adjusted by Holm where it was tested, else by its interval; over
    several runs without one, whether all of them are."""
    low, high = row.get("WA_interval") or row.get("WA_range") or (0, 0)
    if "p_holm" in row:
        alpha = round(1 - record["settings"]["evaluation.confidence"], 9)
        low, high = (row["WA"], row["WA"]) if row["p_holm"] < alpha else (0, 0)
    return ("yes" if low > 0 else "no, below" if high < 0 else
            "differs by run" if not row.get("WA_interval") and "WA_range" in row else "no measurable difference")


def losses(record: Record) -> pd.DataFrame:
    """Mean L_t of later sentences under their own, a swapped and no memory, nats per token."""
    rows = [{**row, "method": name, "mean_interval": row["interval"]}
            for name, made in record["results"]["losses"].items() for row in made]
    return _table(rows, {"method": "method", "L_t under": "difference", "sentences": "n",
                         "difference, nats": "mean:+.4f"})


def gains(rows: Sequence[Row]) -> pd.DataFrame:
    """Rows of an `ablations` record, its grid or the `final` ones: WA, and the gain over no memory, in points."""
    return _table([{key: of for key, of in row.items() if of is not None} for row in rows], {
        "setting": "setting", "value": "value", "method": "method", "WA without a memory": "WA_frozen:.1f",
        "WA": "WA:.1f", "gain, points": "WA_gain:+.2f", "L_t, nats": "L_t:.4f", "norm of the change": "norm:.3g"})


def stepping(record: Record) -> pd.DataFrame:
    """Table 3 of the paper from an `ablations` record: WF1 and speed of each stepping, beside its own."""
    made, rows = _by([r for r in record["results"]["rows"] if r["setting"] == "stepping"], "value"), []
    for name in dict.fromkeys([*made, *PAPER_3]):
        row = dict(zip(("paper", "times"), PAPER_3.get(name, ()), strict=False), stepping=name, WF1="not run")
        if name in made:
            row |= made[name]
            row["speed"] = made["sentence"]["seconds_per_sentence"] / row["seconds_per_sentence"]
        rows.append(row)
    return _table(rows, {"stepping": "stepping", "WF1": "WF1:.1f", "speed": "speed:.2f",
                         "paper, MELD: WF1": "paper:.2f", "paper: speed": "times:.2f"})


def windows(record: Record) -> pd.DataFrame:
    """Table 4 of the paper from a `context` record: the SLLM at once, with so many tokens of history."""
    rows = [*record["results"]["windows"],
            *({"tokens": n, **dict.fromkeys(MEASURES, "not run"), "paper": of} for n, of in PAPER_4.items())]
    return _table(rows, {"history, tokens": "tokens", **{m: f"{m}:.1f" for m in MEASURES},
                         "paper, IEMOCAP (WA / UA / WF1)": "paper"})


def costs(record: Record) -> pd.DataFrame:
    """What a sentence costs by each method of a `context` record, beside WA of the test fold."""
    rows = [{**row, "ms": 1000 * row["seconds_per_sentence"], "mflop": row["flops_per_sentence"] / 1e6,
             "ms_range": [1000 * of for of in row["seconds_per_sentence_range"]], "mb": row["peak_bytes"] / 1e6}
            for row in record["results"]["methods"]]
    return _table(rows, {"method": "method", "WA, %": "WA:.1f", "ms per sentence [lowest, highest]": "ms:.2f",
                         "MFLOP per sentence": "mflop:.0f", "peak memory, MB": "mb:.1f", "numbers kept": "keeps"})


def bench(results: dict[str, Any]) -> pd.DataFrame:
    """What a bench or a plan has measured, a column per key of its rows; seconds of notebooks with their sum."""
    changes, rows = _by(results.get("changes", []), "rung"), []
    given = [dict(row) for row in results.get("rows") or results["rates"]]
    for machine in dict.fromkeys(row["machine"] for row in given if "notebook" in row):
        together = sum(row["seconds"] for row in given if row["machine"] == machine)
        given.append({"machine": machine, "notebook": "all", "seconds": together})
    for row in given:
        if "rung" in row:
            peak = results["peak"][row["precision"]]
            row["share_of_the_matmul_peak"] = row["rate"] * row["flops_per_sentence"] / peak
            row["precision"] = row["precision"].removeprefix("torch.")
            if row["shape"] == results["rates"][0]["shape"]:  # the weights of the others are random
                row |= changes.get(row["rung"], {})
        if "cells" in row:
            row |= {"folds": len(row["cells"]), "gigabytes": max(c["gigabytes"] for c in row["cells"])}
        row |= {key: row[key] / unit for key, unit in BENCH_UNITS.items() if key in row}
        rows.append({BENCH_COLUMNS.get(key, key.replace("_", " ")): value(row, key, _form(of))
                     for key, of in row.items() if isinstance(of, str | int | float)})
    return pd.DataFrame(rows).fillna("")


def _form(of: Any) -> str:
    """How a number of any size is written: with four digits, or whole."""
    return ("" if isinstance(of, str | bool) else "," if isinstance(of, int) else
            ".4g" if abs(of) < 1000 else ",.0f")


def stored(made: Sequence[Record], name: str) -> str:
    """What a memory stores by L_t of later sentences, in a sentence; of several runs the mean [lowest, highest]."""
    rows = [_by(record["results"]["losses"][name], "difference") for record in made]
    kinds = Counter("nothing measurable" if row["own - none"]["interval"][1] >= 0 else
                    "something of this conversation" if row["own - swapped"]["interval"][1] < 0 else
                    "something of how such conversations sound, and nothing measurable of this one" for row in rows)
    what = "; ".join(f"{kind}{f' ({n} of {len(rows)} runs)' * (len(rows) > 1)}" for kind, n in kinds.items())
    mean = "on average [lowest, highest] " * (len(rows) > 1)
    found = []
    for key in ("own - none", "own - swapped"):
        of = [row[key]["mean"] for row in rows]
        ends = (min(of), max(of)) if len(rows) > 1 else rows[0][key]["interval"]
        found.append(f"{sum(of) / len(of):+.4f} {_ends(ends, '+.4f')}")
    return (f"By L_t of later sentences `{name}` stores {what}: {mean}{found[0]} nats under its own memory against "
            f"none, {found[1]} against another's.")


def _rows(record: Record) -> pd.DataFrame:
    """A row per method of a `methods` record, every utterance."""
    return pd.DataFrame(record["results"]["protocols"]["all-lengths"]["methods"]).set_index("method")


def beside(own: Record, reference: Sequence[Record]) -> str:
    """Markdown: a `methods` record's WA and gains beside the reference's of the same run. A row is within where it
    differs by at most twice the sample deviation over the reference's seeds, and not judged with a single one."""
    name = f"`{own['profile']}` on `{own['corpus']}`, {own['run']}"
    seeds = [r for r in reference if all(r[k] == own[k] for k in ("kind", "profile", "corpus", "fold", "changed"))]
    same = [r for r in seeds if r["seed"] == own["seed"]]
    if not same:
        return f"No reference for {name}: nothing to compare it with."
    columns = {"reference": same[0], "own": own} | dict(enumerate(seeds))
    columns = {column: _rows(of)[["WA", "WA_gain"]].stack() for column, of in columns.items()}
    figures = pd.concat(columns, axis=1, sort=False).drop(index=("window", "WA_gain"))  # 0 by definition
    table = figures[["reference", "own"]].assign(difference=figures["own"] - figures["reference"],
                                                 deviation=figures[[*range(len(seeds))]].std(axis=1))
    judged = table.dropna()
    within = judged["difference"].abs() <= 2 * judged["deviation"] + 1e-9
    table = table.map("{:.1f}".format).replace("nan", "–")
    table["within"] = within.map({True: "yes", False: "NO"}).reindex(table.index, fill_value="–")
    return "\n\n".join([
        f"## Beside the reference: {name}",
        "WA of every utterance, and its gain over `window`, in points; within: the difference is at most twice the "
        f"sample deviation over the reference's {len(seeds)} seed(s), – not judged.",
        markdown(table.reset_index(names=["method", "figure"])),
        f"reproduced: {within.sum()} of {len(judged)} within"])
