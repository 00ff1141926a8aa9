"""A corpus in codes: every utterance through the speech tokenizer that `settings.codes` names, made once and kept.

A clip is encoded once, whatever number of conversations it stands in. Clips are encoded in parts of CHUNK, each one
file in `runs/codes/<key>/`, so that a killed run goes on with the parts that are there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from . import audio, runs, tokenizers
from .corpora import Clip, Corpus, Utterance, files
from .settings import Settings, UserError
from .tokenizers import FITTED, Tokenizer, checkpoint
from .tokenizers.acoustics import pooled

CHUNK = 100  # clips per part: what a kill loses at most
COLUMNS = ["id", "codes", "features", "seconds", "spent"]  # of a part; seconds of audio, seconds of encoding
Stamps = Mapping[Path, tuple[int, int] | None]  # size and time of change of a file; None where it is absent


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
    first = _once(utterances)
    # A file's clips one after the other, so that it is decoded once.
    ordered = sorted(first.values(), key=lambda u: (u.audio.path, u.audio.start))
    parts = {made.folder / f"part-{start // CHUNK:05d}.parquet": ordered[start:start + CHUNK]
             for start in range(0, len(ordered), CHUNK)}
    stamps = {u.audio.path: files.SEEN.get(u.audio.path) or _stamp(u.audio.path) for u in ordered}
    with made.making(made.folder / "facts.json", *parts):
        if tokenizer.learns and not (made.folder / FITTED).is_file():
            _fit(tokenizer, [u for c in corpus.select(train) for u in c.utterances], stamps)
            tokenizer.save(made.folder)
        table = _encoded(tokenizer, parts, stamps)
        described = _described(tokenizer, made.folder)
    rows = table.loc[[u.id for u in first.values()]]
    codes, features = ({u.id: rows[column][first[u.audio].id] for u in utterances}
                       for column in ("codes", "features"))
    seconds = sum(rows["seconds"])
    facts = described | {
        "utterances": len(utterances), "clips": len(rows), "hours": seconds / 3600,
        "codes": sum(len(c) for c in codes.values()), "real_time_factor": sum(rows["spent"]) / seconds}
    return CorpusCodes(made.key, {i: c.astype(np.int64) for i, c in codes.items()}, features, facts)


def _once(utterances: Sequence[Utterance]) -> dict[Clip, Utterance]:
    """Clip -> the first utterance that it stands in, in their order."""
    first: dict[Clip, Utterance] = {}
    for u in utterances:
        first.setdefault(u.audio, u)
    return first


def _fit(tokenizer: Tokenizer, utterances: Sequence[Utterance], stamps: Stamps) -> None:
    """On each clip once; on some, drawn at random, where all last longer than `tokenizer.learns`."""
    chosen = list(_once(utterances).values())
    if sum(u.seconds for u in chosen) > tokenizer.learns:
        order = np.random.default_rng(0).permutation(len(chosen))
        enough = np.cumsum([chosen[i].seconds for i in order]).searchsorted(tokenizer.learns)
        chosen = [chosen[i] for i in sorted(order[:enough + 1])]
    tokenizer.fit(_read(u, stamps) for u in tqdm(chosen, desc="tokenizer: fit", unit="clip"))


def _encoded(tokenizer: Tokenizer, parts: Mapping[Path, Sequence[Utterance]], stamps: Stamps) -> pd.DataFrame:
    """Rows of COLUMNS by the utterances' ids; parts that are missing or cannot be read are made."""
    kept = {path: _kept(path, [u.id for u in part]) for path, part in parts.items()}
    todo = [path for path in parts if kept[path] is None]
    if todo:
        tokenizer.load(todo[0].parent)
    total, left = (sum(len(parts[path]) for path in paths) for paths in (parts, todo))
    with tqdm(desc="tokenizer: encode", unit="clip", total=total, initial=total - left, disable=not todo) as bar:
        for path in todo:
            rows = []
            for u in parts[path]:
                waveform = _read(u, stamps)
                began = time.perf_counter()
                codes = tokenizer.encode(waveform)
                spent = time.perf_counter() - began
                rows.append((u.id, codes.astype(np.int32), pooled(waveform), len(waveform) / audio.RATE, spent))
                bar.update()
            kept[path] = pd.DataFrame(rows, columns=COLUMNS)
            with runs.atomic(path) as temporary:
                kept[path].to_parquet(temporary, index=False)
    return pd.concat(kept.values()).set_index("id")


def _kept(path: Path, ids: Sequence[str]) -> pd.DataFrame | None:
    """The part that an earlier run wrote of these utterances; None where there is none that can be read."""
    try:
        part = pd.read_parquet(path)
    except (OSError, ValueError):  # pyarrow's errors are ValueErrors
        return None
    return part if list(part.columns) == COLUMNS and part["id"].tolist() == list(ids) else None


def _read(utterance: Utterance, stamps: Stamps) -> np.ndarray:
    """Its waveform; UserError for a file that vanished, cannot be read or is not what it was."""
    clip = utterance.audio
    waveform = audio.read(clip.path, clip.start, clip.end)
    if _stamp(clip.path) != stamps[clip.path]:
        raise UserError(f"{clip.path} changed since the corpus was loaded: put the old one back, or load the "
                        "corpus again")
    return waveform


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _described(tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """What made the codes of `folder`, kept there: a package's version is that of then."""
    path = folder / "facts.json"
    if not path.is_file():
        learned = "codebook_sha256" if tokenizer.files else "weights_sha256"
        codebook = {learned: checkpoint.sha256(folder / FITTED)} if tokenizer.learns else {}
        runs.write_json(path, {"tokenizer": tokenizer.name, "codebook_size": tokenizer.codebook_size,
                               "frame_rate": tokenizer.frame_rate, **tokenizer.facts, **codebook})
    return json.loads(path.read_text(encoding="utf-8"))
