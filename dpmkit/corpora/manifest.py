"""A corpus of one's own: `manifest.csv` in the root folder, one row a turn, and the audio that its rows name.

Columns in any order: `conversation, utterance, speaker, emotion, path`, and where wanted `start, end`, `session`,
`split`; others are listed and not read. How it may be written: `table`; a decimal comma is understood where commas
do not part the cells. Text becomes NFC, and blanks in names single. What holds:

- `path` is absolute or starts at the manifest's folder. `emotion` is put in lower case; where it is empty the turn
  is heard and never scored. An empty `speaker` is unknown, and counts as one of its own in each conversation.
- A conversation has times in all of its rows or in none. Without them a turn is its whole file, and turns follow
  one another as the rows do. Else `start` and `end` are seconds in `path`, which they cut; a cut may pass the end
  of the file by 50 ms. Where the file is shorter than `end` but as long as `end - start` (to 50 ms), it is the
  utterance's own, heard whole, and they are its place in the conversation.
- Turns stand in order of `start`, and overlaps stay. That is one clock where a conversation has one recording, an
  utterance's own file with its place, or a recording a speaker, some of them cut (microphones). Recordings that
  have clocks of their own follow one another in the order of their first rows.
- An utterance keeps its id where all ids differ; else every one is called `<conversation>_<utterance>`.
- `split` (train, validation or dev, test) is the one fold. Else there are up to five (`grouping`): they leave out
  sessions (column `session`, or conversations linked by a known speaker), or conversations where fewer than three
  sessions have a label; a note says so, and of every speaker, known or not, that may stand on two sides.
- Faults of rows are refused, all at once. Audio that is missing or cannot be heard is skipped and listed,
  unless that is more than half of the rows.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import audio, runs
from ..settings import Settings, UserError
from . import dynamics, files, grouping, table
from .base import Clip, Conversation, Corpus, Count, Skipped, Utterance

NEEDED = ("conversation", "utterance", "speaker", "emotion", "path")
OPTIONAL = ("start", "end", "session", "split")
COLUMNS = NEEDED + OPTIONAL
# Other names of optional columns: they must not pass for columns that nobody needs.
MEANT = {"begin": "start", "onset": "start", "stop": "end", "offset": "end", "partition": "split",
         "subset": "split", "set": "split"}
SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation",
          "val": "validation", "dev": "validation", "test": "test"}
SLACK = 0.05  # seconds by which annotations and files may differ
LATEST = 1e9  # seconds; a time beyond is none
LONGEST = 1000  # characters of a cell


@dataclass(frozen=True)
class Row:
    """One row; `timed` says that start or end is given, both are None where they are not, or are no times."""

    line: int
    conversation: str
    utterance: str
    speaker: str
    emotion: str
    path: str
    session: str
    split: str
    timed: bool
    start: float | None
    end: float | None


@dataclass(frozen=True)
class _Turn:
    """A row that can be heard; `placed`: its file starts elsewhere in the conversation than at 0."""

    row: Row
    audio: Clip
    seconds: float
    placed: bool = False


def load(settings: Settings) -> Corpus:
    """The conversations of `<settings.root>/manifest.csv`; rows whose audio cannot be heard are skipped.

    Raises one UserError that lists all faults of the rows by row and column, and one for a corpus that leaves
    nothing to train or to test on.
    """
    root = settings.root_path
    path = root / "manifest.csv"
    rows, unread, faults = read_rows(path)
    # Before the table's faults are listed, as only then all are known; a second call decodes nothing again.
    places = {r.path: root / r.path for r in rows if 0 < len(r.path) <= LONGEST}
    if not all(map(os.path.lexists, places.values())):  # a Mac's names are other strings of the same words
        there = {files.name(root, path): path for path in root.rglob("*")}
        places = {path: there.get(path, place) for path, place in places.items()}
    heard = files.survey(settings, root, sorted(set(places.values())))
    turns, unheard = _turns(places, rows, heard, faults)
    if faults:
        raise table.refusal(path, faults, "mend them and run again")
    if 2 * len(unheard) > len(rows):
        raise UserError(table.listed(f"{path}: the audio of {len(unheard)} of {len(rows)} rows cannot be "
                                     "heard; mend the paths (they start at the manifest's folder):",
                                     [(r.line, f"path: {r.path!r} {why}") for r, why in unheard]))
    labels = {t.row.emotion for t in turns} - {""}
    if len(labels) < 2:
        raise UserError(f"{path}, column emotion: {len(labels)} emotion(s) ({', '.join(labels) or 'none'}) in "
                        "rows that can be heard; label turns with two or more, to train on and to score")
    emotions = dynamics.EMOTIONS if labels == set(dynamics.EMOTIONS) else tuple(sorted(labels))
    conversations = _conversations(turns, len({r.utterance for r in rows}) == len(rows))
    splits = {t.row.conversation: t.row.split for t in turns}
    folds, independent, notes = grouping.folds(path, conversations, splits, _speakers(turns))
    left = [Skipped(f"{r.conversation}, {r.utterance}: {_shown(r.path)}", why) for r, why in unheard]
    left += [Skipped(f"column {name[:99] or '(without a name)'}", "is none of the manifest's: not read")
             for name in unread]
    skipped = tuple(sorted(left, key=lambda s: (s.item, s.reason)))
    read = [[c.id, c.session, [[u.id, u.speaker, u.start, u.end, u.emotion, heard[u.audio.path].sha256,
                                u.audio.start, u.audio.end] for u in c.utterances]] for c in conversations]
    key = runs.key("manifest", read, folds, skipped, runs.code_version(load))
    group = splits if any(splits.values()) else {c.id: c.session for c in conversations}
    found = Counter((group[c.id], u.emotion) for c in conversations for u in c.utterances)
    counts = tuple(Count(g, e, None, found[g, e]) for g in sorted(set(group.values())) for e in emotions)
    return Corpus("manifest", conversations, emotions, folds, skipped, key, notes, counts, independent)


def _shown(path: str) -> str:
    """A path fit for a record, which holds none of this machine's."""
    return Path(path).name if Path(path).is_absolute() else path


