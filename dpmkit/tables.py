"""Tables and sentences that are made of records and of nothing else, with what the paper reports beside them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import pandas as pd
from IPython.display import HTML

from .metrics import MEASURES

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
    "dpm - at-once, the paper's contrast": ("dpm", "at-once"),
    "= window - at-once, a short window": ("window", "at-once"), "+ dpm - window, the memory": ("dpm", "window"),
    "dpm - its swapped control": ("dpm", "dpm-swapped"), "inertia filter on window": ("window + filter", "window"),
    "speaker-memory - window": ("speaker-memory", "window")}

BENCH_COLUMNS = {  # others are called as in the record
    "n": "rounds", "rate": "sentences per second", "ratio": "times the PEFT loop",
    "flops_per_sentence": "FLOP per sentence", "share_of_the_matmul_peak": "share of a large product's rate",
    "WA": "WA, %", "WA_gain": "WA against exact, points", "changed": "share of answers that changed",
    "largest_change": "largest change of a probability", "peak_bytes": "peak memory, bytes",
    "teraflops": "TFLOP/s of a large product", "utilisation": "share of it that is reached",
    "gpu_hours": "GPU hours", "longest_hours": "hours of the longest cell", "gigabytes": "GB per GPU"}


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
    of, ends = row.get(key, ""), row.get(f"{key}_interval", row.get(f"{key}_range"))
    text = of if isinstance(of, str) else f"{of:{form}}"
    return f"{text} {_ends(ends, form)}" if ends else text


def _ends(interval: Sequence[float | None] | None, form: str = "+.1f") -> str:
    return f"[{interval[0]:{form}}, {interval[1]:{form}}]" if interval and None not in interval else "–"


def _p(row: Row) -> str:
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
        elif "WA_gain" in row:
            row["speakers"] = _ends(row["WA_gain_speakers"])
        rows.append(row | listed)
    return _table(rows, {"method": "method", "group": "group", **{m: f"{m}:.1f" for m in MEASURES},
                         "WA against window": "WA_gain:+.1f", "over speakers": "speakers", "numbers kept": "keeps",
                         "hears": "hears"})


def contrasts(record: Record, protocol: str) -> pd.DataFrame:
    """The contrasts of a `methods` record, as `metrics.contrasts` made them, beside the paper's own differences."""
    corpus, measure = ("MELD", "WF1") if record["corpus"] == "meld" else ("IEMOCAP", "WA")
    paper, rows = PAPER_1[protocol][corpus], []
    for row in record["results"]["protocols"][protocol]["contrasts"]:
        a, b = row["contrast"].split(" - ")
        rows.append(row | {"speakers": _ends(row["WA_speakers"]), "p": _p(row) if "p" in row else "no test",
                           "paper": f"{paper[a] - paper[b]:+.2f}" if {a, b} <= {*paper} else "not reported"})
    return _table(rows, {
        "contrast": "contrast", "asks": "asks", "WA, points": "WA:+.1f", "over speakers": "speakers",
        "only the first is right": "a_only", "only the second": "b_only", "p (Holm)": "p",
        "WF1, points": "WF1:+.1f", f"paper, {corpus}: {measure}": "paper"})


def attribution(made: Sequence[Record], pooled: Callable[..., tuple | None] = lambda *asked: None) -> pd.DataFrame:
    """What the paper's contrast is made of, and what else history gives, in points of WA: a row for each protocol,
    corpus, profile and change of settings of `methods` records, with the interval of one run, of all targets of
    several folds (as `pooled` says of records, a protocol and two methods), or the mean of several runs [lowest,
    highest]; real voices first, and below them what the paper reports."""
    def where(record: Record) -> tuple[bool, str, str]:
        changed = "".join(f", {name} = {of}" for name, of in record["changed"].items())
        return record["corpus"] == "demo", record["corpus"], f"`{record['profile']}`{changed}"

    rows, papers = [], next(iter(SHARES))
    for protocol, targets in TARGETS.items():
        for (_, corpus, how), same in groupby(sorted(made, key=where), where):
            for some in alike(list(same)):
                row = {"corpus": f"{corpus}, {how}", "targets": targets, "runs": runs(some)}
                for title, pair in SHARES.items():
                    found = [one for record in some if (one := difference(record, protocol, *pair))]
                    if len(found) == len(some):
                        values, interval = zip(*found, strict=True)
                        ends = interval[0] if len(some) == 1 else (min(values), max(values))
                        mean = sum(values) / len(values), ends
                        row[title], row[f"{title}_interval"] = pooled(some, protocol, *pair) or mean
                rows.append(row)
        told = " / ".join(f"{paper['dpm'] - paper['at-once']:+.1f}" for paper in PAPER_1[protocol].values())
        rows.append({"corpus": "the paper, IEMOCAP (WA) / MELD (WF1)", "targets": targets, papers: told})
    return _table(rows, {name: name for name in ("corpus", "targets", "runs")} | {t: f"{t}:+.1f" for t in SHARES})


