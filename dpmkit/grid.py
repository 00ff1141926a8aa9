"""A grid of runs, a cell each fold and seed, as tasks of Ray."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from . import cluster, reproduce
from .settings import Settings


def _cell(notebooks: Sequence[str], overrides: dict[str, Any], settings: Settings) -> None:
    reproduce.run(settings, notebooks, overrides)


def run(cells: Sequence[Settings], notebooks: Sequence[str], overrides: dict[str, Any],
        address: str = cluster.LOCAL,
        work: Callable[[Sequence[str], dict[str, Any], Settings], None] = _cell) -> dict[str, str]:
    """Run `reproduce.run` for every cell on Ray; the records are those of a sequential run. Returns run name ->
    what went wrong, of the cells that failed; the others' results stand.

    A cell whose worker dies is tried again; its finished stages are kept, as are all when this process is killed
    and started again. UserErrors as of `cluster.results`.
    """
    failed: dict[str, str] = {}
    shared = (tuple(notebooks), overrides)
    ended = cluster.results(work, [(cell,) for cell in cells], address, cells[0].grid, shared)
    for count, (number, _, wrong) in enumerate(ended, start=1):
        name = cells[number].run_name
        if wrong:
            failed[name] = wrong
        print(f"[{count}/{len(cells)}] {name}: {wrong or 'done'}", file=sys.stderr, flush=True)
    return failed