# -- rows ----------------------------------------------------------------------------------------------------------

def read_rows(path: Path) -> tuple[list[Row], list[str], table.Faults]:
    """Rows, columns that are not read, and all that is wrong; UserError as `table.read`."""
    read = table.read(path)
    names, faults = [name.casefold() for name in read.header], list(read.faults)
    unread = [name for name in names if name not in COLUMNS]
    misnamed = [(read.top, f"column {words}") for words in _misnamed(names, unread)]
    rows = [_row(line, {name.casefold(): cell for name, cell in cells.items()}, read.delimiter != ",", faults)
            for line, cells in read.rows.items()]
    if not rows and not faults + misnamed:
        faults.append((read.top, "the header: no row stands below it"))
    _compare(rows, faults, times_known=not misnamed)
    return rows, unread, faults + misnamed


def _misnamed(names: Sequence[str], unread: Sequence[str]) -> Iterator[str]:
    """What is wrong with the header: columns twice, missing, or under a name that is not theirs."""
    absent = [n for n in COLUMNS if n not in names]
    for name in unread:
        near = [MEANT.get(word, word) for word in re.split("[^a-z]+", name)]
        near += difflib.get_close_matches(name, absent, 1, 0.8)  # 0.77: 'season' is no 'session'
        if meant := next((n for n in near if n in absent), None):
            absent.remove(meant)
            yield f"{name[:LONGEST]!r} is not known; is it {meant}? rename it so, or take it out"
    for name in absent:
        if name in NEEDED or (name in ("start", "end") and {"start", "end"}.intersection(names)):
            yield f"{name} is missing"
    yield from (f"{n} stands there twice" for n in COLUMNS if names.count(n) > 1)


