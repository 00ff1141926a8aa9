"""A recording without boundaries as a conversation: its utterances are found by voice activity.

`conversation` gives one to be heard, of one unknown speaker and without labels. `prepare` writes a table of the
`manifest` corpus for several, to be labelled in a spreadsheet: emotion and speaker are left empty.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from .. import audio, machine, runs
from ..settings import Settings, UserError
from . import files, manifest, table
from .base import Clip, Conversation, Skipped, Utterance, some

COLUMNS = ("conversation", "utterance", "speaker", "start", "end", "emotion", "path")


def conversation(path: Path | str, settings: Settings) -> Conversation:
    """The recording's utterances, its file name without the suffix as the conversation's id and session.

    Boundaries are kept in `runs/segments/<key>/`. Raises UserError for a recording that cannot be heard or in
    which no speech is found.
    """
    found = _found(settings, _place(path))
    if isinstance(found, Skipped):
        raise UserError(f"{found.item}: {found.reason}")
    return found


def prepare(settings: Settings, recordings: Iterable[Path | str], folder: Path | str
            ) -> tuple[list[Conversation], list[Skipped]]:
    """Write `folder/manifest.csv`, a row an utterance of every recording, and give what stands in it.

    Recordings that cannot be heard or hold no speech are skipped; where none is left, no file is written. Paths
    in it are relative to `folder` (on another drive of Windows absolute). Raises UserError where the file is
    there already, as it may hold labels, and for recordings of one name.
    """
    written = Path(folder) / "manifest.csv"
    _absent(written)
    places = list(dict.fromkeys(_place(path) for path in recordings))
    if twice := [name for name, number in Counter(map(_called, places)).items() if number > 1]:
        raise UserError(f"several recordings are called {some(twice)}, as conversations must not be: rename them, "
                        "or write a table for each")
    try:
        written.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {written.parent}: {error.strerror}; name another folder") from error
    found = [_found(settings, path) for path in places]
    conversations = [f for f in found if isinstance(f, Conversation)]
    rows = [(c.id, u.id, "", u.start, u.end, "", _relative(u.audio.path, written.parent))
            for c in conversations for u in c.utterances]
    if rows:
        with runs.atomic(written) as temporary:
            pd.DataFrame(rows, columns=COLUMNS).to_csv(temporary, index=False, encoding="utf-8")
            _absent(written)  # another process may have come first
    return conversations, [f for f in found if isinstance(f, Skipped)]


def _found(settings: Settings, path: Path) -> Conversation | Skipped:
    """The recording's conversation, or why it gives none."""
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
    name = _called(path)
    utterances = tuple(Utterance(f"{name}_{i:05d}", manifest.UNKNOWN.format(name), row.start, row.end, None,
                                 Clip(path, row.start, row.end)) for i, row in enumerate(rows.itertuples()))
    return Conversation(name, name, utterances)


def _called(path: Path) -> str:
    """A recording's name as the table's reader gives it back."""
    return " ".join(files.plain(path.stem).split()) or "recording"


def _absent(written: Path) -> None:
    if os.path.lexists(written):
        raise UserError(f"{written} is there already and may hold your labels: name another folder, or move it "
                        "away")


def _place(path: Path | str) -> Path:
    """Where the file is named, links and '..' of its folders resolved: one file, one path, and a true way to it."""
    return Path(os.path.realpath(Path(path).parent)) / Path(path).name


def _relative(path: Path, folder: Path) -> str:
    try:
        found = Path(os.path.relpath(path, os.path.realpath(folder))).as_posix()
    except ValueError:  # another drive
        return path.as_posix()
    return found if found == found.strip() else f"./{found}"  # a reader strips a cell
