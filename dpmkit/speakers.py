"""SpeakerMemory: an extension of this kit, not the paper's DPM. It remembers voices, in closed form, unlabelled.

What an utterance leaves at the emotion head, h (the SLLM's last hidden state at `<audio_end>`, projected), is taken
to be
    h = mean of the emotion + offset of the speaker + noise,    offset ~ N(0, between), noise ~ N(0, within),
and a speaker's emotions to be a Markov chain. What is known of a speaker is then a mixture of Gaussians over the
offset, one for each path of emotions; the most probable paths are kept (mixture Kalman filter, Chen & Liu 2000).
They share one covariance, as it does not depend on the path. Nothing grows with the conversation.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file
from tqdm.auto import tqdm

from . import protocols, runs, sllm
from .codes import CorpusCodes
from .corpora import Conversation, Corpus
from .corpora.dynamics import emotion_prior, transition_matrix
from .filtering import forward_filter
from .finetune import Finetuned
from .settings import Settings

_OF = "the target alone, as the state that the SLLM reads its emotion from"
HEARS = {
    "speaker-head": f"{_OF}; a Gaussian head, means from training and noise from validation conversations; no "
                    "memory",
    "speaker-head + filter": f"{_OF}; the same head under the inertia filter; is told who speaks",
    "speaker-memory": f"{_OF}; remembers of each speaker the offset from the head's means, and the paths of "
                      "emotions that go with it (extension); is told who speaks",
    "speaker-memory-swapped": "control: as speaker-memory, but the offsets are those of another conversation's "
                              "speakers after as many turns",
    "speaker-oracle": "BOUND, no method: as speaker-head + filter, but each speaker's offset is taken away with "
                      "the help of the true labels",
}


BATCH = 64  # utterances of one forward
SHRINKAGE = 0.05  # of the covariances


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
        to the means."""
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

    def reset(self) -> None:
        """Nobody heard."""
        self.speakers.clear()

    def hear(self, speaker: str, state: np.ndarray) -> np.ndarray:
        """Emotion probabilities, (emotions,), of this utterance given all that the speaker said up to it; `state`:
        (d,), projected."""
        voice = self.speakers.setdefault(speaker, _Voice.fresh(self.model))
        scores = self._scores(voice, state)
        gain = voice.covariance @ np.linalg.inv(self.model.within + voice.covariance)
        beyond = state - voice.offsets[:, None] - self.model.means  # (paths, emotions, d)
        offsets = (voice.offsets[:, None] + beyond @ gain.T).reshape(-1, len(state))
        kept = np.argsort(-scores.ravel(), kind="stable")[:self.paths]
        self.speakers[speaker] = _Voice(offsets[kept], voice.covariance - gain @ voice.covariance,
                                        scores.ravel()[kept] - np.logaddexp.reduce(scores.ravel()[kept]),
                                        self.model.transition[kept % len(self.model.prior)])
        return np.exp(scores - np.logaddexp.reduce(scores, None)).sum(0)

    def offset(self, speaker: str) -> tuple[np.ndarray, np.ndarray]:
        """Posterior mean, (d,), and covariance, (d, d), of a speaker's offset; the prior's if nobody was heard."""
        voice = self.speakers.get(speaker) or _Voice.fresh(self.model)
        mean, share = np.exp(voice.weights) @ voice.offsets, np.exp(voice.weights)[:, None]
        apart = voice.offsets - mean
        return mean, voice.covariance + (share * apart).T @ apart

    def _scores(self, voice: _Voice, state: np.ndarray) -> np.ndarray:
        """Log weights of every path with every next emotion, (paths, emotions)."""
        beyond = state - voice.offsets[:, None] - self.model.means
        likelihood = -0.5 * (beyond @ np.linalg.inv(self.model.within + voice.covariance) * beyond).sum(-1)
        return voice.weights[:, None] + np.log(voice.following + 1e-12) + self.power * likelihood


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