def _row(line: int, cells: Mapping[str, str], decimal_comma: bool, faults: table.Faults) -> Row:
    """A row from its cells by column (a column that the table lacks is a fault of the header)."""
    for column in COLUMNS:
        cell = cells.get(column, "")
        if len(cell) > LONGEST:
            faults.append((line, f"{column}: {len(cell)} characters; at most {LONGEST} can be right"))
        elif column in ("conversation", "utterance", "path") and cells.get(column) == "":
            faults.append((line, f"{column}: is empty"))
        elif cell.casefold() in table.NOTHING and column not in ("start", "end"):
            faults.append((line, f"{column}: {cell!r} is no name; leave the cell empty where there is none"))
        elif column == "split" and cell and cell.casefold() not in SPLITS:
            faults.append((line, f"split: {cell!r} is none of {', '.join(SPLITS)}"))
    timed = bool(cells.get("start") or cells.get("end"))
    start, end = _times(line, cells, decimal_comma, faults) if timed else (None, None)
    return Row(line, *(table.name(cells.get(n, "")) for n in ("conversation", "utterance", "speaker")),
               table.name(cells.get("emotion", "").lower()), cells.get("path", ""),
               table.name(cells.get("session", "")),
               SPLITS.get(cells.get("split", "").casefold(), cells.get("split", "")), timed, start, end)


def _times(line: int, cells: Mapping[str, str], decimal_comma: bool,
           faults: table.Faults) -> tuple[float | None, float | None]:
    """Start and end in seconds, or None twice and the fault."""
    times = []
    for name in ("start", "end"):
        cell = cells.get(name, "0")  # a column that is missing is a fault of the header
        try:
            value = float("" if "_" in cell else cell.replace(",", ".") if decimal_comma else cell)
        except ValueError:
            value = math.nan
        if value < 0:
            faults.append((line, f"{name}: {cell[:table.SHOWN]!r} is negative"))
        elif not value < LATEST:
            faults.append((line, f"{name}: {cell[:table.SHOWN]!r} is not a number of seconds" if cell else
                           f"{name}: is empty, the other time is not"))
        else:
            times.append(value)
    if len(times) < 2 or "start" not in cells or "end" not in cells:
        return None, None
    if round(times[1] * audio.RATE) <= round(times[0] * audio.RATE):
        faults.append((line, f"end: {cells['end'][:table.SHOWN]!r} is not after start, "
                             f"{cells['start'][:table.SHOWN]!r}"))
        return None, None
    return times[0], times[1]


def _compare(rows: Sequence[Row], faults: table.Faults, times_known: bool) -> None:
    """What rows say of one conversation must agree, and neither an utterance nor a file may be two turns."""
    first: dict[str, Row] = {}
    named: dict[str, Row] = {}
    whole: dict[tuple[str, str], Row] = {}
    joined = len({r.utterance for r in rows}) < len(rows)
    for row in (r for r in rows if r.conversation):
        head = first.setdefault(row.conversation, row)
        there = f"in row {head.line} of the same conversation"
        for column in ("session", "split"):
            if getattr(row, column) != getattr(head, column):
                faults.append((row.line, f"{column}: {getattr(row, column)!r}, but {getattr(head, column)!r} "
                               f"{there}"))
        if row.timed != head.timed:
            given, other = ("given", "empty") if row.timed else ("empty", "given")
            faults.append((row.line, f"start, end: {given}, but {other} {there}"))
        name = f"{row.conversation}_{row.utterance}"
        if row.utterance and joined and (twin := named.setdefault(name, row)) is not row:
            faults.append((row.line, f"utterance: {name!r} is what row {twin.line} is called, too"))
        untimed = row.path and times_known and not row.timed
        if untimed and (twin := whole.setdefault((row.conversation, row.path), row)) is not row:
            faults.append((row.line, f"path: {row.path!r} is the whole of row {twin.line}, too; give start and "
                           "end, or a file for each utterance"))
    for column in ("session", "split"):
        if any(getattr(r, column) for r in rows):
            faults += [(r.line, f"{column}: is empty, but other conversations have one") for r in first.values()
                       if not getattr(r, column)]


