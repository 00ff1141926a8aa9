"""Every method's WA as a microphone may give conversations: noise, overlap, boundaries that a machine has set.

A conversation is rendered to one waveform, which is disturbed, cut into segments, and encoded. Answers come back
from segments to the true utterances, so that all disturbances are scored on the same targets. No true label is
read; a segment has the speaker who says most of it, as if by a perfect diarisation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
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
from .machine import version
from .settings import Settings, UserError
from .speakers import NotFitted, OffsetModel
from .tokenizers import Tokenizer

METHODS = ("current", "window", "dpm")  # and speaker-memory
SHORTEST = round(0.2 * audio.RATE)  # samples of a recording's last chunk
TALKERS = 6  # voices in the babble at any time


def parsed(disturbance: str) -> tuple[str, float]:
    """Kind and level of a disturbance (`settings.Disturbance`); 0 for a kind that has none."""
    kind, _, level = disturbance.partition(" ")
    return kind, float(level or 0)


def heard(settings: Settings, corpus: Corpus, conversation: Conversation, disturbance: str
          ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The disturbed waveform, clipped to [-1, 1]; where the true utterances lie in it, both as `render` gives them;
    and where the segments do, (segments, 2). Draws depend on `settings.seed` and the conversation's id alone."""
    kind, level = parsed(disturbance)
    rng = np.random.default_rng(int(runs.key(settings.seed, conversation.id), 16))
    waveform, true = render(conversation, level if kind == "overlap" else None)
    if kind in ("white", "babble"):
        noise = (rng.standard_normal(len(waveform), np.float32) if kind == "white" else
                 _babble(settings, corpus, conversation, len(waveform), rng))
        spoken = np.unique(np.concatenate([np.arange(*span) for span in true]))
        waveform += noise * (_rms(waveform[spoken]) / _rms(noise[spoken]) / 10 ** (level / 20))
    waveform, segments = waveform.clip(-1.0, 1.0), true
    if kind == "silero":
        with TemporaryDirectory() as folder:  # voice activity reads a file
            audio.write(Path(folder) / "conversation.wav", waveform)
            found = audio.find_speech(Path(folder) / "conversation.wav", settings.segments)
        segments = np.round(found[["start", "end"]].to_numpy() * audio.RATE).astype(int)
    elif kind == "chunks":  # what is left below SHORTEST goes to the last one
        first = np.arange(0, max(1, len(waveform) - SHORTEST + 1), round(level * audio.RATE))
        segments = np.column_stack([first, np.append(first[1:], len(waveform))])
    return waveform, true, segments


