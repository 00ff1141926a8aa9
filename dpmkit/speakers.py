"""The methods that remember speakers (`offsets`), beside the same head without a memory, controls and bounds.

offsets: SpeakerMemory: an extension of this kit, not the paper's DPM. It remembers voices, in closed form,
unlabelled.

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
from tqdm.auto import tqdm

from . import protocols, runs
from .codes import CorpusCodes
from .corpora import Conversation, Corpus
from .corpora.dynamics import emotion_prior, forward_filter, transition_matrix
from .finetune import Finetuned
from .settings import Settings, UserError
from .sllm import EmotionSLLM

# -- offsets -------------------------------------------------------------------

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


# -- speakers ------------------------------------------------------------------

_OF = "the target alone, as the state that the SLLM reads its emotion from"
HEARS = {
    "speaker-head": f"{_OF}; a Gaussian head, means from training and noise from validation conversations; no "
                    "memory",
    "speaker-head + filter": f"{_OF}; the same head under the inertia filter; is told who speaks",
    "speaker-memory": f"{_OF}; remembers of each speaker the offset from the head's means, and the paths of "
                      "emotions that go with it (extension); is told who speaks",
    "speaker-memory-kept": "as speaker-memory, but not emptied between conversations: also hears the speaker's "
                           "earlier ones in the split",
    "speaker-memory-swapped": "control: as speaker-memory, but the offsets are those of another conversation's "
                              "speaker after as many utterances",
    "speaker-memory-kept-swapped": "control: as speaker-memory-kept, but the offsets are those of another speaker "
                                   "after as many utterances",
    "speaker-told": "BOUND, no method: as speaker-memory, but told the true emotions of the speaker's earlier "
                    "utterances in the conversation",
    "speaker-oracle": "BOUND, no method: as speaker-head + filter, but each speaker's offset is taken away with "
                      "the help of the true labels of all of its utterances",
}

BATCH = 64  # utterances of one forward


def fitted(settings: Settings, corpus: Corpus, codes: CorpusCodes,
           tuned: Finetuned) -> tuple[OffsetModel, float, list[dict]]:
    """The model of `settings.fold`, the likelihood's power, and a row a power that was tried (NLL, WA in %).

    Means, offsets, transitions and prior come from training conversations, noise and power from validation
    conversations, each speaker of which is heard with the noise of the others. NotFitted where labels are too few.
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
                memory = SpeakerMemory(noisy, own.paths, power)
                answers[at] = _remembered(memory, noisy.project(states[at]), [speaker] * len(at))
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
    truth = np.full(len(z), None)  # for the bounds alone
    truth[said] = _indices(table[said], emotions)
    beyond = z[said] - model.means[truth[said].astype(int)]
    known = {s: beyond[who[said] == s].mean(0) for s in np.unique(who[said])}
    answers = {name: np.zeros((len(z), len(emotions))) for name in HEARS}
    chain, whole = (model.transition, model.prior), model.within + model.between
    kept = SpeakerMemory(model, settings.speaker.paths, power)
    trails, whole_trails = {name: {} for name in rows_of}, {}
    for name, rows in rows_of.items():
        heard, speakers = z[rows], list(who[rows])
        offsets = np.stack([known.get(s, 0 * heard[0]) for s in speakers])
        oracle = _posterior(model, heard - offsets, model.within, power)
        answers["speaker-head"][rows] = alone = _posterior(model, heard, whole, power)
        answers["speaker-head + filter"][rows] = forward_filter(alone, speakers, *chain)
        answers["speaker-oracle"][rows] = forward_filter(oracle, speakers, *chain)
        fresh, told = (SpeakerMemory(model, settings.speaker.paths, power) for _ in range(2))
        answers["speaker-memory"][rows] = _remembered(fresh, heard, speakers, trails=trails[name])
        answers["speaker-told"][rows] = _remembered(told, heard, speakers, truth[rows])
        kept.begin()
        answers["speaker-memory-kept"][rows] = _remembered(kept, heard, speakers, trails=whole_trails)
    strangers, counts = _strangers(table), dict.fromkeys(who, 0)
    for name, rows in rows_of.items():
        heard, speakers = z[rows], list(who[rows])
        order = list(trails[donors[name].id].values())  # the first speaker gets the first stranger's, and so on
        theirs = {s: order[i % len(order)] for i, s in enumerate(dict.fromkeys(speakers))}
        swapped = _swapped(model, power, heard, speakers, theirs, dict.fromkeys(speakers, 0))
        answers["speaker-memory-swapped"][rows] = forward_filter(swapped, speakers, *chain)
        theirs = {s: whole_trails[strangers[s]] for s in speakers}
        swapped = _swapped(model, power, heard, speakers, theirs, counts)
        answers["speaker-memory-kept-swapped"][rows] = forward_filter(swapped, speakers, *chain)
    return {name: table.assign(**{f"p_{e}": p[:, i] for i, e in enumerate(emotions)})
            for name, p in answers.items()}


