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
Place = tuple[str, str]  # a module and a name defined in it; no name: the module itself


@dataclass(frozen=True)
class Module:
    """One file: what defines each name, where imported names come from, and what else it runs when imported."""

    defined: dict[str, list[ast.stmt]]
    imported: dict[str, Place]
    loose: list[ast.stmt]


@cache
def version(*makers: Callable) -> str:
    """A hash of what runs from these functions and classes, of the syntax alone: no comment, layout or docstring.
    Makers from outside the package have no version."""
    return hashed(_module, *makers)


def hashed(read: Callable[[str], Module], *makers: Callable) -> str:
    """`version`, of files as `read` gives them."""
    digest = hashlib.sha256()
    for module, name in sorted(reached(read, *makers)):
        for statement in read(module).defined[name] if name else read(module).loose:
            digest.update(f"{module}:{name}:{ast.dump(statement)}\n".encode())
    return digest.hexdigest()[:12]


def reached(read: Callable[[str], Module], *makers: Callable) -> set[Place]:
    """Every definition that runs from the makers; (module, "") stands for what else the module runs."""
    carriers = _carriers()
    todo = [(m.__module__, m.__qualname__.partition(".")[0]) for m in makers
            if m.__module__.partition(".")[0] == PACKAGE]
    found: set[Place] = set()
    while todo:
        place = todo.pop()
        if place in found or place[0] in carriers:
            continue
        found.add(place)
        module, name = place
        todo += [(module, "")] if name else []
        for statement in read(module).defined[name] if name else read(module).loose:
            todo += _mentioned(read, module, statement)
    return found


def _mentioned(read: Callable[[str], Module], module: str, statement: ast.stmt) -> Iterator[Place]:
    """What the names of a statement stand for; a module that is passed on as a value is all that it defines."""
    nodes = list(ast.walk(statement))
    owners = {id(n.value) for n in nodes if isinstance(n, ast.Attribute)}
    for node in nodes:
        place = _place(read, module, node)
        if place and place[1]:
            yield place
        elif place and id(node) not in owners:
            yield from ((place[0], name) for name in read(place[0]).defined)


def _place(read: Callable[[str], Module], module: str, node: ast.AST) -> Place | None:
    if isinstance(node, ast.Name):
        return _found(read, module, node.id)
    if isinstance(node, ast.Attribute):
        owner = _place(read, module, node.value)
        return _found(read, owner[0], node.attr) if owner and not owner[1] else None
    return None


def _found(read: Callable[[str], Module], module: str, name: str) -> Place | None:
    """What a name means in a module, through as many imports as it takes; None outside the package."""
    while name not in read(module).defined:
        if name not in read(module).imported:
            return (f"{module}.{name}", "") if _path(f"{module}.{name}") else None
        module, name = read(module).imported[name]
        if not name or _path(f"{module}.{name}"):
            return f"{module}.{name}".rstrip("."), ""
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


def parsed(name: str, text: str) -> Module:
    """A module's file, taken apart."""
    tree, defined, imported, loose = ast.parse(text), {}, {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            imported |= _imported(name, node)
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for part in (n for n in ast.walk(target) if isinstance(n, ast.Name)):
                    defined.setdefault(part.id, []).append(node)
        elif not (isinstance(node, ast.Import | ast.ImportFrom)
                  or (isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING")):
            loose.append(node)
    return Module(defined, imported, loose)


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
