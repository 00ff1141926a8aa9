"""A corpus in codes: every utterance through the speech tokenizer that `settings.codes` names, made once and kept.

A clip is encoded once, whatever number of conversations it stands in. Clips are encoded in parts of CHUNK, each one
file in `runs/codes/<key>/`, so that a killed run goes on with the parts that are there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from . import audio, runs, tokenizers
from .corpora import Clip, Corpus, Utterance, files
from .settings import Settings, UserError
from .tokenizers import FITTED, Tokenizer, acoustics
from .tokenizers.neural import sha256

CHUNK = 100  # clips per part: what a kill loses at most
COLUMNS = ["id", "codes", "features", "seconds", "spent"]  # of a part; seconds of audio, of reading and encoding


@dataclass(frozen=True)
class CorpusCodes:
    """A corpus in codes: utterance id -> codes (frames,), and -> `pooled` features (76,); `facts` for records."""

    key: str
    codes: dict[str, np.ndarray]
    features: dict[str, np.ndarray]
    facts: dict[str, Any]


def make(settings: Settings, corpus: Corpus) -> CorpusCodes:
    """Codes and pooled features of every utterance, from `runs/codes/<key>/` or made and kept there.

    A tokenizer that learns its codebook is fitted on the training conversations of `settings.fold` alone; the
    codes of one that does not are the same for every fold. Raises UserError for a tokenizer, a setting or weights
    that cannot be used, and for audio that vanished or changed since the corpus was loaded.
    """
    tokenizer = tokenizers.create(settings)
    train = corpus.folds[settings.fold - 1].train if tokenizer.learns else ()
    asked = settings.codes.but(source="", codebook_size=tokenizer.codebook_size, frame_rate=tokenizer.frame_rate)
    made = runs.Artefact(settings, "codes", make, type(tokenizer), codes=asked, corpus=corpus.key, train=train,
                         weights=sorted(tokenizer.files.values()))
    utterances = [u for c in corpus.conversations for u in c.utterances]
    clips = {u.audio: u for u in utterances}  # one of the utterances of each
    # A file's clips one after the other, so that it is decoded once.
    ordered = sorted(clips.values(), key=lambda u: (u.audio.path, u.audio.start))
    parts = {made.folder / f"part-{start // CHUNK:05d}.parquet": ordered[start:start + CHUNK]
             for start in range(0, len(ordered), CHUNK)}
    described, fitted, sounds = made.folder / "facts.json", made.folder / FITTED, _Sounds(ordered)
    with made.making(described, *parts):
        if tokenizer.learns and not fitted.is_file():
            _fit(tokenizer, [u for c in corpus.select(train) for u in c.utterances], sounds)
            tokenizer.save(made.folder)
        rows = _encoded(tokenizer, parts, sounds).loc[[u.id for u in clips.values()]]
        if not described.is_file():  # kept: a package's version is that of then
            name = "codebook_sha256" if tokenizer.files else "weights_sha256"
            runs.write_json(described, {
                "tokenizer": tokenizer.name, "codebook_size": tokenizer.codebook_size,
                "frame_rate": tokenizer.frame_rate, **tokenizer.facts,
                **({name: sha256(fitted)} if tokenizer.learns else {})})
    codes, features = ({u.id: rows[column][clips[u.audio].id] for u in utterances}
                       for column in ("codes", "features"))
    seconds = sum(rows["seconds"])
    facts = json.loads(described.read_text(encoding="utf-8")) | {
        "utterances": len(utterances), "clips": len(rows), "hours": seconds / 3600,
        "codes": sum(len(c) for c in codes.values()), "real_time_factor": sum(rows["spent"]) / seconds}
    return CorpusCodes(made.key, {i: c.astype(np.int64) for i, c in codes.items()}, features, facts)


class _Sounds:
    """What is encoded of an utterance: its waveform and its acoustic frames, which are computed once.

    UserError for a file that vanished, cannot be read, or is not what it was when the corpus was loaded.
    """

    def __init__(self, utterances: Iterable[Utterance]):
        self.stamps = {u.audio.path: files.SEEN.get(u.audio.path) or self._stamp(u.audio.path) for u in utterances}
        self.frames: dict[Clip, np.ndarray] = {}  # that the fit has computed

    def __call__(self, clip: Clip, keep: bool = False) -> tuple[np.ndarray, np.ndarray]:
        waveform = audio.read(clip.path, clip.start, clip.end)
        if self._stamp(clip.path) != self.stamps[clip.path]:
            raise UserError(f"{clip.path} changed since the corpus was loaded: put the old one back, or load the "
                            "corpus again")
        known = self.frames.pop(clip, None)
        frames = acoustics.frames(waveform) if known is None else known
        if keep:
            self.frames[clip] = frames
        return waveform, frames

    @staticmethod
    def _stamp(path: Path) -> tuple[int, int] | None:
        """Size and time of change; None for a file that is absent."""
        with suppress(OSError):
            return path.stat().st_size, path.stat().st_mtime_ns


def _fit(tokenizer: Tokenizer, utterances: Iterable[Utterance], sounds: _Sounds) -> None:
    """On each clip once; on some, drawn at random, where all last longer than `tokenizer.learns`."""
    chosen = list({u.audio: u for u in utterances}.values())
    if sum(u.seconds for u in chosen) > tokenizer.learns:
        order = np.random.default_rng(0).permutation(len(chosen))
        enough = np.cumsum([chosen[i].seconds for i in order]).searchsorted(tokenizer.learns)
        chosen = [chosen[i] for i in sorted(order[:enough + 1])]
    tokenizer.fit(tokenizer.frames(*sounds(u.audio, keep=True))
                  for u in tqdm(chosen, desc="tokenizer: fit", unit="clip"))


def _encoded(tokenizer: Tokenizer, parts: Mapping[Path, Sequence[Utterance]], sounds: _Sounds) -> pd.DataFrame:
    """Rows of COLUMNS by the utterances' ids; parts that are missing or cannot be read are made."""
    kept = {}
    for path, part in parts.items():
        with suppress(OSError, ValueError):  # pyarrow's errors are ValueErrors
            table = pd.read_parquet(path)
            if list(table.columns) == COLUMNS and table["id"].tolist() == [u.id for u in part]:
                kept[path] = table
    todo = {path: part for path, part in parts.items() if path not in kept}
    if todo:
        tokenizer.load(min(todo).parent)
    with tqdm(desc="tokenizer: encode", unit="clip", total=sum(map(len, todo.values())), disable=not todo) as bar:
        for path, part in todo.items():
            rows = []
            for u in part:
                began = time.perf_counter()
                waveform, frames = sounds(u.audio)
                codes, features = tokenizer.encode(waveform, frames).astype(np.int32), acoustics.pooled(frames)
                rows.append((u.id, codes, features, len(waveform) / audio.RATE, time.perf_counter() - began))
                bar.update()
            kept[path] = pd.DataFrame(rows, columns=COLUMNS)
            with runs.atomic(path) as temporary:
                kept[path].to_parquet(temporary, index=False)
    return pd.concat(kept.values()).set_index("id")
