"""Tables that people and spreadsheets write: CSV with commas, semicolons or tabs, in UTF-8 (or UTF-16, marked).

Python's csv rather than pandas.read_csv: it is strict, and it knows the row of a fault.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..settings import UserError
from .files import plain

SHOWN = 20  # faults in a message
NOTHING = ("nan", "none", "null", "n/a", "<na>")  # as programs write an empty cell
SPOILED = re.compile("[\0\udc80-\udcff\ufffd]")  # NUL, bytes that are not UTF-8, characters lost before

Faults = list[tuple[int, str]]  # a row, from 1 as a spreadsheet counts, and what is wrong there


@dataclass(frozen=True)
class Table:
    """Names of the columns, the row that they stand in, the rows below it as row -> cells by column (all text,
    without blanks around it), those of another number of cells, and what parts the cells."""

    header: list[str]
    top: int
    rows: dict[int, dict[str, str]]
    faults: Faults
    delimiter: str


def read(path: Path) -> Table:
    """The table in a file.

    A first line `sep=;`, as for Excel, names the delimiter. Empty rows are left out, and empty cells beyond the
    header's columns. Raises UserError for a file that cannot be read or is empty, and for bytes that are no text.
    """
    raw = data(path)
    marked = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
    text = raw.decode("utf-16", "replace") if marked else raw.decode("utf-8", "surrogateescape")
    text = plain(text.lstrip("\ufeff")).replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise UserError(f"{path} is empty: write a header and a row for each turn, or fetch it again")
    if spoiled := SPOILED.search(text):
        what = ("has a NUL byte, so is no text: save it as CSV" if spoiled[0] == "\0" else
                "is not UTF-8: save the table as UTF-8 (Excel: 'CSV UTF-8')")
        raise UserError(f"{path}, row {1 + text.count(chr(10), 0, spoiled.start())}, {what}")
    mark = re.match(r'\s*"?sep=(.)"?[^\S\n]*\n', text, re.IGNORECASE)
    if mark:
        text = "\n" * mark[0].count("\n") + text[mark.end():]
    delimiter = mark[1] if mark else max(",;\t", key=text.lstrip().partition("\n")[0].count)
    names, top, rows, faults = [], 0, {}, []
    lines, number = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True, skipinitialspace=True), 0
    try:
        for number, cells in enumerate(lines, 1):
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if not names:
                names, top = cells, number
            elif len(cells) < len(names) or any(cells[len(names):]):
                faults.append((number, f"{len(cells)} cells, where the header has {len(names)}"))
            else:
                rows[number] = dict(zip(names, cells, strict=False))
    except csv.Error as error:
        raise UserError(f"{path}, row {number + 1}, is no row of a table ({error}): a quotation mark must be "
                        "closed, or doubled within a cell") from None
    return Table(names, top, rows, faults, delimiter)


def data(path: Path) -> bytes:
    """A table's bytes, or a UserError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; make it readable, or put it there") from None


def refusal(path: Path, faults: Faults, cure: str) -> UserError:
    """The error that names all faults of a table: how many, then the first ones by row."""
    return UserError(listed(f"{path} has {len(faults)} fault(s); {cure}:", faults))


def listed(head: str, faults: Sequence[tuple[int, str]]) -> str:
    """`head` and below it the first faults, in the order of the table."""
    shown = [f"  row {row}, {words}" for row, words in sorted(faults, key=lambda f: f[0])[:SHOWN]]
    return "\n".join([head, *shown, *([f"  … and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else [])])


def name(text: str) -> str:
    """A name with single blanks between its words: others (no-break, doubled) are not seen."""
    return " ".join(plain(text).split())
