"""What DPM is read against, beside the frozen SLLM: networks without a language model, the majority, inertia."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from . import finetune, machine, metrics, runs
from .codes import CorpusCodes
from .corpora import Conversation, Corpus, Fold
from .corpora.dynamics import emotion_prior, forward_filter, transition_counts
from .protocols import Chain, answered, inertia_of, rows
from .settings import BackboneSettings, FinetuneSettings, RecurrentSettings, Settings

HEARS = {
    "majority": "nothing: the training fold's most frequent emotion",
    "classifier": "the target and the n_r codes before it; a Transformer encoder, no language model",
    "lstm": "the target and all earlier utterances, each as pooled acoustic features and whether its speaker is "
            "the last one's; a causal LSTM, no language model",
    "blstm": "the WHOLE conversation, so the FUTURE too: as lstm, in both directions; not a streaming method",
    "last-true": "BOUND, no method: the speaker's last TRUE emotion in the conversation, repeated; before its "
                 "first labelled utterance the training fold's emotion frequencies; knows who speaks",
    "filter": ", then an HMM forward filter per speaker with the training fold's transitions; knows who speaks",
}
UNSCORED = -100  # in place of a label: padding, and utterances outside the label set


class Items(list):
    """Training data, an item per conversation: what is heard of its utterances, and their labels."""


def network(settings: Settings, corpus: Corpus, codes: CorpusCodes, name: str, split: str = "test") -> pd.DataFrame:
    """Predictions of `classifier`, `lstm` or `blstm`, every utterance of a split in order. Trained where it has to
    be, on the conversations of `settings.fold` that have a label; goes on where a kill stopped it."""
    fold, emotions = corpus.folds[settings.fold - 1], corpus.emotions
    torch.manual_seed(settings.seed)
    if name == "classifier":
        size, shape, tune = codes.facts["codebook_size"], settings.backbone, settings.classifier
        inputs = {"backbone": shape.but(source=""), "prefix": settings.memory.prefix}
        hear = partial(_windows, codes=codes.codes, n_r=inputs["prefix"], separator=size, window=shape.window)
        model, threads = Classifier(size, len(emotions), shape), nullcontext()
    else:
        train, tune = corpus.select(fold.train), settings.recurrent
        scaler = StandardScaler().fit([codes.features[u.id] for c in train for u in c.utterances])
        inputs = {"shape": tune}
        hear = partial(_acoustics, features=codes.features, scaler=scaler)
        model = Recurrent(hear(train[0]).shape[1], len(emotions), tune, bidirectional=name == "blstm")
        threads = machine.one_thread()
    tune = settings.finetune.but(lr=tune.lr, epochs=tune.epochs, batch=tune.batch)
    made = runs.Artefact(settings, "network", network, name=name, codes=codes.key, fold=settings.fold,
                         seed=settings.seed, finetune=finetune.keyed(tune), **inputs)
    def data() -> list[Items]:
        return [Items((hear(c), [emotions.index(u.emotion) if u.emotion else UNSCORED for u in c.utterances])
                      for c in corpus.select(ids) if any(u.emotion for u in c.utterances))
                for ids in (fold.train, fold.validation)]

    with threads:
        model, where, answers = trained(made, model, data, tune, settings), machine.device(settings), []
        asked = corpus.select(getattr(fold, split))
        for c in asked:
            batch = model.collate([(hear(c), [0] * len(c.utterances))])  # no label: every utterance is answered
            with torch.no_grad():
                logits = model.logits(**{name: x.to(where) for name, x in batch.items() if name != "emotion"})
            answers.append(logits.flatten(0, -2).softmax(-1).cpu().numpy())
    return answered(rows(asked), emotions, np.concatenate(answers))


def trained(made: runs.Artefact, model: Network, data: Callable[[], Sequence[Items]], tune: FinetuneSettings,
            settings: Settings) -> Network:
    """A network with the weights of an artefact, trained on training and validation `data` if they are absent."""
    weights = made.folder / "model.safetensors"
    with made.making(weights, together=True) as absent:
        if absent:
            finetune.fit(model, *data(), lambda items: [model.collate(items)], tune, made.folder, settings)
            with runs.atomic(weights) as temporary:
                save_file(model.cpu().state_dict(), temporary)
        model.load_state_dict(load_file(weights))
    return model.to(machine.device(settings)).eval()


class Network(nn.Module):
    """What `logits` and `collate` of a subclass hear, trained by cross-entropy."""

    def forward(self, emotion: Tensor, **heard: Tensor) -> dict[str, Tensor]:
        """`l_e`, and `logits`, (labelled, emotions), and `truth`, (labelled,), as the Trainer scores them; emotion:
        labels, UNSCORED where there is none, in the shape of the logits."""
        logits, scored = self.logits(**heard), emotion != UNSCORED
        return {"l_e": F.cross_entropy(logits[scored], emotion[scored]), "logits": logits[scored].detach(),
                "truth": emotion[scored]}


class Classifier(Network):
    """Codes -> trainable Transformer encoder -> head (paper, 'Emotion SLLM': classifier baseline), of the SLLM's
    width and half its depth."""

    def __init__(self, codebook_size: int, emotions: int, shape: BackboneSettings):
        super().__init__()
        self.padding = codebook_size + 1
        self.embed = nn.Embedding(codebook_size + 2, shape.hidden, padding_idx=self.padding)
        self.place = nn.Embedding(shape.window, shape.hidden)
        layer = nn.TransformerEncoderLayer(shape.hidden, shape.heads, shape.intermediate, shape.dropout,
                                           activation="gelu", batch_first=True, norm_first=True)
        layer.self_attn.dropout = 0.0  # as the SLLM's: with one, torch has no fused attention
        self.encoder = nn.TransformerEncoder(layer, max(1, shape.layers // 2), enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(shape.hidden), nn.Linear(shape.hidden, emotions))

    def logits(self, heard: Tensor) -> Tensor:
        """heard: padded codes, (utterances, tokens). Shape (utterances, emotions)."""
        empty = heard == self.padding
        hidden = self.embed(heard) + self.place(torch.arange(heard.shape[1], device=heard.device))
        hidden = self.encoder(hidden, src_key_padding_mask=empty).masked_fill(empty.unsqueeze(-1), 0.0)
        return self.head(hidden.sum(1) / (~empty).sum(1, keepdim=True))

    def collate(self, items: Sequence[tuple[Sequence[Tensor], Sequence[int]]]) -> dict[str, Tensor]:
        """The labelled utterances of these conversations."""
        pairs = [pair for item in items for pair in zip(*item, strict=True) if pair[1] != UNSCORED]
        heard = pad_sequence([row for row, _ in pairs], batch_first=True, padding_value=self.padding)
        return {"heard": heard, "emotion": torch.tensor([label for _, label in pairs])}


def _windows(conversation: Conversation, codes: Mapping[str, np.ndarray], n_r: int, separator: int,
             window: int) -> list[Tensor]:
    """What the classifier hears of each utterance: as `window`, n_r codes before it, a separator and its own."""
    history, heard = np.empty(0, dtype=np.int64), []
    for u in conversation.utterances:
        row = np.concatenate([history[max(0, len(history) - n_r):], [separator], codes[u.id]])
        heard.append(torch.from_numpy(row[-window:]))
        history = np.concatenate([history, codes[u.id]])
    return heard


class Recurrent(Network):
    """Features of a conversation's utterances -> LSTM -> an emotion for each, as Poria et al. (2017) run one over
    utterances. (The BLSTM of Tzinis et al. (2018) steps through the segments of a single utterance.) Causal; where
    `bidirectional` it hears the future too, and stands beside streaming methods as a bound, not as a rival."""

    def __init__(self, features: int, emotions: int, shape: RecurrentSettings, bidirectional: bool):
        super().__init__()
        self.lstm = nn.LSTM(features, shape.hidden, shape.layers, batch_first=True, bidirectional=bidirectional,
                            dropout=shape.dropout if shape.layers > 1 else 0.0)  # torch: between layers only
        self.dropout = nn.Dropout(shape.dropout)
        self.head = nn.Linear(shape.hidden * (2 if bidirectional else 1), emotions)

    def logits(self, heard: Tensor, turns: Tensor) -> Tensor:
        """heard: (batch, longest, features), padded behind; turns: (batch,). Shape (batch, longest, emotions).
        Padding is not heard, from behind either: a conversation's logits do not depend on its batch."""
        packed = pack_padded_sequence(self.dropout(heard), turns.cpu(), batch_first=True, enforce_sorted=False)
        hidden, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.head(self.dropout(hidden))

    @staticmethod
    def collate(items: Sequence[tuple[Tensor, Sequence[int]]]) -> dict[str, Tensor]:
        """One batch of conversations, each its features and labels."""
        heard, labels = zip(*items, strict=True)
        truth = pad_sequence([torch.tensor(x) for x in labels], batch_first=True, padding_value=UNSCORED)
        return {"heard": pad_sequence(heard, batch_first=True), "turns": torch.tensor([len(h) for h in heard]),
                "emotion": truth}