# -- turns ---------------------------------------------------------------------------------------------------------

def _turns(places: Mapping[str, Path], rows: Sequence[Row], heard: Mapping[Path, files.File],
           faults: table.Faults) -> tuple[list[_Turn], list[tuple[Row, str]]]:
    """Rows that can be heard, and those that cannot with why; times beyond their file go to `faults`."""
    turns, unheard = [], []
    for row in rows:
        path = places.get(row.path)
        if path is None:
            continue
        seconds, fault = heard[path].seconds, heard[path].fault
        if fault:
            unheard.append((row, fault))
        elif not row.timed:
            turns.append(_Turn(row, Clip(path), seconds))
        elif row.start is not None:
            end = min(row.end, seconds)
            if row.end > seconds and round(abs(seconds - (row.end - row.start)), 6) <= SLACK:
                turns.append(_Turn(row, Clip(path), seconds, placed=row.start > SLACK))
            elif (round(row.end - seconds, 6) <= SLACK
                  and round(end * audio.RATE) > round(row.start * audio.RATE)):
                turns.append(_Turn(row, Clip(path, row.start, end), end - row.start))
            else:
                faults.append((row.line, f"end: {row.end:g} s is beyond the end of {row.path!r}, which lasts "
                               f"{seconds:.3f} s (nor does it last {row.end - row.start:.3f} s, as a file of the "
                               "utterance alone would)"))
    return turns, unheard


def _speakers(turns: Iterable[_Turn]) -> dict[str, set[str]]:
    """Conversation -> its speakers, "" among them where one is unknown."""
    out = defaultdict(set)
    for turn in turns:
        out[turn.row.conversation].add(turn.row.speaker)
    return out


def _conversations(turns: Sequence[_Turn], unique: bool) -> tuple[Conversation, ...]:
    """Conversations by name; their session is the column's, or the first conversation that they are linked to."""
    grouped = defaultdict(list)
    for turn in turns:
        grouped[turn.row.conversation].append(turn)
    linked = grouping.linked(_speakers(turns))
    return tuple(Conversation(name, own[0].row.session or linked[name], _timeline(own, unique))
                 for name, own in sorted(grouped.items()))


def _timeline(turns: Sequence[_Turn], unique: bool) -> tuple[Utterance, ...]:
    """A conversation's turns on its clock; `turns` as the rows have them."""
    takes = defaultdict(list)  # what has a clock of its own
    one = turns[0].row.timed and _one_clock(turns)
    for number, turn in enumerate(turns):
        takes[0 if one else turn.audio.path if turn.row.timed else number].append(turn)
    out, clock = [], 0.0
    for take in takes.values():
        begun = clock
        for turn in sorted(take, key=lambda t: (t.row.start or 0.0, t.row.end or 0.0, t.row.utterance)):
            row, start = turn.row, begun + (turn.row.start or 0.0)
            out.append(Utterance(row.utterance if unique else f"{row.conversation}_{row.utterance}",
                                 row.speaker or f"unknown ({row.conversation})", start, start + turn.seconds,
                                 row.emotion or None, turn.audio))
            clock = max(clock, out[-1].end)
    return tuple(out)


def _one_clock(turns: Sequence[_Turn]) -> bool:
    """Whether times are the conversation's rather than each recording's (see above)."""
    voices = defaultdict(set)
    for turn in turns:
        voices[turn.audio.path].add(turn.row.speaker)
    heard = set().union(*voices.values())
    microphones = (len(turns) > len(voices) == len(heard) and "" not in heard
                   and all(len(v) == 1 for v in voices.values()))
    return len(voices) == 1 or microphones or any(t.placed for t in turns)
