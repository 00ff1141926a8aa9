"""A `manifest.csv` for recordings without boundaries: their utterances are found by voice activity, to be labelled
in a spreadsheet; speaker and emotion are left empty."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from .. import audio, runs
from ..settings import Settings, UserError
from . import files
from .base import Skipped, some


def prepare(settings: Settings, recordings: Iterable[Path | str], folder: Path | str
            ) -> tuple[pd.DataFrame, list[Skipped]]:
    """Write `folder/manifest.csv`, a row an utterance of every recording, and give what stands in it.

    Recordings that cannot be heard or hold no speech are skipped; where none is left, no file is written. Paths
    in it are relative to `folder`. Raises UserError where the file is there already, as it may hold labels, and for
    recordings of one name.
    """
    written, paths = Path(folder) / "manifest.csv", [Path(path) for path in recordings]
    _absent(written)
    names = [" ".join(files.plain(path.stem).split()) for path in paths]  # as the table's reader gives them back
    if twice := [name for name, number in Counter(names).items() if number > 1]:
        raise UserError(f"several recordings are called {some(twice)}, as conversations must not be: rename them, "
                        "or write a table for each")
    rows, skipped = [], []
    for path, name in zip(paths, names, strict=True):
        if path.name != path.name.strip() or not path.name.isprintable():
            skipped.append(Skipped(ascii(str(path)), "its name is not one line of UTF-8 without blanks around it, "
                                                     "as in a table it must be; rename it"))
            continue
        try:
            found = audio.find_speech(path, settings.segments)
        except audio.Unreadable as error:
            skipped.append(Skipped(str(path), f"it cannot be heard: it {error.why}"))
            continue
        if found.empty:
            skipped.append(Skipped(str(path), "no speech was found; lower the setting segments.threshold (now "
                                   f"{settings.segments.threshold:g}) or segments.min_speech (now "
                                   f"{settings.segments.min_speech:g} s)"))
        place = os.path.relpath(os.path.realpath(path), os.path.realpath(folder))
        rows += [{"conversation": name, "utterance": f"{name}_{number:05d}", "speaker": "", "start": row.start,
                  "end": row.end, "emotion": "", "path": Path(place).as_posix()}
                 for number, row in enumerate(found.itertuples())]
    table = pd.DataFrame(rows)
    if rows:
        with runs.atomic(written) as temporary:
            table.to_csv(temporary, index=False, encoding="utf-8")
            _absent(written)  # another process may have come first
    return table, skipped


def _absent(written: Path) -> None:
    if os.path.lexists(written):
        raise UserError(f"{written} is there already and may hold your labels: name another folder, or move it "
                        "away")
