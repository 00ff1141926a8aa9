"""Artefacts of a run: where each one lies, when it may be reused, and how it is written.

Every stage (corpus, codes, SLLM, predictions, …) owns a folder `runs/<stage>/<key>/`. The key is a hash of the
settings that the stage reads, the keys of what it was made from, and the code of the modules that make it, so
that an artefact is reused exactly when it would come out the same. Writes are atomic: a kill or a full disk
leaves the old file or none.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from .settings import Settings, UserError

if TYPE_CHECKING:
    import torch


def code_version(*modules: ModuleType) -> str:
    """A hash of the modules' syntax trees: comments and layout do not count, anything else does."""
    trees = [ast.dump(ast.parse(Path(m.__file__).read_text(encoding="utf-8"))) for m in modules]
    return hashlib.sha256("\n".join(trees).encode()).hexdigest()[:12]


def key(*parts: Any) -> str:
    """A short hash of settings (dataclasses), upstream keys and plain values."""
    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return dataclasses.asdict(value)
        raise TypeError(f"cannot hash {type(value).__name__}")

    text = json.dumps(parts, sort_keys=True, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def folder(settings: Settings, stage: str, stage_key: str) -> Path:
    """`runs/<stage>/<key>/`, made if absent; UserError where it cannot be made."""
    path = settings.home_path / "runs" / stage / stage_key
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {path}: {error.strerror}; give a writable folder as home=…") from error
    return path


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
    return found


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
