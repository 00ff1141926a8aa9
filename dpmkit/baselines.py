"""What DPM is read against, beside the frozen SLLM: a classifier on codes, the majority, and emotional inertia."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from . import finetune, runs
from .codes import CorpusCodes
from .corpora import Conversation, Corpus
from .corpora.dynamics import emotion_prior, transition_matrix
from .filtering import forward_filter
from .settings import BackboneSettings, Settings

HEARS = {
    "majority": "nothing: the training fold's most frequent emotion",
    "classifier": "the target and the n_r codes before it; a Transformer encoder, no language model",
    "filter": ", then an HMM forward filter a speaker with the training fold's transitions; is told who speaks",
}


class Classifier(nn.Module):
    """Codes -> trainable Transformer encoder -> head (paper, 'Classifier'), of the SLLM's width and half its depth.

    Hears what the `window` method hears: the n_r codes before the utterance, a separator, the utterance.
    """

    def __init__(self, codebook_size: int, emotions: int, shape: BackboneSettings):
        super().__init__()
        self.padding, self.window = codebook_size + 1, shape.window
        self.embed = nn.Embedding(codebook_size + 2, shape.hidden, padding_idx=self.padding)
        self.place = nn.Embedding(shape.window, shape.hidden)
        layer = nn.TransformerEncoderLayer(shape.hidden, shape.heads, shape.intermediate, shape.dropout,
                                           activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, max(1, shape.layers // 2), enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(shape.hidden), nn.Linear(shape.hidden, emotions))

    def forward(self, rows: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """rows: padded codes, (batch, tokens); truth: (batch,). Cross-entropy and logits (batch, emotions)."""
        empty = rows == self.padding
        hidden = self.embed(rows) + self.place(torch.arange(rows.shape[1], device=rows.device))
        hidden = self.encoder(hidden, src_key_padding_mask=empty).masked_fill(empty.unsqueeze(-1), 0.0)
        logits = self.head(hidden.sum(1) / (~empty).sum(1, keepdim=True))
        return {"loss": F.cross_entropy(logits, truth), "logits": logits.detach(), "truth": truth}


class _Windows(Dataset):
    """Item i: the rows of conversation i's labelled utterances."""

    def __init__(self, conversations: Sequence[Conversation], codes: dict[str, np.ndarray],
                 emotions: tuple[str, ...], n_r: int, separator: int, window: int):
        self.items, self.epoch = [], 0
        for conversation in conversations:
            history, rows = np.empty(0, dtype=np.int64), []
            for u in conversation.utterances:
                if u.emotion is not None:
                    row = np.concatenate([history[max(0, len(history) - n_r):], [separator], codes[u.id]])[-window:]
                    rows.append((torch.from_numpy(row), emotions.index(u.emotion)))
                history = np.concatenate([history, codes[u.id]])[-n_r:] if n_r else history
            self.items.append(rows)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> list[tuple[Tensor, int]]:
        return self.items[index]


def classify(settings: Settings, corpus: Corpus, codes: CorpusCodes, split: str = "test") -> pd.DataFrame:
    """Predictions of the classifier (trained here if it has to be), labelled utterances of a split in order.

    Columns as `protocols.predict`, without those of the memory.
    """
    size, shape = codes.facts["codebook_size"], settings.backbone
    tune = replace(settings.finetune, **asdict(settings.classifier))
    key = runs.key(codes.key, settings.fold, settings.seed, shape, tune, settings.memory.prefix,
                   runs.code_version(sys.modules[__name__], finetune))
    folder = runs.folder(settings, "classifier", key)
    weights = folder / "classifier.safetensors"
    torch.manual_seed(settings.seed)
    model = Classifier(size, len(corpus.emotions), shape)
    fold = corpus.folds[settings.fold - 1]
    scored = {name: [c for c in corpus.select(getattr(fold, name)) if any(u.emotion for u in c.utterances)]
              for name in ("train", "validation", split)}
    data = {name: _Windows(conversations, codes.codes, corpus.emotions, settings.memory.prefix, size, shape.window)
            for name, conversations in scored.items()}

    def collate(items: Sequence[list[tuple[Tensor, int]]]) -> dict[str, Tensor]:
        rows, truth = zip(*(pair for item in items for pair in item), strict=True)
        return {"rows": pad_sequence(rows, batch_first=True, padding_value=model.padding),
                "truth": torch.tensor(truth)}

    if not weights.is_file():
        finetune.fit(model, data["train"], data["validation"], collate, tune, folder, settings)
        with runs.atomic(weights) as temporary:
            save_file(model.cpu().state_dict(), temporary)
    model.load_state_dict(load_file(weights))
    model.to(finetune.device(settings)).eval()
    rows = []
    for conversation, item in zip(scored[split], data[split].items, strict=True):
        with torch.no_grad():
            batch = {k: v.to(finetune.device(settings)) for k, v in collate([item]).items()}
            probabilities = model(**batch)["logits"].softmax(-1).cpu().numpy()
        labelled = [(turn, u) for turn, u in enumerate(conversation.utterances) if u.emotion is not None]
        rows += [_row(conversation, turn, corpus.emotions, p)
                 for (turn, _), p in zip(labelled, probabilities, strict=True)]
    return pd.DataFrame(rows)


