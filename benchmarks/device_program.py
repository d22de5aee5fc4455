"""Runs programs of this machine in a thread, so that another thread can end them."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Mapping, Sequence

from benchmarks.ssh_link import Interrupted


class Programs:
    """Programs that run one after the other. All but `interrupt` belongs to one thread."""

    def __init__(self) -> None:
        self._interrupted = threading.Event()
        self._process: subprocess.Popen[str] | None = None

    def interrupt(self) -> None:
        """Ends the program that runs; `run` raises Interrupted there and from now on."""
        self._interrupted.set()
        if (process := self._process) is not None:
            process.terminate()

    def run(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """The program's exit code and all that it said. Raises OSError where it cannot be started, Interrupted."""
        if self._interrupted.is_set():
            raise Interrupted
        pipe = subprocess.PIPE
        # A session of its own, so that Ctrl-C reaches it through `interrupt` alone.
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, errors="replace", env=environment,
            start_new_session=True,
        ) as process:  # fmt: skip
            self._process = process
            if self._interrupted.is_set():
                process.terminate()
            try:
                out, error = process.communicate()
            finally:
                self._process = None
                process.kill()
        if self._interrupted.is_set():
            raise Interrupted
        return subprocess.CompletedProcess(command, process.returncode, out, error)
