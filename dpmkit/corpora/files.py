"""Files as a corpus' reader finds them: what lies below a root, how long each sound lasts, what hash, what fault.

Every sound is decoded once to its end; what came of it is kept in `runs/files/` and asked again only where size or
time of change differ, so that a second load of 10,000 files takes a second, and a killed one goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from .. import audio, runs
from ..settings import Settings, UserError
from .base import Skipped, some

SEEN: dict[Path, tuple[int, int]] = {}  # size and time of change of every file that a load of this process decoded
INVERTED: set[Path] = set()  # those of them with `audio.Sound.inverted` channels
KEPT_EVERY = 1000  # files, so that a kill loses at most these
POINTER = b"version https://git-lfs"  # how a file begins that Git LFS left in the place of another


@dataclass(frozen=True)
class File:
    """`fault`: why it cannot be heard, or None; `inverted`: as of `audio.Sound`."""

    seconds: float
    sha256: str
    fault: str | None
    inverted: bool = False


def walk(root: Path) -> Iterator[tuple[Path, str]]:
    """Every file below the root and its name (`name`), in a fixed order, less the file systems' own (.DS_Store,
    ._a.wav); a folder that is named as sound is, too. Links to folders are followed unless they lead back.

    Raises UserError for a folder that may not be listed.
    """
    def refuse(error: OSError) -> None:
        raise UserError(f"cannot list {name(root, Path(error.filename))} in {root}: {error.strerror}; make it "
                        "readable")

    def leads_back(path: Path) -> bool:
        there = Path(os.path.realpath(path))
        return path.is_symlink() and (there.is_relative_to(os.path.realpath(root))
                                      or there in {Path(os.path.realpath(above)) for above in path.parents})

    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        names += [f for f in folders if Path(f).suffix.lower() in audio.SUFFIXES]
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX"))
                            and not leads_back(Path(folder, f)))
        for path in (Path(folder, n) for n in sorted(names) if not n.startswith(".")):
            yield path, name(root, path)


def plain(text: str) -> str:
    """One word, one string: precomposed (NFC), as most type it; macOS names files decomposed."""
    return unicodedata.normalize("NFC", text)


def name(root: Path, path: Path) -> str:
    """A path below the root as text, whatever bytes it has: fit for an id and a record."""
    return plain(os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "replace"))


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
    paths = list(dict.fromkeys(paths))
    kept = runs.artefact(settings, "files", _decoded, root=bytes(root).hex()).folder / "files.json"
    try:
        known = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or one that cannot be read: it is made anew
        known = {}
    stamps = {p: _stamp(p) for p in paths}
    names = {p: " ".join(map(str, (bytes(p).hex(), *stamps[p]))) for p in paths}  # a path need not be UTF-8
    todo = [p for p in paths if names[p] not in known]
    files: dict[Path, File] = {p: File(**known[names[p]]) for p in paths if names[p] in known}
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # decoding and hashing release the lock
        decoded = tqdm(pool.map(_decoded, todo), total=len(todo), desc="files: decode", unit="file",
                       disable=len(todo) < 50)
        for number, (path, file) in enumerate(zip(todo, decoded, strict=True), 1):
            files[path] = file
            if file.sha256:
                known[names[path]] = vars(file)
            if number % KEPT_EVERY == 0 or number == len(todo):
                runs.write_json(kept, known)
    SEEN.update(stamps)
    INVERTED.difference_update(paths)
    INVERTED.update(p for p in paths if files[p].inverted)
    return {p: files[p] for p in paths}


def _decoded(path: Path) -> File:
    """One file, decoded to its end."""
    seconds, sha256, fault, inverted = 0.0, "", None, False
    try:
        sound = audio.load(path)
        seconds, inverted = sound.seconds, sound.inverted
    except audio.Unreadable as error:
        fault = error.why
    try:
        if path.is_file():  # a pipe or a device would be read without end
            with open(path, "rb") as file:
                if fault and file.read(len(POINTER)) == POINTER:
                    fault += "; it is a pointer of Git LFS: fetch the sound itself with git lfs pull"
                file.seek(0)
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:  # it may not be read
        fault = fault or f"cannot be read ({error.strerror})"
    return File(seconds, sha256, fault, inverted)


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of change; -1: missing."""
    try:
        stat = path.stat()
        return stat.st_size, stat.st_mtime_ns
    except OSError:
        return -1, -1
