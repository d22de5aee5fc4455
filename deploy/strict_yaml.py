"""YAML read so that every value knows its line and column, and nothing in it can surprise.

Only plain data: no tags, no anchors, no repeated keys, 64 KiB and 20 levels at most. What the file says is then judged
by others, who ask here for the place of what they refuse.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from deploy.errors import InputError

MAX_BYTES = 64 * 1024
MAX_DEPTH = 20
#: A number to everyone but YAML 1.1, which wants 1.0e-3.
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


@dataclasses.dataclass(frozen=True)
class Places:
    """Line and column, from 1, of every key and list item, by its path of keys and indices."""

    by_path: Mapping[tuple[str | int, ...], tuple[int, int]]

    def line_and_column(self, path: Sequence[str | int]) -> tuple[int, int]:
        """Where that value stands; for one that is missing, where the nearest value around it does."""
        for length in range(len(path), -1, -1):
            if (found := self.by_path.get(tuple(path[:length]))) is not None:
                return found
        return (1, 1)

    def text(self, file: Path, path: Sequence[str | int]) -> str:
        line, column = self.line_and_column(path)
        return f"{file}:{line}:{column}"


def read_yaml(path: Path, what: str, see: str) -> tuple[bytes, Any, Places]:
    """The file's bytes, its value as plain dicts, lists and scalars, and where each stands.

    what: such as "recipe", see: where its form is told, both for errors.

    Raises InputError with the place for a file that is too large, no UTF-8, no YAML, or more than plain data.
    """
    with open(path, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise InputError(f"{path}: a {what} has at most {MAX_BYTES // 1024} KiB; this file is larger")
    try:
        text = content.decode("utf-8-sig")
        _check_events(text, path, what)
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            places: dict[tuple[str | int, ...], tuple[int, int]] = {}
            value = None if node is None else _value(loader, node, (), places, path, what)
        finally:
            loader.dispose()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: a {what} is UTF-8 text, but byte {error.start} is not; save it as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise InputError(f"{path}{place}: this is not YAML: {error.problem or error.context}; correct it") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}: this is not plain YAML: {error}; correct it") from error
    if not isinstance(value, dict):
        raise InputError(
            f"{path}: expected a mapping of keys to values, got {type(value).__name__}; see {see}"
        )
    return content, value, Places(places)


def _check_events(text: str, path: Path, what: str) -> None:
    """Refuses anchors (a few lines of them can stand for gigabytes) and deep nesting before anything is built of
    them."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        mark = event.start_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise InputError(f"{place}: a {what} has no anchors and aliases (& and *); write the value out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise InputError(f"{place}: a {what} is at most {MAX_DEPTH} levels deep; this is deeper")


def _value(
    loader: Any, node: yaml.Node, at: tuple[str | int, ...], places: dict[Any, tuple[int, int]], path: Path, what: str
) -> Any:
    """The node as plain data. Keys are strings; each may stand once."""
    places.setdefault(at, (node.start_mark.line + 1, node.start_mark.column + 1))
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        return [_value(loader, item, (*at, index), places, path, what) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = f"{path}:{key_node.start_mark.line + 1}:{key_node.start_mark.column + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                raise InputError(f"{place}: a key is a plain word; got a {key_node.id}")
            if key_node.value in result:
                first = places[(*at, key_node.value)][0]
                raise InputError(f"{place}: the key {key_node.value!r} stands twice, first on line {first}; remove one")
            places[(*at, key_node.value)] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            result[key_node.value] = _value(loader, value_node, (*at, key_node.value), places, path, what)
        return result
    if not isinstance(node, yaml.ScalarNode):
        place = f"{path}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
        raise InputError(f"{place}: a {what} is plain data: the tag {node.tag!r} is not allowed; leave it out")
    value = loader.construct_object(node, deep=True)
    if isinstance(value, str) and node.style is None and _EXPONENT.fullmatch(value):
        return float(value)
    if value is not None and not isinstance(value, (str, int, float)):
        place = f"{path}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
        raise InputError(
            f"{place}: expected text, a number, true or false, got {type(value).__name__}; put it in quotes if it "
            "is text"
        )
    return value
