"""A corpus of one's own: `manifest.csv` in the root folder, one row a turn, and the audio that its rows name.

Columns in any order: `conversation, utterance, speaker, emotion, path`, and where wanted `start, end`, `session`,
`split`; others are listed and not read. Commas, semicolons or tabs (or what a line `sep=|` above says), UTF-8 (or
UTF-16, marked); beside semicolons and tabs a decimal comma is understood; a cell stays on its line. Text becomes
NFC, and blanks in names single. What holds:

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
- Faults of the table are refused, all at once. Audio that is missing or cannot be heard is skipped and listed,
  unless that is more than half of the rows.
"""

from __future__ import annotations

import stat
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import audio, runs
from ..settings import Settings, UserError, on_disk
from . import dynamics, files, grouping, table
from .conversation import Clip, Conversation, Corpus, Count, Skipped, Utterance

SLACK = 0.05  # seconds by which annotations and files may differ


@dataclass(frozen=True)
class _Turn:
    """A row that can be heard; `placed`: its file starts elsewhere in the conversation than at 0."""

    row: table.Row
    audio: Clip
    seconds: float
    placed: bool = False


def load(settings: Settings) -> Corpus:
    """The conversations of `<settings.root>/manifest.csv`; rows whose audio cannot be heard are skipped.

    Raises one UserError that lists all faults of the table by row and column, and one for a corpus that leaves
    nothing to train or to test on.
    """
    root, faults = settings.root_path, []
    path = root / "manifest.csv"
    rows, unread = table.read(path, faults)
    # Heard before the table's faults are told, as only then all are known; a second call hears nothing again.
    places = {r.path: on_disk(root / r.path) for r in rows if 0 < len(r.path) <= table.LONGEST}
    heard = _survey(settings, root, set(places.values()))
    turns, unheard = _turns(places, rows, heard, faults)
    if faults:
        raise UserError(table.listed(f"{path} has {len(faults)} fault(s); mend them and run again:", faults))
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


def _survey(settings: Settings, root: Path, paths: Iterable[Path]) -> dict[Path, files.File]:
    """What became of each path, be it below the root or not."""
    out, bases = {}, defaultdict(list)
    for path in sorted(paths):
        try:
            if stat.S_ISREG(path.stat().st_mode):
                bases[root if path.is_relative_to(root) else Path(path.anchor)].append(path)
            else:
                out[path] = files.File(0.0, "", "is no file")
        except FileNotFoundError:
            out[path] = files.File(0.0, "", "does not exist")
        except OSError as error:  # a name too long, a link to itself, a folder that may not be entered
            out[path] = files.File(0.0, "", f"cannot be reached ({error.strerror})")
    for base, below in bases.items():
        out.update(files.survey(settings, base, below))
    return out


def _turns(places: Mapping[str, Path], rows: Sequence[table.Row], heard: Mapping[Path, files.File],
           faults: table.Faults) -> tuple[list[_Turn], list[tuple[table.Row, str]]]:
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