def fitted(settings: Settings, corpus: Corpus, codes: CorpusCodes,
           tuned: Finetuned) -> tuple[OffsetModel, float, list[dict]]:
    """The model of `settings.fold`, the likelihood's power, and a row a power that was tried (NLL, WA in %).

    Means, offsets, transitions and prior come from training conversations, noise and power from validation
    conversations, each speaker of which is heard with the noise of the others.
    """
    fold, own = corpus.folds[settings.fold - 1], settings.speaker
    train = corpus.select(fold.train)
    chain = transition_matrix(train, corpus.emotions), emotion_prior(train, corpus.emotions)
    table, states = _heard(settings, corpus, codes, tuned, "train")
    said = table["emotion"].notna().to_numpy()
    model = OffsetModel.fit(states[said], _indices(table[said], corpus.emotions),
                            table.loc[said, "speaker"].to_numpy(), own.dimensions, *chain)
    table, states = _heard(settings, corpus, codes, tuned, "validation")
    said, who = table["emotion"].notna().to_numpy(), table["speaker"].to_numpy()
    truth = np.where(said, 0, -1)
    truth[said] = _indices(table[said], corpus.emotions)
    tried = []
    for power in own.powers:
        answers = np.zeros((len(table), len(corpus.emotions)))
        for speaker in np.unique(who):
            others = said & (who != speaker) if (said & (who != speaker)).any() else said
            noisy = model.heard_anew(states[others], truth[others], who[others])
            for rows in table[who == speaker].groupby("conversation", sort=False).indices.values():
                at = np.flatnonzero(who == speaker)[rows]
                answers[at] = _remembered(noisy, own.paths, power, noisy.project(states[at]), [speaker] * len(at))
        likely = answers[said, truth[said]]
        tried.append({"power": power, "nll": float(-np.log(likely + 1e-12).mean()),
                      "WA": 100 * float((answers[said].argmax(1) == truth[said]).mean())})
    best = min(tried, key=lambda row: row["nll"])["power"]
    return model.heard_anew(states[said], truth[said], who[said]), best, tried


def predict(settings: Settings, corpus: Corpus, codes: CorpusCodes, tuned: Finetuned, model: OffsetModel,
            power: float, split: str = "test") -> dict[str, pd.DataFrame]:
    """A table (columns as of `protocols.predict`, without the memory's) for each method of HEARS."""
    table, states = _heard(settings, corpus, codes, tuned, split)
    z, who, emotions = model.project(states), table["speaker"].to_numpy(), corpus.emotions
    conversations = corpus.select(getattr(corpus.folds[settings.fold - 1], split))
    donors = protocols.donors_of(conversations, "stranger")
    rows_of = dict(table.groupby("conversation", sort=False).indices.items())
    said = table["emotion"].notna().to_numpy()
    beyond = z[said] - model.means[_indices(table[said], emotions)]
    known = {s: beyond[who[said] == s].mean(0) for s in np.unique(who[said])}  # by true labels: the bound's alone
    answers = {name: np.zeros((len(z), len(emotions))) for name in HEARS}
    whole = model.within + model.between
    for name, rows in rows_of.items():
        heard, speakers, theirs = z[rows], list(who[rows]), rows_of[donors[name].id]
        alone = _posterior(model, heard, whole, power)
        offsets = np.stack([known.get(s, 0 * heard[0]) for s in speakers])
        oracle = _posterior(model, heard - offsets, model.within, power)
        chain = model.transition, model.prior
        answers["speaker-head"][rows] = alone
        answers["speaker-head + filter"][rows] = forward_filter(alone, speakers, *chain)
        answers["speaker-oracle"][rows] = forward_filter(oracle, speakers, *chain)
        answers["speaker-memory"][rows] = _remembered(model, settings.speaker.paths, power, heard, speakers)
        strange = _strange(model, settings.speaker.paths, power, heard, speakers, z[theirs], list(who[theirs]))
        answers["speaker-memory-swapped"][rows] = forward_filter(strange, speakers, *chain)
    return {name: table.assign(**{f"p_{e}": p[:, i] for i, e in enumerate(emotions)})
            for name, p in answers.items()}


def _remembered(model: OffsetModel, paths: int, power: float, heard: np.ndarray,
                speakers: Sequence[str]) -> np.ndarray:
    """Answers, (turns, emotions), of a fresh memory to one conversation, (turns, d)."""
    memory = SpeakerMemory(model, paths, power)
    return np.stack([memory.hear(s, h) for s, h in zip(speakers, heard, strict=True)])


