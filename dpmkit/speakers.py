"""SpeakerMemory, an extension of this kit and not the paper's DPM: it remembers voices, in closed form, unlabelled.

What an utterance leaves at the emotion head, h (the SLLM's last hidden state at `<audio_end>`, projected), is taken
to be
    h = mean of the emotion + offset of the speaker + noise,    offset ~ N(0, between), noise ~ N(0, within),
and a speaker's emotions to be a Markov chain. What is known of a speaker is then a mixture of Gaussians over the
offset, one for each path of emotions; the most probable paths are kept (mixture Kalman filter, Chen & Liu 2000).
They share one covariance, as it does not depend on the path. Nothing grows with the conversation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file
from sklearn.covariance import shrunk_covariance
from tqdm.auto import tqdm

from . import protocols, runs
from .baselines import filtered
from .codes import CorpusCodes
from .corpora import Conversation, Corpus
from .finetune import Finetuned
from .settings import Settings, UserError
from .sllm import EmotionSLLM

_OF = "the target alone, as the state that the SLLM reads its emotion from"
HEARS = {
    "speaker-head": f"{_OF}; a Gaussian head, means from training and noise from validation conversations; no "
                    "memory",
    "speaker-head + filter": f"{_OF}; the same head under the inertia filter; knows who speaks",
    "speaker-memory": f"{_OF}; remembers of each speaker the offset from the head's means, and the paths of "
                      "emotions that go with it (extension); knows who speaks",
    "speaker-memory-kept": "as speaker-memory, but not emptied between conversations: also hears the speaker's "
                           "earlier ones in the split",
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
        nobody has lies at the mean of all; of one speaker alone, others may be as far off as utterances are.
        NotFitted where no speaker has two labelled utterances that differ.
        """
        who, size = np.unique(speakers, return_inverse=True)[1], len(prior)
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

    def with_noise_of(self, states: np.ndarray, emotions: np.ndarray, speakers: np.ndarray) -> OffsetModel:
        """The same with the noise of these utterances: a backbone's states of what it was trained on are too near
        to the means. NotFitted as in `fit`."""
        who = np.unique(speakers, return_inverse=True)[1]
        noise = _noise(self.project(states) - self.means[emotions], who, len(self.prior))
        return replace(self, within=shrunk_covariance(noise, SHRINKAGE))

    def project(self, states: np.ndarray) -> np.ndarray:
        """(n, features) -> (n, d)."""
        return (states - self.centre) / self.scale @ self.basis

    def posterior(self, z: np.ndarray, covariance: np.ndarray, power: float) -> np.ndarray:
        """Emotions of each utterance alone, (n, emotions); z: (n, d), projected."""
        beyond = z[:, None] - self.means  # (n, emotions, d)
        scores = np.log(self.prior) - 0.5 * power * (beyond @ np.linalg.inv(covariance) * beyond).sum(-1)
        return np.exp(scores - np.logaddexp.reduce(scores, 1, keepdims=True))


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


# -- the memory ----------------------------------------------------------------------------------------------


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


class SpeakerMemory:
    """What was heard of each speaker of a conversation; `hear` writes an utterance and reads its emotion."""

    def __init__(self, model: OffsetModel, paths: int, power: float):
        """`paths`: kept per speaker; `power`: of the likelihood, below 1 where utterances err alike."""
        self.model, self.paths, self.power = model, paths, power
        self.speakers: dict[str, _Voice] = {}

    def begin(self) -> None:
        """A new conversation of the same speakers: offsets are kept, emotions begin anew."""
        self.speakers = {s: replace(v, following=np.tile(self.model.prior, (len(v.weights), 1)))
                         for s, v in self.speakers.items()}

    def hear(self, speaker: str, state: np.ndarray, label: int = -1) -> np.ndarray:
        """Emotion probabilities, (emotions,), of this utterance given all of the speaker's up to it; `state`: (d,),
        projected. `label`: its true emotion, learned after the answer (for the bound alone; -1: none)."""
        voice = self.speakers.get(speaker) or _Voice.fresh(self.model)
        precision = np.linalg.inv(self.model.within + voice.covariance)
        beyond = state - voice.offsets[:, None] - self.model.means  # (paths, emotions, d)
        likelihood = -0.5 * (beyond @ precision * beyond).sum(-1)
        scores = voice.weights[:, None] + np.log(voice.following + 1e-12) + self.power * likelihood
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
        voice = self.speakers.get(speaker) or _Voice.fresh(self.model)
        share = np.exp(voice.weights)
        mean = share @ voice.offsets
        apart = voice.offsets - mean
        return mean, voice.covariance + (share[:, None] * apart).T @ apart


