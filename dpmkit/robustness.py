"""Every method's WA as a microphone may give conversations: noise, overlap, boundaries that are off or a machine's.

A conversation is rendered to one mono waveform, every utterance's clip at its start and digital silence between;
the waveform is disturbed, cut into segments, and these are encoded by the tokenizer that made the corpus' codes.
`disturbed` gives the segments as conversations that any method can hear, `returned` turns a method's answers back
into one per true utterance, so that all disturbances are scored on the same targets.

No true label is read here, and segments have none. Each has the speaker who says most of it, as if by a perfect
diarisation: methods that know who speaks know it from the truth, whatever the disturbance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from . import audio, metrics, protocols, runs, speakers, tokenizers
from .codes import CorpusCodes
from .corpora import Clip, Conversation, Corpus, Utterance
from .corpora.dynamics import emotion_prior
from .finetune import Finetuned
from .settings import Settings, UserError
from .speakers import NotFitted, OffsetModel

METHODS = ("current", "window", "dpm")  # and speaker-memory
SHORTEST = round(0.2 * audio.RATE)  # samples of a segment at least, where the kind has a say in it
TALKERS = 6  # voices in the babble at any time
KINDS = {  # kind: least level, most, and what the level is
    "none": (0.0, 0.0, "nothing is disturbed"),
    "jitter": (0.0, 10.0, "s that a boundary moves at most, by a uniform draw; their order stays"),
    "silero": (0.0, 0.0, "boundaries by voice activity; the pauses are easier to find than those of a room"),
    "chunks": (SHORTEST / audio.RATE, 3600.0, "s of a chunk"),
    "white": (-20.0, 60.0, "dB of speech over white noise, both by their power within utterances"),
    "babble": (-20.0, 60.0, "dB of speech over the voices of other conversations of the split"),
    "overlap": (0.0, 0.9, "share of an utterance that the next one starts early; no pauses are left"),
}
OTHER_BOUNDARIES = ("jitter", "silero", "chunks")  # of the other kinds, segments are the utterances


@dataclass(frozen=True)
class Disturbance:
    """One of KINDS and its level: UserError for another kind or a level out of range."""

    kind: str
    level: float = 0.0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(f"disturbance {self.kind!r} is not known; choose one of {', '.join(KINDS)}")
        least, most, unit = KINDS[self.kind]
        if not least <= self.level <= most:
            raise UserError(f"the level of disturbance {self.kind} ({unit}) must be from {least:g} to {most:g}, "
                            f"not {self.level}")


STANDARD = (Disturbance("none"), *(Disturbance("jitter", s) for s in (0.1, 0.2, 0.5, 1.0)), Disturbance("silero"),
            *(Disturbance("chunks", s) for s in (2.0, 4.0)),
            *(Disturbance(kind, db) for kind in ("white", "babble") for db in (20.0, 10.0, 5.0, 0.0)),
            *(Disturbance("overlap", share) for share in (0.1, 0.2, 0.3)))


# -- a waveform and its segments -------------------------------------------------------------------------------


def heard(settings: Settings, corpus: Corpus, conversation: Conversation, disturbance: Disturbance
          ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The disturbed waveform, clipped to [-1, 1], and where the true utterances lie in it, both as `render` gives
    them; and where the segments do, (segments, 2)."""
    kind, level = disturbance.kind, disturbance.level
    rng = np.random.default_rng(int(runs.key(settings.seed, conversation.id), 16))
    waveform, true = render(conversation, level if kind == "overlap" else None)
    if kind in ("white", "babble"):
        noise = (rng.standard_normal(len(waveform), np.float32) if kind == "white" else
                 _babble(_others(settings, corpus, conversation), len(waveform), rng))
        spoken = np.zeros(len(waveform), bool)
        for first, last in true:
            spoken[first:last] = True
        waveform += noise * (_rms(waveform[spoken]) / _rms(noise[spoken]) / 10 ** (level / 20))
    waveform, segments = waveform.clip(-1.0, 1.0), true
    if kind == "jitter":
        segments = _jittered(true, level, len(waveform), rng)
    elif kind == "silero":
        with TemporaryDirectory() as folder:  # voice activity reads a file
            audio.write(Path(folder) / "conversation.wav", waveform)
            found = audio.find_speech(Path(folder) / "conversation.wav", settings.segments)
        segments = np.round(found[["start", "end"]].to_numpy() * audio.RATE).astype(int)
    elif kind == "chunks":  # what is left below SHORTEST goes to the last one
        first = np.arange(0, max(1, len(waveform) - SHORTEST + 1), round(level * audio.RATE))
        segments = np.column_stack([first, np.append(first[1:], len(waveform))])
    return waveform, true, segments


