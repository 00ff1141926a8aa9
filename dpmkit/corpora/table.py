"""Tables that people and spreadsheets write: CSV in UTF-8, cells parted by commas, semicolons or tabs.

Python's csv rather than pandas.read_csv: it is strict, and it knows the row of a fault.
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from ..settings import UserError
from . import files

SHOWN = 20  # faults in a message
Row = TypeVar("Row", bound=BaseModel)
Faults = list[tuple[int, str]]  # a row, from 1 as a spreadsheet counts, and what is wrong there
SingleBlanks = BeforeValidator(lambda cell: " ".join(cell.split()))
Words = Annotated[str, SingleBlanks]
Name = Annotated[str, Field(min_length=1), SingleBlanks]


def read(path: Path, row: type[Row]) -> tuple[dict[int, Row], Faults]:
    """Row number -> its cells by column, as the fields of `row` have them; and what is wrong with the others.

    Columns stand in any order and case; those of no field, empty rows and empty cells beyond the header are left
    out. Raises UserError for a file that cannot be read or is no table, and for a column that is missing or twice.
    """
    text = files.read(path).decode("utf-8-sig", "replace")
    if spoiled := re.search("[\0\ufffd]", text):
        raise UserError(f"{path}, row {1 + text.count(chr(10), 0, spoiled.start())}, is not text in UTF-8: save it "
                        "as UTF-8 (Excel: 'CSV UTF-8')")
    delimiter = max(",;\t", key=text.lstrip().partition("\n")[0].count)
    lines = csv.reader(io.StringIO(files.plain(text), newline=None), delimiter=delimiter, strict=True,
                       skipinitialspace=True)
    number, filled = 0, {}
    try:
        for number, line in enumerate(lines, 1):
            filled[number] = [cell.strip() for cell in line]
    except csv.Error as error:
        raise UserError(f"{path}, row {number + 1}, is no row of a table ({error}): a quotation mark must be "
                        "closed, or doubled within a cell") from None
    filled = {number: cells for number, cells in filled.items() if any(cells)}
    spelt = {name.casefold(): name for name in row.model_fields}
    header = [spelt.get(cell.casefold(), cell) for cell in filled.pop(min(filled, default=0), [])]
    if lacking := [name for name, field in row.model_fields.items()
                   if header.count(name) not in ((1,) if field.is_required() else (0, 1))]:
        raise UserError(f"{path} has no column {', '.join(lacking)}, or several; its columns are "
                        f"{', '.join(header)[:200] or 'none'}")
    if not filled:
        raise UserError(f"{path} has no row below its header: write one for each turn, or fetch it again")
    rows: dict[int, Row] = {}
    faults: Faults = []
    for number, cells in filled.items():
        if len(cells) < len(header) or any(cells[len(header):]):
            faults.append((number, f"{len(cells)} cells, where the header has {len(header)}"))
            continue
        try:
            rows[number] = row.model_validate(dict(zip(header, cells, strict=False)))
        except ValidationError as error:
            faults += [(number, f"{fault['loc'][0]}: {str(fault['input'])[:40]!r}: {fault['msg'].lower()}")
                       for fault in error.errors()]
    return rows, faults


def refuse(path: Path, faults: Faults, cure: str) -> None:
    """UserError that names the first of a table's faults by row, if it has any."""
    if faults:
        shown = [f"  row {row}, {words}" for row, words in sorted(faults, key=lambda f: f[0])[:SHOWN]]
        shown += [f"  … and {len(faults) - SHOWN} more"] * (len(faults) > SHOWN)
        raise UserError("\n".join([f"{path} has {len(faults)} fault(s); {cure}:", *shown]))
