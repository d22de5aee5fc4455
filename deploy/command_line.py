"""What all commands share: exit codes, --debug, --json, and one sentence instead of a traceback.

Exit code 0 means success, 2 wrong use (click's own), 1 everything else that a user can cause.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from deploy.errors import InputError, SlimdetError

#: Where --debug, given to any command, is kept in the root context for the outermost handler.
_DEBUG_KEY = "slimdet.debug"


def _remember_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.find_root().meta[_DEBUG_KEY] = True


debug_option = click.option(
    "--debug", is_flag=True, expose_value=False, callback=_remember_debug, help="Show the traceback of an error."
)


def json_option(text: str) -> Any:
    """The option --json FILE; `-` is standard output."""
    return click.option("--json", "json_file", type=click.Path(dir_okay=False), metavar="FILE", help=text)


def write_json(destination: str, value: Mapping[str, Any]) -> None:
    """Writes value as JSON to the file, atomically, or to standard output for `-`.

    Raises InputError when the file cannot be written.
    """
    text = json.dumps(value, indent=2, sort_keys=False, allow_nan=False) + "\n"
    if destination == "-":
        click.echo(text, nl=False)
    else:
        write_atomically(Path(destination), text.encode())


def write_atomically(destination: Path, content: bytes) -> None:
    """Writes to a temporary name in the same folder, then renames: the old file stays whole until the new one is.

    Raises InputError when the folder is missing or not writable, or the disk is full.
    """
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, destination)
    except OSError as error:
        raise InputError(f"cannot write {destination}: {error.strerror or error}; choose another place or free some") from error
    finally:
        temporary.unlink(missing_ok=True)


def run(command: click.Command, name: str) -> None:
    """Runs a click command as a program and ends the process with its exit code."""
    sys.exit(exit_code(command, name, sys.argv[1:]))


def exit_code(command: click.Command, name: str, arguments: list[str]) -> int:
    """Runs a click command and returns 0, 1 or 2; an error has been printed to standard error in one line."""
    context: click.Context | None = None
    try:
        with command.make_context(name, arguments) as context:
            command.invoke(context)
        return 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.UsageError as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        sentence = "interrupted; what was finished before is kept"
    except click.ClickException as error:
        sentence = error.format_message()
    except BrokenPipeError:
        # Whoever read our output has gone (`slimdet … | head`): not worth a word, and stdout must not be flushed again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SlimdetError as error:
        sentence = str(error)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        sentence = f"{place}{error.strerror or error}; check that the path exists and can be read or written"
    if context is not None and context.meta.get(_DEBUG_KEY):
        traceback.print_exc()
    click.echo(f"slimdet: error: {' '.join(sentence.split())}", err=True)
    return 1