def _acoustics(conversation: Conversation, features: Mapping[str, np.ndarray], scaler: StandardScaler) -> Tensor:
    """What the LSTM hears, (turns, features): pooled acoustics, and 1 where the speaker is the last one's."""
    who = [u.speaker for u in conversation.utterances]
    again = [i > 0 and who[i] == who[i - 1] for i in range(len(who))]
    heard = scaler.transform([features[u.id] for u in conversation.utterances])
    return torch.from_numpy(np.column_stack([heard, again]).astype(np.float32))


def majority(settings: Settings, corpus: Corpus) -> pd.DataFrame:
    """The training fold's emotion frequencies as every test utterance's answer."""
    fold = corpus.folds[settings.fold - 1]
    table = rows(corpus.select(fold.test))
    prior = emotion_prior(corpus.select(fold.train), corpus.emotions)
    return answered(table, corpus.emotions, np.tile(prior, (len(table), 1)))


def last_true(settings: Settings, corpus: Corpus) -> pd.DataFrame:
    """A bound that hears nothing: of each test utterance its speaker's last TRUE emotion in the conversation, which
    unlabelled utterances leave as it is; before there is one, the training fold's emotion frequencies. It is as
    sure as training speakers stay in an emotion, and more than chance; the others share the rest alike."""
    fold, emotions, size = corpus.folds[settings.fold - 1], corpus.emotions, len(corpus.emotions)
    train, table = corpus.select(fold.train), rows(corpus.select(fold.test))
    counts = transition_counts(train, emotions) + 1.0
    stay = max(np.trace(counts) / counts.sum(), 1 / size + 1e-6)
    repeated = np.where(np.eye(size, dtype=bool), stay, (1 - stay) / max(1, size - 1))  # rows: the last emotion
    last = table.groupby(["conversation", "speaker"])["emotion"].transform(lambda e: e.ffill().shift())
    known = pd.Categorical(last, emotions).codes  # -1, nothing yet: the row below
    return answered(table, emotions, np.vstack([repeated, emotion_prior(train, emotions)])[known])


