"""Every row of the method table: who answers, on the same targets, and what each one hears."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import torch

from . import adaptation, baselines, cheaper, finetune, metrics, protocols, speakers
from .codes import CorpusCodes
from .corpora import Corpus
from .finetune import Finetuned
from .settings import Settings
from .sllm import EmotionSLLM

# What stands under the inertia filter, too: no controls, and not the majority, which always says the same.
FILTERED = ("classifier", "lstm", "blstm", "current", "window", "at-once", "kv-window", "own-answers", "dpm-tuned")
TUNED = {name: name.replace("dpm", "dpm-tuned", 1)  # at the learning rate that validation chose
         for name in ("dpm", "dpm-swapped", "dpm-same-speaker", "dpm-shuffled", "dpm-reset", "dpm-still")}


def rated(settings: Settings, corpus: Corpus, codes: CorpusCodes, tuned: Finetuned,
          method: str) -> dict[float, float]:
    """Each learning rate of `ablation.lr` -> WA in % of an SLLM method with a memory on `ablation.conversations`
    validation conversations; 0: without a memory."""
    return {lr: metrics.wa(protocols.predict(settings.replace("memory.lr", lr), corpus, codes, tuned,
                                             method if lr else "window", "validation",
                                             settings.ablation.conversations), corpus.emotions)
            for lr in (0.0, *(lr for lr in settings.ablation.lr if lr))}


def answers(settings: Settings, corpus: Corpus, codes: CorpusCodes, tuned: Finetuned,
            rates: Mapping[str, float]) -> tuple[dict[str, pd.DataFrame], dict[str, Any], list[str]]:
    """Name -> predictions (as `protocols.predict`'s) for every utterance of the test conversations of
    `settings.fold`; the `power` of the speaker memory and the ones `tried`; and a note where rows could not be run.
    `rates`: the learning rates that validation chose: of `dpm`, for the rows `dpm-tuned…`, and of the bound
    `dpm-told`, which takes another loss."""
    run = corpus, codes, tuned
    best, bound = (settings.replace("memory.lr", rates[name]) for name in ("dpm", "dpm-told"))
    plain = [n for n in FILTERED if n != "dpm-tuned" and (n != "own-answers" or settings.evaluation.own_answers)]
    tables = {"majority": baselines.majority(settings, corpus), "last-true": baselines.last_true(settings, corpus),
              "dpm-told": protocols.predict(bound, *run, "dpm-told")}
    tables |= {name: _plain(settings, *run, name, "test") for name in plain}
    tables |= {name: protocols.predict(settings, *run, name) for name in ("dpm", "dpm-swapped")}
    tables |= {row: protocols.predict(best, *run, name) for name, row in TUNED.items()}
    for name in (*plain, "dpm-tuned"):
        validation = _plain(best, *run, name.replace("dpm-tuned", "dpm"), "validation")
        tables[f"{name} + filter"] = baselines.inertia(tables[name], validation, settings, corpus)
    try:
        model, tried = speakers.fitted(settings, *run)
    except speakers.NotFitted as reason:
        return tables, {}, [f"{', '.join(speakers.HEARS | adaptation.HEARS)} were not run: {reason}."]
    adapted, strengths = adaptation.predict(settings, *run, model)
    tables |= speakers.predict(settings, *run, model) | adapted
    return tables, {"power": model.power, "tried": tried, "strengths": strengths}, []


def _plain(settings: Settings, corpus: Corpus, codes: CorpusCodes, tuned: Finetuned, name: str,
           split: str) -> pd.DataFrame:
    """One method's predictions on a split."""
    if name in ("classifier", "lstm", "blstm"):
        return baselines.network(settings, corpus, codes, name, split)
    if name == "own-answers":
        settings = settings.replace("memory.history_emotions", "predicted")
        tuned = finetune.train(settings, corpus, codes)
    return protocols.predict(settings, corpus, codes, tuned, name, split)


def described(settings: Settings, emotions: int, sllm: EmotionSLLM) -> pd.DataFrame:
    """All rows of the table in their order: `method`, `group` (method, extension, filter, control, bound), what it
    `hears`, and how many numbers it `keeps` of a conversation, or of each speaker in it, as text."""
    own = speakers.HEARS | adaptation.HEARS
    hears = baselines.HEARS | own | {name: m.hears for name, m in protocols.METHODS.items()}
    hears |= {row: hears[name] for name, row in TUNED.items()}
    hears["dpm-tuned"] += ", at the learning rate that validation conversations chose"
    hears |= {f"{name} + filter": hears[name] + hears["filter"] for name in FILTERED}
    bounds = [name for name in own if hears[name].startswith("BOUND")]
    swapped = [name for name in own if "swapped" in name]
    groups = {
        "method": ["majority", *FILTERED[:-1], "dpm", "dpm-tuned"],
        "extension": [name for name in own if name not in (*bounds, *swapped)],
        "filter": [f"{name} + filter" for name in FILTERED],
        "control": [*swapped, "dpm-swapped", *list(TUNED.values())[1:]],
        "bound": [*bounds, "last-true", "dpm-told"]}
    keeps = _keeps(settings, emotions, sllm)
    return pd.DataFrame([{"method": name, "group": group, "hears": hears[name], "keeps": keeps(name)}
                         for group, names in groups.items() for name in names])


def _keeps(settings: Settings, emotions: int, sllm: EmotionSLLM) -> Callable[[str], str]:
    """How many numbers a row keeps, tokens counted as one each. Of DPM: the temporary LoRA, AdamW's two moments of
    each of its parameters, and the n_r tokens; of a speaker's offset: each path's, and their common covariance."""
    own, memory, lstm = settings.speaker, settings.memory, settings.recurrent
    states = 2 * lstm.hidden * lstm.layers
    factors = sum(memory.rank * (m.in_features + m.out_features) for m in cheaper.layers(sllm, memory).values())
    written = (3 if memory.optimizer == "adamw" else 1) * factors
    tokens = protocols.METHODS["kv-window"].settings(memory, sllm.window)
    with torch.no_grad():
        one = sllm.causal_lm.get_decoder()(torch.zeros(1, 1, dtype=torch.long, device=sllm.device), use_cache=True)
    of_one = sum(layer.keys.numel() + layer.values.numel() for layer in one.past_key_values.layers)
    cached = (tokens.prefix + tokens.sinks) * of_one
    offset = own.paths * (own.dimensions + 1 + emotions) + own.dimensions ** 2
    plain = {"majority": 0, "classifier": memory.prefix, "lstm": states, "current": 0, "window": memory.prefix,
             "at-once": sllm.window, "kv-window": cached, "own-answers": memory.prefix, "last-true": 1,
             "speaker-head": 0, "speaker-offset": offset, "speaker-memory": offset, "speaker-memory-kept": offset,
             "speaker-told": offset, "normalised": own.dimensions + 1, "emo-tta": emotions * (own.dimensions + 1),
             "speaker-lstm": states}

    def keeps(name: str) -> str:
        bare = name.replace("-swapped", "").removesuffix(" + filter")
        found = written + memory.prefix if bare.startswith("dpm") else plain.get(bare)
        if found is None:
            return "all of it"
        return f"{found + emotions * name.endswith(' + filter'):,}"

    return keeps
