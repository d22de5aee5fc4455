"""The parent's side of capture_child.py: starts it, hears what it tells, ends it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.frame_ring import Slot, create_slots

#: What the process runs. Tests put a fake in its place.
CHILD = ("-m", "deploy.capture_child")
#: Longer lines are none of the child's.
_MOST_LINE = 65536
#: FFmpeg's own number; higher ones are warnings, and less.
_ERROR_LEVEL = 16
#: What it is given to let go of the source: more than it takes for itself.
_GOODBYE_SECONDS = 0.4


class CaptureProcess:
    """A running child, and the slots that it puts frames into.

    Raises OSError where it cannot be started.
    """

    def __init__(self, settings: Mapping[str, Any], secrets: Iterable[str]) -> None:
        """settings: as capture_child.py wants them, but for the slots. secrets: never part of words()."""
        self._secrets = tuple(secrets)
        self._lock = threading.Lock()  # of standard input, which two threads write to and one closes
        self._line = b""
        self._error_line = ""
        self._last_words = ""
        #: Lines so far in which the decoder complained of damage.
        self.complaints = 0
        #: Changes when H.264 or MJPEG change the size of their frames. OpenCV squeezes them into the first size.
        self.decoding = ("", 0)
        #: Drivers and libjpeg say nothing before their words, FFmpeg the level.
        self._plain_words = bool(settings["camera"])
        self._files = create_slots()
        self.slots = [Slot(file, writable=False) for file in self._files]
        try:
            self._child = subprocess.Popen(
                # -P: a file of the current folder never takes the place of a module.
                [sys.executable, "-P", *CHILD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                pass_fds=self._files,
                env=_environment(),
                start_new_session=True,  # Ctrl-C in a terminal is for the parent, which ends the child
            )
        except OSError:
            self._close_slots()
            raise
        assert self._child.stdin and self._child.stdout and self._child.stderr  # pipes were asked for
        self._input, self._output, self._errors = self._child.stdin, self._child.stdout, self._child.stderr
        user_options = os.environ.get("OPENCV_FFMPEG_CAPTURE_OPTIONS", "")
        whole = {**settings, "slots": self._files, "user_options": user_options}
        # By this way, because other users of the machine can read arguments.
        self._send(json.dumps(whole).encode() + b"\n")
        for pipe in (self._input, self._output, self._errors):
            os.set_blocking(pipe.fileno(), False)
        self._poll = select.poll()
        self._poll.register(self._output, select.POLLIN)
        self._poll.register(self._errors, select.POLLIN)

    def open(self) -> None:
        """Has it open the source: it tells "opened" and then frames, or "failed"."""
        self._send(b"o")

    def free(self, slot: int) -> None:
        """Has it use the slot again."""
        self._send(b"%d" % slot)

    def _send(self, content: bytes) -> None:
        with self._lock, contextlib.suppress(OSError):  # one that is dead is told by messages()
            if not self._input.closed:
                self._input.write(content)

    def messages(self, seconds: float) -> list[dict[str, Any]] | None:
        """What it told meanwhile, as soon as it tells anything; None when it has ended or tells what is no message."""
        ended = False
        for file, _ in self._poll.poll(max(seconds, 0) * 1000):
            content = self._read(self._output if file == self._output.fileno() else self._errors)
            if file == self._output.fileno():
                ended = not content
                self._line += content
            elif content:
                self._hear(content.decode(errors="replace"))
            else:
                self._poll.unregister(self._errors)
        *lines, self._line = self._line.split(b"\n")
        try:
            found = [json.loads(line) for line in lines]
        except ValueError:
            return None
        if len(self._line) > _MOST_LINE or not all(isinstance(message, dict) for message in found):
            return None
        return found if found or not ended else None

    @staticmethod
    def _read(pipe: Any) -> bytes:
        try:
            return pipe.read(_MOST_LINE) or b""
        except OSError:
            return b""

    def _hear(self, text: str) -> None:
        *lines, self._error_line = (self._error_line + text)[-_MOST_LINE:].split("\n")
        for line in filter(str.strip, lines):
            match = re.match(r"\[OPENCV:FFMPEG:(\d+)\]", line)
            if match is None and not self._plain_words:
                continue  # a further line of what FFmpeg said, such as a session's description
            warning = match is not None and int(match[1]) > _ERROR_LEVEL
            self.complaints += not warning
            if not warning or "HTTP error" in line:
                self._last_words = line
            if size := re.search(r"Reinit context to (\d+x\d+)", line):
                self.decoding = (size[1], self.decoding[1])
            elif "deprecated pixel format" in line:  # once for each new size of MJPEG
                self.decoding = (self.decoding[0], self.decoding[1] + 1)

    def words(self) -> str:
        """The last line that it said on standard error, for people: without secrets, places in memory, or addresses."""
        return without_secrets(self._last_words, self._secrets)

    def forget_words(self) -> None:
        self._last_words = ""

    def end(self, gently: bool) -> str:
        """Ends it, within half a second gently, else at once. Returns how it ended, for people."""
        with self._lock:
            self._input.close()
        code: int | None = None
        if gently:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._child.wait(_GOODBYE_SECONDS)
        else:
            code = self._child.poll()
        if code is None:
            self._child.kill()
            # One within a broken driver stays until that lets go of it; nobody waits for that.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(_GOODBYE_SECONDS)
        self._output.close()
        self._errors.close()
        self._close_slots()
        return _end(code)

    def _close_slots(self) -> None:
        for file in self._files:
            os.close(file)
        self._files = ()


def _environment() -> dict[str, str]:
    """The child finds this package, says why FFmpeg failed, and starts no threads for arithmetic."""
    ours = {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OPENCV_LOG_LEVEL": "SILENT"}
    ours |= {"OPENCV_FFMPEG_LOGLEVEL": "40", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    others = {key: value for key, value in os.environ.items() if not key.startswith("OPENCV_FFMPEG_")}
    if others.get("PYTHONPATH"):
        ours["PYTHONPATH"] += os.pathsep + others["PYTHONPATH"]
    return {**others, **ours}


def without_secrets(line: str, secrets: Sequence[str]) -> str:
    """A line of FFmpeg's for people: "[tcp @ 0x55] Connection to tcp://10.0.0.9:554?timeout=0 failed: Connection
    refused" becomes "Connection refused"."""
    line = re.sub(r"^(\[[^\]]*\]\s*)+", "", line.strip())
    line = re.sub(r"^Connection to \S+ failed: ", "", line)
    line = re.sub(r"[A-Za-z][A-Za-z0-9+.-]*://\S+", "it", line)
    for secret in secrets:
        # A short one, such as "u", is part of many words; it counts where it stands alone.
        alone = (r"(?<!\w)", r"(?!\w)") if len(secret) < 4 else ("", "")
        line = re.sub(re.escape(secret).join(alone), "***", line)
    return "".join(letter if letter.isprintable() else " " for letter in line)[:200].strip()


def _end(code: int | None) -> str:
    if code is None or code >= 0:
        return "ended"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal has no name
        return f"was ended by signal {-code}"