def render(conversation: Conversation, overlap: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The waveform, float32 at audio.RATE, (samples,), and each utterance's first sample in it and the one after
    its last, (utterances, 2).

    Clips begin at their utterance's start. Where annotated ones overlap, the later clip replaces the earlier one:
    cuts of one recording (IEMOCAP's, a manifest's) both hold whoever speaks, so that a sum would hold it twice; of
    clips of one voice each, it cuts the earlier one off. With `overlap`, each begins that share of the last one's
    duration before the last one's end, and there they are added.
    """
    waveforms = {}  # a file is decoded once
    for path in {u.audio.path for u in conversation.utterances}:
        cuts = sorted({u.audio for u in conversation.utterances if u.audio.path == path}, key=lambda c: c.start)
        waveforms.update(zip(cuts, audio.cuts(path, [(c.start, c.end) for c in cuts]), strict=True))
    clips = [waveforms[u.audio] for u in conversation.utterances]
    length = np.array([len(clip) for clip in clips])
    if overlap is None:
        first = np.array([round(u.start * audio.RATE) for u in conversation.utterances])
    else:
        first = np.concatenate([[0], np.cumsum(length[:-1] - np.round(overlap * length[:-1]).astype(int))])
    waveform = np.zeros((first + length).max(), np.float32)
    for at, clip in zip(first, clips, strict=True):
        waveform[at:at + len(clip)] = clip if overlap is None else waveform[at:at + len(clip)] + clip
    return waveform, np.column_stack([first, first + length])


def _others(settings: Settings, corpus: Corpus, conversation: Conversation) -> list[Utterance]:
    """Utterances of other conversations of its split, of other speakers where there are any; never its own clips,
    which composed conversations may share."""
    fold = corpus.folds[settings.fold - 1]
    split = next((ids for ids in (fold.train, fold.validation, fold.test) if conversation.id in ids), ())
    clips, voices = ({getattr(u, name) for u in conversation.utterances} for name in ("audio", "speaker"))
    others = [u for c in corpus.select(split) if c.id != conversation.id for u in c.utterances
              if u.audio not in clips]
    if not others:
        raise UserError(f"babble for conversation {conversation.id} needs another conversation in its split")
    return [u for u in others if u.speaker not in voices] or others


def _babble(utterances: Sequence[Utterance], samples: int, rng: np.random.Generator) -> np.ndarray:
    """Utterances drawn at random, equally loud, one after the other, TALKERS times around the samples."""
    noise, at = np.zeros(samples, np.float32), 0
    while at < TALKERS * samples:
        clip = utterances[rng.integers(len(utterances))].audio
        waveform = audio.read(clip.path, clip.start, clip.end)[:samples]
        noise[np.arange(at, at + len(waveform)) % samples] += waveform / _rms(waveform)
        at += len(waveform)
    return noise


def _rms(waveform: np.ndarray) -> float:
    """Root mean square; above 0, so that silence may stand below a fraction line."""
    return max(math.sqrt(np.mean(np.square(waveform, dtype=np.float64))), 1e-9)


def _jittered(true: np.ndarray, level: float, samples: int, rng: np.random.Generator) -> np.ndarray:
    """The boundaries, moved by what the level allows and no more (but what an utterance below 0.2 s needs to last
    as long): one that passes a later one takes it along. Two levels' draws are the same but for their size."""
    moved = true.ravel() + np.round(level * rng.uniform(-1, 1, true.size) * audio.RATE).astype(int)
    order = np.argsort(true, axis=None, kind="stable")
    moved[order] = np.maximum.accumulate(moved[order].clip(0, samples))
    first, last = moved.reshape(-1, 2).T
    last = np.maximum(last, first + SHORTEST).clip(max=samples)
    return np.column_stack([np.minimum(first, last - SHORTEST).clip(0), last])


# -- to segments and back --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Disturbed:
    """Segments of conversations, as utterances to be heard in place of the true ones.

    `conversations`: ids and sessions as before, without those in which no segment was found. Emotions are None; a
    clip is of a file that is not there, as the waveform is not kept (`heard` makes it). `codes`: segment id ->
    (frames,). `weights`: true utterance id -> {segment id: share of the seconds that overlap it}, of sum 1, or {}.
    """

    key: str
    conversations: tuple[Conversation, ...]
    codes: dict[str, np.ndarray]
    weights: dict[str, dict[str, float]]


def disturbed(settings: Settings, corpus: Corpus, spoken: CorpusCodes, conversations: Sequence[Conversation],
              disturbance: Disturbance) -> Disturbed:
    """These conversations of the corpus under a disturbance, in the codes of the tokenizer that made `spoken`.

    Conversations are kept one by one in `runs/disturbed/<key>/`, so that a killed run goes on; one depends on
    `settings.seed` and not on which others are asked for. Raises UserError for audio that cannot be opened, babble
    where there is nobody else, a tokenizer that is not the one of `spoken`, or where silero-vad is missing.
    """
    silero = [settings.segments, *(d.version for d in metadata.distributions(name="silero-vad"))]
    made, tokenizer = runs.artefact(
        settings, "disturbed", disturbed, codes=spoken.key, disturbance=disturbance, seed=settings.seed,
        fold=settings.fold, silero=silero if disturbance.kind == "silero" else None,
        voices=corpus.folds[settings.fold - 1] if disturbance.kind == "babble" else None), None
    found, codes, weights = [], {}, {}
    for c in tqdm(conversations, desc=f"{disturbance.kind} {disturbance.level:g}", unit="conversation"):
        path = made.folder / f"{runs.key(c.id, [[u.id, u.speaker, u.start] for u in c.utterances])}.parquet"
        part = None
        with made.making(path):
            with suppress(OSError, ValueError):  # absent, or damaged: pyarrow's errors are ValueErrors
                part = pd.read_parquet(path)
            if part is None:
                if tokenizer is None:
                    tokenizer = tokenizers.create(settings)
                    tokenizer.load(runs.folder(settings, "codes", spoken.key))
                part = _segments(*heard(settings, corpus, c, disturbance), c, disturbance, tokenizer)
                with runs.atomic(path) as temporary:
                    part.to_parquet(temporary, index=False)
        segments = [Utterance(f"{c.id}#{number:05d}", row.speaker, row.start, row.end, None, Clip(path))
                    for number, row in enumerate(part.itertuples())]
        codes |= {s.id: row.astype(np.int64) for s, row in zip(segments, part["codes"], strict=True)}
        for turn, u in enumerate(c.utterances):
            seconds = {s.id: row[turn] for s, row in zip(segments, part["seconds"], strict=True) if row[turn] > 0}
            weights[u.id] = {name: overlap / sum(seconds.values()) for name, overlap in seconds.items()}
        if segments:
            found.append(Conversation(c.id, c.session, tuple(segments)))
    return Disturbed(runs.key(made.key, [c.id for c in conversations]), tuple(found), codes, weights)


def _segments(waveform: np.ndarray, true: np.ndarray, found: np.ndarray, conversation: Conversation,
              disturbance: Disturbance, tokenizer: tokenizers.Tokenizer) -> pd.DataFrame:
    """A row per segment: start, end, speaker, `seconds` of each true utterance in it, (utterances,), and codes."""
    if disturbance.kind in OTHER_BOUNDARIES:
        # Samples, negative where there is a gap: a segment between utterances is given the nearest one's speaker.
        shared = np.minimum(true[:, None, 1], found[:, 1]) - np.maximum(true[:, None, 0], found[:, 0])
    else:
        shared = np.diag(true[:, 1] - true[:, 0])
    codes = [tokenizer.encode(waveform[first:last]).astype(np.int32) for first, last in found]
    names = np.array([u.speaker for u in conversation.utterances], dtype=object)
    return pd.DataFrame({"start": found[:, 0] / audio.RATE, "end": found[:, 1] / audio.RATE,
                         "speaker": names[shared.argmax(axis=0)],
                         "seconds": list(shared.T.clip(0) / audio.RATE), "codes": codes})


def returned(table: pd.DataFrame, disturbed: Disturbed, conversations: Sequence[Conversation],
             emotions: tuple[str, ...], prior: np.ndarray) -> pd.DataFrame:
    """A method's answers for the segments (as `protocols.listen` gives them) as one row per true utterance: the
    columns of `protocols.answered`, the mean over the segments that overlap it, weighted by the seconds; and
    `segments`, their number. An utterance of 0 segments was not heard: its answer is `prior`, (emotions,). KeyError
    where the table lacks a segment.

    An answer waits for the end of the last of these segments, and so may have heard what follows the utterance: up
    to a chunk of it in `chunks`, as much as the boundary is off in `jitter` and `silero`. It hears nothing later.
    """
    names = [f"p_{e}" for e in emotions]
    answers = dict(zip(table["utterance"], table[names].to_numpy(), strict=True))
    weights = [disturbed.weights[u.id] for c in conversations for u in c.utterances]
    means = [sum((weight * answers[name] for name, weight in of.items()), np.zeros(len(names))) if of else prior
             for of in weights]
    return protocols.answered(conversations, emotions, np.array(means)).assign(segments=[len(of) for of in weights])


# -- what is left of the methods -------------------------------------------------------------------------------


def measured(settings: Settings, corpus: Corpus, codes: CorpusCodes, tuned: Finetuned,
             asked: Sequence[Disturbance]) -> list[dict[str, Any]]:
    """A row per disturbance and method: `kind`, `level`, `method`, WA in % with its interval, and `unheard`,
    targets that no segment overlaps. On the first `ablation.disturbed` conversations of the test fold, scored on
    their true utterances. Answers are kept, so that a killed run goes on. Without `speaker-memory` where it cannot
    be fitted."""
    fold = corpus.folds[settings.fold - 1]
    conversations = corpus.select(fold.test[:settings.ablation.disturbed])
    prior = emotion_prior(corpus.select(fold.train), corpus.emotions)
    model, power, methods, rows = None, 0.0, METHODS, []
    with suppress(NotFitted):
        model, power, _ = speakers.fitted(settings, corpus, codes, tuned)
        methods = (*METHODS, "speaker-memory")
    speaker = model and [settings.speaker, power, {name: array.tolist() for name, array in vars(model).items()}]
    for disturbance in asked:
        changed, tables = disturbed(settings, corpus, codes, conversations, disturbance), {}
        for method in methods:
            made = runs.artefact(
                settings, "robustness", _heard, disturbed=changed.key, sllm=tuned.key, method=method,
                memory=settings.memory, seed=settings.seed, speaker=speaker if method == "speaker-memory" else None)
            path = made.folder / "answers.parquet"
            with made.making(path) as absent:
                if absent:
                    table = _heard(settings, changed, corpus, tuned, model, power, method)
                    with runs.atomic(path) as temporary:
                        table.to_parquet(temporary, index=False)
            tables[method] = returned(pd.read_parquet(path), changed, conversations, corpus.emotions, prior)
        unheard = sum(u.emotion is not None and not changed.weights[u.id] for c in conversations
                      for u in c.utterances)
        scored = metrics.compare(tables, corpus.emotions, "window", settings.evaluation)
        rows += [{"kind": disturbance.kind, "level": disturbance.level, **row, "unheard": unheard}
                 for row in scored]
    return rows


def _heard(settings: Settings, changed: Disturbed, corpus: Corpus, tuned: Finetuned,
           model: OffsetModel | None, power: float, method: str) -> pd.DataFrame:
    """A method's answers for the segments; without a row where none was found."""
    if not changed.conversations:
        return pd.DataFrame(columns=["utterance", *(f"p_{e}" for e in corpus.emotions)])
    if method == "speaker-memory":
        return speakers.remembered(settings, changed.conversations, changed.codes, corpus.emotions, tuned, model,
                                   power)
    spoken = protocols.grouped(changed.conversations, settings.memory, method)
    tables = protocols.listen(tuned.sllm, spoken, changed.codes, corpus.emotions, settings.memory, method,
                              seed=settings.seed, streams=settings.evaluation.streams)
    return pd.concat(list(tables), ignore_index=True)
