"""Files as a corpus' reader finds them: what lies below a root, how long each sound lasts, what hash, what fault.

Every sound is decoded once to its end; what came of it is kept in `runs/files/` and asked again only where size or
time of change differ, so that a second load of 10,000 files takes a second, and a killed one goes on.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm.contrib.concurrent import thread_map

from .. import audio, runs
from ..settings import Settings, UserError
from .base import Skipped, some

SEEN: dict[Path, tuple[int, int]] = {}  # size and time of change of every file that a load of this process decoded
KEPT_EVERY = 1000  # files, so that a kill loses at most these


@dataclass(frozen=True)
class File:
    """How long it sounds, the hash of its bytes, and why it cannot be heard, or None."""

    seconds: float
    sha256: str
    fault: str | None


def walk(root: Path) -> Iterator[tuple[Path, str]]:
    """Every file below the root and its name (`name`), in a fixed order, less the file systems' own (.DS_Store,
    ._a.wav); a folder that is named as sound is, too. Links to folders are followed unless they lead back.

    Raises UserError for a folder that may not be listed.
    """
    def refuse(error: OSError) -> None:
        raise UserError(f"cannot list {name(root, Path(error.filename))} in {root}: {error.strerror}; make it "
                        "readable")

    def leads_back(folder: str, path: str) -> bool:
        here, there = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
        return os.path.islink(path) and (there.is_relative_to(os.path.realpath(root)) or here.is_relative_to(there))

    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        names += [f for f in folders if Path(f).suffix.lower() in audio.SUFFIXES]
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX"))
                            and not leads_back(folder, os.path.join(folder, f)))
        for path in (Path(folder, n) for n in sorted(names) if not n.startswith(".")):
            yield path, name(root, path)


def plain(text: str) -> str:
    """One word, one string: precomposed (NFC), as most type it; macOS names files decomposed."""
    return unicodedata.normalize("NFC", text)


def name(root: Path, path: Path) -> str:
    """A path below the root as text, whatever bytes it has: fit for an id and a record."""
    return plain(os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "replace"))


def read(path: Path) -> bytes:
    """What stands in a file that a corpus needs; UserError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; make it readable, or put it there") from None


def sounds(paths: Iterable[Path]) -> list[Path]:
    """Those that are named as sound is: wav first, then flac and the others of `audio.SUFFIXES`."""
    order = {suffix: i for i, suffix in enumerate(audio.SUFFIXES)}
    return sorted((p for p in paths if p.suffix.lower() in order), key=lambda p: order[p.suffix.lower()])


def copies(pairs: Sequence[str]) -> list[Skipped]:
    """What to list of files that others of the same clip stand for, "this rather than that"."""
    return [Skipped(f"{len(pairs)} file(s)", f"another of the same clip is heard: {pair}") for pair in pairs[:1]]


def listing(root: Path) -> str:
    """The first of what stands in the root, for a message that it is of another shape."""
    return some(sorted(name(root, p) for p in root.iterdir() if not p.name.startswith(".")))


def survey(settings: Settings, root: Path, paths: Iterable[Path]) -> Mapping[Path, File]:
    """What became of each of `paths`, most of them below `root`; one that is missing has a fault, too."""
    stamps = {path: stamp(path) for path in paths}
    SEEN.update(stamps)
    keys = {path: f"{bytes(path).hex()} {stamp}" for path, stamp in stamps.items()}  # a path need not be UTF-8
    kept = runs.Artefact(settings, "files", _decoded, root=bytes(root).hex()).folder / "files.json"
    try:
        known = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or one that cannot be read: it is made anew
        known = {}
    files = {path: File(**known[key]) for path, key in keys.items() if key in known}
    todo = [path for path in keys if path not in files]
    for start in range(0, len(todo), KEPT_EVERY):
        part = todo[start:start + KEPT_EVERY]
        files |= zip(part, thread_map(_decoded, part, max_workers=4, desc="files: decode", unit="file",
                                      disable=len(part) < 50), strict=True)
        known |= {keys[path]: vars(files[path]) for path in part if not files[path].fault}
        runs.write_json(kept, known)
    return {path: files[path] for path in keys}


def _decoded(path: Path) -> File:
    """One file, decoded to its end."""
    try:
        seconds = audio.load(path).seconds
    except audio.Unreadable as error:
        return File(0.0, "", error.why)
    return File(seconds, runs.sha256(path), None)


def stamp(path: Path) -> tuple[int, int]:
    """Size and time of change; -1: missing."""
    try:
        stat = path.stat()
        return stat.st_size, stat.st_mtime_ns
    except OSError:
        return -1, -1
