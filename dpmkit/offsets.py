"""SpeakerMemory: an extension of this kit, not the paper's DPM. It remembers voices, in closed form, unlabelled.

What an utterance leaves at the emotion head, h (the SLLM's last hidden state at `<audio_end>`, projected), is taken
to be
    h = mean of the emotion + offset of the speaker + noise,    offset ~ N(0, between), noise ~ N(0, within),
and a speaker's emotions to be a Markov chain. What is known of a speaker is then a mixture of Gaussians over the
offset, one for each path of emotions; the most probable paths are kept (mixture Kalman filter, Chen & Liu 2000).
They share one covariance, as it does not depend on the path. Nothing grows with the conversation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .settings import UserError

SHRINKAGE = 0.05  # of the covariances


class NotFitted(UserError):
    """The labels do not allow to fit an OffsetModel."""


@dataclass(frozen=True)
class OffsetModel:
    """Where emotions lie, (emotions, d), how far speakers lie from there, `between`, and utterances of one speaker
    and emotion from each other, `within`, both (d, d), in a projection to d dimensions; and how emotions follow."""

    centre: np.ndarray
    scale: np.ndarray
    basis: np.ndarray
    means: np.ndarray
    between: np.ndarray
    within: np.ndarray
    transition: np.ndarray
    prior: np.ndarray

    @classmethod
    def fit(cls, states: np.ndarray, emotions: np.ndarray, speakers: np.ndarray, dimensions: int,
            transition: np.ndarray, prior: np.ndarray) -> OffsetModel:
        """By moments: `states`, (n, features), of utterances with emotions (n,), indices, and speakers (n,).

        Means and offsets take turns until they agree; covariances are shrunk towards a sphere. An emotion that
        nobody has lies at the mean of all; where there is one speaker, others may be as far off as utterances are.
        NotFitted where no speaker has two labelled utterances that differ.
        """
        names, who = np.unique(speakers, return_inverse=True)
        centre, scale = states.mean(0), states.std(0) + 1e-6
        standard = (states - centre) / scale
        basis = np.linalg.svd(standard, full_matrices=False)[2][:dimensions].T
        z, counts = standard @ basis, np.bincount(who)
        mean_of = [emotions == e for e in range(len(prior))]
        means = np.stack([z[rows].mean(0) if rows.any() else np.zeros(z.shape[1]) for rows in mean_of])
        for _ in range(50):
            offsets = _sums(z - means[emotions], who) / counts[:, None]
            moved = np.stack([(z - offsets[who])[rows].mean(0) if rows.any() else mean
                              for rows, mean in zip(mean_of, means, strict=True)])
            if np.abs(moved - means).max() < 1e-9:
                break
            means = moved
        offsets = _sums(z - means[emotions], who) / counts[:, None]
        means, offsets = means + offsets.mean(0), offsets - offsets.mean(0)
        within = _noise(z - means[emotions], who, len(prior))
        # A mean of few utterances lies off by within / count: that is no difference between speakers.
        spread = offsets.T @ offsets / max(1, len(names) - 1)
        values, vectors = np.linalg.eigh(spread - within * (1 / counts).mean())
        between = vectors * values.clip(max(0.0, values.max()) * 1e-4) @ vectors.T if len(names) > 1 else within
        return cls(centre, scale, basis, means, _round(between), _round(within), transition, prior)

    def heard_anew(self, states: np.ndarray, emotions: np.ndarray, speakers: np.ndarray) -> OffsetModel:
        """The same with the noise of these utterances: a backbone's states of what it was trained on are too near
        to the means. NotFitted as in `fit`."""
        residual = self.project(states) - self.means[emotions]
        who = np.unique(speakers, return_inverse=True)[1]
        return replace(self, within=_round(_noise(residual, who, len(self.prior))))

    def project(self, states: np.ndarray) -> np.ndarray:
        """(n, features) -> (n, d)."""
        return (states - self.centre) / self.scale @ self.basis


class SpeakerMemory:
    """What was heard of each speaker of a conversation; `hear` writes an utterance and reads its emotion."""

    def __init__(self, model: OffsetModel, paths: int, power: float):
        """`paths`: how many are kept a speaker; `power`: of the likelihood, below 1 where utterances err alike."""
        self.model, self.paths, self.power = model, paths, power
        self.speakers: dict[str, _Voice] = {}

    def begin(self) -> None:
        """A new conversation of the same speakers: offsets are kept, emotions begin anew."""
        self.speakers = {s: replace(v, following=np.tile(self.model.prior, (len(v.weights), 1)))
                         for s, v in self.speakers.items()}

    def hear(self, speaker: str, state: np.ndarray, told: int | None = None) -> np.ndarray:
        """Emotion probabilities, (emotions,), of this utterance given all that the speaker said up to it; `state`:
        (d,), projected. `told`: its true emotion, learned after the answer (for the bound alone)."""
        voice = self.speakers.setdefault(speaker, _Voice.fresh(self.model))
        precision = np.linalg.inv(self.model.within + voice.covariance)
        beyond = state - voice.offsets[:, None] - self.model.means  # (paths, emotions, d)
        likelihood = -0.5 * (beyond @ precision * beyond).sum(-1)
        scores = voice.weights[:, None] + np.log(voice.following + 1e-12) + self.power * likelihood
        answer = np.exp(scores - np.logaddexp.reduce(scores, None)).sum(0)
        if told is not None:
            scores = np.where(np.arange(len(answer)) == told, scores, scores.min() - 1e6)
        gain = voice.covariance @ precision
        offsets = (voice.offsets[:, None] + beyond @ gain.T).reshape(-1, len(state))
        kept = np.argsort(-scores.ravel(), kind="stable")[:self.paths]
        self.speakers[speaker] = _Voice(offsets[kept], voice.covariance - gain @ voice.covariance,
                                        scores.ravel()[kept] - np.logaddexp.reduce(scores.ravel()[kept]),
                                        self.model.transition[kept % len(self.model.prior)])
        return answer

    def offset(self, speaker: str) -> tuple[np.ndarray, np.ndarray]:
        """Posterior mean, (d,), and covariance, (d, d), of a speaker's offset; the prior's if nobody was heard."""
        voice = self.speakers.get(speaker) or _Voice.fresh(self.model)
        mean, share = np.exp(voice.weights) @ voice.offsets, np.exp(voice.weights)[:, None]
        apart = voice.offsets - mean
        return mean, voice.covariance + (share * apart).T @ apart


@dataclass(frozen=True)
class _Voice:
    """Of one speaker: (paths, d) offsets, their common covariance, log weights (paths,), and the distribution of
    each path's next emotion, (paths, emotions)."""

    offsets: np.ndarray
    covariance: np.ndarray
    weights: np.ndarray
    following: np.ndarray

    @classmethod
    def fresh(cls, model: OffsetModel) -> _Voice:
        return cls(np.zeros((1, len(model.within))), model.between, np.zeros(1), model.prior[None])


def _sums(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Sums, (groups, d), of the rows of each group."""
    out = np.zeros((group.max() + 1, values.shape[1]))
    np.add.at(out, group, values)
    return out


def _noise(residual: np.ndarray, who: np.ndarray, emotions: int) -> np.ndarray:
    """Covariance, (d, d), of what is left when each speaker's mean is taken away."""
    residual = residual - (_sums(residual, who) / np.bincount(who)[:, None])[who]
    noise = residual.T @ residual / max(1, len(residual) - who.max() - emotions)
    if np.trace(noise) < 1e-9:  # of standardised states; what is left there is rounding
        raise NotFitted("too few speakers of the training or validation conversations have two labelled utterances "
                        "that differ, by which to measure noise: label more of them")
    return noise


def _round(covariance: np.ndarray) -> np.ndarray:
    """Shrunk towards a sphere of the same trace."""
    sphere = np.eye(len(covariance)) * np.trace(covariance) / len(covariance)
    return (1 - SHRINKAGE) * covariance + SHRINKAGE * sphere