def _remembered(memory: SpeakerMemory, heard: np.ndarray, speakers: Sequence[str],
                told: Sequence[int | None] | None = None,
                trails: dict[str, list[tuple]] | None = None) -> np.ndarray:
    """Answers, (turns, emotions), of a memory to one conversation, (turns, d). `trails`, where given, go on with
    the offset (mean and covariance) of each speaker as known before its first utterance, its second, …, and after
    its last."""
    answers = []
    told = [None] * len(heard) if told is None else told
    for speaker, state, truth in zip(speakers, heard, told, strict=True):
        if trails is not None:
            trails.setdefault(speaker, [memory.offset(speaker)])
        answers.append(memory.hear(speaker, state, truth))
        if trails is not None:
            trails[speaker].append(memory.offset(speaker))
    return np.stack(answers)


def _swapped(model: OffsetModel, power: float, heard: np.ndarray, speakers: Sequence[str],
             trails: Mapping[str, list[tuple]], counts: dict[str, int]) -> np.ndarray:
    """Answers, (turns, emotions), with the offset of each speaker's stranger, whose trail it is, after as many
    utterances; `counts`: those of each speaker, counted on here."""
    out = []
    for speaker, state in zip(speakers, heard, strict=True):
        mean, covariance = trails[speaker][min(counts[speaker], len(trails[speaker]) - 1)]
        out.append(_posterior(model, (state - mean)[None], model.within + covariance, power)[0])
        counts[speaker] += 1
    return np.stack(out)


def _strangers(table: pd.DataFrame) -> dict[str, str]:
    """For each speaker another one, who never talks with it where there is such a one, and who says no less: the
    next in order."""
    counts = table["speaker"].value_counts(sort=False).sort_index()
    met = {s: set(table.loc[table["conversation"].isin(own), "speaker"])
           for s, own in table.groupby("speaker")["conversation"].unique().items()}
    names, out = list(counts.index), {}
    for i, name in enumerate(names):
        others = names[i + 1:] + names[:i] or names
        fit = [o for o in others if o not in met[name]] or others
        out[name] = max(fit, key=lambda o: min(counts[o], counts[name]))
    return out


def _posterior(model: OffsetModel, heard: np.ndarray, covariance: np.ndarray, power: float) -> np.ndarray:
    """Of each utterance alone, (turns, emotions)."""
    beyond = heard[:, None] - model.means
    scores = np.log(model.prior) - 0.5 * power * (beyond @ np.linalg.inv(covariance) * beyond).sum(-1)
    return np.exp(scores - np.logaddexp.reduce(scores, 1, keepdims=True))


def remembered(settings: Settings, conversations: Sequence[Conversation], codes: Mapping[str, np.ndarray],
               emotions: tuple[str, ...], tuned: Finetuned, model: OffsetModel, power: float) -> pd.DataFrame:
    """The answers of `speaker-memory` to these conversations, a row an utterance; codes: utterance id -> codes."""
    table = _listed(conversations)
    sllm = tuned.sllm.in_precision(settings.memory.precision)
    z = model.project(_states(sllm, codes, table["utterance"], "states"))
    for rows in table.groupby("conversation", sort=False).indices.values():
        memory = SpeakerMemory(model, settings.speaker.paths, power)
        answers = _remembered(memory, z[rows], list(table["speaker"].iloc[rows]))
        table.loc[rows, [f"p_{e}" for e in emotions]] = answers
    return table


def _heard(settings: Settings, corpus: Corpus, codes: CorpusCodes, tuned: Finetuned,
           split: str) -> tuple[pd.DataFrame, np.ndarray]:
    """The utterances of a split in order, and their states, (utterances, hidden): kept in runs/states/<key>/."""
    table = _listed(corpus.select(getattr(corpus.folds[settings.fold - 1], split)))
    made = runs.artefact(settings, "states", _states, sllm=tuned.key, precision=settings.memory.precision,
                         utterances=runs.key(list(table["utterance"])))
    path = made.folder / "states.safetensors"
    with made.making(path) as absent:
        if absent:
            states = _states(tuned.sllm.in_precision(settings.memory.precision), codes.codes, table["utterance"],
                             f"states ({split})")
            with runs.atomic(path) as temporary:
                save_file({"states": states}, temporary)
    return table, load_file(path)["states"]


def _listed(conversations: Sequence[Conversation]) -> pd.DataFrame:
    return pd.DataFrame([{"conversation": c.id, "session": c.session, "utterance": u.id, "speaker": u.speaker,
                          "turn": turn, "start": u.start, "end": u.end, "emotion": u.emotion}
                         for c in conversations for turn, u in enumerate(c.utterances)])


def _states(model: EmotionSLLM, codes: Mapping[str, np.ndarray], utterances: pd.Series, title: str) -> np.ndarray:
    """(utterances, hidden), each utterance heard alone."""
    batches = [utterances.iloc[i:i + BATCH] for i in range(0, len(utterances), BATCH)]
    states = [model.answer_states([model.sentence(codes[u]) for u in batch]).cpu().numpy()
              for batch in tqdm(batches, desc=title, unit="batch")]
    return np.concatenate(states).astype(float)


def _indices(table: pd.DataFrame, emotions: tuple[str, ...]) -> np.ndarray:
    return table["emotion"].map({e: i for i, e in enumerate(emotions)}).to_numpy(dtype=int)
