"""What all commands share: exit codes, --debug, --json, and one sentence instead of a traceback.

Exit code 0 means success, 2 wrong use (click's own), 3 a measured figure that misses its limit, 1 everything else that
a user can cause.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from deploy.chatter import silence_stderr
from deploy.errors import GateError, InputError, SlimdetError

#: Where --debug, given to any command, is kept in the root context for the outermost handler.
_DEBUG_KEY = "slimdet.debug"
#: Name of a thread that may be within a call of the runtime, which cannot be interrupted, when the program ends.
UNINTERRUPTIBLE = "slimdet-invoke"


def _remember_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.find_root().meta[_DEBUG_KEY] = True


debug_option = click.option(
    "--debug", is_flag=True, expose_value=False, callback=_remember_debug, help="Show the traceback of an error."
)


def json_option(text: str) -> Any:
    """The option --json FILE; `-` is standard output, and a file that the same command names already is refused."""
    option = click.option("--json", "json_file", type=click.Path(dir_okay=False), metavar="FILE", help=text)

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def checked(*arguments: Any, **values: Any) -> Any:
            if values["json_file"] not in (None, "-"):
                names = {p.name for p in click.get_current_context().command.params if isinstance(p, click.Argument)}
                others = [value for name, value in values.items() if name in names or isinstance(value, Path)]
                # An argument that may be given several times is a tuple.
                flat = [one for other in others for one in (other if isinstance(other, tuple) else (other,))]
                refuse_to_overwrite("--json", values["json_file"], [one for one in flat if one is not None])
            return command(*arguments, **values)

        return option(checked)

    return decorate


def refuse_to_overwrite(option: str, destination: str, others: Iterable[str | Path]) -> None:
    """Raises InputError where the option's file is one of the others, under whatever name."""
    for path in others:
        same = os.path.realpath(path) == os.path.realpath(destination)
        if same or (os.path.exists(path) and os.path.exists(destination) and os.path.samefile(path, destination)):
            raise InputError(f"{option} {destination} would overwrite {path}; choose another file")


def write_json(destination: str, value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Writes value as JSON to the file, atomically, or to standard output for `-`.

    Raises InputError when the file cannot be written.
    """
    text = json.dumps(value, indent=2, sort_keys=False, allow_nan=False) + "\n"
    if destination == "-":
        click.echo(text, nl=False)
    else:
        # Through a symbolic link, as the shell's own > does, so that /dev/stdout stays a link.
        write_atomically(Path(os.path.realpath(destination)), text.encode())


def write_atomically(destination: Path, content: bytes) -> None:
    """Writes to a temporary name in the same folder, then renames: the old file stays whole until the new one is.

    A device or pipe is written to, not replaced. Raises InputError when the folder is missing or not writable, or the
    disk is full.
    """
    if os.path.isdir(destination):
        raise InputError(f"cannot write {destination}: it is a folder; name a file in it")
    replace = os.path.isfile(destination) or not os.path.exists(destination)
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}.part") if replace else destination
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            if replace:
                os.fsync(file.fileno())
        if replace:
            os.replace(temporary, destination)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write {destination}: {reason}; choose another place or free some") from error
    finally:
        if replace:
            # Where the folder is a file, even to look for the temporary file is an error, and would hide the one above.
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def run(command: click.Command, name: str) -> None:
    """Runs a click command as a program and ends the process with its exit code.

    SIGTERM ends it as Ctrl-C does, so that temporary files go. A letter that standard output cannot show is escaped.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    code = exit_code(command, name, sys.argv[1:])
    if "deploy.compiled_model" in sys.modules:
        silence_stderr()  # the GPU's runtime has no switch for what it says when it is unloaded
    if any(thread.name == UNINTERRUPTIBLE for thread in threading.enumerate()):
        # It would come back from the runtime while Python is taken down, which aborts the process.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def exit_code(command: click.Command, name: str, arguments: list[str]) -> int:
    """Runs a click command and returns 0, 1, 2 or 3; an error has been printed to standard error in one line."""
    context: click.Context | None = None
    cause: BaseException
    try:
        with command.make_context(name, arguments) as context:
            command.invoke(context)
        return 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.UsageError as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt) as error:
        cause, sentence = error, f"interrupted; {str(error) or 'what was finished before is kept'}"
    except click.ClickException as error:
        cause, sentence = error, error.format_message()
    except BrokenPipeError:
        # Whoever read our output has gone (`slimdet … | head`): not worth a word, and stdout must not be flushed again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SlimdetError as error:
        cause, sentence = error, str(error)
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error
        cause, sentence = error, f"{reason}; check that the path exists and can be read or written"
    if context is not None and context.meta.get(_DEBUG_KEY):
        traceback.print_exception(cause)
    click.echo(f"slimdet: error: {' '.join(sentence.split())}", err=True)
    return 3 if isinstance(cause, GateError) else 1
