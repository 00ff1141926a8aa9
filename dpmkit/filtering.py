"""The emotion-inertia filter: a speaker's emotions persist, so that what was heard earlier bears on now."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def forward_filter(posteriors: np.ndarray, speakers: Sequence[str], transition: np.ndarray,
                   prior: np.ndarray) -> np.ndarray:
    """Posteriors given all of the speaker's turns up to now; shape (turns, emotions), rows sum to 1.

    The forward pass of a hidden Markov model, one chain a speaker within one conversation:
    belief_t ∝ (transition^T belief_{t-1}) * posterior_t / prior, belief before the first turn = `prior`.
    `posteriors`: p(emotion | utterance), shape (turns, emotions), of every utterance, labelled or not.
    `transition`: rows from, columns to, (emotions, emotions). `prior`: what the posteriors were trained with,
    (emotions,). Causal: a row depends on no later one.
    Raises ValueError where shapes do not fit or a row is not a distribution.
    """
    posteriors, transition, prior = (np.asarray(a, dtype=np.float64) for a in (posteriors, transition, prior))
    emotions = len(prior)
    if posteriors.shape != (len(speakers), emotions) or transition.shape != (emotions, emotions):
        raise ValueError(f"shapes do not fit: posteriors {posteriors.shape}, {len(speakers)} speakers, "
                         f"transition {transition.shape}, prior {prior.shape}")
    rows = np.concatenate([posteriors, transition, prior[None]])
    if not (np.allclose(rows.sum(axis=1), 1, atol=1e-4) and (rows >= 0).all() and (prior > 0).all()):
        raise ValueError("posteriors, transition and prior must be distributions, the prior above 0")
    beliefs: dict[str, np.ndarray] = {}
    filtered = np.empty_like(posteriors)
    for turn, speaker in enumerate(speakers):
        beliefs[speaker] = filtered[turn] = forward_step(beliefs.get(speaker), posteriors[turn], transition,
                                                           prior)
    return filtered


def forward_step(belief: np.ndarray | None, posterior: np.ndarray, transition: np.ndarray,
                 prior: np.ndarray) -> np.ndarray:
    """One turn of `forward_filter`: the speaker's belief, shape (emotions,), after this turn. `belief`: the one
    before (None: the first turn)."""
    belief = prior if belief is None else belief @ transition
    # A posterior of exactly 0 is rounding; kept, two of them could rule out every emotion.
    belief = belief * np.maximum(posterior, 1e-12) / prior
    return belief / belief.sum()
