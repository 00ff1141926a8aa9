"""A corpus in codes: every utterance through the speech tokenizer that `settings.codes` names, made once and kept.

A clip is encoded once, whatever number of conversations it stands in. Clips are encoded in parts of CHUNK, each one
file in `runs/codes/<key>/`, so that a killed run goes on with the parts that are there.
"""

from __future__ import annotations

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
from .tokenizers import Tokenizer, acoustics
from .tokenizers.kmeans import FITTED

CHUNK = 100  # clips per part: what a kill loses at most
COLUMNS = ["id", "codes", "features", "seconds"]  # of a part


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
    fitted, acoustic = made.folder / FITTED, {}
    with made.making(*parts):
        if tokenizer.learns and not fitted.is_file():
            _fit(tokenizer, [u for c in corpus.select(train) for u in c.utterances], acoustic)
            tokenizer.save(made.folder)
        tokenizer.load(made.folder)
        rows = _encoded(tokenizer, parts, acoustic)
    codes = {u.id: rows["codes"][clips[u.audio].id].astype(np.int64) for u in utterances}
    features = {u.id: rows["features"][clips[u.audio].id] for u in utterances}
    facts = {"tokenizer": tokenizer.name, "codebook_size": tokenizer.codebook_size,
             "frame_rate": tokenizer.frame_rate, "settings": dict(asked), **tokenizer.facts,
             "utterances": len(utterances), "clips": len(rows), "hours": rows["seconds"].sum() / 3600,
             "codes": sum(map(len, codes.values()))}
    if tokenizer.learns:
        facts["codebook_sha256" if tokenizer.files else "weights_sha256"] = runs.sha256(fitted)
    return CorpusCodes(made.key, codes, features, facts)


def _waveform(clip: Clip) -> np.ndarray:
    """UserError for a file that vanished, cannot be read, or is not what it was when the corpus was loaded."""
    waveform, stamp = audio.read(clip.path, clip.start, clip.end), files.stamp(clip.path)
    if files.SEEN.get(clip.path, stamp) != stamp:
        raise UserError(f"{clip.path} changed since the corpus was loaded: put it back, or load the corpus again")
    return waveform


def _fit(tokenizer: Tokenizer, utterances: Iterable[Utterance], acoustic: dict[Clip, np.ndarray]) -> None:
    """On each clip once, whose `acoustic` frames are kept; on some, drawn at random, where all last longer than
    `tokenizer.learns`."""
    chosen = list({u.audio: u for u in utterances}.values())
    if sum(u.seconds for u in chosen) > tokenizer.learns:
        order = np.random.default_rng(0).permutation(len(chosen))
        enough = np.cumsum([chosen[i].seconds for i in order]).searchsorted(tokenizer.learns)
        chosen = [chosen[i] for i in sorted(order[:enough + 1])]
    frames = []
    for u in tqdm(chosen, desc="tokenizer: fit", unit="clip"):
        waveform = _waveform(u.audio)
        acoustic[u.audio] = acoustics.frames(waveform)
        frames.append(tokenizer.frames(waveform, acoustic[u.audio]))
    tokenizer.fit(frames, [u.emotion for u in chosen], [u.speaker for u in chosen])


def _encoded(tokenizer: Tokenizer, parts: Mapping[Path, Sequence[Utterance]],
             acoustic: dict[Clip, np.ndarray]) -> pd.DataFrame:
    """Rows of COLUMNS by the utterances' ids; parts that are missing or cannot be read are made."""
    kept = {}
    for path in parts:
        with suppress(OSError, ValueError):  # pyarrow's errors are ValueErrors
            kept[path] = pd.read_parquet(path)
    todo = parts.keys() - kept.keys()
    for path in tqdm(sorted(todo), desc="tokenizer: encode", unit=f"{CHUNK} clips", disable=not todo):
        rows = []
        for u in parts[path]:
            waveform = _waveform(u.audio)
            frames = acoustic.pop(u.audio) if u.audio in acoustic else acoustics.frames(waveform)
            codes = tokenizer.encode(waveform, frames, u.speaker).astype(np.int32)
            rows.append((u.id, codes, acoustics.pooled(frames), len(waveform) / audio.RATE))
        kept[path] = pd.DataFrame(rows, columns=COLUMNS)
        with runs.atomic(path) as temporary:
            kept[path].to_parquet(temporary, index=False)
    return pd.concat(kept.values()).set_index("id")