def render(conversation: Conversation, overlap: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The waveform, float32 at audio.RATE, and each utterance's first sample in it and the one after its last,
    (utterances, 2). Where annotated ones overlap, the later clip replaces the earlier one, as two cuts of one
    recording both hold whoever speaks; with `overlap`, each begins so early, and they are added."""
    clips = [audio.read(u.audio.path, u.audio.start, u.audio.end) for u in conversation.utterances]
    length = np.array([len(clip) for clip in clips])
    first = np.array([round(u.start * audio.RATE) for u in conversation.utterances])
    if overlap is not None:
        first = np.concatenate([[0], np.cumsum(length[:-1] - np.round(overlap * length[:-1]).astype(int))])
    waveform = np.zeros((first + length).max(), np.float32)
    for at, clip in zip(first, clips, strict=True):
        waveform[at:at + len(clip)] = clip if overlap is None else waveform[at:at + len(clip)] + clip
    return waveform, np.column_stack([first, first + length])


def _babble(settings: Settings, corpus: Corpus, conversation: Conversation, samples: int,
            rng: np.random.Generator) -> np.ndarray:
    """Other test utterances, of other speakers where there are any, drawn at random, equally loud, one after the
    other, TALKERS times around the samples; never its own clips (composed conversations may share)."""
    clips, voices = ({getattr(u, name) for u in conversation.utterances} for name in ("audio", "speaker"))
    test = corpus.select(corpus.folds[settings.fold - 1].test)
    others = [u for c in test for u in c.utterances if u.audio not in clips]
    others = [u for u in others if u.speaker not in voices] or others
    if not others:
        raise UserError(f"babble for conversation {conversation.id} needs another one in the test split")
    noise, at = np.zeros(samples, np.float32), 0
    while at < TALKERS * samples:
        clip = others[rng.integers(len(others))].audio
        waveform = audio.read(clip.path, clip.start, clip.end)[:samples]
        noise[np.arange(at, at + len(waveform)) % samples] += waveform / _rms(waveform)
        at += len(waveform)
    return noise


def _rms(waveform: np.ndarray) -> float:
    """Root mean square; above 0, so that silence may stand below a fraction line."""
    return max(float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64)))), 1e-9)


def disturbed(settings: Settings, corpus: Corpus, tokenizer: Tokenizer, conversations: Sequence[Conversation],
              disturbance: str) -> tuple[list[Conversation], dict[str, np.ndarray], dict[str, dict[str, float]]]:
    """The conversations with segments as utterances, emotions None, waveforms not kept, without those in which no
    segment was found; their codes, segment id -> (frames,); and true utterance id -> {segment id: share of the
    overlap}, of sum 1, or {}."""
    made, codes, weights = [], {}, {}
    for c in tqdm(conversations, desc=disturbance, unit="conversation"):
        waveform, true, spans = heard(settings, corpus, c, disturbance)
        # Samples, negative where there is a gap: a segment between utterances is given the nearest one's speaker.
        shared = np.minimum(true[:, None, 1], spans[:, 1]) - np.maximum(true[:, None, 0], spans[:, 0])
        if spans is true:  # utterances may overlap
            shared = np.diag(true[:, 1] - true[:, 0])
        segments = [Utterance(f"{c.id}#{number:05d}", c.utterances[nearest].speaker, first / audio.RATE,
                              last / audio.RATE, None, Clip(Path("disturbed")))
                    for number, ((first, last), nearest) in enumerate(zip(spans, shared.argmax(0), strict=True))]
        codes |= {s.id: tokenizer.encode(waveform[slice(*span)]) for s, span in zip(segments, spans, strict=True)}
        for u, samples in zip(c.utterances, shared.clip(0), strict=True):
            weights[u.id] = {s.id: n / samples.sum() for s, n in zip(segments, samples, strict=True) if n}
        made += [Conversation(c.id, c.session, tuple(segments))] if segments else []
    return made, codes, weights


def returned(answers: Mapping[str, np.ndarray], weights: Mapping[str, Mapping[str, float]],
             prior: np.ndarray) -> np.ndarray:
    """Segment id -> answer, (emotions,), as answers to the true utterances, (utterances, emotions): the mean over
    the segments that overlap one, by their weights; `prior`, (emotions,), where none does. An answer waits for the
    end of the last of these, and hears nothing later."""
    return np.array([sum(weight * answers[name] for name, weight in of.items()) if of else prior
                     for of in weights.values()])


def measured(settings: Settings, corpus: Corpus, codes: CorpusCodes,
             tuned: Finetuned) -> tuple[list[dict[str, Any]], dict[str, pd.DataFrame]]:
    """A row per disturbance and method (`speaker-memory` where it can be fitted): `kind`, `level`, `method`, WA
    with its interval, in %, on the first `ablation.disturbed` test conversations; and the predictions that they
    come from, by '<disturbance>: <method>', which are kept."""
    fold, names = corpus.folds[settings.fold - 1], [f"p_{e}" for e in corpus.emotions]
    conversations, speaker, rows = corpus.select(fold.test[:settings.ablation.disturbed]), None, []
    kept = {}
    with suppress(NotFitted):
        speaker, _ = speakers.fitted(settings, corpus, codes, tuned)
    for disturbance in settings.ablation.disturbances:
        made = runs.Artefact(
            settings, "robustness", _answers, speakers.fitted, codes=codes.key, sllm=tuned.key, fold=fold,
            conversations=[c.id for c in conversations], disturbance=disturbance, memory=settings.memory,
            seed=settings.seed, speaker=settings.speaker, silero=[settings.segments, version("silero-vad")])
        answers = made.table("answers", partial(_answers, settings, corpus, codes, tuned, speaker, conversations,
                                                disturbance))
        tables = {method: protocols.answered(protocols.rows(conversations), corpus.emotions, part[names].to_numpy())
                  for method, part in answers.groupby("method", sort=False)}
        kept |= {f"{disturbance}: {method}": table for method, table in tables.items()}
        kind, level = parsed(disturbance)
        rows += [{"kind": kind, "level": level, **row}
                 for row in metrics.compare(tables, corpus.emotions, "window", settings.evaluation)]
    return rows, kept


def _answers(settings: Settings, corpus: Corpus, codes: CorpusCodes, tuned: Finetuned, speaker: OffsetModel | None,
             conversations: Sequence[Conversation], disturbance: str) -> pd.DataFrame:
    """A row per method and true utterance: p_<emotion>."""
    tokenizer, emotions = tokenizers.create(settings), corpus.emotions
    tokenizer.load(runs.folder(settings, "codes", codes.key))
    made, spoken, weights = disturbed(settings, corpus, tokenizer, conversations, disturbance)
    prior = emotion_prior(corpus.select(corpus.folds[settings.fold - 1].train), emotions)
    listener, names = protocols.Listener(settings, tuned.sllm, spoken, emotions), [f"p_{e}" for e in emotions]
    tables = {method: protocols.listen(listener, made, method) for method in METHODS}
    if speaker:
        tables["speaker-memory"] = ([speakers.remembered(settings, made, spoken, emotions, tuned, speaker)] if made
                                    else [])  # nobody was heard
    out = []
    for method, parts in tables.items():
        answers = {segment: p for part in parts
                   for segment, p in zip(part["utterance"], part[names].to_numpy(), strict=True)}
        out.append(pd.DataFrame(returned(answers, weights, prior), columns=names).assign(method=method))
    return pd.concat(out)
