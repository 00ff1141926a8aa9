"""SpeakerMemory, an extension of this kit and not the paper's DPM: it remembers voices, in closed form, unlabelled.

What an utterance leaves at the emotion head, h (the SLLM's last hidden state at `<audio_end>`, projected), is taken
to be
    h = mean of the emotion + offset of the speaker + noise,    offset ~ N(0, between), noise ~ N(0, within),
and a speaker's emotions to be a Markov chain. What is known of a speaker is then a mixture of Gaussians over the
offset, one for each path of emotions; the most probable paths are kept (mixture Kalman filter, Chen & Liu 2000).
They share one covariance, as it does not depend on the path. Nothing grows with the conversation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.covariance import shrunk_covariance
from tqdm.auto import tqdm

from . import metrics, protocols, runs
from .baselines import filtered, true_offsets
from .codes import CorpusCodes
from .corpora import Conversation, Corpus
from .corpora.dynamics import forward_step
from .finetune import Finetuned
from .settings import Settings, UserError
from .sllm import EmotionSLLM, even

_OF = "the target alone, as the state that the SLLM reads its emotion from"
HEARS = {
    "speaker-head": f"{_OF}; a Gaussian head, means from training and noise from validation conversations; no "
                    "memory",
    "speaker-head + filter": f"{_OF}; the same head under the inertia filter; knows who speaks",
    "speaker-offset": f"{_OF}; remembers of each speaker the offset from the head's means, and no inertia: as if "
                      "emotions came in any order; knows who speaks",
    "speaker-memory": f"{_OF}; remembers of each speaker the offset from the head's means, and the paths of "
                      "emotions that go with it (extension); knows who speaks",
    "speaker-memory-kept": "as speaker-memory, but not emptied between conversations: also hears the speaker's "
                           "earlier ones in the split",
    "speaker-head-swapped + filter": "control: as speaker-head + filter, but what the filter believes of the "
                                     "speaker is of another conversation's after as many utterances",
    "speaker-offset-swapped": "control: as speaker-offset, but the offsets are those of another conversation's "
                              "speaker after as many utterances",
    "speaker-memory-swapped": "control: as speaker-memory, but the offsets are those of another conversation's "
                              "speaker after as many utterances",
    "speaker-memory-kept-swapped": "control: as speaker-memory-kept, but the offsets are those of another speaker "
                                   "after as many utterances",
    "speaker-told": "BOUND, no method: as speaker-memory, but knows the true emotions of the speaker's earlier "
                    "utterances in the conversation",
    "speaker-oracle": "BOUND, no method: as speaker-head + filter, but each speaker's offset is taken away with "
                      "the help of the true labels of all of its utterances",
}
SHRINKAGE = 0.05  # of the covariances
Trails = dict[str, list[tuple[np.ndarray, np.ndarray]]]  # speaker -> mean, (d,), and covariance, (d, d), in turn


class NotFitted(UserError):
    """The labels do not allow to fit an OffsetModel."""


@dataclass(frozen=True)
class OffsetModel:
    """Where emotions lie, (emotions, d), how far speakers lie from there, `between`, and utterances of one speaker
    and emotion from each other, `within`, both (d, d), in a projection to d dimensions; how emotions follow; and
    the power of the likelihood, below 1 where utterances err alike."""

    centre: np.ndarray
    scale: np.ndarray
    basis: np.ndarray
    means: np.ndarray
    between: np.ndarray
    within: np.ndarray
    transition: np.ndarray
    prior: np.ndarray
    power: float = 1.0

    @classmethod
    def fit(cls, states: np.ndarray, emotions: np.ndarray, speakers: Sequence[str], dimensions: int,
            transition: np.ndarray, prior: np.ndarray) -> OffsetModel:
        """By moments: `states`, (n, features), of utterances with emotions (n,), indices (-1: none, left out), and
        speakers (n,). Means and offsets take turns until they agree; covariances are shrunk towards a sphere. An
        emotion that nobody has lies at the mean of all; other speakers than a single one may be as far off as
        utterances are. NotFitted where no speaker has two labelled utterances that differ."""
        states, emotions, who, size = *_labelled(states, emotions, speakers), len(prior)
        centre, scale = states.mean(0), states.std(0) + 1e-6
        standard = (states - centre) / scale
        basis = np.linalg.svd(standard, full_matrices=False)[2][:dimensions].T
        z = standard @ basis
        means = _means(z, emotions, size)
        for _ in range(50):
            offsets = _means(z - means[emotions], who)
            moved = _means(z - offsets[who], emotions, size)
            if np.abs(moved - means).max() < 1e-9:
                break
            means = moved
        offsets = _means(z - means[emotions], who)
        means, offsets = means + offsets.mean(0), offsets - offsets.mean(0)
        between = within = _noise(z - means[emotions], who, size)
        if len(offsets) > 1:
            # A mean of few utterances lies off by within / count: that is no difference between speakers.
            spread = offsets.T @ offsets / (len(offsets) - 1) - within * (1 / np.bincount(who)).mean()
            values, vectors = np.linalg.eigh(spread)
            between = vectors * values.clip(max(0.0, values.max()) * 1e-4) @ vectors.T
        return cls(centre, scale, basis, means, shrunk_covariance(between, SHRINKAGE),
                   shrunk_covariance(within, SHRINKAGE), transition, prior)

    def with_noise_of(self, states: np.ndarray, emotions: np.ndarray, speakers: Sequence[str]) -> OffsetModel:
        """The same with the noise of these utterances: a backbone's states of what it was trained on are too near
        to the means. NotFitted as in `fit`."""
        states, emotions, who = _labelled(states, emotions, speakers)
        noise = _noise(self.project(states) - self.means[emotions], who, len(self.prior))
        return replace(self, within=shrunk_covariance(noise, SHRINKAGE))

    def project(self, states: np.ndarray) -> np.ndarray:
        """(n, features) -> (n, d)."""
        return (states - self.centre) / self.scale @ self.basis

    def posterior(self, z: np.ndarray, covariance: np.ndarray) -> np.ndarray:
        """Emotions of each utterance alone, (n, emotions); z: (n, d), projected; covariance: (d, d), or of each
        utterance, (n, d, d)."""
        beyond = z[:, None] - self.means  # (n, emotions, d)
        scores = np.log(self.prior) - 0.5 * self.power * (beyond @ np.linalg.inv(covariance) * beyond).sum(-1)
        return np.exp(scores - np.logaddexp.reduce(scores, 1, keepdims=True))


def _labelled(states: np.ndarray, emotions: np.ndarray,
              speakers: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States and emotions of the labelled utterances, and the numbers of their speakers."""
    chosen = emotions >= 0
    return states[chosen], emotions[chosen], np.unique(np.asarray(speakers)[chosen], return_inverse=True)[1]