class _Followed(SpeakerMemory):
    """For the swapped controls: `trails` has the offset of each speaker as known before its first utterance, its
    second, …, and after its last."""

    def __init__(self, *given):
        super().__init__(*given)
        self.trails: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}

    def hear(self, speaker: str, state: np.ndarray, label: int = -1) -> np.ndarray:
        self.trails.setdefault(speaker, [self.offset(speaker)])
        answer = super().hear(speaker, state, label)
        self.trails[speaker].append(self.offset(speaker))
        return answer


# -- the methods ---------------------------------------------------------------------------------------------


def fitted(settings: Settings, corpus: Corpus, codes: CorpusCodes,
           tuned: Finetuned) -> tuple[OffsetModel, float, list[dict]]:
    """The model of `settings.fold`, the likelihood's power, and a row per power that was tried (NLL, WA in %).

    Means, offsets, transitions and prior come from training conversations, noise and power from validation
    conversations, each speaker of which is heard with the noise of the others. NotFitted where labels are too few.
    """
    own, chain = settings.speaker, protocols.inertia_of(corpus, corpus.folds[settings.fold - 1])
    table, states, truth = _heard(settings, corpus, codes, tuned, "train")
    labelled, who = truth >= 0, table["speaker"].to_numpy()
    model = OffsetModel.fit(states[labelled], truth[labelled], who[labelled], own.dimensions, *chain)
    table, states, truth = _heard(settings, corpus, codes, tuned, "validation")
    labelled, who, tried = truth >= 0, table["speaker"].to_numpy(), []
    for power in own.powers:
        answers = np.zeros((len(table), len(corpus.emotions)))
        for speaker, apart in table.groupby("speaker"):
            others = labelled & (who != speaker) if (labelled & (who != speaker)).any() else labelled
            noisy = model.with_noise_of(states[others], truth[others], who[others])
            for rows in apart.groupby("conversation").groups.values():
                memory = SpeakerMemory(noisy, own.paths, power)
                answers[rows] = [memory.hear(speaker, z) for z in noisy.project(states[rows])]
        likely = answers[labelled, truth[labelled]]
        tried.append({"power": power, "nll": float(-np.log(likely + 1e-12).mean()),
                      "WA": 100 * float((answers[labelled].argmax(1) == truth[labelled]).mean())})
    best = min(tried, key=lambda row: row["nll"])["power"]
    return model.with_noise_of(states[labelled], truth[labelled], who[labelled]), best, tried


