"""Every WA that a record states, from the predictions beside it and without `metrics`' own measures."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dpmkit import metrics, records

# (protocol, name of the predictions) -> WA, of every table that a record of a kind holds.
STATED = {
    "methods": lambda of: {(protocol, row["method"]): row["WA"]
                           for protocol, part in of["protocols"].items() for row in part["methods"]},
    "ablations": lambda of: {
        **{("all-lengths", f"{r['setting']} = {r['value']}: {m}"): r[wa]
           for r in of["rows"] for m, wa in (("dpm", "WA"), ("window", "WA_frozen"))},
        **{("all-lengths", f"test: {r['method']}"): r["WA"] for r in of["final"]},
        **{("all-lengths", f"{r['kind']} {r['level']:g}: {r['method']}".replace(" 0:", ":")): r["WA"]
           for r in of["disturbed"]}},
    "context": lambda of: {("all-lengths", f"{r['tokens']} tokens"): r["WA"] for r in of["windows"]},
    "bench memory": lambda of: {("all-lengths", r["rung"]): r["WA"] for r in of["changes"]},
}


def accuracy(rows: pd.DataFrame) -> float:
    """WA in %."""
    p = rows.filter(like="p_")
    return 100 * (p.columns.str.removeprefix("p_")[p.to_numpy().argmax(1)] == rows["emotion"]).mean()


def checked(root: Path) -> set[Path]:
    """The records of these kinds below a folder of results that have predictions beside them: each WA is theirs,
    and no predictions are there that no table shows."""
    found = set()
    for file in root.rglob("*.json"):
        record: dict[str, Any] = records.read(file)
        if record["kind"] in STATED and file.with_suffix(".parquet").is_file():
            tables = dict(iter(pd.read_parquet(file.with_suffix(".parquet")).groupby("method", sort=False)))
            stated = STATED[record["kind"]](record["results"])
            assert {name for _, name in stated} == tables.keys(), file
            made = {at: accuracy(metrics.targets(tables[at[1]], at[0])) for at in stated}
            assert made == pytest.approx(stated, abs=1e-9), file
            found.add(file)
    return found