def _means(values: np.ndarray, group: np.ndarray, groups: int = 0) -> np.ndarray:
    """Mean of the rows of each group, (groups, d); 0 for an empty one."""
    counts = np.bincount(group, minlength=groups)
    out = np.zeros((len(counts), values.shape[1]))
    np.add.at(out, group, values)
    return out / np.maximum(counts, 1)[:, None]


def _noise(residual: np.ndarray, who: np.ndarray, emotions: int) -> np.ndarray:
    """Covariance, (d, d), of what is left when each speaker's mean is taken away."""
    residual = residual - _means(residual, who)[who]
    noise = residual.T @ residual / max(1, len(residual) - who.max() - emotions)
    if np.trace(noise) < 1e-9:  # of standardised states; what is left there is rounding
        raise NotFitted("too few speakers of the training or validation conversations have two labelled utterances "
                        "that differ, by which to measure noise: label more of them")
    return noise


class _Voice(NamedTuple):
    """Of one speaker: (paths, d) offsets, their common covariance, log weights (paths,), and the distribution of
    each path's next emotion, (paths, emotions)."""

    offsets: np.ndarray
    covariance: np.ndarray
    weights: np.ndarray
    following: np.ndarray


class SpeakerMemory:
    """What was heard of each speaker of a conversation; `hear` writes an utterance and reads its emotion."""

    def __init__(self, model: OffsetModel, paths: int):
        """`paths`: kept per speaker."""
        self.model, self.paths = model, paths
        self.speakers: dict[str, _Voice] = {}

    def begin(self, kept: bool = True) -> None:
        """A new conversation: emotions begin anew, and speakers, too, unless `kept`."""
        self.speakers = {s: v._replace(following=np.tile(self.model.prior, (len(v.weights), 1)))
                         for s, v in self.speakers.items() if kept}

    def _voice(self, speaker: str) -> _Voice:
        model = self.model
        fresh = _Voice(np.zeros((1, len(model.within))), model.between, np.zeros(1), model.prior[None])
        return self.speakers.get(speaker, fresh)

    def hear(self, speaker: str, state: np.ndarray, label: int = -1) -> np.ndarray:
        """Emotion probabilities, (emotions,), of this utterance given all of the speaker's up to it; `state`: (d,),
        projected. `label`: its true emotion, learned after the answer (for the bound alone; -1: none)."""
        voice = self._voice(speaker)
        precision = np.linalg.inv(self.model.within + voice.covariance)
        beyond = state - voice.offsets[:, None] - self.model.means  # (paths, emotions, d)
        likelihood = -0.5 * (beyond @ precision * beyond).sum(-1)
        scores = voice.weights[:, None] + np.log(voice.following + 1e-12) + self.model.power * likelihood
        answer = np.exp(scores - np.logaddexp.reduce(scores, None)).sum(0)
        if label >= 0:
            scores = np.where(np.arange(len(answer)) == label, scores, scores.min() - 1e6)
        gain = voice.covariance @ precision
        offsets = (voice.offsets[:, None] + beyond @ gain.T).reshape(-1, len(state))
        kept = np.argsort(-scores.ravel(), kind="stable")[:self.paths]
        self.speakers[speaker] = _Voice(offsets[kept], voice.covariance - gain @ voice.covariance,
                                        scores.ravel()[kept] - np.logaddexp.reduce(scores.ravel()[kept]),
                                        self.model.transition[kept % len(self.model.prior)])
        return answer

    def offset(self, speaker: str) -> tuple[np.ndarray, np.ndarray]:
        """Posterior mean, (d,), and covariance, (d, d), of a speaker's offset; the prior's if nobody was heard."""
        voice = self._voice(speaker)
        share = np.exp(voice.weights)
        mean = share @ voice.offsets
        apart = voice.offsets - mean
        return mean, voice.covariance + (share[:, None] * apart).T @ apart


