"""Tables that people and spreadsheets write: CSV in UTF-8, cells parted by commas, semicolons or tabs.

Python's csv rather than pandas.read_csv: it is strict, and it knows the row of a fault.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from ..settings import UserError
from .files import plain

SHOWN = 20  # faults in a message
SPOILED = re.compile("[\0\udc80-\udcff\ufffd]")  # NUL, bytes that are not UTF-8, characters lost before

Faults = list[tuple[int, str]]  # a row, from 1 as a spreadsheet counts, and what is wrong there


def read(path: Path, needed: Sequence[str]) -> tuple[dict[int, dict[str, str]], Faults]:
    """Row -> its cells by column, as text without blanks around it; and rows that have not the header's number.

    Columns stand in any order and case. Empty rows and empty cells beyond the header are left out. Raises UserError
    for a file that cannot be read or is no table, and where a needed column is missing or stands there twice.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; make it readable, or put it there") from None
    if spoiled := SPOILED.search(text):
        raise UserError(f"{path}, row {1 + text.count(chr(10), 0, spoiled.start())}, is not text in UTF-8: save it "
                        "as UTF-8 (Excel: 'CSV UTF-8')")
    delimiter = max(",;\t", key=text.lstrip().partition("\n")[0].count)
    lines = csv.reader(io.StringIO(plain(text), newline=None), delimiter=delimiter, strict=True,
                       skipinitialspace=True)
    spelt, header, number, rows, faults = {c.casefold(): c for c in needed}, [], 0, {}, []
    try:
        for number, line in enumerate(lines, 1):
            cells = [cell.strip() for cell in line]
            if not any(cells):
                continue
            if not header:
                header = [spelt.get(cell.casefold(), cell.casefold()) for cell in cells]
            elif len(cells) < len(header) or any(cells[len(header):]):
                faults.append((number, f"{len(cells)} cells, where the header has {len(header)}"))
            else:
                rows[number] = dict(zip(header, cells, strict=False))
    except csv.Error as error:
        raise UserError(f"{path}, row {number + 1}, is no row of a table ({error}): a quotation mark must be "
                        "closed, or doubled within a cell") from None
    if lacking := [column for column in needed if header.count(column) != 1]:
        raise UserError(f"{path} has no column {', '.join(lacking)}, or several; its columns are "
                        f"{', '.join(header)[:200] or 'none'}")
    if not rows and not faults:
        raise UserError(f"{path} has no row below its header: write one for each turn, or fetch it again")
    return rows, faults


def refusal(head: str, faults: Faults) -> UserError:
    """The error that names all faults of a table: `head`, then the first ones by row."""
    shown = [f"  row {row}, {words}" for row, words in sorted(faults, key=lambda f: f[0])[:SHOWN]]
    return UserError("\n".join([head, *shown, *[f"  … and {len(faults) - SHOWN} more"] * (len(faults) > SHOWN)]))
