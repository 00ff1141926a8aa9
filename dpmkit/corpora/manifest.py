"""A corpus of one's own: `manifest.csv` in the root folder, one row a turn, and the audio that its rows name.

Columns in any order: `conversation, utterance, speaker, emotion, path`, and where wanted `start, end` and `split`.

- `path` is absolute or starts at the manifest's folder. `start` and `end`, in seconds, cut a part of it, which may
  pass the end of the file by 50 ms; without them a row is the whole file.
- Turns of a conversation that are all cut from one recording stand in order of `start`, and overlaps stay. Others
  follow one another as the rows do.
- An empty `emotion` is a turn that is heard and never scored, an empty `speaker` one of its own in each
  conversation.
- `split` (train, validation or dev, test) is the one fold. Else there are up to five: they leave out sessions,
  conversations that a known speaker links, or conversations where fewer than three sessions have a label.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, NonNegativeFloat
from scipy.cluster.hierarchy import DisjointSet

from .. import runs
from ..settings import Settings, UserError
from . import dynamics, files, table
from .base import Clip, Conversation, Corpus, Count, Fold, Skipped, Utterance, example, in_turn, leave_one_out, some

SLACK = 0.05  # seconds by which a cut may pass the end of its file
SHORTEST = 0.001  # seconds of a cut
FOLDS = 5  # at most, where no split is given
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
    start: Seconds = None
    end: Seconds = None
    split: Annotated[Literal["", "train", "dev", "validation", "test"], BeforeValidator(str.lower)] = ""


def load(settings: Settings) -> Corpus:
    """The conversations of `<settings.root>/manifest.csv`; rows whose audio cannot be heard are skipped.

    Raises one UserError that lists all faults of the rows, or where most audio cannot be heard or fewer
    than three conversations have a label.
    """
    root = settings.root_path
    path = root / "manifest.csv"
    rows, faults = read_rows(path)
    places = {line: root / row.path for line, row in rows.items()}
    if not all(map(os.path.lexists, places.values())):  # a Mac's names are other strings of the same words
        there = {name: path for path, name in files.walk(root)}
        places = {line: there.get(rows[line].path, place) for line, place in places.items()}
    surveyed = files.survey(settings, root, sorted(set(places.values())))
    turns: dict[str, list[Utterance]] = defaultdict(list)
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
        turns[row.conversation].append(Utterance(
            row.utterance, row.speaker or UNKNOWN.format(row.conversation), start, end, row.emotion or None, clip))
    table.refuse(path, faults, "mend them and run again")
    if 2 * len(skipped) > len(rows):
        raise UserError(f"{path}: the audio of {len(skipped)} of {len(rows)} rows cannot be heard; mend the paths, "
                        f"which start at the manifest's folder{example(skipped)}")
    session = _sessions(turns)
    conversations = tuple(Conversation(name, session[name], _timeline(turns[name])) for name in sorted(turns))
    split = {row.conversation: row.split.replace("dev", "validation") for row in rows.values()}
    folds = _folds(path, conversations, {c.id: split[c.id] for c in conversations}, skipped)
    emotions = dynamics.label_set(u.emotion for c in conversations for u in c.utterances if u.emotion)
    content = [[c.id, u.id, u.speaker, u.start, u.end, u.emotion, surveyed[u.audio.path].sha256, u.audio.start,
                u.audio.end] for c in conversations for u in c.utterances]
    key = runs.key("manifest", content, folds, skipped, runs.code_version(load))
    found = Counter(u.emotion for c in conversations for u in c.utterances)
    counts = tuple(Count("all", emotion, None, found[emotion]) for emotion in emotions)
    notes = _notes(conversations, folds)
    return Corpus("manifest", conversations, emotions, folds, tuple(skipped), key, notes, counts, not notes)


def read_rows(path: Path) -> tuple[dict[int, Row], table.Faults]:
    """Rows by their numbers, `utterance` unique, and what is wrong with them before their audio is known; UserError
    as `table.read`."""
    rows, faults = table.read(path, Row)
    if len({row.utterance for row in rows.values()}) < len(rows):
        rows = {line: row.model_copy(update={"utterance": f"{row.conversation}_{row.utterance}"})
                for line, row in rows.items()}
    split = any(row.split for row in rows.values())
    first: dict[tuple, int] = {}
    for line, row in rows.items():
        head = rows[first.setdefault((row.conversation,), line)]
        if row.split != head.split or (split and not row.split):
            faults.append((line, f"split: {row.split!r} is empty, or not {head.split!r} as above"))
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


def _sessions(turns: Mapping[str, Sequence[Utterance]]) -> dict[str, str]:
    """Conversation -> the first, by name, of those that it shares a speaker with, be it through others."""
    sets, met = DisjointSet(turns), {}
    for name, own in turns.items():
        for utterance in own:
            sets.merge(name, met.setdefault(utterance.speaker, name))
    return {name: min(linked) for linked in sets.subsets() for name in linked}


def _folds(path: Path, conversations: Sequence[Conversation], split: Mapping[str, str],
           skipped: Sequence[Skipped]) -> tuple[Fold, ...]:
    """The one fold of `split` (conversation id -> side), or those that leave out groups of about equal weight."""
    if any(split.values()):
        return (Fold(*(tuple(c for c in split if split[c] == side) for side in SIDES)),)
    labelled = [c for c in conversations if any(u.emotion for u in c.utterances)]
    if len(labelled) < 3:
        raise UserError(f"{path}: {len(labelled)} conversation(s) with an emotion can be heard; three are needed, "
                        f"one each for training, validation and test{example(skipped)}")
    apart = len({c.session for c in labelled}) >= 3
    unit = {c.id: c.session if apart else c.id for c in conversations}
    weight = Counter(unit[c.id] for c in labelled for u in c.utterances if u.emotion)
    loads, group = [0] * min(FOLDS, len(weight)), {}
    for own in sorted(weight, key=lambda u: (-weight[u], u)):  # the heaviest first, each to the lightest group
        group[own] = loads.index(min(loads))
        loads[group[own]] += weight[own]
    return leave_one_out({c: str(group.get(own, "")) for c, own in unit.items()})


def _notes(conversations: Sequence[Conversation], folds: Sequence[Fold]) -> tuple[str, ...]:
    """None, or one on speakers who stand on two sides of a fold, or may, as they are unknown."""
    speakers = {c.id: {u.speaker for u in c.utterances} for c in conversations}
    shared = {UNKNOWN.format(c) for c in speakers} & set().union(*speakers.values())
    for fold in folds:
        tested, others = (set().union(*map(speakers.get, ids)) for ids in (fold.test, fold.train + fold.validation))
        shared |= tested & others
    return (f"Not speaker-independent: {len(shared)} speaker(s) of a fold's test ({some(sorted(shared))}) stand in "
            "its training or validation, too, or may, as they are unknown.",) if shared else ()
