"""What DPM is read against, beside the frozen SLLM: a classifier on codes, the majority, and emotional inertia.

Unlabelled utterances follow the rule of `protocols`: tables have a row for every utterance.

recurrent: The recurrent baseline: an LSTM over a conversation's utterances, each heard as its pooled acoustics.

As Poria et al. (2017) run one over utterances. (The BLSTM of Tzinis et al. (2018), which has the paper's name for
this baseline, steps through the segments of a single utterance.) `lstm` is causal. `blstm` runs over the
conversation from its end, too: it hears the future, and stands beside streaming methods as a bound, not as a rival.
reference: Reference classifiers: how well emotion is known from an utterance's acoustics, and what history and
voice add.

A multinomial logistic regression on pooled features stands for one utterance; history is the emotion-inertia
filter. They bound nothing: another classifier of the same features may lie above them. The oracles are no methods:
with the help of true labels they take each speaker's offset away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, recall_score
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import Dataset

from . import finetune, machine, runs
from .codes import CorpusCodes
from .corpora import Conversation, Corpus, Fold
from .corpora.dynamics import emotion_prior, forward_filter, transition_counts, transition_matrix
from .settings import BackboneSettings, RecurrentSettings, Settings

# -- baselines -----------------------------------------------------------------

HEARS = {
    "majority": "nothing: the training fold's most frequent emotion",
    "classifier": "the target and the n_r codes before it; a Transformer encoder, no language model",
    "last-true": "BOUND, no method: the speaker's last TRUE emotion in the conversation, repeated; before its "
                 "first labelled utterance the training fold's emotion frequencies; is told who speaks",
    "filter": ", then an HMM forward filter a speaker with the training fold's transitions; is told who speaks",
}
UNSCORED = -100  # in place of a label: padding and utterances outside the label set


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
        logits = self.logits(rows)
        return {"loss": F.cross_entropy(logits, truth), "logits": logits.detach(), "truth": truth}

    def logits(self, rows: Tensor) -> Tensor:
        empty = rows == self.padding
        hidden = self.embed(rows) + self.place(torch.arange(rows.shape[1], device=rows.device))
        hidden = self.encoder(hidden, src_key_padding_mask=empty).masked_fill(empty.unsqueeze(-1), 0.0)
        return self.head(hidden.sum(1) / (~empty).sum(1, keepdim=True))


class _Windows(Dataset):
    """Item i: the rows of conversation i's utterances, each with its label, UNSCORED outside the label set."""

    def __init__(self, conversations: Sequence[Conversation], codes: dict[str, np.ndarray],
                 emotions: tuple[str, ...], n_r: int, separator: int, window: int):
        self.items, self.epoch = [], 0
        for conversation in conversations:
            history, rows = np.empty(0, dtype=np.int64), []
            for u in conversation.utterances:
                row = np.concatenate([history[max(0, len(history) - n_r):], [separator], codes[u.id]])[-window:]
                rows.append((torch.from_numpy(row), UNSCORED if u.emotion is None else emotions.index(u.emotion)))
                history = np.concatenate([history, codes[u.id]])[-n_r:] if n_r else history
            self.items.append(rows)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> list[tuple[Tensor, int]]:
        return self.items[index]


