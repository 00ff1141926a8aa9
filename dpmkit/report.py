"""The pages of a folder of results, the README's tables, and the model card of a trained SLLM."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from . import machine, metrics, records, runs, tables
from .codes import CorpusCodes
from .corpora import Corpus
from .finetune import Finetuned
from .reproduce import NOTEBOOKS
from .settings import Settings, UserError
from .tokenizers import FITTED

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
             f"(profile `{settings.profile}`, commit {machine.commit()}).", "",
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
            chosen = metrics.targets(table)
            row, = metrics.compare({"window": table}, corpus.emotions, "window", settings.evaluation)
            cells = (f"{row[m]:.1f} [{row[f'{m}_interval'][0]:.1f}, {row[f'{m}_interval'][1]:.1f}]"
                     for m in metrics.MEASURES)
            lines.append(f"| {split} | {len(chosen)} | {chosen['conversation'].nunique()} | {' | '.join(cells)} |")
    else:
        lines.append("Not measured: run notebook 02 with the same settings.")
    return "\n".join([*lines, "", "## Intended use", "", USES, "## Limits", "", LIMITS])


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
        table = tables.markdown(tables.plan({"rows": [row for plan in plans for row in plan["rows"]]}))
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
                  tables.verdict(same[0]), "", *_tested(same[0]), _short(same[0]), ""]
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
    tested = (tables.contrasts(record, "all-lengths"), tables.attribution(record), tables.losses(record))
    if tested[0].empty:
        return []
    return [line for table in tested if len(table) for line in (tables.markdown(table), "")]


def _where(record: dict[str, Any]) -> tuple[str, str, str]:
    """Profile, corpus and the digits of changed settings: all that a run's name holds but fold and seed."""
    return (record["profile"], record["corpus"],
            records.run_of(record).removeprefix(f"fold{record['fold']}-seed{record['seed']}"))


def _short(record: dict[str, Any]) -> str:
    """The method table, every labelled utterance, without the filters and controls that SHOWN leaves out."""
    return tables.markdown(_kept(record, tables.methods(record, "all-lengths").drop(columns="hears")))


def _spread(same: list[dict[str, Any]], what: str) -> str:
    return tables.markdown(_kept(same[0], tables.spread(same, what)))


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
              "", tables.markdown(tables.quoted()), ""]
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
            title, table = "the memory's rungs", tables.rungs(results)
        elif kind == "context":
            words = ("Until the last sentence of a recording has its label, after so many codes of history: "
                     "seconds, and peak memory beyond the model.")
            title, table = "cost against history", tables.context(results)
        elif kind == "plan":
            words = ("Counted from shapes and lengths, not run: FLOPs of notebooks 02 and 03 of every fold and "
                     "seed, a cell on one GPU; cost is GPU hours at the price that was given.")
            title, table = "plan of a whole reproduction", tables.plan(results)
        elif kind == "threads":
            words = ("How torch's threads wait, beside other work and not: sentences of the memory and steps of "
                     "training a second, medians of rounds in which the arms take turns, lowest to highest.")
            title, table = "how threads wait", tables.threads(results)
        else:
            words = (f"One stream that is never reset, lr {results['lr']:g}: validation conversations one after "
                     "the other, over and over.")
            title, table = kind, tables.stream(results)
        lines += [f"## Bench: {title} ({_setting(record)})", "", words, "", tables.markdown(table), "",
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
    return [tables.verdict(record), "", *_tested(record),
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
            tables.markdown(tables.processors([record, *same])), ""] if same else []


def _details(kinds: dict[str, dict[str, Any]]) -> list[str]:
    """What stands folded below a run: the other protocol, the paper's Tables 3 and 4, corpus and backbone."""
    lines = []
    if "methods" in kinds:
        part = kinds["methods"]["results"]["protocols"]["complete"]
        lines += _folded("Every method, filter, control and bound, and what each of them hears",
                         [tables.markdown(tables.methods(kinds["methods"], "all-lengths"))])
        lines += _folded(f"Complete dialogues: the last labelled utterance of each ({part['targets']} targets)",
                         [tables.verdict(kinds["methods"], "complete"), "",
                          *([tables.markdown(tested), ""] if len(tested := tables.contrasts(
                              kinds["methods"], "complete")) else []),
                          tables.markdown(tables.methods(kinds["methods"], "complete"))])
    if "ablations" in kinds and "best" in kinds["ablations"]["results"]:
        lines += _folded("Stepping (the paper's Table 3), validation conversations",
                         [tables.markdown(tables.stepping(kinds["ablations"])), "", _best(kinds["ablations"])])
    if "context" in kinds and "windows" in kinds["context"]["results"]:
        lines += _folded("The SLLM at once, by its history (the paper's Table 4)",
                         [tables.markdown(tables.windows(kinds["context"]))])
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
