"""What a corpus allows: how well emotion is known from one utterance, and what history and speaker add.

A multinomial logistic regression on pooled features stands for one utterance. History is the emotion-inertia
filter; knowing the speaker is an oracle that takes each speaker's offset away with the help of true labels,
a bound and no method.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, recall_score
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from .corpora import Conversation, Corpus, Fold
from .corpora.dynamics import emotion_prior, transition_matrix
from .filtering import forward_filter

METHODS = ("single utterance", "inertia filter", "oracle speaker offset", "oracle offset + filter")


def ceilings(corpus: Corpus, fold: Fold, features: Mapping[str, np.ndarray],
             split: str = "validation") -> pd.DataFrame:
    """One row a method: `method`, `WA`, `UA` in [0, 1], `utterances` (labelled ones of the split).

    `features`: utterance id -> (dimensions,), e.g. `CorpusCodes.features`. Everything is fitted on
    `fold.train`; `split` is `validation` or `test`.
    """
    train, heard = corpus.select(fold.train), corpus.select(getattr(fold, split))
    transition = transition_matrix(train, corpus.emotions)
    x, y, who = _table(train, features, corpus.emotions)
    z, truth, speaker = _table(heard, features, corpus.emotions)
    scaler = StandardScaler().fit(x)
    x, z = scaler.transform(x), scaler.transform(z)
    # An emotion that the training conversations lack lies at the mean of all, which is 0, and is never answered.
    means = np.stack([x[y == e].mean(axis=0) if (y == e).any() else np.zeros(x.shape[1])
                      for e in range(len(corpus.emotions))])
    prior = emotion_prior(train, corpus.emotions)
    rows = []
    for fitted_on, asked in ((x, z),
                             (x - _offsets(x, y, who, means), z - _offsets(z, truth, speaker, means))):
        with threadpool_limits(1):  # so small a problem is slower on more, beside a busy process by far
            model = LogisticRegression(max_iter=1000).fit(fitted_on, y)
        posteriors = np.zeros((len(asked), len(prior)))
        posteriors[:, model.classes_] = model.predict_proba(asked)
        rows += [posteriors, _filtered(heard, posteriors, transition, prior)]
    return pd.DataFrame([{"method": method, "WA": accuracy_score(truth, p.argmax(axis=1)),
                          "UA": recall_score(truth, p.argmax(axis=1), labels=np.unique(truth), average="macro"),
                          "utterances": len(truth)}
                         for method, p in zip(METHODS, rows, strict=True)])


def _table(conversations: tuple[Conversation, ...], features: Mapping[str, np.ndarray],
           emotions: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (n, dimensions), emotion indices (n,) and speakers (n,) of the labelled utterances, in order."""
    labelled = [u for c in conversations for u in c.utterances if u.emotion is not None]
    return (np.stack([features[u.id] for u in labelled]),
            np.array([emotions.index(u.emotion) for u in labelled]), np.array([u.speaker for u in labelled]))


def _offsets(x: np.ndarray, y: np.ndarray, speakers: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Each utterance's speaker's mean distance from the mean of the true emotion, (n, dimensions)."""
    residual, out = x - means[y], np.empty_like(x)
    for speaker in np.unique(speakers):
        out[speakers == speaker] = residual[speakers == speaker].mean(axis=0)
    return out


def _filtered(conversations: tuple[Conversation, ...], posteriors: np.ndarray, transition: np.ndarray,
              prior: np.ndarray) -> np.ndarray:
    """`forward_filter` conversation by conversation; rows are the labelled utterances, as in `_table`."""
    out, start = [], 0
    for conversation in conversations:
        labelled = np.array([u.emotion is not None for u in conversation.utterances])
        rows = np.full((len(labelled), len(prior)), np.nan)
        rows[labelled] = posteriors[start:start + labelled.sum()]
        start += labelled.sum()
        out.append(forward_filter(rows, [u.speaker for u in conversation.utterances], transition,
                                  prior)[labelled])
    return np.concatenate(out)
