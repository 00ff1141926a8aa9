"""The model card of a trained SLLM, and what else its folder needs to be used without this project's `runs/`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd

from . import metrics, records, runs
from .codes import CorpusCodes
from .corpora import Corpus
from .finetune import Finetuned
from .settings import Settings
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


def write(settings: Settings, tuned: Finetuned, corpus: Corpus, codes: CorpusCodes,
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
