"""Work shared out to Ray: on this machine, or on a cluster whose machines share the project folder."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .sections import GridSettings
from .settings import UserError

LOCAL = "local"  # address of a Ray that is started here, with all processors of this machine


def results(work: Callable, calls: Sequence[tuple], address: str, at: GridSettings, shared: tuple = ()
            ) -> Iterator[tuple[int, Any, str]]:
    """Run `work(*shared, *call)` for every call as a task of Ray: (number of the call, what it returned, what went
    wrong or ""), as they end.

    A task takes `at.cpus` processors and `at.gpus` GPUs; one whose worker dies is tried `at.retries` times more.
    Raises UserError where Ray is not installed or does not answer at `address` (host:port, or ray://host:port).
    """
    ray = _started(address)
    _fits(ray, at)
    task = ray.remote(num_cpus=at.cpus, num_gpus=at.gpus, max_retries=at.retries)(work)
    sent = [ray.put(value) for value in shared]  # once, whatever number of tasks needs it
    pending = {task.remote(*sent, *call): number for number, call in enumerate(calls)}
    while pending:
        (done,), _ = ray.wait(list(pending), num_returns=1)
        number, made, wrong = pending.pop(done), None, ""
        try:
            made = ray.get(done)
        except ray.exceptions.RayTaskError as error:
            wrong = str(error.cause)
        except ray.exceptions.RayError as error:
            wrong = f"its worker died {at.retries + 1} times ({str(error).splitlines()[0]})"
        yield number, made, wrong


def _started(address: str) -> Any:
    """The module ray, connected: once a process, which spares each later call some ten seconds."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    told = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ)
    if address != LOCAL and (told or Path("~/.ray/auth_token").expanduser().exists()):
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray 2.60 itself asks an address before it looks for one
    try:
        import ray
    except ImportError as error:
        raise UserError(f'Ray is not installed: pip install "dpmkit[ray]" ({error})') from error
    if address != LOCAL:
        _answers(address)
    if ray.is_initialized():
        return ray
    for attempt in (1, 2):
        try:
            ray.init(address, log_to_driver=False, logging_level="error",
                     **({"include_dashboard": False} if address == LOCAL else {}))
            return ray
        except Exception as error:  # Ray raises bare ones, e.g. of a node that took too long to start
            ray.shutdown()
            if "AF_UNIX" in str(error):
                raise UserError(f"Ray's sockets need a shorter folder than {tempfile.gettempdir()}: set "
                                "TMPDIR=/tmp, then run again") from error
            if address == LOCAL and attempt == 1:
                time.sleep(5)  # what a killed run left behind goes by itself
                continue
            cure = ("`ray stop --force` removes what an earlier run left behind" if address == LOCAL
                    else "start a cluster there (ray start --head)")
            raise UserError(f"no Ray answers at {address!r}: {cure}; finished work is kept "
                            f"({(str(error).splitlines() or [type(error).__name__])[0][:160]})") from error


def _fits(ray: Any, at: GridSettings) -> None:
    # Ray would wait for ever for a machine that is large enough.
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= at.cpus and node.get("GPU", 0) >= at.gpus for node in nodes):
        there = "; ".join(f"{node.get('CPU', 0):g} processors and {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise UserError(f"no machine of Ray has the {at.cpus} processors and {at.gpus:g} GPUs that one task asks "
                        f"for (there: {there}): lower grid.cpus or grid.gpus, or add a larger machine")


def _answers(address: str) -> None:
    # Ray itself would try for a minute.
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        raise UserError(f"an address of Ray is host:port or ray://host:port of a cluster, or {LOCAL} for "
                        f"this machine, not {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise UserError(f"nothing answers at {address!r} ({error}): start a cluster there (ray start --head), or "
                        f"give {LOCAL} to use this machine") from error
