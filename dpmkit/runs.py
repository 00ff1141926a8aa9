"""Artefacts of a run: where each one lies, when it may be reused, who makes it, and how it is written.

Every stage (corpus, codes, SLLM, predictions, …) owns a folder `runs/<stage>/<key>/`. The key is a hash of the
settings that the stage reads, the keys of what it was made from, and the code that makes it: an artefact is reused
exactly when it would come out the same. `made.json` beside it says all this in words, with the packages, machine
and commit that made it. Of two processes that want one artefact, one waits for the other. Writes are atomic: a kill
or a full disk leaves the old file or none.
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
from typing import Any, NamedTuple

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

    Nothing is listed by hand: every name that a definition mentions is followed, through imports, to what defines
    it, and what a file runs as it is imported counts with anything of that file. Left out are CARRIERS: settings
    enter a key by value, and the others put things where they belong as they are. A name that is made at run time,
    as by `import_module`, cannot be seen: who does that gives what it found as one more maker.
    """
    todo = [(maker.__module__, maker.__qualname__.partition(".")[0]) for maker in makers]
    found: set[Place] = set()
    while todo:
        module, name = place = todo.pop()
        if place in found or module in CARRIERS or not _file(module):
            continue
        found.add(place)
        todo.append((module, ""))
        for mentioned in parsed(module)[0][name].mentions:
            todo += _meant(module, mentioned)
    text = "\n".join(f"{module}:{name}:{parsed(module)[0][name].syntax}" for module, name in sorted(found))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@cache
def _file(module: str) -> Path | None:
    """The file of a module of this package; None where there is no such module."""
    package, *names = module.split(".")
    place = Path(__file__).parent.joinpath(*names)
    files = (place / "__init__.py", place.with_suffix(".py")) if package == __package__ else ()
    return next((file for file in files if file.is_file()), None)


class Part(NamedTuple):
    """The statements that define one name of a file."""

    syntax: str
    mentions: frozenset[tuple[str, ...]]


@cache
def parsed(module: str) -> tuple[dict[str, Part], dict[str, Place]]:
    """A file taken apart: name -> what defines it ("": what else runs on its import), and name -> where it comes
    from, of what is imported from this package."""
    file, statements, imported = _file(module), {"": []}, {}
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
            statements.setdefault(name, []).append(node)
    parts = {name: Part("\n".join(map(ast.dump, nodes)), frozenset(m for node in nodes for m in _mentions(node)))
             for name, nodes in statements.items()}
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
    """A short hash of settings (dataclasses), upstream keys and plain values."""
    return hashlib.sha256(_text(parts).encode()).hexdigest()[:12]


def _text(value: Any) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, Group):
            return dict(value)
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
            first = self._lock(lock, many)
            absent = not all(file.is_file() for file in files)
            if absent and first:
                write_json(self.folder / "made.json", {
                    "stage": self.stage, "key": self.key, **_origin(), "inputs": json.loads(_text(self.inputs)),
                    "made": datetime.now(UTC).isoformat(timespec="seconds")})
            yield absent
        finally:
            lock.release()

    def _lock(self, lock: FileLock, many: bool) -> bool:
        """Wait for the lock; whether this process holds it, and not only the main one of `many`."""
        main, waits = True, False
        if many:
            from accelerate import PartialState
            from accelerate.utils import broadcast_object_list

            main = PartialState().is_main_process
        while True:
            got = [False]
            try:
                if main:
                    lock.acquire(timeout=60 if waits else 0, poll_interval=0.2)
                    got = [True]
            except Timeout:
                pass
            except OSError as error:
                raise UserError(f"cannot write into {self.folder}: {error.strerror}; give a writable folder as "
                                "home=…") from error
            if (broadcast_object_list(got) if many else got)[0]:  # in steps: a barrier of hours would be given up
                return main
            if main and not waits:
                print(f"waiting for another process that makes {self.folder}", file=sys.stderr, flush=True)
            waits = True


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


@cache
def _origin() -> dict[str, Any]:
    return origin()


def world() -> int:
    """Processes of this run, as torchrun counts them."""
    return int(os.environ.get("WORLD_SIZE", 1))


# -- files ---------------------------------------------------------------------

@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved onto it when the block ends well, removed when it does not; the block
    makes a file there, or a folder.

    The temporary name keeps the suffix, as writers choose the format by it. An OSError (full disk, read-only
    folder) becomes a UserError that names the file.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # safetensors has its own for a full disk
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {path}: {reason}; free some disk or give a writable folder as home=…, then "
                        "run again: finished work is kept") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # leaves a file alone
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """JSON, indented, keys in their order, written atomically. NaN is refused: a record must be readable."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
                             encoding="utf-8")
