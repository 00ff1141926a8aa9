"""The methods that remember speakers (`offsets`), beside the same head without a memory, controls and bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file
from tqdm.auto import tqdm

from . import protocols, runs
from .codes import CorpusCodes
from .corpora import Conversation, Corpus
from .corpora.dynamics import emotion_prior, transition_matrix
from .filtering import forward_filter
from .finetune import Finetuned
from .offsets import OffsetModel, SpeakerMemory
from .settings import Settings
from .sllm import EmotionSLLM

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
