"""What others remember of a speaker at the emotion head, beside `speakers`: its neutral mean (iterative feature
normalisation, Busso et al. 2013), its own emotion means (as Emo-TTA's EM, arXiv 2509.25495), and whatever an LSTM
learns to keep. All stream, know who speaks, and know no label. Each has a control: another speaker's memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from . import baselines, finetune, machine, metrics, protocols, runs, speakers
from .codes import CorpusCodes
from .corpora import Corpus
from .finetune import Finetuned
from .settings import Settings
from .speakers import OffsetModel

_HEAD = "as speaker-head + filter, but "
HEARS = {
    "normalised + filter": f"{_HEAD}each state is less how far the speaker's earlier utterances that the head took "
                           "for neutral lie from the neutral mean (feature normalisation)",
    "emo-tta + filter": f"{_HEAD}for each speaker the head's means move to the utterances of the conversation that "
                        "it answers so (EM of class Gaussians)",
    "speaker-lstm": "the target alone and the speaker's earlier utterances, as the states that the SLLM reads "
                    "emotions from; a causal LSTM; knows who speaks",
}
HEARS |= {f"{name}-swapped": f"control: as {name}, but what is remembered is of another conversation's speaker "
                             "after as many utterances" for name in HEARS}
STRENGTHS = (1.0, 4.0, 16.0, 64.0)  # utterances that a start weighs as much as, tried on validation conversations
State = Any
Rule = Callable[[OffsetModel, float, State, np.ndarray], tuple[np.ndarray, State]]


def normalised(model: OffsetModel, strength: float, state: State, z: np.ndarray,
               neutral: int = 0) -> tuple[np.ndarray, State]:
    """The head's answer, (emotions,), to an utterance, z (d,), and the next state: the speaker's summed distance
    from the neutral mean, (d,), and how many utterances that is of; None: nothing yet."""
    total, count = state or (0.0, 0)
    answer = model.posterior((z - total / (count + strength))[None], model.within + model.between)[0]
    if answer.argmax() == neutral:
        total, count = total + z - model.means[neutral], count + 1
    return answer, (total, count)


def emo_tta(model: OffsetModel, strength: float, state: State, z: np.ndarray) -> tuple[np.ndarray, State]:
    """The same with the speaker's own means as the state, (emotions, d), and what each weighs, (emotions,): a step
    of EM moves them by how sure the answer is."""
    means, weights = (model.means, np.full(len(model.means), strength)) if state is None else state
    answer = replace(model, means=means).posterior(z[None], model.within + model.between)[0]
    weights = weights + answer
    return answer, (means + (answer / weights)[:, None] * (z - means), weights)


def remembered(rule: Rule, model: OffsetModel, strength: float, table: pd.DataFrame, z: np.ndarray,
               swapped: bool = False) -> np.ndarray:
    """The answers, (n, emotions), to the utterances of a table, z (n, d), by a rule that starts anew in each
    conversation; `swapped`: under another conversation's speaker's state after as many utterances."""
    answers, trails = np.zeros((len(table), len(model.prior))), {}
    for (conversation, who), rows in table.groupby(["conversation", "speaker"], sort=False).indices.items():
        trail = trails.setdefault(conversation, {}).setdefault(who, [None])
        for i in rows:
            answers[i], state = rule(model, strength, trail[-1], z[i])
            trail.append(state)
    if swapped:
        for i, trail, count in speakers.strangers(table, trails):
            answers[i], _ = rule(model, strength, trail[count], z[i])
    return answers


def predict(settings: Settings, corpus: Corpus, codes: CorpusCodes, tuned: Finetuned,
            model: OffsetModel) -> tuple[dict[str, pd.DataFrame], list[dict[str, Any]]]:
    """A table of the test split (columns as of `protocols.answered`) for each method of HEARS; and what was tried
    on validation conversations: `method`, `strength`, `nll`, `WA` (%)."""
    run, chain, emotions = (settings, corpus, codes, tuned), (model.transition, model.prior), corpus.emotions
    neutral = emotions.index("neu") if "neu" in emotions else int(model.prior.argmax())
    rules = {"normalised + filter": partial(normalised, neutral=neutral), "emo-tta + filter": emo_tta}
    (held, states, _), (table, test, _) = (speakers.states(*run, split) for split in ("validation", "test"))
    held_z, z = model.project(states), model.project(test)
    tables, tried = {}, []
    for name, rule in rules.items():
        for strength in STRENGTHS:
            p = baselines.filtered(held, remembered(rule, model, strength, held, held_z), *chain)
            answers = protocols.answered(held, emotions, p)
            tried.append({"method": name, "strength": strength, "nll": metrics.nll(answers, emotions),
                          "WA": metrics.wa(answers, emotions)})
        best = min((row for row in tried if row["method"] == name), key=lambda row: row["nll"])["strength"]
        for row, swapped in ((name, False), (f"{name}-swapped", True)):
            p = baselines.filtered(table, remembered(rule, model, best, table, z, swapped), *chain)
            tables[row] = protocols.answered(table, emotions, p)
    return tables | lstm(*run, model), tried


def lstm(settings: Settings, corpus: Corpus, codes: CorpusCodes, tuned: Finetuned,
         model: OffsetModel) -> dict[str, pd.DataFrame]:
    """The answers of `speaker-lstm`, trained on the training conversations, and of its control."""
    shape, emotions = settings.recurrent, corpus.emotions
    tune = settings.finetune.but(lr=shape.lr, epochs=shape.epochs, batch=shape.batch)
    made = runs.Artefact(settings, "network", lstm, sllm=tuned.key, precision=settings.memory.precision,
                         fold=settings.fold, seed=settings.seed, finetune=finetune.keyed(tune), shape=shape,
                         dimensions=settings.speaker.dimensions)

    def heard(split: str) -> tuple[pd.DataFrame, Tensor, np.ndarray]:
        table, states, truth = speakers.states(settings, corpus, codes, tuned, split)
        z = torch.from_numpy(model.project(states)).float()
        return table, z, np.where(truth < 0, baselines.UNSCORED, truth.astype(int))

    def data() -> list[baselines.Items]:
        return [baselines.Items((z[rows], list(truth[rows])) for rows in of_speakers(table)
                                if (truth[rows] != baselines.UNSCORED).any())
                for table, z, truth in map(heard, ("train", "validation"))]

    torch.manual_seed(settings.seed)
    network = baselines.Recurrent(model.basis.shape[1], len(emotions), shape, bidirectional=False)
    with machine.one_thread():
        network = baselines.trained(made, network, data, tune, settings)
        table, z, _ = heard("test")
        z, answers, own, trails = z.to(machine.device(settings)), {}, {}, {}
        for rows in of_speakers(table):
            own |= {i: rows[:n + 1] for n, i in enumerate(rows)}
            conversation, who = table.loc[rows[0], ["conversation", "speaker"]]
            trails.setdefault(conversation, {})[who] = [rows[:n] for n in range(len(rows) + 1)]
        others = {i: [*trail[count], i] for i, trail, count in speakers.strangers(table, trails)}
        for name, before in (("speaker-lstm", own), ("speaker-lstm-swapped", others)):
            batch = network.collate([(z[before[i]], [0] * len(before[i])) for i in range(len(table))])
            with torch.no_grad():
                logits = network.logits(batch["heard"], batch["turns"])  # (utterances, longest, emotions)
            last = logits[torch.arange(len(table)), batch["turns"] - 1]
            answers[name] = protocols.answered(table, emotions, last.softmax(-1).cpu().numpy())
    return answers


def of_speakers(table: pd.DataFrame) -> list[list[int]]:
    """The rows of each speaker in each conversation, in order."""
    return [list(rows) for rows in table.groupby(["conversation", "speaker"], sort=False).indices.values()]
