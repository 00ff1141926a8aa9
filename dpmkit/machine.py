"""What a process runs on: how its threads wait, which device, in which digits; and what a record says of it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from .settings import Settings, UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

# OpenMP asks once how threads wait for one another, when torch loads it. By default they spin: fastest on a quiet
# machine; beside a busy process each spins in the time slices that the others need (see `bench reproduce`).
NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
QUIET = {"GOMP_SPINCOUNT": "10000"}  # turns of the loop before a thread sleeps; libgomp's own are 300,000
BUSY = {"OMP_WAIT_POLICY": "PASSIVE"}  # sleeps at once
MARK = "DPMKIT_CHOSE_WAITING"  # the choice is this kit's, so that a child process may choose anew
SAMPLE = 0.1  # seconds
PACKAGES = ("dpmkit", "torch", "transformers", "peft", "accelerate", "torchaudio", "numpy", "pandas",
            "scikit-learn", "papermill", "espeakng-loader", "soundfile", "av", "silero-vad", "s3tokenizer")


def choose(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set how OpenMP's threads wait in this process and those that it starts, by whether others keep more than half
    a processor busy just now. Numbers do not depend on it. A user's own setting stays; too late after torch."""
    asked = any(name in environment for name in NAMES) and MARK not in environment
    if asked or environment.get("OMP_NUM_THREADS") == "1" or "torch" in sys.modules:
        return
    for name in NAMES:
        environment.pop(name, None)
    others = psutil.cpu_percent(SAMPLE) / 100 * (psutil.cpu_count() or 1)  # this process sleeps meanwhile
    environment.update(BUSY if others > 0.5 else QUIET, **{MARK: "1"})


def device(settings: Settings) -> torch.device:
    """`settings.device`, where "auto" is the GPU if there is one; UserError for one that is not there."""
    import torch

    name, gpus = settings.device, torch.cuda.device_count()
    try:
        found = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError:
        found = None
    if found is None or (found.type == "cuda" and (found.index or 0) >= gpus):
        raise UserError(f"setting device is {name!r}, but torch sees {gpus} GPU(s): use auto, cpu, cuda or cuda:0")
    if found.index is not None:  # for all that names no device: synchronisation, memory counters, records
        torch.cuda.set_device(found)
    return found


@contextmanager
def tf32(model: nn.Module) -> Iterator[None]:
    """Float32 products on tensor cores where a bfloat16 model is on a GPU: PEFT keeps its adapters in float32, at a
    fifteenth of the card's rate, for no more digits than the sums have."""
    import torch

    before, weight = torch.get_float32_matmul_precision(), next(model.parameters())
    if weight.device.type == "cuda" and weight.dtype == torch.bfloat16:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, for work too small to share (two beside a busy process are ten times slower); afterwards
    on as many as before, whatever a library imported meanwhile has set."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def version(package: str) -> str:
    """A package's version; `?` for one that is not installed or runs from its folder, as this kit may."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "?"


@cache
def origin() -> dict[str, Any]:
    """`packages` (versions, less extras that are not installed), `machine` and `commit`: what makes this process'
    artefacts and records."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")  # elsewhere platform knows the processor's name
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""
    names = re.findall(r"^model name\s*: (.*)$", text, re.MULTILINE)
    hardware = {"processor": (names or [platform.processor()])[0], "threads": torch.get_num_threads(),
                "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
                "python": platform.python_version()}
    packages = {name: version(name) for name in PACKAGES if version(name) != "?"}
    return {"packages": packages, "machine": hardware, "commit": commit()}


def commit() -> str:
    """The checkout's commit, with `+changes` where the code differs from it; `unknown` outside a checkout."""
    git = ["git", "-C", str(Path(__file__).resolve().parent.parent)]
    try:
        changed, head = (subprocess.run([*git, *asked], capture_output=True, text=True, check=True).stdout.strip()
                         for asked in (["status", "--porcelain", "--", "dpmkit", "notebooks", "requirements.lock"],
                                       ["rev-parse", "--short=12", "HEAD"]))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if changed else "")