def _strange(model: OffsetModel, paths: int, power: float, heard: np.ndarray, speakers: Sequence[str],
             theirs: np.ndarray, strangers: Sequence[str]) -> np.ndarray:
    """Answers, (turns, emotions), with the offsets that a memory has learned from as many turns of another
    conversation; the first speaker gets the first stranger's, the second the second's."""
    memory, out = SpeakerMemory(model, paths, power), []
    place = {s: i for i, s in enumerate(dict.fromkeys(speakers))}
    order = list(dict.fromkeys(strangers))
    for turn, (speaker, state) in enumerate(zip(speakers, heard, strict=True)):
        if turn < len(theirs):
            memory.hear(strangers[turn], theirs[turn])
        mean, covariance = memory.offset(order[place[speaker] % len(order)])
        out.append(_posterior(model, (state - mean)[None], model.within + covariance, power)[0])
    return np.stack(out)


def _posterior(model: OffsetModel, heard: np.ndarray, covariance: np.ndarray, power: float) -> np.ndarray:
    """Of each utterance alone, (turns, emotions)."""
    beyond = heard[:, None] - model.means
    scores = np.log(model.prior) - 0.5 * power * (beyond @ np.linalg.inv(covariance) * beyond).sum(-1)
    return np.exp(scores - np.logaddexp.reduce(scores, 1, keepdims=True))


def remembered(settings: Settings, conversations: Sequence[Conversation], codes: Mapping[str, np.ndarray],
               emotions: tuple[str, ...], tuned: Finetuned, model: OffsetModel, power: float) -> pd.DataFrame:
    """The answers of `speaker-memory` to these conversations, a row an utterance; codes: utterance id -> codes."""
    table = _listed(conversations)
    z = model.project(_states(tuned, codes, table["utterance"], "states"))
    for rows in table.groupby("conversation", sort=False).indices.values():
        answers = _remembered(model, settings.speaker.paths, power, z[rows], list(table["speaker"].iloc[rows]))
        table.loc[rows, [f"p_{e}" for e in emotions]] = answers
    return table


def _heard(settings: Settings, corpus: Corpus, codes: CorpusCodes, tuned: Finetuned,
           split: str) -> tuple[pd.DataFrame, np.ndarray]:
    """The utterances of a split in order, and their states, (utterances, hidden): kept in runs/states/<key>/."""
    table = _listed(corpus.select(getattr(corpus.folds[settings.fold - 1], split)))
    key = runs.key(tuned.key, list(table["utterance"]), runs.code_version(sllm, sys.modules[__name__]))
    path = runs.folder(settings, "states", key) / "states.safetensors"
    if not path.is_file():
        states = _states(tuned, codes.codes, table["utterance"], f"states ({split})")
        with runs.atomic(path) as temporary:
            save_file({"states": states}, temporary)
    return table, load_file(path)["states"]


def _listed(conversations: Sequence[Conversation]) -> pd.DataFrame:
    return pd.DataFrame([{"conversation": c.id, "session": c.session, "utterance": u.id, "speaker": u.speaker,
                          "turn": turn, "start": u.start, "end": u.end, "emotion": u.emotion}
                         for c in conversations for turn, u in enumerate(c.utterances)])


def _states(tuned: Finetuned, codes: Mapping[str, np.ndarray], utterances: pd.Series, title: str) -> np.ndarray:
    """(utterances, hidden), each utterance heard alone."""
    batches = [utterances.iloc[i:i + BATCH] for i in range(0, len(utterances), BATCH)]
    states = [tuned.sllm.answer_states([tuned.sllm.sentence(codes[u]) for u in batch]).cpu().numpy()
              for batch in tqdm(batches, desc=title, unit="batch")]
    return np.concatenate(states).astype(float)


def _indices(table: pd.DataFrame, emotions: tuple[str, ...]) -> np.ndarray:
    return table["emotion"].map({e: i for i, e in enumerate(emotions)}).to_numpy(dtype=int)


def _sums(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Sums, (groups, d), of the rows of each group."""
    out = np.zeros((group.max() + 1, values.shape[1]))
    np.add.at(out, group, values)
    return out


def _noise(residual: np.ndarray, who: np.ndarray, emotions: int) -> np.ndarray:
    """Covariance, (d, d), of what is left when each speaker's mean is taken away."""
    residual = residual - (_sums(residual, who) / np.bincount(who)[:, None])[who]
    return residual.T @ residual / max(1, len(residual) - who.max() - emotions)


def _round(covariance: np.ndarray) -> np.ndarray:
    """Shrunk towards a sphere of the same trace."""
    sphere = np.eye(len(covariance)) * np.trace(covariance) / len(covariance)
    return (1 - SHRINKAGE) * covariance + SHRINKAGE * sphere