def remember(model: OffsetModel, paths: int, table: pd.DataFrame, z: np.ndarray, kept: bool = False,
             labels: np.ndarray | None = None) -> tuple[np.ndarray, dict[str, Trails]]:
    """The answers, (n, emotions), to the utterances of a table, z: (n, d), by a memory that is emptied before each
    conversation unless `kept`; `labels`: of the bound. And of each conversation (of all, "", where `kept`): speaker
    -> the offset as known before its first utterance, its second, …, and after its last."""
    memory, answers, trails = SpeakerMemory(model, paths), np.zeros((len(table), len(model.prior))), {}
    for conversation, rows in table.groupby("conversation", sort=False).indices.items():
        memory.begin(kept)
        trail = trails.setdefault("" if kept else conversation, {})
        for i in rows:
            who = table["speaker"].iloc[i]
            trail.setdefault(who, [memory.offset(who)])
            answers[i] = memory.hear(who, z[i], -1 if labels is None else labels[i])
            trail[who].append(memory.offset(who))
    return answers, trails


def fitted(settings: Settings, corpus: Corpus, codes: CorpusCodes,
           tuned: Finetuned) -> tuple[OffsetModel, pd.DataFrame]:
    """The model of `settings.fold`, and a row per power that was tried: `power`, `nll`, `WA` (%); kept. Noise and
    power come from validation conversations, each speaker of which is heard with the noise of the others; all else
    from training conversations. NotFitted where labels are too few."""
    own, chain = settings.speaker, protocols.inertia_of(corpus, corpus.folds[settings.fold - 1])
    table, found, truth = states(settings, corpus, codes, tuned, "train")
    model = OffsetModel.fit(found, truth, table["speaker"], own.dimensions, *chain)
    table, found, truth = states(settings, corpus, codes, tuned, "validation")

    def tried() -> pd.DataFrame:
        answers = {power: np.zeros((len(table), len(corpus.emotions))) for power in own.powers}
        for speaker in table["speaker"].unique():
            its = (table["speaker"] == speaker).to_numpy()
            others = np.where(its, -1, truth)
            noisy = model.with_noise_of(found, others if others.max() >= 0 else truth, table["speaker"])
            for power, answer in answers.items():
                z = noisy.project(found[its])
                answer[its], _ = remember(replace(noisy, power=power), own.paths, table[its], z)
        tables = {power: protocols.answered(table, corpus.emotions, answer) for power, answer in answers.items()}
        return pd.DataFrame([{"power": power, "nll": metrics.nll(t, corpus.emotions),
                              "WA": metrics.wa(t, corpus.emotions)} for power, t in tables.items()])

    made = runs.Artefact(settings, "speakers", fitted, sllm=tuned.key, precision=settings.memory.precision,
                         fold=settings.fold, speaker=own)
    powers = made.table("powers", tried)
    best = float(powers["power"][powers["nll"].idxmin()])
    return replace(model.with_noise_of(found, truth, table["speaker"]), power=best), powers