def classify(settings: Settings, corpus: Corpus, codes: CorpusCodes, split: str = "test") -> pd.DataFrame:
    """Predictions of the classifier (trained here if it has to be), every utterance of a split in order.

    Columns as `protocols.predict`, without those of the memory.
    """
    size, shape = codes.facts["codebook_size"], settings.backbone
    tune = replace(settings.finetune, **asdict(settings.classifier))
    made = runs.artefact(settings, "classifier", classify, codes=codes.key, fold=settings.fold, seed=settings.seed,
                         backbone=replace(shape, source=""), finetune=finetune.keyed(tune),
                         prefix=settings.memory.prefix)
    weights = made.folder / "classifier.safetensors"
    torch.manual_seed(settings.seed)
    model = Classifier(size, len(corpus.emotions), shape)
    fold = corpus.folds[settings.fold - 1]

    def data(name: str, labelled: bool = True) -> _Windows:
        """Of a split's conversations; for training, those that have a label."""
        found = corpus.select(getattr(fold, name))
        some = [c for c in found if not labelled or any(u.emotion for u in c.utterances)]
        return _Windows(some, codes.codes, corpus.emotions, settings.memory.prefix, size, shape.window)

    def collate(items: Sequence[list[tuple[Tensor, int]]]) -> dict[str, Tensor]:
        rows, truth = zip(*(pair for item in items for pair in item if pair[1] != UNSCORED), strict=True)
        return {"rows": padded(rows), "truth": torch.tensor(truth)}

    def padded(rows: Sequence[Tensor]) -> Tensor:
        return pad_sequence(rows, batch_first=True, padding_value=model.padding)

    with made.making(weights, together=True) as absent:
        if absent:
            finetune.fit(model, data("train"), data("validation"), collate, tune, made.folder, settings)
            with runs.atomic(weights) as temporary:
                save_file(model.cpu().state_dict(), temporary)
    model.load_state_dict(load_file(weights))
    model.to(finetune.device(settings)).eval()
    answers = []
    for item in data(split, labelled=False).items:
        with torch.no_grad():
            logits = model.logits(padded([row for row, _ in item]).to(finetune.device(settings)))
        answers.append(logits.softmax(-1).cpu().numpy())
    return _table(corpus.select(getattr(fold, split)), corpus.emotions, np.concatenate(answers))


def majority(settings: Settings, corpus: Corpus, split: str = "test") -> pd.DataFrame:
    """The training fold's emotion frequencies as every utterance's answer."""
    fold = corpus.folds[settings.fold - 1]
    prior, asked = emotion_prior(corpus.select(fold.train), corpus.emotions), corpus.select(getattr(fold, split))
    return _table(asked, corpus.emotions, np.array([prior for c in asked for _ in c.utterances]))


def last_true(settings: Settings, corpus: Corpus, split: str = "test") -> pd.DataFrame:
    """A bound that hears nothing: each utterance's answer is its speaker's last TRUE emotion in the conversation,
    which unlabelled utterances leave as it is; before there is one, the training fold's emotion frequencies.

    It is as sure as training speakers stay in an emotion (add-one smoothed rate over all emotions; more than chance
    at least, so that the answer is the repeated emotion); the rest is shared by the others alike.
    """
    fold, size = corpus.folds[settings.fold - 1], len(corpus.emotions)
    counts = transition_counts(corpus.select(fold.train), corpus.emotions) + 1.0
    stay = max(np.trace(counts) / counts.sum(), 1 / size + 1e-6)
    repeated = np.where(np.eye(size, dtype=bool), stay, (1 - stay) / max(1, size - 1))
    prior, answers = emotion_prior(corpus.select(fold.train), corpus.emotions), []
    for conversation in corpus.select(getattr(fold, split)):
        last: dict[str, int] = {}
        for u in conversation.utterances:
            answers.append(repeated[last[u.speaker]] if u.speaker in last else prior)
            if u.emotion is not None:
                last[u.speaker] = corpus.emotions.index(u.emotion)
    return _table(corpus.select(getattr(fold, split)), corpus.emotions, np.array(answers))


def inertia(table: pd.DataFrame, validation: pd.DataFrame, settings: Settings, corpus: Corpus) -> pd.DataFrame:
    """The emotion-inertia filter on a method's answers: an HMM forward filter per speaker and conversation.

    Transitions and prior come from the training fold; one temperature for the method's answers, which are too
    sure of themselves, from the same method on the validation fold. It is told who speaks, and is causal.
    """
    train = corpus.select(corpus.folds[settings.fold - 1].train)
    chain = transition_matrix(train, corpus.emotions), emotion_prior(train, corpus.emotions)
    columns = [f"p_{e}" for e in corpus.emotions]
    temperature = fit_temperature(validation, corpus.emotions, *chain)
    return table.assign(**dict(zip(columns, _filtered(table, columns, temperature, *chain).T, strict=True)))


