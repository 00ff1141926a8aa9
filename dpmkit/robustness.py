"""Every method's WA under every disturbance, on the same targets."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pandas as pd

from . import disturbances, metrics, protocols, runs, speakers
from .codes import CorpusCodes
from .corpora import Corpus
from .corpora.dynamics import emotion_prior
from .finetune import Finetuned
from .offsets import NotFitted, OffsetModel
from .settings import Settings

METHODS = ("current", "window", "dpm")


def measured(settings: Settings, corpus: Corpus, codes: CorpusCodes, tuned: Finetuned,
             asked: Sequence[disturbances.Disturbance]) -> list[dict[str, Any]]:
    """A row a disturbance and method: `kind`, `level`, `method`, WA in % with its interval, and `unheard`, targets
    that no segment overlaps. On the first `ablation.disturbed` conversations of the test fold, scored on their true
    utterances. Each disturbance's answers are kept, so that a killed run goes on. Without the rows of
    `speaker-memory` where it cannot be fitted."""
    fold = corpus.folds[settings.fold - 1]
    conversations = corpus.select(fold.test[:settings.ablation.disturbed])
    labelled = [u for c in conversations for u in c.utterances if u.emotion is not None]
    prior = emotion_prior(corpus.select(fold.train), corpus.emotions)
    methods, model, power, rows = METHODS, None, 0.0, []
    with suppress(NotFitted):
        model, power, _ = speakers.fitted(settings, corpus, codes, tuned)
        methods = (*METHODS, "speaker-memory")
        speaker = runs.key(settings.speaker, power, {name: array.tolist() for name, array in vars(model).items()})
    for disturbance in asked:
        changed = disturbances.disturbed(settings, corpus, codes, conversations, disturbance)
        tables = {}
        for method in methods:
            made = runs.artefact(
                settings, "robustness", _heard, disturbed=changed.key, sllm=tuned.key, method=method,
                memory=settings.memory, seed=settings.seed, speaker=speaker if method == "speaker-memory" else None)
            path = made.folder / "answers.parquet"
            with made.making(path) as absent:
                if absent:
                    table = _heard(settings, changed, corpus, tuned, model, power, method)
                    with runs.atomic(path) as temporary:
                        table.to_parquet(temporary, index=False)
            tables[method] = disturbances.returned(pd.read_parquet(path), changed, conversations, corpus.emotions,
                                                   prior)
        scored = metrics.compare({m: metrics.targets(t, "all-lengths") for m, t in tables.items()}, corpus.emotions,
                                 "window", settings.evaluation.bootstrap, settings.evaluation.confidence)
        rows += [{"kind": disturbance.kind, "level": disturbance.level, **row,
                  "unheard": sum(not changed.weights[u.id] for u in labelled)}
                 for row in scored]
    return rows


def _heard(settings: Settings, changed: disturbances.Disturbed, corpus: Corpus, tuned: Finetuned,
           model: OffsetModel | None, power: float, method: str) -> pd.DataFrame:
    """A method's answers for the segments; without a row where none was found."""
    if not changed.conversations:
        return pd.DataFrame(columns=["utterance", *(f"p_{e}" for e in corpus.emotions)])
    if method == "speaker-memory":
        return speakers.remembered(settings, changed.conversations, changed.codes, corpus.emotions, tuned, model,
                                   power)
    spoken = protocols.grouped(changed.conversations, settings.memory, method)
    tables = protocols.listen(tuned.sllm, spoken, changed.codes, corpus.emotions, settings.memory, method,
                              seed=settings.seed, streams=settings.evaluation.streams)
    return pd.concat(list(tables), ignore_index=True)
