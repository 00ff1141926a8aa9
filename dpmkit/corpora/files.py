"""Audio files as a corpus' parser finds them: how long, what hash, and whether they can be heard.

Every file is decoded once to its end; what came of it is kept in `runs/files/` and asked again only where size or
time of change differ, so that a second load of 10,000 files takes a second, and a killed one goes on.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from .. import audio, runs
from ..settings import Settings

SEEN: dict[Path, tuple[int, int]] = {}  # size and time of change of every file that a load of this process heard
INVERTED: set[Path] = set()  # those of them with `audio.Sound.inverted` channels
KEPT_EVERY = 1000  # files, so that a kill loses at most these


@dataclass(frozen=True)
class File:
    """`fault`: why it cannot be heard (then seconds is 0), or None; `inverted`: as of `audio.Sound`."""

    seconds: float
    sha256: str
    fault: str | None
    inverted: bool = False


def survey(settings: Settings, root: Path, paths: Iterable[Path]) -> Mapping[Path, File]:
    """What became of each of `paths`, which lie below `root`; one that is missing has a fault, too."""
    paths = list(dict.fromkeys(paths))
    kept = runs.artefact(settings, "files", _heard, root=os.fsencode(root).hex())
    table = kept.folder / "files.parquet"
    known = _kept(table)
    stamps = {p: _stamp(root, p) for p in paths}
    SEEN.update({p: stamps[p][1:] for p in paths})
    todo = [p for p in paths if stamps[p] not in known]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # decoding and hashing release the lock
        for number, (path, file) in enumerate(zip(todo, tqdm(
                pool.map(_heard, todo), total=len(todo), desc="files: hear", unit="file", disable=len(todo) < 50),
                strict=True), 1):
            known[stamps[path]] = file
            if number % KEPT_EVERY == 0 or number == len(todo):
                _keep(table, known)
    INVERTED.difference_update(paths)
    INVERTED.update(p for p in paths if known[stamps[p]].inverted)
    return {p: known[stamps[p]] for p in paths}


def _heard(path: Path) -> File:
    """One file, decoded to its end."""
    try:
        sound, fault = audio.load(path), None
    except audio.Unreadable as error:
        sound, fault = None, error.why
    try:
        if not path.is_file():  # a pipe or a device would be read without end
            return File(0.0, "", fault or "vanished while it was read")
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:  # it vanished, is a folder, or may not be read
        return File(0.0, "", fault or f"cannot be read ({error.strerror})")
    return File(0.0, sha256, fault) if fault else File(sound.seconds, sha256, None, sound.inverted)


def _stamp(root: Path, path: Path) -> tuple[bytes, int, int]:
    """Name below the root (bytes: a name need not be UTF-8), size and time of change; -1 for a missing file."""
    name = os.fsencode(path.relative_to(root).as_posix())
    try:
        stat = path.stat()
        return name, stat.st_size, stat.st_mtime_ns
    except OSError:
        return name, -1, -1


def _kept(table: Path) -> dict[tuple[bytes, int, int], File]:
    """What an earlier call wrote; a table that cannot be read is made anew."""
    try:
        rows = pd.read_parquet(table)
    except (OSError, ValueError):  # pyarrow's errors are ValueErrors
        return {}
    return {(name, size, changed): File(seconds, sha256, None if pd.isna(fault) else fault, inverted)
            for name, size, changed, seconds, sha256, fault, inverted in rows.itertuples(index=False, name=None)}


def _keep(table: Path, known: Mapping[tuple[bytes, int, int], File]) -> None:
    rows = [(*stamp, *astuple(file)) for stamp, file in known.items() if stamp[1] >= 0 and file.sha256]
    frame = pd.DataFrame(rows, columns=["name", "size", "changed", "seconds", "sha256", "fault", "inverted"])
    with runs.atomic(table) as temporary:
        frame.to_parquet(temporary, index=False)
