"""Runs a measurement in a fresh process, so that nothing of this one warms it up and its death is an error in words.

The process is `python -m MODULE SETTINGS`, SETTINGS as JSON. It answers on standard output in lines of JSON:
{"progress": [done, expected]} now and then, and at last {"measured": …} or {"error": class, "message": …}.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy import errors
from deploy.errors import BackendError, SlimdetError


def run_child(
    module: str, settings: dict[str, Any], progress: Callable[[int, int], None] | None = None, *, remedy: str
) -> dict[str, Any]:
    """What the module measured with the settings, to which `started_ns` is added: the time of the monotonic clock,
    which all processes of a machine share, just before the process was started.

    Raises the error that the process tells of, BackendError, which ends with the remedy, when it dies.
    """
    package_root = str(Path(__file__).resolve().parents[1])
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    answer: dict[str, Any] = {}
    with tempfile.TemporaryFile() as noise:
        started = {"started_ns": time.monotonic_ns()}
        child = subprocess.Popen(
            # -P: a file of the current folder never takes the place of a module.
            [sys.executable, "-P", "-m", module, json.dumps(settings | started)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=noise,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        try:
            assert child.stdout is not None  # PIPE was asked for
            for line in child.stdout:
                if not line.endswith(b"\n"):
                    break  # the process died while it wrote
                answer = json.loads(line)
                if progress and "progress" in answer:
                    progress(*answer["progress"])
            child.wait()
        finally:
            child.kill()  # does nothing where it has ended
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
        noise.seek(0)
        last_words = noise.read().decode(errors="replace").strip().splitlines()[-1:]
    if "error" in answer:
        raise _error_class(answer["error"])(answer["message"])
    if "measured" in answer:
        measured: dict[str, Any] = answer["measured"]
        return measured
    raise BackendError(
        f"it is measured in a process of its own, which {_end(child.returncode)}{_quoted(last_words)}; {remedy}"
    )


def answer_with(measure: Callable[[dict[str, Any], Callable[[dict[str, Any]], None]], dict[str, Any]]) -> None:
    """The child's part: calls measure with the settings and with what tells its progress, and answers what it gives."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends this process without a word; its parent says one
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to standard error

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value, allow_nan=False) + "\n")
        answers.flush()

    try:
        answer({"measured": measure(json.loads(sys.argv[1]), answer)})
    except SlimdetError as error:
        answer({"error": type(error).__name__, "message": str(error)})


def _error_class(name: str) -> type[SlimdetError]:
    found = getattr(errors, name, SlimdetError)
    return found if isinstance(found, type) and issubclass(found, SlimdetError) else SlimdetError


def _end(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code} and no result"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal has no name
        return f"was ended by signal {-code}"


def _quoted(words: list[str]) -> str:
    return f" ({words[0].strip()[:200]})" if words else ""
