"""Reference classifiers: how well emotion is known from an utterance's acoustics, and what history and voice add.

A multinomial logistic regression on pooled features stands for one utterance; history is the emotion-inertia
filter. They bound nothing: another classifier of the same features may lie above them. The oracles are no methods:
with the help of true labels they take each speaker's offset away.
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
    x, y, who = _table(train, features, corpus.emotions)
    x, y, who = x[y >= 0], y[y >= 0], who[y >= 0]
    z, truth, speaker = _table(heard, features, corpus.emotions)
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


def _table(conversations: tuple[Conversation, ...], features: Mapping[str, np.ndarray],
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
