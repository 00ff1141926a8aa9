"""How emotions follow one another: IEMOCAP's measured inertia, chains drawn from it, and its estimate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from .base import Conversation

EMOTIONS = ("neu", "hap", "sad", "ang")

# IEMOCAP, four classes: from one labelled utterance of a speaker to the same speaker's next one in the
# dialogue; rows from, columns to neu, hap, sad, ang. Measured on the corpus' public labels (5,531 utterances).
IEMOCAP_INERTIA = np.array([
    [0.800, 0.082, 0.037, 0.082],
    [0.084, 0.885, 0.027, 0.004],
    [0.059, 0.049, 0.852, 0.040],
    [0.078, 0.005, 0.050, 0.867],
])
IEMOCAP_INERTIA = IEMOCAP_INERTIA / IEMOCAP_INERTIA.sum(axis=1, keepdims=True)  # the print is rounded

CONTAGION = 0.05  # chance that a speaker takes over the partner's last emotion, in every corpus made here


def stationary(matrix: np.ndarray) -> np.ndarray:
    """The distribution, shape (emotions,), that a transition matrix (rows from, columns to) leaves as it is."""
    values, vectors = np.linalg.eig(matrix.T)
    vector = np.real(vectors[:, np.argmax(np.real(values))])
    return vector / vector.sum()


def label_set(labels: Iterable[str]) -> tuple[str, ...]:
    """The labels that occur, in the kit's order where they are its four, else by name."""
    found = set(labels)
    return EMOTIONS if found == set(EMOTIONS) else tuple(sorted(found))


def chain(emotions: Sequence[str]) -> np.ndarray:
    """The transition matrix, shape (emotions, emotions), that conversations of a label set are composed along:
    IEMOCAP's for its four; else the mean of its diagonal (0.85) to stay, and all other moves alike."""
    if tuple(emotions) == EMOTIONS:
        return IEMOCAP_INERTIA
    stay = IEMOCAP_INERTIA.diagonal().mean()
    matrix = np.full((len(emotions), len(emotions)), (1 - stay) / (len(emotions) - 1))
    np.fill_diagonal(matrix, stay)
    return matrix


def next_distribution(own: int | None, other: int | None, contagion: float,
                      matrix: np.ndarray = IEMOCAP_INERTIA) -> np.ndarray:
    """Distribution of a speaker's next emotion, shape (emotions,), by a chain (rows from, columns to), after its
    last one, `own` (None: none); with probability `contagion` it is the partner's last one, `other`, instead."""
    row = stationary(matrix) if own is None else matrix[own]
    if other is None or own is None:
        return row
    return (1 - contagion) * row + contagion * np.eye(len(matrix))[other]


def transition_counts(conversations: Iterable[Conversation], emotions: tuple[str, ...]) -> np.ndarray:
    """Counts, shape (emotions, emotions), from a speaker's labelled utterance to the same speaker's next
    labelled one in the conversation (rows from, columns to)."""
    counts = np.zeros((len(emotions), len(emotions)))
    for conversation in conversations:
        last: dict[str, int] = {}
        for utterance in conversation.utterances:
            if utterance.emotion is None:
                continue
            now = emotions.index(utterance.emotion)
            if utterance.speaker in last:
                counts[last[utterance.speaker], now] += 1
            last[utterance.speaker] = now
    return counts


def transition_matrix(conversations: Iterable[Conversation], emotions: tuple[str, ...]) -> np.ndarray:
    """Rows of `transition_counts` as probabilities, add-one smoothed; shape (emotions, emotions)."""
    counts = transition_counts(conversations, emotions) + 1.0
    return counts / counts.sum(axis=1, keepdims=True)


def emotion_prior(conversations: Iterable[Conversation], emotions: tuple[str, ...]) -> np.ndarray:
    """Relative frequency of each emotion, add-one smoothed, shape (emotions,)."""
    number = Counter(u.emotion for c in conversations for u in c.utterances)
    counts = np.array([number[e] + 1.0 for e in emotions])
    return counts / counts.sum()


def forward_filter(posteriors: np.ndarray, speakers: Sequence[str], transition: np.ndarray,
                   prior: np.ndarray) -> np.ndarray:
    """Posteriors given all of the speaker's turns up to now; (turns, emotions), rows sum to 1.

    The forward pass of a hidden Markov model, one chain for each speaker of one conversation:
    belief_t ∝ (transition^T belief_{t-1}) * posterior_t / prior, belief before the first turn = `prior`.
    `posteriors`: p(emotion | utterance) of every utterance, labelled or not, (turns, emotions). `transition`: rows
    from, columns to, (emotions, emotions). `prior`: what the posteriors were trained with, (emotions,).
    """
    beliefs: dict[str, np.ndarray] = {}
    filtered = np.empty(posteriors.shape)
    for turn, (speaker, posterior) in enumerate(zip(speakers, posteriors, strict=True)):
        beliefs[speaker] = filtered[turn] = forward_step(beliefs.get(speaker), posterior, transition, prior)
    return filtered


def forward_step(belief: np.ndarray | None, posterior: np.ndarray, transition: np.ndarray,
                 prior: np.ndarray) -> np.ndarray:
    """One turn of `forward_filter`: the speaker's belief, shape (emotions,), after this turn. `belief`: the one
    before (None: the first turn)."""
    belief = prior if belief is None else belief @ transition
    # A posterior of exactly 0 is rounding; kept, two of them could rule out every emotion.
    belief = belief * np.maximum(posterior, 1e-12) / prior
    return belief / belief.sum()
