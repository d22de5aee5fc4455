"""Talks to the agent on a device through the system's own `ssh`, and survives a lost connection.

`ssh` is the user's: his keys, agent, configuration and known hosts count, and host keys are checked as he has it set.
BatchMode keeps it from asking for passwords, which would wait for an answer that nobody is there to give.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from benchmarks import device_agent
from benchmarks.device import Device
from deploy.errors import DeviceError

T = TypeVar("T")

#: Seconds: for a connection to come about; between signs of life, three of which may be missing; that a lost connection
#: may stay lost; between attempts, at first and at most.
CONNECT_SECONDS, ALIVE_SECONDS, PATIENCE_SECONDS = 15, 5, 900.0
#: The connection that all requests share ends by itself after so many seconds without one, should this program die.
IDLE_SECONDS = 60
#: Longest path of a socket that every system takes, less what ssh adds while it makes it.
_SOCKET_LENGTH = 80
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
#: Bytes that a login shell may say before the agent speaks.
_PROLOGUE_LIMIT = 1 << 16
#: What ssh says, and what helps. The first that matches counts.
_REMEDIES = (
    (r"Host key verification failed", "its host key is not the known one or not known yet; run `ssh {address}` once"),
    (r"Permission denied", "it takes none of your keys; put one there by `ssh-copy-id {address}`"),
    (r"Too many authentication failures", "it takes none of your keys; name the right one in ~/.ssh/config"),
    (r"Could not resolve hostname", "check the name, or use the address"),
    (r"Connection refused", "check that its ssh server runs, and the port"),
    (r"timed out|No route to host|unreachable", "check that it is on and in the same network"),
    (r"Bad configuration|Can't open user config file", "correct the ssh configuration"),
)
#: None of these goes away by waiting.
_PERMANENT = re.compile("|".join(pattern for pattern, _ in _REMEDIES[:3]) + "|Bad configuration|Can't open user config")


class ConnectionLost(DeviceError):
    """The connection did not come about, or broke off; trying again may help."""


class Interrupted(Exception):
    """The user has ended everything."""


class Link:
    """A way to one device. All methods belong to one thread, but for `interrupt`."""

    def __init__(
        self, device: Device, python: str | None = None, folder: str = "", config: Path | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:  # fmt: skip
        """python: an interpreter there that has all that is needed; None takes python3 and makes an environment.
        folder: what is kept there, "" for ~/.cache/slimdet-device. config: a file for ssh to read in place of the
        user's. tell: takes lines for the user."""
        self.device, self.ready_python, self.folder, self.config, self.tell = device, python, folder, config, tell
        self.python = python or "python3"
        self._patience = PATIENCE_SECONDS
        self._interrupted = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        # Requests share one connection, whose making costs a small board a second.
        self._sockets = tempfile.TemporaryDirectory(prefix="slimdet-ssh-") if os.name == "posix" else None
        self._socket = f"{self._sockets.name}/s" if self._sockets else ""

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the shared connection."""
        if self._sockets is None:
            return
        if os.path.exists(self._socket):
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                end = [*self._program(), "-O", "exit", "--", self.device.address]
                subprocess.run(end, stdin=subprocess.DEVNULL, capture_output=True, timeout=5, start_new_session=True)
        self._sockets.cleanup()

    def interrupt(self) -> None:
        """Makes whatever another thread waits for here raise Interrupted."""
        self._interrupted.set()
        if (process := self._process) is not None:
            process.terminate()

    def interrupted_is_over(self) -> None:
        """Lets further requests pass, to tidy up; from now on a lost connection is an error at once."""
        self._interrupted.clear()
        self._patience = 0.0

    def command(self, verb: str, job: str = "") -> list[str]:
        """The argument list of ssh. What the device's shell reads of it is quoted."""
        program = f"import sys;sys.path=[p for p in sys.path if p];exec(sys.stdin.buffer.read({len(agent_text())}))"
        remote = ["exec", self.python, "-c", program, self.folder, verb, *([job] if job else [])]
        text = " ".join(word if word == "exec" else shlex.quote(word) for word in remote)
        return [*self._program(), "--", self.device.address, text]

    def _program(self) -> list[str]:
        share = ["ControlMaster=auto", f"ControlPersist={IDLE_SECONDS}", f"ControlPath={self._socket}"]
        settings = [
            "BatchMode=yes", f"ConnectTimeout={CONNECT_SECONDS}", f"ServerAliveInterval={ALIVE_SECONDS}",
            "ServerAliveCountMax=3", *(share if 0 < len(self._socket) <= _SOCKET_LENGTH else []),
        ]  # fmt: skip
        return [
            "ssh",
            *(["-F", str(self.config)] if self.config else []),
            "-T",
            *(word for setting in settings for word in ("-o", setting)),
            *(["-p", str(self.device.port)] if self.device.port else []),
        ]

    def ask(
        self, verb: str, request: Any = None, job: str = "", send: Callable[[IO[bytes]], None] | None = None
    ) -> Any:
        """The agent's one answer. send: writes what follows the request. Raises as `answers` does."""
        with self.answers(verb, request, job, send) as stream:
            line = stream.readline()
            if not line.endswith(b"\n"):
                raise EOFError
            return self.checked(json.loads(line))

    @contextlib.contextmanager
    def answers(
        self, verb: str, request: Any = None, job: str = "", send: Callable[[IO[bytes]], None] | None = None
    ) -> Iterator[IO[bytes]]:
        """The stream of the agent's answers. EOFError within means that it ended too early.

        Raises ConnectionLost, DeviceError where trying again cannot help, Interrupted.
        """
        if self._interrupted.is_set():
            raise Interrupted
        with tempfile.TemporaryFile() as noise:
            process = self._started(self.command(verb, job), noise)
            try:
                assert process.stdin is not None and process.stdout is not None  # PIPE was asked for
                try:
                    with contextlib.suppress(BrokenPipeError), contextlib.closing(process.stdin) as stdin:
                        stdin.write(agent_text() + json.dumps(request or {}).encode() + b"\n")
                        if send is not None:
                            send(stdin)
                        stdin.flush()
                    _skip_prologue(process.stdout)
                    yield process.stdout
                except (EOFError, BrokenPipeError) as error:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(5)
                    noise.seek(0)
                    raise self._failure(process.poll(), noise.read().decode(errors="replace")) from error
            finally:
                self._process = None
                process.kill()
                process.wait()
                if process.stdout is not None:
                    process.stdout.close()

    def _started(self, command: list[str], noise: Any) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        try:
            # A session of its own: Ctrl-C is told by `interrupt`, or the run there could not be ended in order.
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=noise, start_new_session=True)
        except FileNotFoundError as error:
            raise DeviceError(
                "a device behind ssh is reached by the program `ssh`: there is none here; install openssh-client"
            ) from error
        self._process = process
        if self._interrupted.is_set():
            process.terminate()
        return process

    def checked(self, answer: Any) -> Any:
        """The answer, unless it is a refusal, which becomes a DeviceError."""
        if isinstance(answer, dict) and "refusal" in answer:
            raise DeviceError(f"{self.device.name}: {printable(answer['refusal'])}")
        return answer

    def _failure(self, code: int | None, noise: str) -> Exception:
        """What a stream that ended too early means."""
        if self._interrupted.is_set():
            return Interrupted()
        lines = [line for line in noise.splitlines() if line.strip() and not line.startswith("Warning: Permanently")]
        said = printable(lines[-1].strip()) if lines else "it said nothing"
        name, found = self.device.name, [text for pattern, text in _REMEDIES if re.search(pattern, noise)]
        if code in (126, 127):
            return DeviceError(
                f"{name}: a device needs Python 3.11 or newer: {self.python} cannot be run there ({said}); install "
                "python3 and python3-venv, or name its place by --device-python"
            )
        if code == 255 or code is None or code < 0 or code > 128:
            remedy = found[0].format(address=self.device.address) if found else "check the connection"
            kind = DeviceError if _PERMANENT.search(noise) else ConnectionLost
            return kind(f"{name}: there is no connection: {said}; {remedy}")
        if code == 0:
            return ConnectionLost(f"{name}: the connection ended before the answer; try again")
        return DeviceError(f"{name}: Python failed there with exit code {code}: {said}; try another --device-python")

    def persistently(self, attempt: Callable[[], T]) -> T:
        """What attempt returns, tried again with growing pauses while the connection is lost."""
        pause, begun, told = FIRST_PAUSE, time.monotonic(), False
        while True:
            tried = time.monotonic()
            try:
                return attempt()
            except ConnectionLost as lost:
                if time.monotonic() - tried > LONGEST_PAUSE:  # it held for a while: this is a new loss
                    pause, begun, told = FIRST_PAUSE, time.monotonic(), False
                if time.monotonic() - begun >= self._patience:
                    raise DeviceError(
                        f"{lost}; what runs there goes on: give the same command again to fetch its result"
                    ) from lost
                if not told:
                    self.tell("the connection is lost; trying again, what runs there goes on")
                    told = True
            if self._interrupted.wait(pause):
                raise Interrupted
            pause = min(2 * pause, LONGEST_PAUSE)


def agent_text() -> bytes:
    """The agent's source."""
    return Path(device_agent.__file__).read_bytes()


def printable(text: str) -> str:
    """Without what would disturb a terminal: it comes from another machine."""
    return "".join(c if c.isprintable() else " " for c in text)[:500]


def _skip_prologue(stream: IO[bytes]) -> None:
    passed = 0
    while passed < _PROLOGUE_LIMIT:
        line = stream.readline(_PROLOGUE_LIMIT)
        if line.endswith(device_agent.GREETING):  # what was said last may lack its line end
            return
        if not line:
            raise EOFError
        passed += len(line)
    raise EOFError
