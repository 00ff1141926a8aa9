"""Artefacts of a run: where each one lies, when it may be reused, who makes it, and how it is written.

Every stage (corpus, codes, SLLM, predictions, …) owns a folder `runs/<stage>/<key>/`. The key is a hash of the
settings that the stage reads, the keys of what it was made from, and the code that makes it (`sources`), so that an
artefact is reused exactly when it would come out the same. `made.json` beside it says all this in words, with the
packages, machine and commit that made it. Of two processes that want one artefact, one waits for the other. Writes
are atomic: a kill or a full disk leaves the old file or none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from . import sources
from .settings import Settings, UserError

if TYPE_CHECKING:
    import torch
    from torch import nn


def key(*parts: Any) -> str:
    """A short hash of settings (dataclasses), upstream keys and plain values."""
    return hashlib.sha256(_text(parts).encode()).hexdigest()[:12]


def _text(value: Any) -> str:
    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return dataclasses.asdict(value)
        raise TypeError(f"cannot hash {type(value).__name__}")

    return json.dumps(value, sort_keys=True, default=plain)


def folder(settings: Settings, stage: str, stage_key: str) -> Path:
    """`runs/<stage>/<key>/`, made if absent; UserError where it cannot be made."""
    path = settings.home_path / "runs" / stage / stage_key
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {path}: {error.strerror}; give a writable folder as home=…") from error
    return path


@dataclasses.dataclass(frozen=True)
class Artefact:
    """A stage's folder, its key, and by name what the key is a hash of."""

    stage: str
    key: str
    folder: Path
    inputs: dict[str, Any]

    @contextmanager
    def making(self, *files: Path, together: bool = False) -> Iterator[bool]:
        """Whether one of these files of the artefact is absent; then the block makes them, and no other process
        does so meanwhile: one that comes later waits, and finds them made. Of a run of several processes that make
        them `together` the main one holds the lock; else each asks for it. UserError for a folder that is
        read-only."""
        many = together and world() > 1
        if not many and all(file.is_file() for file in files):
            yield False
            return
        lock = FileLock(self.folder / ".lock")
        try:
            first = _locked(self, lock, many)
            absent = not all(file.is_file() for file in files)
            if absent and first:
                write_json(self.folder / "made.json", {
                    "stage": self.stage, "key": self.key, **_origin(), "inputs": json.loads(_text(self.inputs)),
                    "made": datetime.now(UTC).isoformat(timespec="seconds")})
            yield absent
        finally:
            lock.release()


def artefact(settings: Settings, stage: str, *makers: Callable, **inputs: Any) -> Artefact:
    """The artefact of a stage that these functions and classes make from these inputs."""
    inputs["code"] = sources.version(*makers)
    stage_key = key(stage, inputs)
    return Artefact(stage, stage_key, folder(settings, stage, stage_key), inputs)


def made(settings: Settings, stage_key: str) -> dict[str, Any]:
    """`packages`, `machine` and `commit` that made the artefact of a key; nothing where none is kept under it."""
    with suppress(StopIteration, OSError, ValueError):
        found = next((settings.home_path / "runs").glob(f"*/{stage_key}/made.json"))
        return {name: value for name, value in json.loads(found.read_text(encoding="utf-8")).items()
                if name in ("packages", "machine", "commit")}
    return {}


def world() -> int:
    """Processes of this run, as torchrun counts them."""
    return int(os.environ.get("WORLD_SIZE", 1))


def _locked(artefact: Artefact, lock: FileLock, many: bool) -> bool:
    """Wait for the lock of an artefact; whether this process holds it, and not only the main one of `many`."""
    main, told = True, False
    if many:
        from accelerate import PartialState
        from accelerate.utils import broadcast_object_list

        main = PartialState().is_main_process
    while True:
        got = [False]
        try:
            if main:
                lock.acquire(timeout=60 if told else 0, poll_interval=0.2)
                got = [True]
        except Timeout:
            pass
        except OSError as error:
            raise UserError(f"cannot write into {artefact.folder}: {error.strerror}; give a writable folder as "
                            "home=…") from error
        if (broadcast_object_list(got) if many else got)[0]:  # in steps: a barrier of hours would be given up
            return main
        if main and not told:
            print(f"waiting for another process that makes {artefact.folder}", file=sys.stderr, flush=True)
        told = True


@cache
def _origin() -> dict[str, Any]:
    from . import records

    return {"packages": records.packages(), "machine": records.machine(), "commit": records.commit()}


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved onto it when the block ends well, removed when it does not.

    The temporary name keeps the suffix, as writers choose the format by it. An OSError (full disk, read-only
    folder) becomes a UserError that names the file.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # safetensors has its own for a full disk
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {path}: {reason}; free some disk or give a writable folder as home=…, then "
                        "run again: finished work is kept") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def device(settings: Settings) -> torch.device:
    """`settings.device`, where "auto" is the GPU if there is one; UserError for one that is not there."""
    import torch

    name = settings.device
    try:
        found = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise UserError(f"setting device {name!r} is not known; use auto, cpu, cuda or cuda:0") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UserError(f"setting device is {name!r}, but torch sees {torch.cuda.device_count()} GPU(s); use auto "
                        "or cpu")
    if found.index is not None:  # for all that names no device: synchronisation, memory counters, records
        torch.cuda.set_device(found)
    return found


def version(package: str) -> str:
    """A package's version; `?` for one that is not installed or runs from its folder, as this kit may."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "?"


@contextmanager
def tf32(model: nn.Module) -> Iterator[None]:
    """Float32 products on tensor cores, where the model is on a GPU and a bfloat16 one: PEFT keeps its adapters in
    float32, at a fifteenth of the card's rate, though what they are added to has fewer digits than TF32. A float32
    model keeps its digits."""
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


def write_json(path: Path, value: Any) -> None:
    """JSON, indented, keys in their order, written atomically. NaN is refused: a record must be readable."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
                             encoding="utf-8")