def inertia(table: pd.DataFrame, validation: pd.DataFrame, settings: Settings, corpus: Corpus) -> pd.DataFrame:
    """The emotion-inertia filter on a method's answers: an HMM forward filter per speaker and conversation, causal.
    Transitions and prior come from the training fold; one temperature for the method's answers, which are too sure
    of themselves, from the same method on the validation fold."""
    chain = inertia_of(corpus, corpus.folds[settings.fold - 1])
    softened = _softened(table, corpus.emotions, fit_temperature(validation, corpus.emotions, chain))
    return answered(table, corpus.emotions, filtered(table, softened, *chain))


def fit_temperature(table: pd.DataFrame, emotions: tuple[str, ...], chain: Chain) -> float:
    """The temperature (Guo et al. 2017) by which a table of answers, softened and THEN filtered, has the lowest
    negative log-likelihood over its labelled rows: filtered, answers add up over turns, and what is honest alone is
    too sure. The best of a grid from 1/8 to 32, then searched between its neighbours."""
    truth = pd.Categorical(table["emotion"], emotions).codes
    labelled = np.flatnonzero(truth >= 0)

    def nll(log2: float) -> float:
        p = filtered(table, _softened(table, emotions, 2.0 ** log2), *chain)
        return -np.log(p[labelled, truth[labelled]] + 1e-12).mean()

    best = min(range(-3, 6), key=nll)
    return float(2.0 ** minimize_scalar(nll, bounds=(best - 1, best + 1), method="bounded").x)


