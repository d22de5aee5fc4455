"""Reads settings out of plain data, one by one, and refuses what nobody reads.

Where the data stand in a YAML file an error names line and column, where they came as options the option.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.errors import InputError

#: Names the place of a value, by its path of keys and indices.
Place = Callable[[tuple[str | int, ...]], str]
_MOST_SECRET = 4096


class Section:
    """A mapping of keys to values. Each method reads one key; `end` refuses the keys that none has read.

    All raise InputError, with the place.
    """

    def __init__(self, value: Any, path: tuple[str | int, ...], place: Place, folder: Path, known: str) -> None:
        """folder: that paths of secrets are from. known: what it is, such as "a source", for errors."""
        self.path, self.place, self.folder, self._known = path, place, folder, known
        if not isinstance(value, Mapping):
            raise self.failure((), f"{known} is a mapping of keys to values, not {_named(value)}; write KEY: VALUE")
        self._value = value
        self._read: dict[str, None] = {}

    def failure(self, path: tuple[str | int, ...], text: str) -> InputError:
        """The error, at a path below this section."""
        return InputError(f"{self.place((*self.path, *path))}: {text}")

    def get(self, key: str) -> Any:
        """The value as it came, None where the key is missing or empty."""
        self._read[key] = None
        return self._value.get(key)

    def has(self, key: str) -> bool:
        return self.get(key) is not None

    def text(self, key: str, choices: Sequence[str] = ()) -> str | None:
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or not value or "\0" in value:
            # What came stays unsaid: a text may be part of an address with a password.
            raise self.failure((key,), f"{key} is text, not {_named(value)}; put it in quotes")
        if choices and value not in choices:
            raise self.failure((key,), f"{key} is one of {', '.join(choices)}, not {value!r}; choose one")
        return value

    def number(self, key: str, least: float, most: float, *, whole: bool = False) -> Any:
        """A finite number from least to most, None where the key is missing."""
        value = self.get(key)
        if value is None:
            return None
        kind = "whole number" if whole else "number"
        right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not right or not math.isfinite(value) or not least <= value <= most:
            said = value if isinstance(value, (int, float)) and not isinstance(value, bool) else _named(value)
            raise self.failure((key,), f"{key} is a {kind} from {least:g} to {most:g}, not {said}; give one")
        return value

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.failure((key,), f"{key} is true or false, not {_named(value)}; choose one")
        return bool(value)

    def section(self, key: str, known: str) -> Section | None:
        value = self.get(key)
        return None if value is None else Section(value, (*self.path, key), self.place, self.folder, known)

    def names(self) -> tuple[str, ...]:
        """All keys, each of 1 to 64 letters that can stand in a file's name and in a topic."""
        for name in self._value:
            if not 1 <= len(name) <= 64 or not all(c.isalnum() or c in "-_. " for c in name) or name[0] in ". ":
                raise self.failure(
                    (name,), "a name has 1 to 64 letters, digits, spaces or -_. and begins with none of . and space; "
                    "choose another one"
                )  # fmt: skip
        return tuple(self._value)

    def secret(self, key: str) -> str | None:
        """Text that may be a password: as it stands, or from elsewhere as {env: NAME} or {file: PATH}."""
        value = self.get(key)
        if not isinstance(value, Mapping):
            return self.text(key)
        section = Section(value, (*self.path, key), self.place, self.folder, key)
        name, file = section.text("env"), section.text("file")
        section.end()
        if (name is None) == (file is None):
            raise self.failure((key,), f"{key} is text, {{env: NAME}} or {{file: PATH}}; give one of these")
        if name is not None:
            if not (found := os.environ.get(name)):
                raise self.failure((key,), f"{key} comes from the environment, but {name} is not set there; set it")
            return found
        try:
            with open(self.folder / str(file), encoding="utf-8") as opened:
                found = opened.read(_MOST_SECRET + 1).strip()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
            raise self.failure((key,), f"{key} comes from {file}, but {reason}; check the path") from error
        if not found or len(found) > _MOST_SECRET:
            raise self.failure((key,), f"{key} is one line in {file}, which is empty or too long; write it there")
        return found

    def end(self) -> None:
        """Refuses keys that nobody has read."""
        for key in self._value:
            if key not in self._read:
                near = difflib.get_close_matches(str(key), list(self._read), 1)
                advice = f"did you mean {near[0]}?" if near else f"it has {', '.join(self._read)}"
                raise self.failure((key,), f"{self._known} has no {key!r}; {advice}")


def _named(value: Any) -> str:
    """What kind of value came, never the value itself."""
    if value is None or value == "":
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    kinds = {str: "text", int: "a number", float: "a number", list: "a list", tuple: "a list", dict: "a mapping"}
    return kinds.get(type(value), type(value).__name__)
