"""Takes a command apart into what goes to a device as it is, the files that it reads, and those that it writes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.device_inputs import INPUTS, Input
from benchmarks.ssh_device import Result, Words
from deploy.command_line import refuse_to_overwrite
from deploy.errors import InputError

#: Names of options that name a file or folder to write.
OUTPUTS = ("json_file", "jsonl", "out", "worst")


@dataclasses.dataclass(frozen=True)
class Task:
    """A command as the user wrote it."""

    words: Words
    #: The values of all its options, as click made them.
    values: Mapping[str, Any]
    #: Names of the options that were given, as opposed to those that keep their defaults.
    given: frozenset[str]
    #: By the option's name, the files and folders to write, but for --json.
    outputs: Mapping[str, str]


def make_task(command: click.Command, module: str, given: Mapping[str, Any], values: Mapping[str, Any]) -> Task:
    """The command as the user wrote it, with what it reads and writes.

    given: by the parameter's name, the words as they were written, or a flag. values: what click made of them.

    Raises InputError for a file that is missing or would be overwritten, click.UsageError for an option that names a
    path of which nothing is known here.
    """
    words: list[str | Input | Result] = []
    inputs: list[Input] = []
    outputs: dict[str, str] = {}
    if "json_file" in values:
        words += ["--json", Result("result.json")]
    for parameter in command.params:
        name = parameter.name or ""
        if not parameter.expose_value or name == "json_file":
            continue
        for one in _given(parameter, given.get(name)):
            word: str | Input | Result = one
            if name in OUTPUTS and one != "-":
                word, outputs[name] = Result(name), one
            elif name in INPUTS and (found := INPUTS[name](one, values)) is not None:
                inputs.append(found)
                word = found
            elif isinstance(parameter.type, click.Path) and name not in (*INPUTS, *OUTPUTS):
                raise click.UsageError(f"{parameter.opts[0]} names a path here, and cannot be used with --device")
            words += [word] if isinstance(parameter, click.Argument) else [*_option(parameter, one), word]
        if isinstance(parameter, click.Option):
            words += [_option(parameter, flag)[0] for flag in _flags(given.get(name))]
    read = [path for one in inputs for path in one.files.values()]
    for name, destination in (*outputs.items(), ("json", values.get("json_file"))):
        if destination not in (None, "-") and not os.path.isdir(destination):
            refuse_to_overwrite(f"--{name}", destination, read)
    _check_folder(outputs, read)
    return Task(Words(module, command.name or "", words), dict(values), frozenset(given), outputs)


def _check_folder(outputs: Mapping[str, str], read: Sequence[Path]) -> None:
    for name in ("out", "worst"):
        folder = outputs.get(name)
        if folder and os.path.isdir(folder) and any(os.path.samefile(folder, path.parent) for path in read):
            raise InputError(f"--{name} {folder} is the source's folder, where it would be overwritten; choose another")


def _given(parameter: click.Parameter, raw: object) -> list[str]:
    """The words given to a parameter, each for itself."""
    if isinstance(raw, str):
        return [raw]
    if isinstance(raw, list | tuple):
        return [one for one in raw if isinstance(one, str)]
    return []


def _flags(raw: object) -> list[bool]:
    """The flag that was given, or none. An option whose value is left out counts as a flag."""
    if raw is None or isinstance(raw, str | list | tuple) or "UNSET" in repr(raw):
        return []
    return [raw is not False]


def _option(parameter: click.Parameter, value: object) -> list[str]:
    names = parameter.secondary_opts if value is False else parameter.opts
    return [max(names, key=len)]
