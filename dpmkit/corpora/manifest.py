"""A corpus of one's own: `manifest.csv` in the root folder, one row a turn, and the audio that its rows name.

Columns in any order: `conversation, utterance, speaker, emotion, path`, and where wanted `start, end`, `session`,
`split`; others are listed and not read. Blanks in names become single.

- `path` is absolute or starts at the manifest's folder. A row with `start` and `end`, in seconds, is that part of
  it; a cut may pass the end of the file by 50 ms. A row without them is the whole file.
- Where a conversation's rows all have times, and they cut one recording, or one for each speaker (microphones that
  ran together), turns stand in order of `start`, and overlaps stay. Else they follow one another as the rows do.
- `emotion` is put in lower case; where it is empty the turn is heard and never scored. An empty `speaker` is
  unknown, and counts as one of its own in each conversation.
- `split` (train, validation or dev, test) is the one fold. Else there are up to five: they leave out sessions
  (column `session`, or conversations linked by a known speaker), or conversations where fewer than three sessions
  have a label. A note tells of every speaker, known or not, that may stand on two sides.
- Faults of rows are refused, all at once. Audio that is missing or cannot be heard is skipped and listed, unless
  that is more than half of the rows.
"""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.cluster.hierarchy import DisjointSet

from .. import runs
from ..settings import Settings, UserError
from . import dynamics, files, table
from .base import Clip, Conversation, Corpus, Count, Fold, Skipped, Utterance, leave_one_out, some

NEEDED = ("conversation", "utterance", "speaker", "emotion", "path")
OPTIONAL = ("start", "end", "session", "split")
SPLITS = {"": "", "train": "train", "dev": "validation", "validation": "validation", "test": "test"}
SLACK = 0.05  # seconds by which a cut may pass the end of its file
SHORTEST = 0.001  # seconds of a cut
FOLDS = 5  # at most, where no split is given
UNKNOWN = "unknown ({})"  # the speaker of a conversation who is not named


@dataclass(frozen=True)
class Row:
    """One row: names with single blanks, `utterance` unique, a `speaker` in any case; times as text."""

    line: int
    conversation: str
    utterance: str
    speaker: str
    emotion: str
    path: str
    start: str
    end: str
    session: str
    split: str


def load(settings: Settings) -> Corpus:
    """The conversations of `<settings.root>/manifest.csv`; rows whose audio cannot be heard are skipped.

    Raises one UserError that lists all faults of the rows, and one where most of the audio cannot be heard or fewer
    than three conversations have a label.
    """
    root = settings.root_path
    path = root / "manifest.csv"
    rows, unread, faults = read_rows(path)
    places = {r: root / r.path for r in rows if r.path}
    if not all(map(os.path.lexists, places.values())):  # a Mac's names are other strings of the same words
        there = {name: path for path, name in files.walk(root)}
        places = {r: there.get(r.path, place) for r, place in places.items()}
    surveyed = files.survey(settings, root, sorted(set(places.values())))
    unheard = {r: surveyed[place].fault for r, place in places.items() if surveyed[place].fault}
    turns: dict[str, list[Utterance]] = defaultdict(list)
    for row, place in places.items():
        if row not in unheard:
            turns[row.conversation].append(_heard(row, place, surveyed[place].seconds, faults))
    if faults:
        raise table.refusal(f"{path} has {len(faults)} fault(s); mend them and run again:", faults)
    if 2 * len(unheard) > len(rows):
        raise table.refusal(f"{path}: the audio of {len(unheard)} of {len(rows)} rows cannot be heard; mend the "
                            "paths (they start at the manifest's folder):",
                            [(r.line, f"path: {r.path!r} {why}") for r, why in unheard.items()])
    given = {r.conversation: r for r in rows}
    linked = _linked(turns)
    conversations = tuple(Conversation(name, given[name].session or linked[name], _timeline(own))
                          for name, own in sorted(turns.items()))
    labels = {u.emotion for c in conversations for u in c.utterances} - {None}
    emotions = dynamics.EMOTIONS if labels == set(dynamics.EMOTIONS) else tuple(sorted(labels))
    splits = {c.id: given[c.id].split for c in conversations}
    folds = _folds(path, conversations, splits)
    independent, notes = _notes(conversations, folds)
    left = [Skipped(f"{r.utterance}: {Path(r.path).name}", why) for r, why in unheard.items()]
    left += [Skipped(f"column {name or '(without a name)'}", "is none of the manifest's: not read")
             for name in unread]
    skipped = tuple(sorted(left, key=lambda s: (s.item, s.reason)))
    content = [[c.id, c.session, [[u.id, u.speaker, u.start, u.end, u.emotion, surveyed[u.audio.path].sha256,
                                   u.audio.start, u.audio.end] for u in c.utterances]] for c in conversations]
    key = runs.key("manifest", content, folds, skipped, runs.code_version(load))
    group = {c.id: splits[c.id] or c.session for c in conversations}
    found = Counter((group[c.id], u.emotion) for c in conversations for u in c.utterances)
    counts = tuple(Count(g, e, None, found[g, e]) for g in sorted(set(group.values())) for e in emotions)
    return Corpus("manifest", conversations, emotions, folds, skipped, key, notes, counts, independent)