def predict(settings: Settings, corpus: Corpus, codes: CorpusCodes, tuned: Finetuned,
            model: OffsetModel) -> dict[str, pd.DataFrame]:
    """A table of the test split (columns as of `protocols.answered`) for each method of HEARS."""
    table, found, truth = states(settings, corpus, codes, tuned, "test")
    z, paths, chain = model.project(found), settings.speaker.paths, (model.transition, model.prior)
    alone = model.posterior(z, model.within + model.between)
    oracle = model.posterior(z - true_offsets(z, truth, table["speaker"], model.means), model.within)
    answers = {"speaker-head": alone, "speaker-head + filter": filtered(table, alone, *chain),
               "speaker-told": remember(model, paths, table, z, labels=truth)[0],
               "speaker-oracle": filtered(table, oracle, *chain)}
    anywhere = replace(model, transition=np.tile(model.prior, (len(model.prior), 1)))
    for name, of, kept in (("speaker-offset", anywhere, False), ("speaker-memory", model, False),
                           ("speaker-memory-kept", model, True)):
        answers[name], trails = remember(of, paths, table, z, kept)
        mean, covariance = _swapped(table, trails, kept)
        other = model.posterior(z - mean, model.within + covariance)
        answers[f"{name}-swapped"] = other if of is anywhere else filtered(table, other, *chain)
    answers["speaker-head-swapped + filter"] = _other_belief(table, alone, answers["speaker-head + filter"], *chain)
    return {name: protocols.answered(table, corpus.emotions, answers[name]) for name in HEARS}


