"""Runs one of our commands on a device behind ssh, and brings its results home.

The command's own words go there, with paths of the device in place of those of here; in what comes back it is the other
way round. The run there has a name made of all that it depends on, so that the same command, given again after the
connection was lost for good, finds it and fetches its result.
"""

from __future__ import annotations

import dataclasses
import getpass
import hashlib
import json
import platform
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.device_inputs import Input
from benchmarks.device_install import Ready, make_ready
from benchmarks.ssh_link import Interrupted, Link, printable
from benchmarks.ssh_run import end_job, fetch, push, run_job, sha256_of
from deploy.errors import DeviceError

#: Largest result in JSON, in bytes.
JSON_LIMIT = 256 << 20
_ERROR = "slimdet: error: "
#: Done.code of a run that the user ended.
INTERRUPTED = -signal.SIGINT


@dataclasses.dataclass(frozen=True)
class Words:
    """A command to run on a device."""

    #: The module to run, and the command of it.
    module: str
    command: str
    #: The words after it; an Input stands for the path that it has on the device, a Result for the place of a result.
    words: Sequence[str | Input | Result]


@dataclasses.dataclass(frozen=True)
class Result:
    """A file or folder that the command writes."""

    #: Its name among the results.
    name: str


@dataclasses.dataclass(frozen=True)
class Done:
    """What came of a command on a device."""

    #: Exit code there.
    code: int
    #: What it printed, with the paths of here.
    text: str
    #: What its last line of standard error said, without the program's name.
    error: str
    #: From its paths of there to those of here, the longest first.
    homeward: Mapping[str, str]

    def at_home(self, value: Any) -> Any:
        """A text, or the texts in JSON, with the paths of here."""
        if isinstance(value, str):
            for there, here in self.homeward.items():
                value = value.replace(there, here)
            return value
        if isinstance(value, list):
            return [self.at_home(one) for one in value]
        if isinstance(value, dict):
            return {self.at_home(key): self.at_home(one) for key, one in value.items()}
        return value


def run_on(link: Link, words: Words, results: Path, out: Callable[[str], None] | None = None) -> Done:
    """Runs the command there; what it wrote is in the folder `results` when this returns.

    out: takes lines of its standard output as they come; None keeps them for Done.text.

    Raises DeviceError where the device cannot be reached, prepared or used; what the command itself failed of is in
    Done. Where `link.interrupt` was called, the run there has been ended, what it left been fetched, and Done.code is
    INTERRUPTED; Interrupted comes where it had not begun.
    """
    ready = make_ready(link)
    inputs = [word for word in words.words if isinstance(word, Input)]
    links = _pushed(link, inputs)
    job = _job_name(link, ready, words, links)
    place = f"{link.folder}/jobs/{job}"
    command = [ready.python, "-P", "-m", words.module, words.command, *_words_there(words, place)]
    homeward = {f"{place}/inputs/{index}/{one.name}": one.text for index, one in enumerate(inputs)}
    done = Done(0, "", "", dict(sorted(homeward.items(), key=lambda pair: -len(pair[0]))))
    listener = _Listener(link, done, out)
    environment = {"PYTHONPATH": ready.package, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    request = {"links": links, "environment": environment, "commands": [command]}
    try:
        code = run_job(link, job, request, listener.hear)
        fetch(link, job, results)
    except Interrupted:
        end_job(link, job, results)
        return dataclasses.replace(done, code=INTERRUPTED, error="interrupted")
    link.persistently(lambda: link.ask("remove", job=job))
    text, error = listener.finished()
    return dataclasses.replace(done, code=code, text=text, error=error)


def read_result(name: str, done: Done, path: Path) -> dict[str, Any]:
    """The JSON that a command wrote, with the paths of here, and marked with the device's name.

    Raises DeviceError where it is missing or no JSON.
    """
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise DeviceError(f"{name}: a result takes at most {JSON_LIMIT >> 20} MiB: it has more")
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError, RecursionError) as error:
        raise DeviceError(f"{name}: its result is no JSON ({error}); run it again") from error
    return {"device": name, **done.at_home(value)}


def _pushed(link: Link, inputs: Sequence[Input]) -> list[list[str]]:
    """Copies what the device lacks of all inputs; returns path and sha256 of each file."""
    files: dict[str, Path] = {}
    links = []
    for index, one in enumerate(inputs):
        for inside, path in one.files.items():
            digest = sha256_of(path)
            files[digest] = path
            links.append([f"{index}/{inside}", digest])
    push(link, files, "what it reads")
    return links


def _job_name(link: Link, ready: Ready, words: Words, links: list[list[str]]) -> str:
    told = [word if isinstance(word, str) else word.name for word in words.words]
    asker = [platform.node(), getpass.getuser() if sys.platform != "win32" else ""]
    key = [words.module, words.command, told, links, ready.python, ready.package, asker, link.device.name]
    return f"{words.command}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}"


def _words_there(words: Words, place: str) -> list[str]:
    found, index = [], 0
    for word in words.words:
        if isinstance(word, Input):
            found.append(f"{place}/inputs/{index}/{word.name}")
            index += 1
        else:
            found.append(f"{place}/results/{word.name}" if isinstance(word, Result) else word)
    return found


class _Listener:
    """Takes what the command there says: notes for the user go on at once, what it prints is kept or passed on."""

    def __init__(self, link: Link, done: Done, out: Callable[[str], None] | None) -> None:
        self._link, self._done, self._out = link, done, out
        self._rest = {"stdout": "", "stderr": ""}
        self._kept: list[str] = []
        self._error: str | None = None
        self._last = ""

    def hear(self, name: str, text: str) -> None:
        *lines, self._rest[name] = (self._rest[name] + text).split("\n")
        for line in lines:
            self._line(name, line)

    def _line(self, name: str, line: str) -> None:
        line = self._done.at_home(line.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
        if name == "stdout":
            (self._out or self._kept.append)(line)
            return
        if self._error is not None:  # only the last line is an error
            self._link.tell(printable(self._error))
            self._error = None
        if line.startswith((_ERROR, "Error: ")):
            self._error = line
        elif line.strip():
            self._last = line
            self._link.tell(printable(line))

    def finished(self) -> tuple[str, str]:
        for name, rest in self._rest.items():
            if rest:
                self._line(name, rest)
        error = (self._error or self._last).strip().removeprefix(_ERROR).removeprefix("Error: ")
        return "\n".join(self._kept), printable(error)
