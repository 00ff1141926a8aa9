"""Artefacts of a run: where each one lies, when it may be reused, who makes it, and how it is written.

Every stage (corpus, codes, SLLM, predictions, …) owns a folder `runs/<stage>/<key>/`. The key is a hash of the
settings that the stage reads, the keys of what it was made from, and the code that makes it (`sources`), so that an
artefact is reused exactly when it would come out the same. `made.json` beside it says all this in words, with the
packages, machine and commit that made it. Of two processes that want one artefact, one waits for the other. Writes
are atomic: a kill or a full disk leaves the old file or none.

sources: Which code makes an artefact: the functions, classes and constants of this package that run from its maker.

Nothing is listed by hand. The syntax trees of the package's files are read, and every name that a definition
mentions is followed, through imports, to what defines it; annotations count, as an argument's class runs, too. What
a file runs as it is imported counts where anything of that file does.

Left out, by one rule, is the code that only carries: `runs` and the modules that it imports at its top. Settings
enter a key by value, and `runs` puts an artefact where it belongs as it is. What cannot be seen are names made at
run time, as by `import_module`: whoever does that gives what it found as one more maker.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from .settings import Settings, UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

# -- sources -------------------------------------------------------------------

PACKAGE, FOLDER = __package__, Path(__file__).parent
Place = tuple[str, str]  # a module and a name defined in it; no name: what else the module runs when imported


@dataclass(frozen=True)
class Module:
    """One file: name -> the syntax of what defines it, and -> the dotted names that this mentions ("": what else
    runs as it is imported); and where imported names come from."""

    syntax: dict[str, str]
    mentioned: dict[str, set[tuple[str, ...]]]
    imported: dict[str, Place]


@cache
def code_version(*makers: Callable) -> str:
    """A hash of what runs from these functions and classes, of the syntax alone: no comment, layout or docstring.
    Makers from outside the package have no version."""
    return hashed(_module, *makers)


def hashed(read: Callable[[str], Module], *makers: Callable) -> str:
    """`version`, of files as `read` gives them."""
    todo = [(m.__module__, m.__qualname__.partition(".")[0]) for m in makers
            if m.__module__.partition(".")[0] == PACKAGE]
    found: set[Place] = set()
    while todo:
        module, name = place = todo.pop()
        if place in found or module in _carriers():
            continue
        found.add(place)
        todo.append((module, ""))
        todo += [p for dotted in read(module).mentioned[name] for p in _meant(read, module, dotted)]
    text = "\n".join(f"{module}:{name}:{read(module).syntax[name]}" for module, name in sorted(found))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _meant(read: Callable[[str], Module], module: str, dotted: tuple[str, ...]) -> list[Place]:
    """What a dotted name stands for in a module; a module that is passed on as a value is all that it defines."""
    place = (module, "")
    for name in dotted:
        place = _found(read, place[0], name)
        if place is None or place[1]:
            return [place] if place else []
    return [(place[0], name) for name in read(place[0]).syntax]


def _found(read: Callable[[str], Module], module: str, name: str) -> Place | None:
    """What a name means in a module, through as many imports as it takes; None outside the package."""
    while name not in read(module).syntax:
        if name not in read(module).imported:
            return (f"{module}.{name}", "") if _path(f"{module}.{name}") else None
        module, name = read(module).imported[name]
        if _path(f"{module}.{name}"):
            return f"{module}.{name}", ""
    return module, name


@cache
def _carriers() -> frozenset[str]:
    todo, found = {f"{PACKAGE}.runs"}, set()
    while todo:
        found.add(module := todo.pop())
        tree = ast.parse(_path(module).read_text(encoding="utf-8"))
        named = {p for n in tree.body if isinstance(n, ast.ImportFrom) for p in _imported(module, n).values()}
        todo |= {m for place in named for m in (".".join(place), place[0]) if _path(m)} - found - {PACKAGE}
    return frozenset(found)


@cache
def _module(name: str) -> Module:
    return parsed(name, _path(name).read_text(encoding="utf-8"))


def parsed(module: str, text: str) -> Module:
    """A file, taken apart."""
    tree, statements, imported = ast.parse(text), {"": []}, {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            imported |= _imported(module, node)
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
        elif isinstance(node, ast.Import | ast.ImportFrom) or getattr(
                getattr(node, "test", None), "id", "") == "TYPE_CHECKING":
            continue
        else:
            names = [""]
        for name in names:
            statements.setdefault(name, []).append(node)
    syntax = {name: "\n".join(map(ast.dump, nodes)) for name, nodes in statements.items()}
    mentioned = {name: {d for node in nodes for d in _dotted(node)} for name, nodes in statements.items()}
    return Module(syntax, mentioned, imported)


def _dotted(node: ast.AST) -> Iterator[tuple[str, ...]]:
    """Every name in a statement with the attributes that are asked of it: `speech.read(x)` has these two."""
    names, inner = [], node
    while isinstance(inner, ast.Attribute):
        names, inner = [inner.attr, *names], inner.value
    if isinstance(inner, ast.Name):
        yield (inner.id, *names)
    else:
        for child in ast.iter_child_nodes(inner):
            yield from _dotted(child)


def _imported(module: str, node: ast.ImportFrom) -> dict[str, Place]:
    """Name here -> where it comes from, for what comes from this package."""
    if not node.level:
        return {}
    inside = _path(module).name == "__init__.py"
    parts = module.split(".")[:None if inside and node.level == 1 else inside - node.level]
    base = ".".join([*parts, *([node.module] if node.module else [])])
    return {alias.asname or alias.name: (base, alias.name) for alias in node.names}


@cache
def _path(name: str) -> Path | None:
    """The file of a module of this package; None where there is no such module."""
    place = FOLDER.joinpath(*name.split(".")[1:])
    return next((p for p in (place / "__init__.py", place.with_suffix(".py")) if p.is_file()), None)


# -- runs ----------------------------------------------------------------------

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
    inputs["code"] = code_version(*makers)
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