def strangers(table: pd.DataFrame, trails: Mapping[str, Mapping[str, list]]) -> Iterator[tuple[int, list, int]]:
    """For each utterance of a table, by its number: another conversation's speaker's trail, what was known before
    the first utterance, the second, …, and after the last, and which part of it a control takes: after as many
    utterances. Of the donor's speakers the first is for the first, …. `trails`: conversation -> speaker -> one."""
    donors, before = protocols.donors(table, "conversation"), table.groupby(["conversation", "speaker"]).cumcount()
    for i, (c, who, count) in enumerate(zip(table["conversation"], table["speaker"], before, strict=True)):
        own, theirs = list(trails[c]), list(trails[donors[c]].values())
        trail = theirs[own.index(who) % len(theirs)]
        yield i, trail, min(count, len(trail) - 1)


def _other_belief(table: pd.DataFrame, alone: np.ndarray, beliefs: np.ndarray, transition: np.ndarray,
                  prior: np.ndarray) -> np.ndarray:
    """The filter's answers, (n, emotions), to what an utterance says alone, under another speaker's belief."""
    trails: dict[str, dict[str, list]] = {}
    for (c, who), rows in table.groupby(["conversation", "speaker"], sort=False).indices.items():
        trails.setdefault(c, {})[who] = [None, *beliefs[rows]]
    return np.stack([forward_step(trail[count], alone[i], transition, prior)
                     for i, trail, count in strangers(table, trails)])


def _swapped(table: pd.DataFrame, trails: Mapping[str, Trails], kept: bool) -> tuple[np.ndarray, np.ndarray]:
    """For each utterance of a table the mean, (n, d), and covariance, (n, d, d), of another speaker's offset, after
    as many utterances: a stranger's where `kept`; else as of `strangers`."""
    if kept:
        donors, before = protocols.donors(table, "speaker"), table.groupby("speaker").cumcount()
        found = [(trail := trails[""][donors[who]])[min(count, len(trail) - 1)]
                 for who, count in zip(table["speaker"], before, strict=True)]
    else:
        found = [trail[count] for _, trail, count in strangers(table, trails)]
    mean, covariance = zip(*found, strict=True)
    return np.array(mean), np.array(covariance)


def remembered(settings: Settings, conversations: Sequence[Conversation], codes: Mapping[str, np.ndarray],
               emotions: tuple[str, ...], tuned: Finetuned, model: OffsetModel) -> pd.DataFrame:
    """The answers of `speaker-memory` to these conversations, a row per utterance; codes: utterance id -> codes."""
    table = protocols.rows(conversations)
    states = _states(tuned.sllm.in_precision(settings.memory.precision), codes, list(table["utterance"]))
    answers, _ = remember(model, settings.speaker.paths, table, model.project(states.to_numpy()))
    return protocols.answered(table, emotions, answers)


def states(settings: Settings, corpus: Corpus, codes: CorpusCodes, tuned: Finetuned,
           split: str) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """The utterances of a split in order; their states, (utterances, hidden), kept in runs/states/<key>/; and their
    true emotions' indices, (utterances,), -1 outside the label set."""
    table = protocols.rows(corpus.select(getattr(corpus.folds[settings.fold - 1], split)))
    names, precision = list(table["utterance"]), settings.memory.precision
    made = runs.Artefact(settings, "states", _states, sllm=tuned.key, precision=precision,
                         utterances=runs.key(names))
    found = made.table("states", lambda: _states(tuned.sllm.in_precision(precision), codes.codes, names))
    return table, np.ascontiguousarray(found), pd.Categorical(table["emotion"], corpus.emotions).codes


def _states(model: EmotionSLLM, codes: Mapping[str, np.ndarray], utterances: Sequence[str]) -> pd.DataFrame:
    """A row of states, (hidden,), per utterance, each heard alone."""
    rows = [model.sentence(codes[u]) for u in utterances]
    states = np.empty((len(rows), model.answer_states(rows[:1]).shape[1]))
    for batch in tqdm(list(even(rows, protocols.TOKENS)), desc="states", unit="batch"):
        states[batch] = model.answer_states([rows[row] for row in batch]).cpu().numpy()
    return pd.DataFrame(states).rename(columns=str)