def alike(made: Sequence[Record]) -> list[list[Record]]:
    """Of the first seed all folds, and of the first fold all seeds; a run that is alone by itself."""
    made = sorted(made, key=lambda r: (r["seed"], r["fold"]))
    groups = [[r for r in made if r[name] == made[0][name]] for name in ("seed", "fold")]
    return [group for group in groups if len(group) > 1] or [made[:1]]


def runs(some: Sequence[Record]) -> str:
    """Which folds and seeds these are."""
    found = {name: sorted({r[name] for r in some}) for name in ("fold", "seed")}
    return ", ".join(f"{name}{'s' * (len(of) > 1)} {', '.join(map(str, of))}" for name, of in found.items())


def difference(record: Record, protocol: str, a: str, b: str) -> tuple[float, Sequence[float] | None] | None:
    """WA of one method less another's, with the interval that a record has of it; None where one was not run."""
    part = record["results"]["protocols"][protocol]
    of = _by(part["methods"], "method")
    if not {a, b} <= {*of}:
        return None
    gain = of[a].get("WA_gain_interval") if b == "window" else None
    contrast = _by(part["contrasts"], "contrast").get(f"{a} - {b}", {})
    return of[a]["WA"] - of[b]["WA"], contrast.get("WA_interval", gain)


def claims(kinds: Mapping[str, Record]) -> pd.DataFrame:
    """What the paper claims, and what a run's records, by kind, show of it: verdict and evidence."""
    rows = []
    if "methods" in kinds:
        part = kinds["methods"]["results"]["protocols"]["all-lengths"]
        for row in (r for r in part["contrasts"] if r["contrast"] == "dpm - at-once"):
            rows.append(("DPM beats the SLLM that is given all at once (Table 1)", _sign(row["WA_interval"]),
                         f"dpm - at-once {value(row, 'WA', '+.1f')} points of WA, {part['targets']} utterances"))
    if "ablations" in kinds:
        steps = {r["value"]: r["WA"] for r in kinds["ablations"]["results"]["rows"] if r["setting"] == "stepping"}
        if (own := steps.pop("sentence", None)) is not None and steps:
            best = max(steps, key=steps.get)
            rows.append(("A step per sentence beats longer steps (Table 3)", "yes" if own > steps[best] else "no",
                         f"WA {own:.1f}; {steps[best]:.1f} at {best}, the best of {len(steps)}; validation"))
    if "context" in kinds:
        of = kinds["context"]["results"]
        last, first = of["windows"][-1], of["windows"][0]
        rows.append(("A longer window helps the SLLM at once (Table 4)", _sign(last["WA_gain_interval"]),
                     f"{last['tokens']} tokens - {first['tokens']} {value(last, 'WA_gain', '+.1f')} points of WA"))
        cost = sorted((r for r in of["cost"] if r["path"] == "dpm"), key=lambda r: r["codes"])
        short, long = cost[0], cost[-1]
        flat = long["peak_bytes"] < 2 * short["peak_bytes"]
        rows.append(("Audio of any length fits: memory does not grow", "yes" if flat else "no", " and ".join(
            f"{r['peak_bytes'] / 1e6:.0f} MB after {r['codes']:,} codes" for r in (short, long))))
    return pd.DataFrame(rows, columns=["the paper's claim", "here", "evidence"])


def _sign(interval: Sequence[float]) -> str:
    return "yes" if interval[0] > 0 else "no, below" if interval[1] < 0 else "no measurable difference"


