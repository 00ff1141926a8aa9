"""A grid of runs, a cell each fold and seed, as tasks of Ray: here, or on a cluster that shares the folder."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from . import reproduce
from .settings import Settings, UserError

LOCAL = "local"  # address of a Ray that is started here, with all processors of this machine


def _cell(settings: Settings, notebooks: Sequence[str], overrides: dict[str, Any]) -> None:
    reproduce.run(settings, notebooks, overrides)


def run(cells: Sequence[Settings], notebooks: Sequence[str], overrides: dict[str, Any], address: str = LOCAL,
        work: Callable[[Settings, Sequence[str], dict[str, Any]], None] = _cell) -> dict[str, str]:
    """Run `reproduce.run` for every cell on Ray; the records are those of a sequential run. Returns run name ->
    what went wrong, of the cells that failed; the others' results stand.

    A cell whose worker dies is tried again; its finished stages are kept, as are all when this process is killed
    and started again. A cell takes `grid.cpus` processors and `grid.gpus` GPUs.
    Raises UserError where Ray is not installed or does not answer at `address` (host:port, or ray://host:port).
    """
    ray = _started(address)
    try:
        at = cells[0].grid
        task = ray.remote(num_cpus=at.cpus, num_gpus=at.gpus, max_retries=at.retries, max_calls=1)(work)
        pending = {task.remote(cell, tuple(notebooks), overrides): cell.run_name for cell in cells}
        failed: dict[str, str] = {}
        while pending:
            (done,), _ = ray.wait(list(pending), num_returns=1)
            name, said = pending.pop(done), "done"
            try:
                ray.get(done)
            except ray.exceptions.RayTaskError as error:
                failed[name] = said = str(error.cause)
            except ray.exceptions.RayError as error:
                failed[name] = said = f"its worker died {at.retries + 1} times ({str(error).splitlines()[0]})"
            print(f"[{len(cells) - len(pending)}/{len(cells)}] {name}: {said}", file=sys.stderr, flush=True)
        return failed
    finally:
        ray.shutdown()


def _started(address: str) -> Any:
    """The module ray, connected."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError(f'--ray needs Ray: pip install "dpmkit[ray]" ({error})') from error
    quiet = {"include_dashboard": False} if address == LOCAL else {"address": address}
    if address != LOCAL:
        _answers(address)
    try:
        ray.init(log_to_driver=False, logging_level="error", **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise UserError(f"--ray: no Ray cluster answers at {address!r}: start one (ray start --head) and give its "
                        f"address ({str(error).splitlines()[0][:160]})") from error
    return ray


def _answers(address: str) -> None:
    # Ray itself would try for a minute.
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        raise UserError(f"--ray takes host:port or ray://host:port of a cluster, or nothing for this machine, not "
                        f"{address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise UserError(f"--ray: nothing answers at {address!r} ({error}): start a cluster there (ray start "
                        "--head), or leave the address out to use this machine") from error
