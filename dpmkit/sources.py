"""Which code makes an artefact: the functions, classes and constants of this package that run from its maker.

Nothing is listed by hand. The syntax trees of the package's files are read, and every name that a definition
mentions is followed, through imports, to what defines it; annotations count, as an argument's class runs, too. What
a file runs as it is imported counts where anything of that file does.

Left out, by one rule, is the code that only carries: `runs` and the modules that it imports at its top. Settings
enter a key by value, and `runs` puts an artefact where it belongs as it is. What cannot be seen are names made at
run time, as by `import_module`: whoever does that gives what it found as one more maker.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

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
def version(*makers: Callable) -> str:
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