def predict(settings: Settings, corpus: Corpus, codes: CorpusCodes, tuned: Finetuned, model: OffsetModel,
            power: float, split: str = "test") -> dict[str, pd.DataFrame]:
    """A table (columns as of `protocols.answered`) for each method of HEARS."""
    table, states, truth = _heard(settings, corpus, codes, tuned, split)
    z, who, emotions = model.project(states), table["speaker"].to_numpy(), corpus.emotions
    conversations = corpus.select(getattr(corpus.folds[settings.fold - 1], split))
    rows_of, chain = table.groupby("conversation", sort=False).indices, (model.transition, model.prior)
    distance = z - model.means[truth]  # of labelled utterances; for the oracle alone
    offsets = {s: distance[(who == s) & (truth >= 0)].mean(0) for s in np.unique(who[truth >= 0])}
    true_offsets = np.stack([offsets.get(s, np.zeros(z.shape[1])) for s in who])
    answers = {name: np.zeros((len(z), len(emotions))) for name in HEARS}
    answers["speaker-head"] = alone = model.posterior(z, model.within + model.between, power)
    answers["speaker-head + filter"] = filtered(table, alone, *chain)
    answers["speaker-oracle"] = filtered(table, model.posterior(z - true_offsets, model.within, power), *chain)
    given = model, settings.speaker.paths, power
    kept, memories = _Followed(*given), {name: _Followed(*given) for name in rows_of}
    for name, rows in rows_of.items():
        labelled = SpeakerMemory(*given)
        kept.begin()
        answers["speaker-memory"][rows] = [memories[name].hear(who[i], z[i]) for i in rows]
        answers["speaker-told"][rows] = [labelled.hear(who[i], z[i], truth[i]) for i in rows]
        answers["speaker-memory-kept"][rows] = [kept.hear(who[i], z[i]) for i in rows]
    donors, strangers = (protocols.donors(table, of) for of in ("conversation", "speaker"))
    whole = {s: kept.trails[stranger] for s, stranger in strangers.items()}
    in_split = table.groupby("speaker").cumcount()  # utterances of the speaker before each
    in_conversation = table.groupby(["conversation", "speaker"]).cumcount()
    for name, rows in rows_of.items():
        theirs = list(memories[donors[name]].trails.values())  # the first speaker gets the first stranger's, …
        trails = {s: theirs[i % len(theirs)] for i, s in enumerate(dict.fromkeys(who[rows]))}
        for i in rows:
            for method, trail, count in (("speaker-memory-swapped", trails[who[i]], in_conversation[i]),
                                         ("speaker-memory-kept-swapped", whole[who[i]], in_split[i])):
                mean, covariance = trail[min(count, len(trail) - 1)]
                answers[method][i] = model.posterior(z[i:i + 1] - mean, model.within + covariance, power)[0]
    for name in ("speaker-memory-swapped", "speaker-memory-kept-swapped"):
        answers[name] = filtered(table, answers[name], *chain)
    return {name: protocols.answered(conversations, emotions, p) for name, p in answers.items()}


def remembered(settings: Settings, conversations: Sequence[Conversation], codes: Mapping[str, np.ndarray],
               emotions: tuple[str, ...], tuned: Finetuned, model: OffsetModel, power: float) -> pd.DataFrame:
    """The answers of `speaker-memory` to these conversations, a row per utterance; codes: utterance id -> codes."""
    sllm = tuned.sllm.in_precision(settings.memory.precision)
    states = _states(sllm, codes, [u.id for c in conversations for u in c.utterances], "states")
    answers, z = [], iter(model.project(states))
    for c in conversations:
        memory = SpeakerMemory(model, settings.speaker.paths, power)
        answers += [memory.hear(u.speaker, next(z)) for u in c.utterances]
    return protocols.answered(conversations, emotions, np.array(answers))


def _heard(settings: Settings, corpus: Corpus, codes: CorpusCodes, tuned: Finetuned,
           split: str) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """The utterances of a split in order; their states, (utterances, hidden), kept in runs/states/<key>/; and their
    true emotions' indices, (utterances,), -1 outside the label set."""
    table = protocols.rows(corpus.select(getattr(corpus.folds[settings.fold - 1], split)))
    names, precision = list(table["utterance"]), settings.memory.precision
    made = runs.artefact(settings, "states", _states, sllm=tuned.key, precision=precision,
                         utterances=runs.key(names))
    path = made.folder / "states.safetensors"
    with made.making(path) as absent:
        if absent:
            states = _states(tuned.sllm.in_precision(precision), codes.codes, names, f"states ({split})")
            with runs.atomic(path) as temporary:
                save_file({"states": states}, temporary)
    return table, load_file(path)["states"], pd.Categorical(table["emotion"], corpus.emotions).codes


def _states(model: EmotionSLLM, codes: Mapping[str, np.ndarray], utterances: Sequence[str],
            title: str) -> np.ndarray:
    """(utterances, hidden), each utterance heard alone."""
    rows = [model.sentence(codes[u]) for u in utterances]
    states = np.empty((len(rows), model.answer_states(rows[:1]).shape[1]))
    for batch in tqdm(list(protocols.even(rows)), desc=title, unit="batch"):
        states[batch] = model.answer_states([rows[row] for row in batch]).cpu().numpy()
    return states