def read_rows(path: Path) -> tuple[list[Row], list[str], table.Faults]:
    """Rows, columns that are not read, and what is wrong but for the times; UserError as `table.read`."""
    cells, faults = table.read(path, NEEDED)
    needed = ["conversation", "utterance", "path",
              *(c for c in ("session", "split") if any(row.get(c) for row in cells.values()))]
    faults += [(line, f"{column}: is empty") for line, row in cells.items() for column in needed
               if not row.get(column)]
    rows = [_row(line, row) for line, row in cells.items()]
    if len({r.utterance for r in rows}) < len(rows):
        rows = [replace(r, utterance=f"{r.conversation}_{r.utterance}") for r in rows]
    first: dict[tuple[str, ...], Row] = {}
    for row in rows:
        head = first.setdefault((row.conversation,), row)
        if (row.session, row.split) != (head.session, head.split):
            faults.append((row.line, f"session, split: {row.session!r}, {row.split!r}, but in row {head.line} of "
                           f"the same conversation {head.session!r}, {head.split!r}"))
        if row.split not in SPLITS.values():
            faults.append((row.line, f"split: {row.split!r} is none of train, dev, validation, test"))
        if (twin := first.setdefault(("utterance", row.utterance), row)) is not row:
            faults.append((row.line, f"utterance: {row.utterance!r} is what row {twin.line} is called, too"))
        whole = not row.start and not row.end
        if whole and (twin := first.setdefault(("path", row.conversation, row.path), row)) is not row:
            faults.append((row.line, f"path: {row.path!r} is the whole of row {twin.line}, too; give start and "
                           "end, or a file for each utterance"))
    return rows, [name for name in next(iter(cells.values()), {}) if name not in NEEDED + OPTIONAL], faults


def _row(line: int, cells: Mapping[str, str]) -> Row:
    named = {column: " ".join(cells.get(column, "").split()) for column in NEEDED + OPTIONAL}
    split = named["split"].lower()
    return Row(line, **named | {"path": cells["path"], "emotion": named["emotion"].lower(),
                                "speaker": named["speaker"] or UNKNOWN.format(named["conversation"]),
                                "split": SPLITS.get(split, split)})


def _heard(row: Row, path: Path, seconds: float, faults: table.Faults) -> Utterance:
    """The row as a turn on the clock of its file, which lasts so long; times that are no part of it are a fault."""
    clip = Clip(path)
    if row.start or row.end:
        try:
            start, end = (float(time.replace(",", ".")) for time in (row.start, row.end))
        except ValueError:
            start = end = math.nan
        last = min(end, seconds)
        if not (0 <= start <= last - SHORTEST and end <= seconds + SLACK):
            faults.append((row.line, f"start, end: {row.start[:20]!r} to {row.end[:20]!r} is no part of "
                           f"{row.path!r}; give seconds between 0 and {seconds:.3f}, or neither"))
        clip, seconds = Clip(path, start, last), last - start
    return Utterance(row.utterance, row.speaker, clip.start, clip.start + seconds, row.emotion or None, clip)