def fit_temperature(table: pd.DataFrame, emotions: tuple[str, ...], transition: np.ndarray,
                    prior: np.ndarray) -> float:
    """The temperature (Guo et al. 2017) by which a table of answers, softened and THEN filtered, has the lowest
    negative log-likelihood over its labelled rows: filtered, answers add up over turns, and what is honest alone is
    too sure. The best of a grid from 1/8 to 32, then searched between its neighbours."""
    columns, said = [f"p_{e}" for e in emotions], table["emotion"].notna().to_numpy()
    truth = table.loc[said, "emotion"].map({e: i for i, e in enumerate(emotions)}).to_numpy(dtype=int)

    def nll(log2: float) -> float:
        p = _filtered(table, columns, 2.0 ** log2, transition, prior)[said]
        return -np.log(p[np.arange(len(p)), truth] + 1e-12).mean()

    best = min(range(-3, 6), key=nll)
    return float(2.0 ** minimize_scalar(nll, bounds=(best - 1, best + 1), method="bounded").x)


def _filtered(table: pd.DataFrame, columns: list[str], temperature: float, transition: np.ndarray,
              prior: np.ndarray) -> np.ndarray:
    """A table's answers softened, then filtered conversation by conversation, (rows, emotions)."""
    out = _soften(table[columns].to_numpy(dtype=float), temperature)
    for rows in table.groupby("conversation", sort=False).indices.values():
        out[rows] = forward_filter(out[rows], table["speaker"].iloc[rows].tolist(), transition, prior)
    return out


def _soften(p: np.ndarray, temperature: float) -> np.ndarray:
    logits = np.log(np.clip(p, 1e-12, 1.0)) / temperature
    powered = np.exp(logits - logits.max(1, keepdims=True, initial=-np.inf))
    return powered / powered.sum(1, keepdims=True)


def _table(conversations: Sequence[Conversation], emotions: tuple[str, ...], answers: np.ndarray) -> pd.DataFrame:
    """Predictions, a row per utterance in order; answers: (utterances, emotions)."""
    table = pd.DataFrame([{"conversation": c.id, "session": c.session, "utterance": u.id, "speaker": u.speaker,
                           "turn": turn, "start": u.start, "end": u.end, "emotion": u.emotion}
                          for c in conversations for turn, u in enumerate(c.utterances)])
    return table.assign(**{f"p_{e}": p for e, p in zip(emotions, answers.T.astype(float), strict=True)})


# -- recurrent -----------------------------------------------------------------

