"""The table `manifest.csv`: a `Row` a line, and all that is wrong with it, by row and column."""

from __future__ import annotations

import csv
import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import audio
from ..settings import UserError, plain

NEEDED = ("conversation", "utterance", "speaker", "emotion", "path")
OPTIONAL = ("start", "end", "session", "split")
# Other names of optional columns: they must not pass for columns that nobody needs.
MEANT = {"begin": "start", "onset": "start", "stop": "end", "offset": "end", "partition": "split",
         "subset": "split", "set": "split"}
SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation",
          "val": "validation", "dev": "validation", "test": "test"}
NOTHING = ("nan", "none", "null", "n/a", "<na>")  # as programs write an empty cell
LATEST = 1e9  # seconds; a time beyond is none
LONGEST = 1000  # characters of a cell
SHOWN = 20  # faults in a message
SPOILED = re.compile("[\0\udc80-\udcff\ufffd]")  # NUL, bytes that are not UTF-8, characters lost before


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


Faults = list[tuple[int, str]]  # a line, from 1 as in a spreadsheet, and what is wrong there


def listed(head: str, faults: Sequence[tuple[int, str]]) -> str:
    """`head` and below it the first faults, in the order of the table."""
    shown = [f"  row {line}, {words}" for line, words in sorted(faults, key=lambda f: f[0])[:SHOWN]]
    return "\n".join([head, *shown, *([f"  … and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else [])])


def name(text: str) -> str:
    """A name with single blanks between its words: others (no-break, doubled) are not seen."""
    return " ".join(plain(text).split())


def _lines(table: Path) -> list[str]:
    """The table's lines; bytes that are not UTF-8 are kept as surrogates, for `_cells` to find in their row."""
    try:
        data = table.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {table} ({error.strerror}): a manifest corpus is a folder with manifest.csv, "
                        f"columns {', '.join(NEEDED)} and where wanted {', '.join(OPTIONAL)}") from error
    marked = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    text = data.decode("utf-16", "replace") if marked else data.decode("utf-8", "surrogateescape")
    text = plain(text.lstrip("\ufeff"))
    if not text.strip():
        raise UserError(f"{table} is empty: write a header ({', '.join(NEEDED)}) and a row a turn")
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _cells(line: str, delimiter: str) -> list[str]:
    """A line's cells, without blanks around them; ValueError, in words that follow the row, where it has none."""
    if found := SPOILED.search(line):
        raise ValueError("a NUL byte: that is no text; save the table as CSV" if found[0] == "\0" else
                         "not UTF-8: save the table as UTF-8 (Excel: 'CSV UTF-8')")
    try:
        rows = csv.reader([line], delimiter=delimiter, strict=True, skipinitialspace=True)
        return [cell.strip() for cell in next(rows, [])]
    except csv.Error as error:
        raise ValueError(f"not cells ({error}): a quotation mark must be closed on its line") from None


def read(table: Path, faults: Faults) -> tuple[list[Row], list[str]]:
    """Rows, what is wrong with them in `faults`, and columns that are not read."""
    lines = _lines(table)
    filled = [i for i, line in enumerate(lines) if line.strip()]
    mark = re.match(r'"?sep=(.)"?\W*$', lines[filled[0]], re.IGNORECASE)  # a line on top, for Excel
    top = filled[1 if mark and filled[1:] else 0]
    headers, reason = {}, ""
    for delimiter in mark[1] if mark else ",;\t":
        try:
            headers[delimiter] = [c.casefold() for c in _cells(lines[top], delimiter)]
        except ValueError as error:
            reason = reason or str(error)
    if not headers:
        raise UserError(listed(f"{table} has no header that can be read:", [(top + 1, reason)]))
    delimiter = max(headers, key=lambda d: len({*NEEDED, *OPTIONAL}.intersection(headers[d])))
    names, rows = headers[delimiter], []
    unread = [n for n in names if n not in (*NEEDED, *OPTIONAL)]
    misnamed = [(top + 1, f"column {words}") for words in _misnamed(names, unread)]
    faults += misnamed
    for number, line in enumerate(lines[top + 1:], top + 2):
        try:
            cells = _cells(line, delimiter)
        except ValueError as error:
            faults.append((number, str(error)))
            continue
        if not any(cells):  # spreadsheets leave such rows below the last one
            continue
        if len(cells) < len(names) or any(cells[len(names):]):
            faults.append((number, f"{len(cells)} cells, where the header has {len(names)}"))
        else:
            rows.append(_row(number, dict(zip(names, cells, strict=False)), delimiter != ",", faults))
    if not rows and not faults:
        faults.append((top + 1, "the header: no row stands below it"))
    _compare(rows, faults, times_known=not misnamed)
    return rows, unread


def _misnamed(names: Sequence[str], unread: Sequence[str]) -> Iterable[str]:
    """What is wrong with the header: columns twice, missing, or under a name that is not theirs."""
    absent = [n for n in (*NEEDED, *OPTIONAL) if n not in names]
    for name in unread:
        words = re.split("[^a-z]+", name)
        near = [MEANT[w] for w in words if w in MEANT] + [w for w in words if w in absent]
        near += difflib.get_close_matches(name, absent, 1, 0.8)  # 0.77: 'season' is no 'session'
        if meant := next((n for n in near if n in absent), None):
            absent.remove(meant)
            yield f"{name[:LONGEST]!r} is not known; is it {meant}? rename it so, or take it out"
    for name in absent:
        if name in NEEDED or (name in ("start", "end") and {"start", "end"}.intersection(names)):
            yield f"{name} is missing"
    yield from (f"{n} stands there twice" for n in (*NEEDED, *OPTIONAL) if names.count(n) > 1)


def _row(line: int, cells: Mapping[str, str], decimal_comma: bool, faults: Faults) -> Row:
    """A row from its cells by column (a column that the table lacks is a fault of the header)."""
    for column in (*NEEDED, *OPTIONAL):
        cell = cells.get(column, "")
        if len(cell) > LONGEST:
            faults.append((line, f"{column}: {len(cell)} characters; at most {LONGEST} can be right"))
        elif column in ("conversation", "utterance", "path") and cells.get(column) == "":
            faults.append((line, f"{column}: is empty"))
        elif cell.casefold() in NOTHING and column not in ("start", "end"):
            faults.append((line, f"{column}: {cell!r} is no name; leave the cell empty where there is none"))
        elif column == "split" and cell and cell.casefold() not in SPLITS:
            faults.append((line, f"split: {cell!r} is none of {', '.join(SPLITS)}"))
    timed = bool(cells.get("start") or cells.get("end"))
    start, end = _times(line, cells, decimal_comma, faults) if timed else (None, None)
    return Row(line, *(name(cells.get(n, "")) for n in ("conversation", "utterance", "speaker")),
               name(cells.get("emotion", "").lower()), cells.get("path", ""), name(cells.get("session", "")),
               SPLITS.get(cells.get("split", "").casefold(), cells.get("split", "")), timed, start, end)


def _times(line: int, cells: Mapping[str, str], decimal_comma: bool,
           faults: Faults) -> tuple[float | None, float | None]:
    """Start and end in seconds, or None twice and the fault."""
    times = []
    for name in (n for n in ("start", "end") if n in cells):
        cell = cells[name]
        try:
            value = float("" if "_" in cell else cell.replace(",", ".") if decimal_comma else cell)
        except ValueError:
            value = math.nan
        if cell and value < 0:
            faults.append((line, f"{name}: {cell[:SHOWN]!r} is negative"))
        elif not value < LATEST:
            faults.append((line, f"{name}: {cell[:SHOWN]!r} is not a number of seconds" if cell else
                           f"{name}: is empty, the other time is not"))
        else:
            times.append(value)
    if len(times) == 2 and round(times[1] * audio.RATE) <= round(times[0] * audio.RATE):
        faults.append((line, f"end: {cells['end'][:SHOWN]!r} is not after start, {cells['start'][:SHOWN]!r}"))
        return None, None
    return (times[0], times[1]) if len(times) == 2 else (None, None)


def _compare(rows: Sequence[Row], faults: Faults, times_known: bool) -> None:
    """What rows say of one conversation must agree, and neither an utterance nor a file may be two turns."""
    first: dict[str, Row] = {}
    said: dict[str, Row] = {}
    whole: dict[tuple[str, str], Row] = {}
    joined = len({r.utterance for r in rows}) < len(rows)
    for row in (r for r in rows if r.conversation):
        head = first.setdefault(row.conversation, row)
        for name in ("session", "split"):
            if getattr(row, name) != getattr(head, name):
                faults.append((row.line, f"{name}: {getattr(row, name)!r}, but {getattr(head, name)!r} in row "
                               f"{head.line} of the same conversation"))
        if row.timed != head.timed:
            given, other = ("given", "empty") if row.timed else ("empty", "given")
            faults.append((row.line, f"start, end: {given}, but {other} in row {head.line} of the same "
                           "conversation"))
        if row.utterance and joined:
            name = f"{row.conversation}_{row.utterance}"
            if (twin := said.setdefault(name, row)) is not row:
                faults.append((row.line, f"utterance: {name!r} is what row {twin.line} is called, too"))
        untimed = row.path and times_known and not row.timed
        if untimed and (twin := whole.setdefault((row.conversation, row.path), row)) is not row:
            faults.append((row.line, f"path: {row.path!r} is the whole of row {twin.line}, too; give start and "
                           "end, or a file an utterance"))
    for name in ("session", "split"):
        if any(getattr(r, name) for r in rows):
            faults += [(r.line, f"{name}: is empty, but other conversations have one") for r in first.values()
                       if not getattr(r, name)]