def _timeline(turns: Sequence[Utterance]) -> tuple[Utterance, ...]:
    """A conversation's turns, which come in the order of the rows and on the clocks of their files, on its own."""
    takes = {(u.audio.path, u.speaker) for u in turns}
    recordings, speakers = map(set, zip(*takes, strict=True))
    microphones = len(takes) == len(recordings) == len(speakers) < len(turns)
    if all(u.audio.end for u in turns) and (len(recordings) == 1 or microphones):
        return tuple(sorted(turns, key=lambda u: (u.start, u.end, u.id)))
    ends = np.cumsum([u.seconds for u in turns]).tolist()
    return tuple(replace(u, start=start, end=end) for u, start, end in zip(turns, [0.0, *ends], ends, strict=False))


def _linked(turns: Mapping[str, Sequence[Utterance]]) -> dict[str, str]:
    """Conversation -> the first, by name, of those that it shares a speaker with, be it through others."""
    sets, met, first = DisjointSet(turns), {}, {}
    for name, own in turns.items():
        for utterance in own:
            sets.merge(name, met.setdefault(utterance.speaker, name))
    return {name: first.setdefault(sets[name], name) for name in sorted(turns)}


def _folds(path: Path, conversations: Sequence[Conversation], splits: Mapping[str, str]) -> tuple[Fold, ...]:
    """The one fold of `splits` (conversation id -> side), or those that leave out groups of about equal weight."""
    if any(splits.values()):
        return (Fold(*(tuple(c for c in splits if splits[c] == side) for side in ("train", "validation", "test"))),)
    labelled = [c for c in conversations if any(u.emotion for u in c.utterances)]
    if len(labelled) < 3:
        raise UserError(f"{path}: {len(labelled)} conversation(s) with an emotion can be heard; three are needed, "
                        "one each for training, validation and test")
    apart = len({c.session for c in labelled}) >= 3
    unit = {c.id: c.session if apart else c.id for c in conversations}
    weight = Counter(unit[c.id] for c in labelled for u in c.utterances if u.emotion)
    loads, group = [0] * min(FOLDS, len(weight)), {}
    for own in sorted(weight, key=lambda u: (-weight[u], u)):  # the heaviest first, each to the lightest group
        group[own] = loads.index(min(loads))
        loads[group[own]] += weight[own]
    return leave_one_out({c: str(group.get(own, "")) for c, own in unit.items()})


def _notes(conversations: Sequence[Conversation], folds: Sequence[Fold]) -> tuple[bool, tuple[str, ...]]:
    """Whether no speaker can stand on two sides of a fold; what a reader of results must know of that, and of
    emotions that training lacks."""
    def among(ids: Sequence[str], what: str) -> set[str]:
        return {getattr(u, what) for c in conversations if c.id in ids for u in c.utterances} - {None}

    notes = []
    if shared := {s for f in folds for s in among(f.test, "speaker") & among(f.train + f.validation, "speaker")}:
        notes.append(f"Not speaker-independent: {len(shared)} speaker(s) of a fold's test "
                     f"({some(sorted(shared))}) stand in its training or validation, too.")
    unknown = sum(any(u.speaker == UNKNOWN.format(c.id) for u in c.utterances) for c in conversations)
    if unknown:
        notes.append(f"{unknown} of {len(conversations)} conversations have unknown speakers, who count as new "
                     "ones in each: whether test voices were trained on cannot be known.")
    for number, fold in enumerate(folds, 1):
        if unseen := among(fold.test, "emotion") - among(fold.train, "emotion"):
            notes.append(f"Fold {number}: {', '.join(sorted(unseen))} in the test, never in training.")
    return not shared and not unknown, tuple(notes)
