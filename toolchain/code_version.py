"""The version of a stage's code, found and not stated, so that it cannot be forgotten.

It is a digest of everything that the stage's function can run: its own source, what it uses of its module, and every
module of this project that these import, followed through to the end. Imports inside functions count, and so do
modules that are only named in a string ("toolchain.convert:main", for a child process). Other people's libraries
count with their versions.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

_OURS = ("toolchain", "benchmarks", "deploy")
_ROOT = Path(__file__).resolve().parents[1]
#: Distributions by the name that is imported, where the two differ.
_DISTRIBUTIONS = {
    "cv2": ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python"),
    "PIL": ("pillow",),
    "yaml": ("pyyaml",),
}
#: Their version changes what is seen and never what is computed.
_DISPLAY_ONLY = frozenset({"click", "rich", "jinja2"})
_NAMED_MODULE = re.compile(rf"({'|'.join(_OURS)})(\.\w+)+(?=:\w+$|$)")


@functools.cache
def code_version(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """SHA-256 (hex) of all source of ours that the function can run, and the versions of the libraries of others in
    it."""
    modules, foreign = set(), set()
    source = list(_own_source(function))
    waiting = [name for part in source for name in _imported(ast.parse(part), function.__module__)]
    while waiting:
        name = waiting.pop()
        path = _file_of(name)
        if path is None:
            top = name.partition(".")[0]
            if top not in _OURS and top not in sys.stdlib_module_names and top not in _DISPLAY_ONLY:
                foreign.add(top)
        elif path not in modules:
            modules.add(path)
            waiting.extend(_imports_of_file(path))
    digest = hashlib.sha256("\0".join(source).encode())
    for path in sorted(modules):
        digest.update(f"\0{path.relative_to(_ROOT).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest(), {name: _version(name) for name in sorted(foreign)}


def _own_source(function: Callable[..., Any]) -> Iterator[str]:
    """The source of the function and of every statement of its module's top level that it uses, directly or not."""
    module = sys.modules[function.__module__]
    text = Path(inspect.getsourcefile(function) or "").read_text(encoding="utf-8")
    defined: dict[str, list[ast.stmt]] = {}
    for statement in ast.parse(text).body:
        for name in _names_bound(statement):
            defined.setdefault(name, []).append(statement)
    done: set[str] = set()
    waiting = [function.__name__]
    if function.__name__ not in defined:
        raise ValueError(
            f"a stage is a function at the top level of its module; {function.__qualname__} of {module.__name__} is not"
        )
    while waiting:
        name = waiting.pop()
        if name in done or name not in defined:
            continue
        done.add(name)
        for statement in defined[name]:
            yield ast.unparse(statement)
            waiting.extend(node.id for node in ast.walk(statement) if isinstance(node, ast.Name))


def _names_bound(statement: ast.stmt) -> list[str]:
    match statement:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return [alias.asname or alias.name.partition(".")[0] for alias in names]
    return [node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]


def _imported(tree: ast.AST, module: str) -> Iterator[str]:
    """Dotted names of all that the source imports or names as a module of ours in a string."""
    package = module if (_ROOT / module.replace(".", "/") / "__init__.py").is_file() else module.rpartition(".")[0]
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=source, names=names, level=level):
                base = importlib.util.resolve_name("." * level + (source or ""), package) if level else source or ""
                yield base
                yield from (f"{base}.{alias.name}" for alias in names if _file_of(f"{base}.{alias.name}"))
            case ast.Constant(value=str() as text):
                if found := _NAMED_MODULE.match(text):
                    yield found.group()


@functools.cache
def _imports_of_file(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(_ROOT).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return tuple(_imported(ast.parse(path.read_text(encoding="utf-8")), module))


@functools.cache
def _file_of(name: str) -> Path | None:
    """The source file of a module of ours."""
    if name.partition(".")[0] not in _OURS:
        return None
    place = _ROOT.joinpath(*name.split("."))
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return path
    return None


@functools.cache
def _version(name: str) -> str:
    for distribution in _DISTRIBUTIONS.get(name, (name, name.replace("_", "-"))):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"
