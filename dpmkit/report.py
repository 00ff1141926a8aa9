"""The pages of a folder of results, and the README's tables, made of its records and of nothing else.

summaries: Tables and words that are made of records and of nothing else, with what the paper reports beside them.
card: The model card of a trained SLLM, and what else its folder needs to be used without this project's `runs/`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import metrics, records, runs
from .codes import CorpusCodes
from .corpora import Corpus
from .finetune import Finetuned
from .metrics import MEASURES
from .reproduce import NOTEBOOKS
from .settings import Settings, UserError
from .tokenizers import FITTED

# -- summaries -----------------------------------------------------------------

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


def contrasts_table(record: dict[str, Any], protocol: str) -> pd.DataFrame:
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


def attribution_table(record: dict[str, Any]) -> pd.DataFrame:
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


def losses_table(record: dict[str, Any]) -> pd.DataFrame:
    """Mean L_t of later sentences under their own, a swapped and no memory, nats per token, as text."""
    return pd.DataFrame([{"method": name, "L_t under": row["difference"], "sentences": row["n"],
                          "difference, nats": _interval(row["mean"], row["interval"], "+.4f")}
                         for name, rows in record["results"].get("losses", {}).items() for row in rows])


def processors_table(made: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """`methods` records of one run from several processors, a row each: levels, and differences in points of WA."""
    out = []
    for record in made:
        rows = {row["method"]: row for row in record["results"]["protocols"]["all-lengths"]["methods"]}
        out.append({"processor": record["machine"]["processor"],
                    **{f"{m}: WA": f"{rows[m]['WA']:.1f}" for m in ("window", "at-once", "dpm") if m in rows},
                    **{f"{m} - window": f"{rows[m]['WA_gain']:+.1f}" for m in ("at-once", "dpm") if m in rows}})
    return pd.DataFrame(out)


def stepping_table(record: dict[str, Any]) -> pd.DataFrame:
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


def _interval(middle: float, interval: Sequence[float | None], form: str = ".1f") -> str:
    return f"{middle:{form}} {_range(interval, form)}"


def _range(interval: Sequence[float | None] | None, form: str = "+.1f") -> str:
    return f"[{interval[0]:{form}}, {interval[1]:{form}}]" if interval and None not in interval else "–"


def _p(row: dict[str, Any]) -> str:
    return f"{'< ' if row.get('floor') else ''}{row['p_holm']:.2g}"


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


def stream_table(results: dict[str, Any]) -> pd.DataFrame:
    """A bench's long stream as text, a row a part."""
    rows = pd.DataFrame(results["rows"])
    return pd.DataFrame({
        "hours": rows["hours"].map("{:.2f}".format), "codes": rows["codes"],
        "ms per sentence": (1000 * rows["seconds_per_sentence"]).map("{:.1f}".format),
        "processor ms": (1000 * rows["processor_seconds_per_sentence"]).map("{:.1f}".format),
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


def threads_table(results: dict[str, Any]) -> pd.DataFrame:
    """How threads wait: a bench's median rates as text, with the lowest and highest."""
    rates = {"sentences/s": "sentences_per_second", "steps/s": "steps_per_second"}
    return pd.DataFrame([{
        "machine": r["machine"], "waiting": r["waiting"], "n": r["n"], "chose": ", ".join(r["chose"]),
        **{k: _interval(float(np.median(r[v])), (min(r[v]), max(r[v]))) for k, v in rates.items()}}
        for r in results["rows"]])


def context_table(results: dict[str, Any]) -> pd.DataFrame:
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


# -- card ----------------------------------------------------------------------

LIMITS = """\
- It was trained on the corpus above alone; on other speakers, languages, microphones or ways of labelling expect it
  to be worse, and measure it before you rely on it.
- It answers with one of its labels whatever it hears: silence, music and several voices, too.
- Emotions as labelled by listeners are no measurement of what a person feels.
"""
USES = """\
Research on speech emotion and on memory at inference (Dynamic Parameter Memory, arXiv 2507.09076): to reproduce
this kit's tables, and to compare methods on the same SLLM. Not meant for decisions about people, at work, at
school, in health or by the police; in some countries that is forbidden.
"""


def write_card(settings: Settings, tuned: Finetuned, corpus: Corpus, codes: CorpusCodes,
          answers: dict[str, pd.DataFrame] | None = None, record: Path | None = None) -> Path:
    """README.md (a model card), the record and the fitted speech tokenizer into the folder of a trained SLLM.

    `answers`: split -> predictions of `window`, for the metrics with their intervals; without, the card says that
    nothing was measured. Returns the card's path.
    """
    target = tuned.folder / "README.md"
    fitted = settings.home_path / "runs" / "codes" / codes.key
    for name in (FITTED, "facts.json"):
        if (fitted / name).is_file():
            with runs.atomic(tuned.folder / "speech_tokenizer" / name) as temporary:
                shutil.copyfile(fitted / name, temporary)
    if record is not None:
        with runs.atomic(tuned.folder / "record.json") as temporary:
            shutil.copyfile(record, temporary)
    with runs.atomic(target) as temporary:
        temporary.write_text(_text(settings, tuned, corpus, codes, answers), encoding="utf-8")
    return target


def _text(settings: Settings, tuned: Finetuned, corpus: Corpus, codes: CorpusCodes,
          answers: dict[str, pd.DataFrame] | None) -> str:
    vocabulary, fold = tuned.sllm.vocabulary, corpus.folds[settings.fold - 1]
    source, kept = settings.shown("backbone.source", settings.backbone.source), settings.backbone.keep_layers
    scratch = f"a Llama of {settings.backbone.layers} layers x {settings.backbone.hidden}, trained from scratch"
    adapter = (tuned.folder / "adapter_config.json").is_file()
    on_hub = [f"base_model: {source}"] if "/" in source else []
    tune, facts = settings.finetune, codes.facts
    heard = {split: corpus.select(getattr(fold, split)) for split in ("train", "validation", "test")}
    lines = ["---", "library_name: transformers", "pipeline_tag: audio-classification",
             "tags: [speech-emotion-recognition, conversation, dpmkit]",
             *on_hub, "---", "",
             f"# Emotion SLLM, {corpus.name}, fold {settings.fold}, seed {settings.seed}", "",
             "A causal language model that hears speech codes and answers with an emotion token. Made by dpmkit "
             f"(profile `{settings.profile}`, commit {records.commit()}).", "",
             "```python", "from dpmkit.sllm import EmotionSLLM",
             'sllm = EmotionSLLM.load("this folder")',
             "probabilities = sllm.emotion_logits([sllm.sentence(codes)]).softmax(-1)", "```", "",
             "| | |", "|---|---|",
             f"| answers | {', '.join(vocabulary.emotions)} |",
             f"| speech tokenizer | {facts['tokenizer']}, {vocabulary.codebook_size} codes at "
             f"{facts['frame_rate']:g} Hz; `speech_tokenizer/` where it was fitted on the training fold |",
             f"| backbone | {source or scratch}{f', its first {kept} layers' if kept else ''}"
             f"{'; not in here: `load` finds it where it came from, or give backbone=…' if adapter else ''} |",
             f"| window | {tuned.sllm.window} tokens |",
             f"| trained | {tuned.trained_parameters:,} parameters"
             f"{f', LoRA of rank {tune.lora_rank} and the new rows' if tune.lora_rank else ''}; at most "
             f"{tune.epochs} epochs, {tune.batch} dialogues a step, lr {tune.lr:g} |", "",
             "## Data", "", "| split | conversations | utterances | hours |", "|---|---|---|---|"]
    for split, conversations in heard.items():
        utterances = [u for c in conversations for u in c.utterances]
        lines.append(f"| {split} | {len(conversations)} | {len(utterances)} | "
                     f"{sum(u.seconds for u in utterances) / 3600:.2f} |")
    lines += ["", "Validation chose the epoch; the test split was not touched in training.", "", "## Metrics", ""]
    if answers:
        level = f"{settings.evaluation.confidence:.0%}"
        lines += [f"Each labelled utterance with the {settings.memory.prefix} tokens before it, no memory; in %, "
                  f"with {level} intervals by bootstrap over whole conversations.", "",
                  "| split | targets | conversations | WA | UA | WF1 |", "|---|---|---|---|---|---|"]
        for split, table in answers.items():
            chosen = metrics.targets(table, "all-lengths")
            row, = metrics.compare({"window": chosen}, corpus.emotions, "window", settings.evaluation.bootstrap,
                                   settings.evaluation.confidence)
            cells = (f"{row[m]:.1f} [{row[f'{m}_interval'][0]:.1f}, {row[f'{m}_interval'][1]:.1f}]"
                     for m in metrics.MEASURES)
            lines.append(f"| {split} | {len(chosen)} | {chosen['conversation'].nunique()} | {' | '.join(cells)} |")
    else:
        lines.append("Not measured: run notebook 02 with the same settings.")
    return "\n".join([*lines, "", "## Intended use", "", USES, "## Limits", "", LIMITS])


# -- report --------------------------------------------------------------------

# Of the filters and controls, those that the README shows; the page of results has all.
SHOWN = ("window + filter", "dpm-tuned + filter", "dpm-swapped", "dpm-tuned-swapped", "speaker-memory-swapped",
         "speaker-memory-kept-swapped")
BEGIN, END = "<!-- results: generated by `make publish` -->", "<!-- end of results -->"
PLAN, END_PLAN = "<!-- plan: generated by `make publish` -->", "<!-- end of plan -->"
# What the reference lacks, and why; a published record of it takes the line away.
NOT_RUN = {("demo", "emodb"): "the earlier copy of EmoDB was damaged (all clips cut or padded to 2.000 s); to "
                              "be run anew on the whole clips",
           ("smollm2", "demo"): "its new token rows start otherwise now, so that what it gave before is void; to "
                                "be run anew"}


def write(root: Path) -> Path:
    """Write README.md of a user's results at `root`, beside the reference's figures; returns its path."""
    made, copies = records.load_all(root)
    beside = [line for r in made if r["kind"] == "methods" for line in records.compared_lines(r)]
    return _written(root / "README.md", page(made, root, _copies(copies) + beside))


def publish(root: Path, readme: Path) -> list[Path]:
    """Write README.md of the reference below `root` and the blocks between the markers of the project's README;
    returns both."""
    text = readme.read_text(encoding="utf-8")
    for marker in (BEGIN, END, PLAN, END_PLAN):
        if marker not in text:
            raise UserError(f"{readme} lacks the marker {marker}: put it back where the table belongs")
    made, lines = published(root)
    text = _between(text, BEGIN, END, block(made))
    if plans := [r["results"] for r in records.benches(root).values() if r["kind"] == "bench plan"]:
        table = _markdown(plan_table({"rows": [row for plan in plans for row in plan["rows"]]}))
        text = _between(text, PLAN, END_PLAN, f"\n{table}\n\n")
    return [_written(root / "README.md", page(made, root, lines)), _written(readme, text)]


def block(made: Sequence[dict[str, Any]]) -> str:
    """What stands between the README's markers: the summary, and what was not run."""
    return summary(made) + "".join(f"{line}\n" for line in _not_run(made))


def published(root: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The reference's records, but for those of the `smoke` profile, a test; and what its page says first."""
    made, copies = records.load_all(root)
    made = [r for r in made if r["profile"] != "smoke"]
    return made, _copies(copies) + _not_run(made)


def _written(path: Path, text: str) -> Path:
    with runs.atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _copies(copies: Sequence[str]) -> list[str]:
    return [f"Not counted, as their names are not those of their runs (copies): {', '.join(copies)}.", ""
            ] if copies else []


def _not_run(made: Sequence[dict[str, Any]]) -> list[str]:
    there = {(r["profile"], r["corpus"]) for r in made}
    return [line for (profile, corpus), why in NOT_RUN.items() if (profile, corpus) not in there
            for line in (f"**`{profile}` profile on `{corpus}`**: not run; {why}.", "")]


def _between(text: str, begin: str, end: str, inside: str) -> str:
    before, _, rest = text.partition(begin)
    return before + begin + "\n" + inside + end + rest.partition(end)[2]


def summary(made: Sequence[dict[str, Any]]) -> str:
    """The method table of every profile, corpus and change of settings (lowest fold and seed), what it says, other
    seeds and folds; where notebook 03 was not run, what 01 and 02 found."""
    lines, shown = [], set()
    for same in _alike(made, "seed"):
        if (where := _where(same[0])) in shown:
            continue
        shown.add(where)
        limit = same[0]["settings"].get("evaluation.limit")
        part = f" (its first {limit} conversations)" if limit else ""
        lines += [f"**{_title(same[0])}**, every labelled utterance of the test fold{part}", "",
                  verdict(same[0]), "", *_tested(same[0]), _short(same[0]), ""]
        lines += [line for r in made if r["kind"] == "data" and _title(r) == _title(same[0])
                  for line in _reference(r, ("test",))]
        if len(same) > 1:
            lines += [f"Trained anew with {len(same)} seeds:", "", _spread(same, "seeds"), ""]
        lines += _folds([r for r in made if _where(r) == where])
    early = [r for r in made if _where(r) not in shown and r["kind"] in ABOUT]
    for title in dict.fromkeys(map(_title, early)):
        lines += [f"**{title}**", ""]
        lines += [line for r in early if _title(r) == title for line in ABOUT[r["kind"]](r)]
    return "\n".join(lines) + "\n" if lines else "No record yet: `make reproduce` writes them.\n"


def _tested(record: dict[str, Any]) -> list[str]:
    """The declared contrasts, what the paper's is made of, and what the memory stores; nothing of older records."""
    tables = (contrasts_table(record, "all-lengths"), attribution_table(record),
              losses_table(record))
    return [line for table in tables if len(table) for line in (_markdown(table), "")] if len(tables[0]) else []


def _where(record: dict[str, Any]) -> tuple[str, str, str]:
    """Profile, corpus and the digits of changed settings: all that a run's name holds but fold and seed."""
    return (record["profile"], record["corpus"],
            records.run_of(record).removeprefix(f"fold{record['fold']}-seed{record['seed']}"))


def _short(record: dict[str, Any]) -> str:
    """The method table, every labelled utterance, without the filters and controls that SHOWN leaves out."""
    return _markdown(_kept(record, methods_table(record, "all-lengths").drop(columns="hears")))


def _spread(same: list[dict[str, Any]], what: str) -> str:
    return _markdown(_kept(same[0], spread_table(same, what)))


def _kept(record: dict[str, Any], table: pd.DataFrame) -> pd.DataFrame:
    groups = {row["method"]: row["group"] for row in record["results"].get("listed", [])}
    return table[[m in SHOWN or groups.get(m) not in ("filter", "control") for m in table["method"]]]


def _alike(made: list[dict[str, Any]], but: str) -> list[list[dict[str, Any]]]:
    """`methods` records in groups that differ in `but`, seed or fold, alone; lowest first."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for record in sorted((r for r in made if r["kind"] == "methods"), key=lambda r: r[but]):
        same = (*_where(record), record["fold" if but == "seed" else "seed"])
        groups.setdefault(same, []).append(record)
    return [groups[name] for name in sorted(groups)]


def _folds(made: list[dict[str, Any]]) -> list[str]:
    """Means over folds, for each seed that has several."""
    lines = []
    for same in _alike(made, "fold"):
        if len(same) > 1:
            folds = ", ".join(str(r["fold"]) for r in same)
            lines += [f"Folds {folds} (seed {same[0]['seed']}), each with test speakers of its own:", "",
                      _spread(same, "folds"), ""]
    return lines


def page(made: Sequence[dict[str, Any]], root: Path, first: Sequence[str] = ()) -> str:
    """README.md of a folder of results: what was run, `first`, then for each run its verdict, table, figures,
    notebooks and details."""
    lines = ["# Results", "",
             "Generated by dpmkit from the JSON records in `*/records/`; nothing here is typed by hand. "
             "Intervals are 95 % paired-bootstrap intervals over conversations, or speakers where it says so; "
             "gains are points against `window`, the same frozen SLLM with the same n_r tokens and no memory.", ""]
    groups: dict[tuple[str, str], dict[str, dict]] = {}
    for record in made:
        groups.setdefault((f"{record['profile']}-{record['corpus']}", records.run_of(record)),
                          {})[record["kind"]] = record
    lines += ["| run | records | machine | commits |", "|---|---|---|---|"]
    for kinds in groups.values():
        machine = next(iter(kinds.values()))["machine"]
        lines.append(f"| {_title(next(iter(kinds.values())))} | {', '.join(kinds)} | {machine['processor']}, "
                     f"threads: {machine['threads']}, {machine['gpu'] or 'no GPU'} | "
                     f"{', '.join(dict.fromkeys(r['commit'] for r in kinds.values()))} |")
    lines += ["", *first]
    for (folder, run), kinds in groups.items():
        lines += [f"## {_title(next(iter(kinds.values())))}", ""]
        if "methods" in kinds:
            lines += _methods(kinds["methods"]) + _processors(kinds["methods"], root)
        figures = sorted((root / folder / "figures").glob(f"*-{run}.png"))
        lines += [" ".join(f'<a href="{folder}/figures/{f.name}"><img src="{folder}/figures/{f.name}" '
                           f'alt="{f.stem}" width="200"></a>' for f in figures), ""]
        pages = [f"[{n}]({folder}/{run}/{n}.html)" for n in NOTEBOOKS
                 if (root / folder / run / f"{n}.html").is_file()]
        lines += ["Rendered notebooks: " + " · ".join(pages), ""] if pages else []
        lines += ["Records: " + " · ".join(f"[{k}]({folder}/records/{k}-{run}.json)" for k in kinds), ""]
        lines += _details(kinds)
    for same in _alike(made, "seed"):
        if len(same) > 1:
            lines += [f"## Seeds: {_title(same[0], 'seed')}", "",
                      _spread(same, "seeds"), ""]
    for where in sorted(set(map(_where, made))):
        there = [r for r in made if _where(r) == where]
        over = _folds(there)
        lines += [f"## Folds: {_title(there[0], 'fold', 'seed')}", "", *over] if over else []
    lines += ["## Others, as the paper quotes them", "", "Audio only, from its Table 2; none of them was run here.",
              "", _markdown(quoted_table()), ""]
    return "\n".join(lines + _benches(root))


def _benches(root: Path) -> list[str]:
    """Tables of bench/*.json."""
    lines = []
    for name, record in records.benches(root).items():
        kind = record["kind"].removeprefix("bench ")
        machine, results = record["machine"], record["results"]
        if kind == "memory":
            words = ("Sentences a second, one write and one read each: medians of rounds in which the arms take "
                     "turns, with the lowest and highest; the matmul peak is that of a large product in the same "
                     "precision. The loop is Algorithm 1 written with PEFT, a fresh adapter and AdamW a "
                     "conversation. WA and answers: the trained SLLM on validation conversations.")
            if "sentences" not in results["rates"][0]:
                words += (" Counted before a CPU's fused attention was: of the peak more is used than stands here; "
                          "and its larger backbone had conversations of few sentences, which favours every rung.")
            title, table = "the memory's rungs", rungs_table(results)
        elif kind == "context":
            words = ("Until the last sentence of a recording has its label, after so many codes of history: "
                     "seconds, and peak memory beyond the model.")
            title, table = "cost against history", context_table(results)
        elif kind == "plan":
            words = ("Counted from shapes and lengths, not run: FLOPs of notebooks 02 and 03 of every fold and "
                     "seed, a cell on one GPU; cost is GPU hours at the price that was given.")
            title, table = "plan of a whole reproduction", plan_table(results)
        elif kind == "threads":
            words = ("How torch's threads wait, beside other work and not: sentences of the memory and steps of "
                     "training a second, medians of rounds in which the arms take turns, lowest to highest.")
            title, table = "how threads wait", threads_table(results)
        else:
            words = (f"One stream that is never reset, lr {results['lr']:g}: validation conversations one after "
                     "the other, over and over.")
            title, table = kind, stream_table(results)
        lines += [f"## Bench: {title} ({_setting(record)})", "", words, "", _markdown(table), "",
                  f"Run on {machine['processor']}, threads: {machine['threads']}, {machine['gpu'] or 'no GPU'}; "
                  f"commit {record['commit']}; {record['made']}. [Record](bench/{name})", ""]
    return lines


def _title(record: dict[str, Any], *without: str) -> str:
    parts = [f"{name} {record[name]}" for name in ("fold", "seed") if name not in without]
    return ", ".join([f"`{record['profile']}` profile on `{record['corpus']}`", *parts, *_changes(record)])


def _setting(record: dict[str, Any]) -> str:
    return ", ".join([f"`{record['profile']}` profile", *_changes(record)])


def _changes(record: dict[str, Any]) -> list[str]:
    return [f"`{name}` = {value}" for name, value in record.get("changed", {}).items()]


def _methods(record: dict[str, Any]) -> list[str]:
    """The verdict and Table 1, every labelled utterance."""
    part, tuned = record["results"]["protocols"]["all-lengths"], record["results"]["tuned"]
    return [verdict(record), "", *_tested(record),
            f"**Every labelled utterance, each with its own history** ({part['targets']} targets, "
            f"{part['conversations']} conversations)", "",
            _short(record), "",
            f"`dpm` uses the paper's rule at lr {record['settings']['memory.lr']:g}; `dpm-tuned` takes lr "
            f"{tuned['lr']:g}, the best of {tuned['tried']} on {tuned['conversations']} validation "
            "conversations. " + "".join(f"{note} " for note in record["results"]["notes"]), ""]


def _processors(record: dict[str, Any], root: Path) -> list[str]:
    """The same run on other processors."""
    same = [r for r in records.processors(root) if (*_where(r), r["fold"], r["seed"]) == (
        *_where(record), record["fold"], record["seed"])]
    return ["The same run on other processors: training multiplies what rounding differs in. Compare how far the "
            "levels move, and how far the differences.", "",
            _markdown(processors_table([record, *same])), ""] if same else []


def _details(kinds: dict[str, dict[str, Any]]) -> list[str]:
    """What stands folded below a run: the other protocol, the paper's Tables 3 and 4, corpus and backbone."""
    lines = []
    if "methods" in kinds:
        part = kinds["methods"]["results"]["protocols"]["complete"]
        lines += _folded("Every method, filter, control and bound, and what each of them hears",
                         [_markdown(methods_table(kinds["methods"], "all-lengths"))])
        lines += _folded(f"Complete dialogues: the last labelled utterance of each ({part['targets']} targets)",
                         [verdict(kinds["methods"], "complete"), "",
                          *([_markdown(tested), ""] if len(tested := contrasts_table(
                              kinds["methods"], "complete")) else []),
                          _markdown(methods_table(kinds["methods"], "complete"))])
    if "ablations" in kinds and "best" in kinds["ablations"]["results"]:
        lines += _folded("Stepping (the paper's Table 3), validation conversations",
                         [_markdown(stepping_table(kinds["ablations"])), "", _best(kinds["ablations"])])
    if "context" in kinds and "windows" in kinds["context"]["results"]:
        lines += _folded("The SLLM at once, by its history (the paper's Table 4)",
                         [_markdown(windows_table(kinds["context"]))])
    about = [line for kind, words in ABOUT.items() if kind in kinds for line in words(kinds[kind])]
    return lines + _folded("Corpus, reference classifiers and backbone", about) if about else lines


def _best(record: dict[str, Any]) -> str:
    """What came of the best ablated configuration on the test fold; nothing where it was not chosen by its WA."""
    best, final = record["results"]["best"], {r["method"]: r for r in record["results"]["final"]}
    if "validation_WA" not in best:
        return ""
    low, high = final["dpm"]["WA_gain_interval"]
    chosen = ", ".join(f"{name} {value}" for name, value in best["memory"].items())
    return (f"Of {best['tried']} configurations, {chosen} had the highest WA on validation "
            f"({best['validation_WA']:.1f}); on the test fold, once: {final['dpm']['WA_gain']:+.1f} [{low:+.1f}, "
            f"{high:+.1f}] points over no memory, its swapped control {final['dpm-swapped']['WA_gain']:+.1f}.")


def _folded(title: str, lines: list[str]) -> list[str]:
    return [f"<details><summary>{title}</summary>", "", *lines, "", "</details>", ""]


def _data(record: dict[str, Any]) -> list[str]:
    results = record["results"]
    lines = [f"**Corpus**: {results['conversations']} conversations, {results['utterances']} utterances, "
             f"{results['hours']:.2f} h, {results['speakers']} speakers; skipped: {results['skipped_count']}.", ""]
    return lines + _reference(record, ("validation", "test"))


def _reference(record: dict[str, Any], splits: tuple[str, ...]) -> list[str]:
    lines = []
    for split in splits:
        rows = [f"{row['method']} {100 * row['WA']:.1f} / {100 * row['UA']:.1f}"
                for row in record["results"]["reference"][split]]
        lines += ["Reference classifiers (logistic regression on an utterance's pooled acoustics; oracles are "
                  f"given true labels), {split} fold, WA / UA in %: {'; '.join(rows)}.", ""]
    return lines


def _backbone(record: dict[str, Any]) -> list[str]:
    results = record["results"]
    best = next(h for h in results["history"] if h["epoch"] == results["best_epoch"])
    return [f"**SLLM**: {results['parameters'] / 1e6:.2f} M parameters, "
            f"{results['trained_parameters'] / 1e6:.2f} M trained, best epoch {results['best_epoch']} of "
            f"{len(results['history'])}; validation there: L_a {best['eval_l_a']:.3f}, L_e {best['eval_l_e']:.3f}, "
            f"WA {100 * best['eval_wa']:.1f}, UA {100 * best['eval_ua']:.1f}.", ""]


ABOUT = {"data": _data, "backbone": _backbone}  # of notebooks 01 and 02


def _markdown(table: pd.DataFrame) -> str:
    head = [f"| {' | '.join(table.columns)} |", f"|{'---|' * len(table.columns)}"]
    return "\n".join(head + [f"| {' | '.join(str(v) for v in row)} |" for row in table.itertuples(index=False)])