def _softened(table: pd.DataFrame, emotions: tuple[str, ...], temperature: float) -> np.ndarray:
    p = table[[f"p_{e}" for e in emotions]].to_numpy(dtype=float)
    return softmax(np.log(np.clip(p, 1e-12, 1.0)) / temperature, axis=1)


def filtered(table: pd.DataFrame, p: np.ndarray, transition: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Answers p, (rows, emotions), to the utterances of a table, filtered per speaker and conversation."""
    who = list(zip(table["conversation"], table["speaker"], strict=True))
    return forward_filter(p, who, transition, prior)


def classifiers(corpus: Corpus, fold: Fold, features: Mapping[str, np.ndarray],
                split: str = "validation") -> pd.DataFrame:
    """How well acoustics tell an emotion, and what history and voice add: logistic regression on pooled features,
    utterance id -> (dimensions,), alone and under the inertia filter. The oracles take each speaker's offset away
    with the help of true labels; all else is fitted on `fold.train`. No bounds: another classifier may lie above.
    A row per method: `method`, `WA`, `UA` in [0, 1], `utterances` (labelled ones of the split)."""
    emotions, chain, out = corpus.emotions, inertia_of(corpus, fold), []
    train, asked = (rows(corpus.select(ids)) for ids in (fold.train, getattr(fold, split)))
    train = train[train["emotion"].notna()]
    x, z = (np.stack(list(table["utterance"].map(features))) for table in (train, asked))
    y, truth = (pd.Categorical(table["emotion"], emotions).codes for table in (train, asked))
    scaler = StandardScaler().fit(x)
    x, z = scaler.transform(x), scaler.transform(z)
    # An emotion that the training conversations lack lies at the mean of all, which is 0, and is never answered.
    means = pd.DataFrame(x).groupby(y).mean().reindex(range(len(emotions)), fill_value=0.0).to_numpy()
    for method, fitted_on, heard in (
            ("single utterance", x, z),
            ("ORACLE speaker offset", x - true_offsets(x, y, train["speaker"], means),
             z - true_offsets(z, truth, asked["speaker"], means))):
        p = np.zeros((len(heard), len(emotions)))
        with threadpool_limits(1):  # so small a problem is slower on more, beside a busy process by far
            model = LogisticRegression(max_iter=1000).fit(fitted_on, y)
        p[:, model.classes_] = model.predict_proba(heard)
        for name, answer in ((method, p), (f"{method} + filter", filtered(asked, p, *chain))):
            found = metrics.measures(metrics.confusion(answered(asked, emotions, answer), emotions))
            out.append({"method": name, "WA": float(found["WA"]), "UA": float(found["UA"]),
                        "utterances": int((truth >= 0).sum())})
    return pd.DataFrame(out)


def true_offsets(x: np.ndarray, emotions: np.ndarray, speakers: pd.Series, means: np.ndarray) -> np.ndarray:
    """For each utterance its speaker's mean distance from the means of the true emotions, (n, dimensions), over the
    speaker's labelled utterances (emotions: indices; -1: none); 0 where there is none. For oracles alone."""
    distance = pd.DataFrame(x - means[emotions]).where(pd.Series(emotions >= 0), axis=0)
    return distance.groupby(speakers.to_numpy()).transform("mean").fillna(0.0).to_numpy()
