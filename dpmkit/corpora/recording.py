"""A recording without boundaries as a conversation: its utterances are found by voice activity.

`conversation` gives one to be heard, of one unknown speaker and without labels. `prepare` writes a table of the
`manifest` corpus for several, to be labelled in a spreadsheet: emotion and speaker are left empty.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from .. import audio, machine, runs
from ..settings import Settings, UserError
from . import files, table
from .base import Clip, Conversation, Skipped, Utterance

COLUMNS = ("conversation", "utterance", "speaker", "start", "end", "emotion", "path")


def conversation(path: Path | str, settings: Settings) -> Conversation:
    """The recording's utterances, its file name without the suffix as the conversation's id and session.

    Boundaries are kept in `runs/segments/<key>/`. Raises UserError for a recording that cannot be heard or in
    which no speech is found.
    """
    found = _found(settings, _place(path), _called(Path(path).stem))
    if isinstance(found, Skipped):
        raise UserError(f"{found.item}: {found.reason}")
    return found


def prepare(settings: Settings, recordings: Iterable[Path | str], folder: Path | str
            ) -> tuple[list[Conversation], list[Skipped]]:
    """Write `folder/manifest.csv`, a row an utterance of every recording, and give what stands in it.

    Recordings that cannot be heard or hold no speech are skipped; where none is left, no file is written. Paths
    in it are relative to `folder` (on another drive of Windows absolute). Raises UserError where the file is
    there already, as it may hold labels, and for recordings that cannot be told apart by name.
    """
    folder = Path(folder)
    manifest = folder / "manifest.csv"
    _absent(manifest)
    named = _names(list(dict.fromkeys(_place(path) for path in recordings)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}; name another folder") from error
    found = [_found(settings, path, name) for path, name in named.items()]
    skipped = [f for f in found if isinstance(f, Skipped)]
    conversations = [f for f in found if isinstance(f, Conversation)]
    if conversations:
        rows = [(c.id, u.id, "", u.start, u.end, "", _relative(u.audio.path, folder))
                for c in conversations for u in c.utterances]
        with runs.atomic(manifest) as temporary:
            pd.DataFrame(rows, columns=COLUMNS).to_csv(temporary, index=False, encoding="utf-8")
            _absent(manifest)  # another process may have come first
    return conversations, skipped


def _found(settings: Settings, path: Path, name: str) -> Conversation | Skipped:
    """The conversation of this name, or why the recording gives none."""
    if str(path).rstrip().splitlines() != [str(path)] or table.SPOILED.search(str(path)):
        return Skipped(ascii(str(path)), "its name is not one line of UTF-8 that ends with no blank, as in a table "
                                         "it must be; rename it")
    file = files.survey(settings, path.parent, [path])[path]
    if file.fault:
        return Skipped(str(path), f"it cannot be heard: it {file.fault}; fetch it again from its source")
    made = runs.artefact(settings, "segments", audio.find_speech, segments=settings.segments, sha256=file.sha256,
                         silero=machine.version("silero-vad"))
    kept = made.folder / "segments.parquet"
    with made.making(kept) as absent:
        if absent:
            rows = audio.find_speech(path, settings.segments)
            with runs.atomic(kept) as temporary:
                rows.to_parquet(temporary, index=False)
    rows = pd.read_parquet(kept)
    if rows.empty:
        return Skipped(str(path), f"no speech was found in its {file.seconds:.1f} s; lower the setting "
                                  f"segments.threshold (now {settings.segments.threshold:g}) or "
                                  f"segments.min_speech (now {settings.segments.min_speech:g} s)")
    utterances = tuple(Utterance(f"{name}_{i:05d}", f"unknown ({name})", row.start, row.end, None,
                                 Clip(path, row.start, row.end)) for i, row in enumerate(rows.itertuples()))
    return Conversation(name, name, utterances)


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """A name for each: of the file without its suffix; where two share one, what tells the paths apart, too."""
    named = {path: _called(path.stem) for path in paths}
    if len(set(named.values())) < len(paths):
        above = os.path.commonpath([path.parent for path in paths])
        named = {path: _called("_".join(path.relative_to(above).parts)) for path in paths}
    if twice := [name for name, count in Counter(named.values()).items() if count > 1]:
        raise UserError(f"recordings in folders of alike names cannot be told apart ({twice[0]}): rename one")
    return named


def _called(stem: str) -> str:
    """A recording's name as the table's reader gives it back, which takes some for an empty cell."""
    name = table.name(stem)
    return f"recording {name}".strip() if not name or name.casefold() in table.NOTHING else name


def _absent(manifest: Path) -> None:
    if os.path.lexists(manifest):
        raise UserError(f"{manifest} is there already and may hold your labels: name another folder, or move it "
                        "away")


def _place(path: Path | str) -> Path:
    """Where the file is named, links and '..' of its folders resolved: one file, one path, and a true way to it."""
    return Path(os.path.realpath(Path(path).parent)) / Path(path).name


def _relative(path: Path, folder: Path) -> str:
    try:
        found = Path(os.path.relpath(path, os.path.realpath(folder))).as_posix()
        # A reader strips a cell, and takes some for an empty one.
        return f"./{found}" if found != found.strip() or found.casefold() in table.NOTHING else found
    except ValueError:  # another drive
        return path.as_posix()
