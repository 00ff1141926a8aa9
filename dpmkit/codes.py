"""A corpus in codes: every utterance through the speech tokenizer that `settings.codes` names, made once and kept.

A clip is heard once, whatever number of conversations it stands in. Clips are encoded in parts of CHUNK, each one
file in `runs/codes/<key>/`, so that a killed run goes on with the parts that are there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from . import audio, runs, tokenizers
from .corpora import Clip, Corpus, Utterance, files
from .settings import Settings, UserError
from .tokenizers import FITTED, TOKENIZERS, Learner, Tokenizer, checkpoint
from .tokenizers.acoustics import pooled

__all__ = ["TOKENIZERS", "CorpusCodes", "make"]

CHUNK = 100  # clips a part: what a kill loses at most
COLUMNS = ["id", "codes", "features", "seconds", "spent"]  # of a part; seconds of audio, seconds of encoding


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
    asked = replace(settings.codes, source="", codebook_size=tokenizer.codebook_size,
                    frame_rate=tokenizer.frame_rate)
    made = runs.artefact(settings, "codes", make, type(tokenizer), codes=asked, corpus=corpus.key, train=train,
                         weights=sorted(tokenizer.files.values()))
    utterances = [u for c in corpus.conversations for u in c.utterances]
    clips, first = _Audio(utterances), _once(utterances)
    ordered = sorted(first.values(), key=lambda u: (u.audio.path, u.audio.start))
    parts = [made.folder / f"part-{number:05d}.parquet" for number in range(-(-len(ordered) // CHUNK))]
    with made.making(made.folder / "facts.json", *parts):
        if tokenizer.learns and not (made.folder / FITTED).is_file():
            _fit(tokenizer, [u for c in corpus.select(train) for u in c.utterances], clips)
            tokenizer.save(made.folder)
        heard = _encoded(tokenizer, ordered, clips, parts)
        described = _described(tokenizer, made.folder)
    rows = {clip: heard[u.id] for clip, u in first.items()}
    codes = {u.id: rows[u.audio]["codes"].astype(np.int64) for u in utterances}
    seconds = sum(row["seconds"] for row in rows.values())
    facts = described | {
        "utterances": len(utterances), "clips": len(rows), "hours": seconds / 3600,
        "codes": sum(len(c) for c in codes.values()),
        "real_time_factor": sum(row["spent"] for row in rows.values()) / seconds}
    return CorpusCodes(made.key, codes, {u.id: rows[u.audio]["features"] for u in utterances}, facts)


def _described(tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """What made the codes of `folder`, kept there: a package's version is that of then."""
    path = folder / "facts.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        learned = "codebook_sha256" if tokenizer.files else "weights_sha256"
        codebook = {learned: checkpoint.sha256(folder / FITTED)} if tokenizer.learns else {}
        runs.write_json(path, {"tokenizer": tokenizer.name, "codebook_size": tokenizer.codebook_size,
                               "frame_rate": tokenizer.frame_rate, **tokenizer.facts, **codebook})
        return json.loads(path.read_text(encoding="utf-8"))


def _once(utterances: Iterable[Utterance]) -> dict[Clip, Utterance]:
    """Clip -> the first utterance that it stands in, in their order."""
    first: dict[Clip, Utterance] = {}
    for u in utterances:
        first.setdefault(u.audio, u)
    return first


class _Audio:
    """The files of these utterances, as they are now."""

    def __init__(self, utterances: Iterable[Utterance]):
        self.stamps = {path: files.SEEN.get(path) or _stamp(path) for path in {u.audio.path for u in utterances}}

    def waveforms(self, utterances: Iterable[Utterance]) -> Iterator[np.ndarray]:
        """Of each utterance, a file of successive ones decoded once; UserError for a file that vanished, cannot
        be heard or is not what it was."""
        for path, group in groupby((u.audio for u in utterances), key=lambda clip: clip.path):
            times = [(clip.start, clip.end) for clip in group]
            ordered = all(a[0] <= b[0] for a, b in pairwise(times))
            for waveform in audio.cuts(path, times) if ordered else (audio.read(path, *t) for t in times):
                if _stamp(path) != self.stamps[path]:
                    raise UserError(f"{path} changed since the corpus was loaded: put the old one back, or load "
                                    "the corpus again")
                yield waveform


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of change; None where there is no such file."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _fit(tokenizer: Learner, utterances: Sequence[Utterance], clips: _Audio) -> None:
    """On all clips of the utterances; on some, drawn at random, where they last longer than `tokenizer.learns`."""
    chosen = list(_once(utterances).values())
    if sum(u.seconds for u in chosen) > tokenizer.learns:
        order = np.random.default_rng(0).permutation(len(chosen))
        enough = np.cumsum([chosen[i].seconds for i in order]).searchsorted(tokenizer.learns)
        chosen = [chosen[i] for i in sorted(order[:enough + 1])]
    tokenizer.fit(tqdm(clips.waveforms(chosen), desc="tokenizer: fit", unit="clip", total=len(chosen)))


def _encoded(tokenizer: Tokenizer, utterances: Sequence[Utterance], clips: _Audio, paths: Sequence[Path]
             ) -> dict[str, dict[str, Any]]:
    """Utterance id -> row of COLUMNS; parts that are missing or cannot be read are made."""
    chunks = [utterances[start:start + CHUNK] for start in range(0, len(utterances), CHUNK)]
    parts = [_kept(path, [u.id for u in chunk]) for path, chunk in zip(paths, chunks, strict=True)]
    todo = [u for part, chunk in zip(parts, chunks, strict=True) if part is None for u in chunk]
    if todo:
        tokenizer.load(paths[0].parent)
    waveforms = clips.waveforms(todo)  # one for all parts: a recording of hours is decoded once
    with tqdm(desc="tokenizer: encode", unit="clip", total=len(utterances), initial=len(utterances) - len(todo),
              disable=not todo) as bar:
        for number, chunk in enumerate(chunks):
            if parts[number] is None:
                parts[number] = _part(tokenizer, chunk, islice(waveforms, len(chunk)), bar)
                with runs.atomic(paths[number]) as temporary:
                    parts[number].to_parquet(temporary, index=False)
    return {row["id"]: row for part in parts for row in part.to_dict("records")}


def _part(tokenizer: Tokenizer, utterances: Sequence[Utterance], waveforms: Iterable[np.ndarray],
          bar: tqdm) -> pd.DataFrame:
    """Rows of COLUMNS, one an utterance."""
    rows = []
    for u, waveform in zip(utterances, waveforms, strict=True):
        began = time.perf_counter()
        codes, = tokenizer.encode([waveform])
        spent = time.perf_counter() - began
        rows.append((u.id, codes.astype(np.int32), pooled(waveform), len(waveform) / audio.RATE, spent))
        bar.update()
    return pd.DataFrame(rows, columns=COLUMNS)


def _kept(path: Path, ids: Sequence[str]) -> pd.DataFrame | None:
    """The part that an earlier run wrote of these utterances; None where there is none that can be read."""
    try:
        part = pd.read_parquet(path)
    except (OSError, ValueError):  # pyarrow's errors are ValueErrors
        return None
    return part if list(part.columns) == COLUMNS and part["id"].tolist() == list(ids) else None