def majority(settings: Settings, corpus: Corpus, split: str = "test") -> pd.DataFrame:
    """The training fold's emotion frequencies as every utterance's answer."""
    fold = corpus.folds[settings.fold - 1]
    prior = emotion_prior(corpus.select(fold.train), corpus.emotions)
    return pd.DataFrame([_row(c, turn, corpus.emotions, prior) for c in corpus.select(getattr(fold, split))
                         for turn, u in enumerate(c.utterances) if u.emotion is not None])


def inertia(table: pd.DataFrame, validation: pd.DataFrame, settings: Settings, corpus: Corpus) -> pd.DataFrame:
    """The emotion-inertia filter on a method's answers: an HMM forward filter a speaker and conversation.

    Transitions and prior come from the training fold; one temperature for the method's answers, which are too
    sure of themselves, from the same method on the validation fold. It is told who speaks, and is causal.
    """
    train = corpus.select(corpus.folds[settings.fold - 1].train)
    transition, prior = transition_matrix(train, corpus.emotions), emotion_prior(train, corpus.emotions)
    columns = [f"p_{e}" for e in corpus.emotions]
    temperature = fit_temperature(validation, corpus.emotions)
    out = table.copy()
    for _, rows in table.groupby("conversation", sort=False):
        softened = _soften(rows[columns].to_numpy(), temperature)  # turns outside the label set, too: who knows
        filtered = forward_filter(softened, rows["speaker"].tolist(), transition, prior)
        out.loc[rows.index, columns] = filtered
    return out


def fit_temperature(table: pd.DataFrame, emotions: tuple[str, ...]) -> float:
    """The temperature that gives a table of answers its lowest negative log-likelihood (Guo et al. 2017)."""
    labelled = table[table["emotion"].notna()]
    p = labelled[[f"p_{e}" for e in emotions]].to_numpy()
    truth = labelled["emotion"].map({e: i for i, e in enumerate(emotions)}).to_numpy(dtype=int)

    def nll(log_temperature: float) -> float:
        return -np.log(_soften(p, np.exp(log_temperature))[np.arange(len(p)), truth] + 1e-12).mean()

    return float(np.exp(minimize_scalar(nll, bounds=(-2.0, 3.0), method="bounded").x))


def _soften(p: np.ndarray, temperature: float) -> np.ndarray:
    logits = np.log(np.clip(p, 1e-12, 1.0)) / temperature
    powered = np.exp(logits - logits.max(1, keepdims=True))
    return powered / powered.sum(1, keepdims=True)


def _row(conversation: Conversation, turn: int, emotions: tuple[str, ...], p: np.ndarray) -> dict:
    u = conversation.utterances[turn]
    return {"conversation": conversation.id, "session": conversation.session, "utterance": u.id,
            "speaker": u.speaker, "turn": turn, "start": u.start, "end": u.end, "emotion": u.emotion,
            **{f"p_{e}": float(v) for e, v in zip(emotions, p, strict=True)}}