def losses(record: Record) -> pd.DataFrame:
    """Mean L_t of later sentences under their own, a swapped and no memory, nats per token."""
    rows = [{**row, "method": name, "mean_interval": row["interval"]}
            for name, made in record["results"]["losses"].items() for row in made]
    return _table(rows, {"method": "method", "L_t under": "difference", "sentences": "n",
                         "difference, nats": "mean:+.4f"})


def spread(made: Sequence[Record]) -> pd.DataFrame:
    """Mean WA and gain over `methods` records of several seeds or folds, [lowest, highest]."""
    rows = [{"method": method, **{key: part[key].mean() for key in ("WA", "WA_gain")},
             **{f"{key}_range": (part[key].min(), part[key].max()) for key in ("WA", "WA_gain")}}
            for method, part in pd.concat(map(_rows, made)).groupby("method", sort=False) if len(part) == len(made)]
    return _table(rows, {"method": "method", f"WA, mean of {len(made)} [lowest, highest]": "WA:.1f",
                         "WA against window": "WA_gain:+.1f"})


def levels(rows: Sequence[Row], speakers: Sequence[Row]) -> pd.DataFrame:
    """Rows of `metrics.compare` with `window`, over conversations and over speakers."""
    rows = [row | {"speakers": _ends(other["WA_gain_interval"])} for row, other in zip(rows, speakers, strict=True)]
    return _table(rows, {"method": "method", "WA": "WA:.1f", "UA": "UA:.1f", "WF1": "WF1:.1f",
                         "WA against window": "WA_gain:+.1f", "over speakers": "speakers"})


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
             "ms_range": [1000 * of for of in row["seconds_per_sentence_range"]], "mb": row["peak_bytes"] / 1e6,
             "kept": f"{row['parameters']:,}"} for row in record["results"]["methods"]]
    return _table(rows, {"method": "method", "WA, %": "WA:.1f", "ms per sentence [lowest, highest]": "ms:.2f",
                         "MFLOP per sentence": "mflop:.0f", "peak memory, MB": "mb:.1f", "numbers kept": "kept"})


def bench(results: dict[str, Any]) -> pd.DataFrame:
    """What a bench or a plan has measured, a column per key of its rows."""
    changes, rows = _by(results.get("changes", []), "rung"), []
    for row in map(dict, results.get("rows") or results["rates"]):
        if "rung" in row:
            peak = results["peak"][row["precision"]]
            row["share_of_the_matmul_peak"] = row["rate"] * row["flops_per_sentence"] / peak
            if row["shape"] == results["rates"][0]["shape"]:  # the weights of the others are random
                row |= changes.get(row["rung"], {})
        if "cells" in row:
            row |= {"folds": len(row["cells"]), "gigabytes": max(c["gigabytes"] for c in row["cells"])}
        rows.append({BENCH_COLUMNS.get(key, key.replace("_", " ")): value(row, key, ".4g" * isinstance(of, float))
                     for key, of in row.items() if isinstance(of, str | int | float)})
    return pd.DataFrame(rows).fillna("")


def verdict(record: Record) -> list[str]:
    """What a `methods` record's declared contrasts, on every utterance, and losses say, in sentences: `above` and
    `below` where the contrast's p, adjusted by Holm, is under 1 - confidence, else `no measurable difference`."""
    alpha, sentences = round(1 - record["settings"]["evaluation.confidence"], 9), []
    for row in record["results"]["protocols"]["all-lengths"]["contrasts"]:
        if "p" in row:
            a, b = row["contrast"].split(" - ")
            found = (f"No measurable difference between `{a}` and `{b}`" if row["p_holm"] >= alpha else
                     f"`{a}` is {'above' if row['WA'] > 0 else 'below'} `{b}`")
            sentences.append(f"{found} ({value(row, 'WA', '+.1f')} points WA, p {_p(row)}).")
    for name, rows in record["results"]["losses"].items():
        none, swapped = (_by(rows, "difference")[f"own - {other}"] for other in ("none", "swapped"))
        what = ("nothing measurable" if none["interval"][1] >= 0 else
                "something of this conversation" if swapped["interval"][1] < 0 else
                "something of how such conversations sound, and nothing measurable of this one")
        sentences.append(
            f"By L_t of later sentences `{name}` stores {what}: "
            f"{none['mean']:+.4f} {_ends(none['interval'], '+.4f')} nats under its own memory against none, "
            f"{swapped['mean']:+.4f} {_ends(swapped['interval'], '+.4f')} against another's.")
    return sentences


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
