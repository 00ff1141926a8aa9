"""Processes of their own whose imports are paid once: each is forked from a server that has imported them."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")  # nothing has run in it, so that what it forks is as new
SERVER.set_forkserver_preload(["dpmkit.finetune", "dpmkit.report", "dpmkit.explore", "dpmkit.bench", "in_process"])


def started(log: Path, work: Callable, *given, environment: Mapping[str, str] | None = None,
            folder: Path | None = None) -> BaseProcess:
    """A process that does `work(*given)` in this environment and working folder; what it prints is in `log`."""
    process = SERVER.Process(target=_work, args=(log, work, given, environment or {}, folder or Path.cwd()))
    process.start()
    return process


def ended(process: BaseProcess, seconds: float = 300) -> int:
    """Its exit code: what `work` returned, or less than 0 the signal that killed it."""
    process.join(timeout=seconds)
    return process.exitcode


def _work(log, work, given, environment, folder):
    os.environ.update(environment)
    os.chdir(folder)
    sys.stdout = sys.stderr = open(log, "w", buffering=1)  # noqa: SIM115 (to the end of this process)
    sys.exit(work(*given))
