"""Artefacts of a run: where each one lies, when it may be reused, who makes it, and how it is written.

Every stage (corpus, codes, SLLM, predictions, …) owns a folder `runs/<stage>/<key>/`. The key is a hash of the
settings that the stage reads, the keys of what it was made from, and the code that makes it: an artefact is reused
exactly when it would come out the same. `made.json` beside it says all this in words. Of two processes that want
one artefact, one waits for the other. A kill or a full disk leaves the old file or none.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from .machine import origin
from .settings import Group, Settings, UserError

# -- the code that makes an artefact -------------------------------------------

Place = tuple[str, str]  # a module and a name defined in it; no name: what else runs on its import
CARRIERS = tuple(f"{__package__}.{name}" for name in ("runs", "machine", "settings"))


@cache
def code_version(*makers: Callable) -> str:
    """A hash of what runs from these functions and classes, without comments, layout and docstrings.

    Every name that a definition mentions is followed, through imports, to what defines it; what else its file runs
    on import counts, too. Left out are CARRIERS: settings enter a key by value, the others only put things in their
    place. A name made at run time, as by `import_module`, is not seen: give what it stands for as one more maker.
    """
    todo = [(maker.__module__, maker.__qualname__.partition(".")[0]) for maker in makers]
    found: dict[Place, str] = {}
    while todo:
        module, name = place = todo.pop()
        if place not in found and module not in CARRIERS and _file(module):
            part = parsed(module)[0][name]
            found[place] = ast.dump(part)
            todo += [(module, ""), *(place for mention in _mentions(part) for place in _meant(module, mention))]
    text = "\n".join(f"{module}:{name}:{syntax}" for (module, name), syntax in sorted(found.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@cache
def _file(module: str) -> Path | None:
    """The file of a module of this package; None where there is no such module."""
    package, *names = module.split(".")
    place = Path(__file__).parent.joinpath(*names)
    files = (place / "__init__.py", place.with_suffix(".py")) if package == __package__ else ()
    return next((file for file in files if file.is_file()), None)


@cache
def parsed(module: str) -> tuple[dict[str, ast.Module], dict[str, Place]]:
    """A file taken apart: name -> the statements that define it ("": what else runs on its import), and name ->
    where it comes from, of what is imported from this package."""
    file, parts, imported = _file(module), {"": ast.Module([], [])}, {}
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = resolve_name("." * node.level + (node.module or ""), package)
            imported |= {alias.asname or alias.name: (base, alias.name) for alias in node.names}
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    for node in tree.body:
        names = []
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            names = [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            continue
        for name in names or [""]:
            parts.setdefault(name, ast.Module([], [])).body.append(node)
    return parts, imported


def _mentions(node: ast.AST) -> Iterator[tuple[str, ...]]:
    """The names in a piece of code, each with the attribute that is asked of it: `audio.read(x)` has two."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        yield node.value.id, node.attr
    elif isinstance(node, ast.Name):
        yield (node.id,)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _mentions(child)


def _meant(module: str, mentioned: tuple[str, ...]) -> list[Place]:
    """What a mention stands for: a definition, or all of a module that is passed on as it is."""
    for name in mentioned:
        while name not in parsed(module)[0] and name in parsed(module)[1] and not _file(f"{module}.{name}"):
            module, name = parsed(module)[1][name]
        if not _file(f"{module}.{name}"):
            return [(module, name)] if name in parsed(module)[0] else []
        module = f"{module}.{name}"
    return [(module, name) for name in parsed(module)[0]]


# -- artefacts -----------------------------------------------------------------

def key(*parts: Any) -> str:
    """A short hash of settings, other dataclasses, upstream keys and plain values."""
    return hashlib.sha256(_text(parts).encode()).hexdigest()[:12]


def _text(value: Any) -> str:
    def fields(value: Any) -> dict[str, Any]:
        return dict(value) if isinstance(value, Group) else dataclasses.asdict(value)

    return json.dumps(value, sort_keys=True, default=fields)


def folder(settings: Settings, stage: str, stage_key: str) -> Path:
    """`runs/<stage>/<key>/`, made if absent; UserError where it cannot be made."""
    path = settings.home_path / "runs" / stage / stage_key
    with _writing(path):
        path.mkdir(parents=True, exist_ok=True)
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
        does so meanwhile: one that comes later waits, and finds them made. Where the processes of one run make them
        `together`, the main one locks for all. UserError for a folder that is read-only."""
        many, main = together and world() > 1, True
        if not many and all(file.is_file() for file in files):
            yield False
            return
        if many:
            from accelerate import PartialState

            main = PartialState().is_main_process
        lock = FileLock(self.folder / ".lock", poll_interval=0.2)
        try:
            if main:
                with _writing(self.folder):
                    self._acquire(lock)
            if many:
                PartialState().wait_for_everyone()
            absent = not all(file.is_file() for file in files)
            if absent and main:
                write_json(self.folder / "made.json", {
                    "stage": self.stage, "key": self.key, **origin(), "inputs": json.loads(_text(self.inputs)),
                    "made": datetime.now(UTC).isoformat(timespec="seconds")})
            yield absent
        finally:
            lock.release()

    def _acquire(self, lock: FileLock) -> None:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            print(f"waiting for another process that makes {self.folder}", file=sys.stderr, flush=True)
            lock.acquire()


def artefact(settings: Settings, stage: str, *makers: Callable, **inputs: Any) -> Artefact:
    """The artefact of a stage that these functions and classes make from these inputs."""
    inputs["code"] = code_version(*makers)
    stage_key = key(stage, inputs)
    return Artefact(stage, stage_key, folder(settings, stage, stage_key), inputs)


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


# -- files ---------------------------------------------------------------------

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