RECURRENT_HEARS = {
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


def recurrent(settings: Settings, corpus: Corpus, codes: CorpusCodes, split: str = "test",
            bidirectional: bool = False) -> pd.DataFrame:
    """Predictions of `lstm`, or `blstm` where `bidirectional`, on every utterance of a split, in order.

    Trained here if it has to be, on the training conversations of `settings.fold`; goes on where a kill stopped it.
    Columns as `baselines.classify`. Raises UserError for a disk that is full.
    """
    shape = settings.recurrent
    tune = replace(settings.finetune, lr=shape.lr, epochs=shape.epochs, batch=shape.batch)
    made = runs.artefact(settings, "recurrent", recurrent, codes=codes.key, fold=settings.fold, seed=settings.seed,
                         recurrent=shape, finetune=finetune.keyed(tune), bidirectional=bidirectional)
    weights = made.folder / "recurrent.safetensors"
    fold = corpus.folds[settings.fold - 1]
    features = _standardised(codes.features, corpus.select(fold.train))
    data = [_Heard([c for c in corpus.select(ids) if any(u.emotion for u in c.utterances)], features,
                   corpus.emotions) for ids in (fold.train, fold.validation)]
    asked = _Heard(corpus.select(getattr(fold, split)), features, corpus.emotions)
    torch.manual_seed(settings.seed)
    model = Recurrent(asked[0][0].shape[1], len(corpus.emotions), shape, bidirectional)
    with machine.one_thread(), made.making(weights, together=True) as absent:
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


# -- reference -----------------------------------------------------------------

METHODS = ("single utterance", "single utterance + filter", "ORACLE speaker offset",
           "ORACLE speaker offset + filter")


def classifiers(corpus: Corpus, fold: Fold, features: Mapping[str, np.ndarray],
                split: str = "validation") -> pd.DataFrame:
    """One row per method: `method`, `WA`, `UA` in [0, 1], `utterances` (labelled ones of the split).

    `features`: utterance id -> (dimensions,), e.g. `CorpusCodes.features`. Everything but the oracles' offsets is
    fitted on `fold.train`; `split` is `validation` or `test`. The filter steps through every utterance of the
    split with its own evidence, also through those outside the label set, which are not scored.
    """
    train, heard = corpus.select(fold.train), corpus.select(getattr(fold, split))
    transition, prior = transition_matrix(train, corpus.emotions), emotion_prior(train, corpus.emotions)
    x, y, who = _reference_table(train, features, corpus.emotions)
    x, y, who = x[y >= 0], y[y >= 0], who[y >= 0]
    z, truth, speaker = _reference_table(heard, features, corpus.emotions)
    scaler = StandardScaler().fit(x)
    x, z = scaler.transform(x), scaler.transform(z)
    # An emotion that the training conversations lack lies at the mean of all, which is 0, and is never answered.
    means = np.stack([x[y == e].mean(axis=0) if (y == e).any() else np.zeros(x.shape[1])
                      for e in range(len(corpus.emotions))])
    answers, scored = [], truth >= 0
    for fitted_on, asked in ((x, z), (x - _offsets(x, y, who, means), z - _offsets(z, truth, speaker, means))):
        posteriors = np.zeros((len(asked), len(prior)))
        with threadpool_limits(1):  # so small a problem is slower on more, beside a busy process by far
            model = LogisticRegression(max_iter=1000).fit(fitted_on, y)
        posteriors[:, model.classes_] = model.predict_proba(asked)
        places = np.cumsum([len(c.utterances) for c in heard])[:-1]
        filtered = [forward_filter(p, [u.speaker for u in c.utterances], transition, prior)
                    for c, p in zip(heard, np.split(posteriors, places), strict=True)]
        answers += [posteriors, np.concatenate(filtered)]
    truth, answers = truth[scored], [p[scored].argmax(axis=1) for p in answers]
    return pd.DataFrame([{"method": method, "WA": accuracy_score(truth, said),
                          "UA": recall_score(truth, said, labels=np.unique(truth), average="macro"),
                          "utterances": len(truth)}
                         for method, said in zip(METHODS, answers, strict=True)])


def _reference_table(conversations: tuple[Conversation, ...], features: Mapping[str, np.ndarray],
           emotions: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (n, dimensions), emotion indices (n,), -1 outside the label set, and speakers (n,), in order."""
    said = [u for c in conversations for u in c.utterances]
    return (np.stack([features[u.id] for u in said]),
            np.array([-1 if u.emotion is None else emotions.index(u.emotion) for u in said]),
            np.array([u.speaker for u in said]))


def _offsets(x: np.ndarray, y: np.ndarray, speakers: np.ndarray, means: np.ndarray) -> np.ndarray:
    """For each utterance its speaker's mean distance from the means of the true emotions, (n, dimensions), over the
    speaker's labelled utterances; 0 where there is none."""
    residual, out = x - means[y], np.zeros_like(x)
    for speaker in np.unique(speakers[y >= 0]):
        out[speakers == speaker] = residual[(speakers == speaker) & (y >= 0)].mean(axis=0)
    return out
