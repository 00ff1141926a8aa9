"""The recurrent baseline: an LSTM over a conversation's utterances, each heard as its pooled acoustics.

As Poria et al. (2017) run one over utterances. (The BLSTM of Tzinis et al. (2018), which has the paper's name for
this baseline, steps through the segments of a single utterance.) `lstm` is causal. `blstm` runs over the
conversation from its end, too: it hears the future, and stands beside streaming methods as a bound, not as a rival.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import Dataset

from . import finetune, runs
from .baselines import UNSCORED, majority
from .codes import CorpusCodes
from .corpora import Conversation, Corpus
from .settings import RecurrentSettings, Settings

HEARS = {
    "lstm": "the target and all earlier utterances, each as pooled acoustic features and whether its speaker is "
            "the last one's; a causal LSTM, no language model",
    "blstm": "the WHOLE conversation, so the FUTURE too: as lstm, in both directions; not a streaming method",
}


class Recurrent(nn.Module):
    """Features of a conversation's utterances -> LSTM, causal or `bidirectional` -> an emotion for each."""

    def __init__(self, features: int, emotions: int, shape: RecurrentSettings, bidirectional: bool):
        super().__init__()
        self.lstm = nn.LSTM(features, shape.hidden, shape.layers, batch_first=True, bidirectional=bidirectional,
                            dropout=shape.dropout if shape.layers > 1 else 0.0)  # torch: between layers only
        self.dropout = nn.Dropout(shape.dropout)
        self.head = nn.Linear(shape.hidden * (2 if bidirectional else 1), emotions)

    def logits(self, heard: Tensor, turns: Tensor) -> Tensor:
        """heard: (batch, longest, features), padded behind; turns: (batch,). Shape (batch, longest, emotions).

        Padding is not heard, from behind either: a conversation's logits do not depend on its batch.
        """
        packed = pack_padded_sequence(self.dropout(heard), turns.cpu(), batch_first=True, enforce_sorted=False)
        hidden, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.head(self.dropout(hidden))

    def forward(self, heard: Tensor, turns: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """truth: (batch, longest), UNSCORED where there is no label. Of the labelled utterances: cross-entropy,
        logits (labelled, emotions) and truth (labelled,)."""
        logits, scored = self.logits(heard, turns), truth != UNSCORED
        return {"loss": F.cross_entropy(logits[scored], truth[scored]), "logits": logits[scored].detach(),
                "truth": truth[scored]}


class _Heard(Dataset):
    """Item i: features of conversation i, (turns, features), and labels, (turns,), UNSCORED outside the set."""

    def __init__(self, conversations: Sequence[Conversation], features: dict[str, np.ndarray],
                 emotions: tuple[str, ...]):
        self.items, self.epoch = [], 0
        for c in conversations:
            who = [u.speaker for u in c.utterances]
            again = [float(i > 0 and who[i] == who[i - 1]) for i in range(len(who))]
            heard = np.column_stack([np.stack([features[u.id] for u in c.utterances]), again])
            truth = [UNSCORED if u.emotion is None else emotions.index(u.emotion) for u in c.utterances]
            self.items.append((torch.from_numpy(heard.astype(np.float32)), torch.tensor(truth)))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.items[index]


def predict(settings: Settings, corpus: Corpus, codes: CorpusCodes, split: str = "test",
            bidirectional: bool = False) -> pd.DataFrame:
    """Predictions of `lstm`, or `blstm` where `bidirectional`, on every utterance of a split, in order.

    Trained here if it has to be, on the training conversations of `settings.fold`; goes on where a kill stopped it.
    Columns as `baselines.classify`. Raises UserError for a disk that is full.
    """
    shape = settings.recurrent
    tune = replace(settings.finetune, lr=shape.lr, epochs=shape.epochs, batch=shape.batch)
    made = runs.artefact(settings, "recurrent", predict, codes=codes.key, fold=settings.fold, seed=settings.seed,
                         recurrent=shape, finetune=finetune.keyed(tune), bidirectional=bidirectional)
    weights = made.folder / "recurrent.safetensors"
    fold = corpus.folds[settings.fold - 1]
    features = _standardised(codes.features, corpus.select(fold.train))
    data = [_Heard([c for c in corpus.select(ids) if any(u.emotion for u in c.utterances)], features,
                   corpus.emotions) for ids in (fold.train, fold.validation)]
    asked = _Heard(corpus.select(getattr(fold, split)), features, corpus.emotions)
    torch.manual_seed(settings.seed)
    model = Recurrent(asked[0][0].shape[1], len(corpus.emotions), shape, bidirectional)
    with runs.one_thread(), made.making(weights, together=True) as absent:
        if absent:
            finetune.fit(model, *data, _collate, tune, made.folder, settings)
            with runs.atomic(weights) as temporary:
                save_file(model.cpu().state_dict(), temporary)
        model.load_state_dict(load_file(weights))
        model.to(finetune.device(settings)).eval()
        answers = [_answers(model, heard, finetune.device(settings)) for heard, _ in asked.items]
    table = majority(settings, corpus, split)  # the rows of the same utterances; its answers are replaced
    table[[f"p_{e}" for e in corpus.emotions]] = np.concatenate(answers)
    return table


def _standardised(features: dict[str, np.ndarray], train: Sequence[Conversation]) -> dict[str, np.ndarray]:
    """Every utterance's features, with mean 0 and standard deviation 1 over those of the training conversations."""
    known = np.stack([features[u.id] for c in train for u in c.utterances])
    mean, deviation = known.mean(axis=0), known.std(axis=0)
    deviation[deviation == 0] = 1.0
    return {name: (x - mean) / deviation for name, x in features.items()}


def _collate(items: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    heard, truth = zip(*items, strict=True)
    return {"heard": pad_sequence(heard, batch_first=True), "turns": torch.tensor([len(h) for h in heard]),
            "truth": pad_sequence(truth, batch_first=True, padding_value=UNSCORED)}


@torch.no_grad()
def _answers(model: Recurrent, heard: Tensor, device: torch.device) -> np.ndarray:
    """Probabilities of one conversation's utterances, (turns, emotions)."""
    logits = model.logits(heard.unsqueeze(0).to(device), torch.tensor([len(heard)]))[0]
    return logits.softmax(-1).cpu().double().numpy()
