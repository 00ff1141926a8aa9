"""A corpus of one's own: `manifest.csv` in the root folder, one row a turn, and the audio that its rows name.

Columns in any order: `conversation, utterance, speaker, emotion, path, split`, and where wanted `start, end`.

- `path` is absolute or starts at the manifest's folder. `start` and `end`, in seconds, cut a part of it, which may
  pass the end of the file by 50 ms; without them a row is the whole file.
- Turns of a conversation that are all cut from one recording stand in order of `start`, and overlaps stay. Others
  follow one another as the rows do.
- An empty `emotion` is a turn that is heard and never scored, an empty `speaker` one of its own in each
  conversation.
- `split` of a conversation is train, validation (or dev) or test; together they are the one fold.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, NonNegativeFloat

from .. import audio, runs
from ..settings import Settings, UserError
from . import dynamics, files, table
from .base import Clip, Conversation, Corpus, Count, Fold, Skipped, Utterance, example, in_turn, some

SLACK = 0.05  # seconds by which a cut may pass the end of its file
SHORTEST = 0.001  # seconds of a cut
UNKNOWN = "unknown ({})"  # the speaker of a conversation who is not named
SIDES = ("train", "validation", "test")

Seconds = Annotated[NonNegativeFloat | None, BeforeValidator(lambda cell: cell.replace(",", ".") or None)]


class Row(BaseModel):
    """One row; without `start` from the beginning of the file, without `end` to its end."""

    conversation: table.Name
    utterance: table.Name
    speaker: table.Words
    emotion: Annotated[table.Words, AfterValidator(str.lower)]
    path: Annotated[str, Field(min_length=1)]
    split: Annotated[Literal[SIDES], BeforeValidator(lambda cell: cell.lower().replace("dev", "validation"))]
    start: Seconds = None
    end: Seconds = None


def load(settings: Settings) -> Corpus:
    """The conversations of `<settings.root>/manifest.csv`; rows whose audio cannot be heard are skipped.

    Raises one UserError that lists all faults of the rows, or where most audio cannot be heard.
    """
    root = settings.root_path
    path = root / "manifest.csv"
    rows, faults = read_rows(path)
    places = {line: root / row.path for line, row in rows.items()}
    if not all(map(os.path.lexists, places.values())):  # a Mac's names are other strings of the same words
        there = {name: path for path, name in files.walk(root)}
        places = {line: there.get(rows[line].path, place) for line, place in places.items()}
    surveyed = files.survey(settings, root, sorted(set(places.values())))
    turns: dict[tuple[str, str], list[Utterance]] = defaultdict(list)  # of a conversation and its split
    skipped = []
    for line, place in places.items():
        file, row = surveyed[place], rows[line]
        if file.fault:
            skipped.append(Skipped(f"{row.utterance}: {place.name}", file.fault))
            continue
        start, end = row.start or 0.0, file.seconds if row.end is None else min(row.end, file.seconds)
        if end - start < min(SHORTEST, file.seconds) or (row.end or 0.0) > file.seconds + SLACK:
            faults.append((line, f"start, end: {start} to {row.end} is no part of {row.path!r}, which lasts "
                           f"{file.seconds:.3f} s; give seconds, or neither"))
        clip = Clip(place, start, None if row.end is None else end)
        turns[row.conversation, row.split].append(Utterance(
            row.utterance, row.speaker or UNKNOWN.format(row.conversation), start, end, row.emotion or None, clip))
    table.refuse(path, faults, "mend them and run again")
    if 2 * len(skipped) > len(rows):
        raise UserError(f"{path}: the audio of {len(skipped)} of {len(rows)} rows cannot be heard; mend the paths, "
                        f"which start at the manifest's folder{example(skipped)}")
    conversations = tuple(Conversation(*key, _timeline(turns[key])) for key in sorted(turns))
    fold = Fold(*(tuple(c.id for c in conversations if c.session == side) for side in SIDES))
    emotions = dynamics.label_set(u.emotion for c in conversations for u in c.utterances if u.emotion)
    content = [[c.id, u.id, u.speaker, u.start, u.end, u.emotion, surveyed[u.audio.path].sha256, u.audio.start,
                u.audio.end] for c in conversations for u in c.utterances]
    key = runs.key("manifest", content, fold, skipped, runs.code_version(load))
    found = Counter(u.emotion for c in conversations for u in c.utterances)
    counts = tuple(Count("all", emotion, None, found[emotion]) for emotion in emotions)
    notes = _notes(conversations)
    return Corpus("manifest", conversations, emotions, (fold,), tuple(skipped), key, notes, counts, not notes)


def read_rows(path: Path) -> tuple[dict[int, Row], table.Faults]:
    """Rows by their numbers, `utterance` unique, and what is wrong with them before their audio is known; UserError
    as `table.read`."""
    rows, faults = table.read(path, Row)
    if len({row.utterance for row in rows.values()}) < len(rows):
        rows = {line: row.model_copy(update={"utterance": f"{row.conversation}_{row.utterance}"})
                for line, row in rows.items()}
    first: dict[tuple, int] = {}
    for line, row in rows.items():
        head = rows[first.setdefault((row.conversation,), line)]
        if row.split != head.split:
            faults.append((line, f"split: {row.split!r} is not {head.split!r} as above"))
        if (twin := first.setdefault(("utterance", row.utterance), line)) != line:
            faults.append((line, f"utterance: {row.utterance!r} is what row {twin} is called, too"))
        if (twin := first.setdefault((row.conversation, row.speaker, row.path, row.start, row.end), line)) != line:
            faults.append((line, f"path: {row.path!r} is the sound of row {twin}, too; give start and end, or a "
                           "file for each utterance"))
    return rows, faults


def _timeline(turns: Sequence[Utterance]) -> tuple[Utterance, ...]:
    """A conversation's turns, which come in the order of the rows and on the clocks of their files, on its own."""
    if len({u.audio.path for u in turns}) == 1:
        return tuple(sorted(turns, key=lambda u: (u.start, u.end, u.id)))
    return in_turn(turns)


def _notes(conversations: Sequence[Conversation]) -> tuple[str, ...]:
    """None, or one on test speakers who stand in training or validation, or may, as they are unknown."""
    tested, others = ({u.speaker for c in conversations if (c.session == "test") == test for u in c.utterances}
                      for test in (True, False))
    shared = tested & (others | {UNKNOWN.format(c.id) for c in conversations})
    return (f"Not speaker-independent: {len(shared)} speaker(s) of the test ({some(sorted(shared))}) stand in "
            "training or validation, too, or may, as they are unknown.",) if shared else ()


def prepare(settings: Settings, recordings: Iterable[Path | str], folder: Path | str
            ) -> tuple[pd.DataFrame, list[Skipped]]:
    """Write `folder/manifest.csv` for recordings without boundaries, and give what stands in it: a row for every
    utterance that voice activity finds; speaker, emotion and split are left empty, to be filled in.

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
        place = Path(os.path.relpath(os.path.realpath(path), os.path.realpath(folder))).as_posix()
        rows += [{"conversation": name, "utterance": f"{name}_{number:05d}", "speaker": "", "start": row.start,
                  "end": row.end, "emotion": "", "path": place, "split": ""}
                 for number, row in enumerate(found.itertuples())]
    made = pd.DataFrame(rows)
    if rows:
        with runs.atomic(written) as temporary:
            made.to_csv(temporary, index=False, encoding="utf-8")
            _absent(written)  # another process may have come first
    return made, skipped


def _absent(written: Path) -> None:
    if os.path.lexists(written):
        raise UserError(f"{written} is there already and may hold your labels: name another folder, or move it "
                        "away")
