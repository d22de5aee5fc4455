"""The process that reads one camera or stream for live_feed.py: `python -m deploy.capture_child`.

It is a process because FFmpeg's and the drivers' calls cannot be interrupted, may crash on what a damaged stream sends,
and would hold up the interpreter; a process can be killed. It loads OpenCV and numpy, nothing else.

First line of standard input: the settings as JSON. Then single bytes: a slot's number when the slot is free again, "o"
to open the source. Where standard input ends, so does the process: its parent wants no more, or is gone. It answers on
standard output in lines of JSON, each with one of
  opened  {"width", "height", "fps", "codec"}: the next lines are frames
  frame   slot; at (time.monotonic()), height, width; dropped, corrupt: frames so
          far that found no free slot, and that could not be decoded
  failed  why it cannot be opened, or no longer be read, and kind. The process waits for the next "o"
Standard error takes what FFmpeg and the drivers say.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

#: What the source's end is given to let go of it, before the process ends all the same: V4L2 stops its stream, RTSP
#: tells the server.
_GOODBYE_SECONDS = 0.25
#: A decoder that uses one thread is the quickest to give a frame, where the processor keeps up: each further thread
#: holds one more frame back. Judged over this many seconds.
_JUDGE_SECONDS = 4.0
#: Share of that time that the thread was busy, from which one is not enough.
_BUSY = 0.93
#: Frames in a row that cannot be decoded, after which it is taken for the stream's end.
_FAILURES = 30
#: C's _IOLBF.
_BY_LINES = 1


class _Commands:
    """What came on standard input, read by a thread of its own."""

    def __init__(self) -> None:
        self.free: collections.deque[int] = collections.deque()
        self._open = threading.Semaphore(0)
        self.ending = False

    def wait_to_open(self) -> None:
        self._open.acquire()
        if self.ending:
            os._exit(0)

    def read(self) -> None:
        """Until standard input ends; then the process ends too."""
        while letters := os.read(0, 64):
            for letter in letters:
                if letter == ord("o"):
                    self._open.release()
                else:
                    self.free.append(letter - ord("0"))
        self.ending = True
        self._open.release()
        time.sleep(_GOODBYE_SECONDS)
        os._exit(0)  # not sys.exit: a thread within FFmpeg would abort the process


def ffmpeg_options(settings: dict[str, Any]) -> str:
    """As OPENCV_FFMPEG_CAPTURE_OPTIONS wants them. What the user has put into that variable comes last, and counts."""
    protocol = settings["address"].partition("://")[0].lower()
    options = [f"protocol_whitelist;{settings['protocols']}"]
    if protocol not in ("udp", "rtmp"):  # where that is none, or another thing
        # Of every single connect and read, in microseconds, so that an attempt fails soon and is made again.
        options.append(f"timeout;{int(settings['stall'] * 1e6)}")
    if protocol in ("rtsp", "rtsps"):
        options.append(f"rtsp_transport;{settings['transport']}")
        # FFmpeg looks at a stream for about a second to guess its rate, which is of no use here.
        options += ["analyzeduration;500000"] * settings["hasty"]
    if settings["low_delay"]:
        options += ["fflags;nobuffer", "flags;low_delay", "analyzeduration;0", "probesize;32"]
    return "|".join([*options, *filter(None, [settings["user_options"]])])


def main() -> None:
    """Reads the source until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole terminal; the parent decides
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to standard error
    _print_by_lines()
    settings = json.loads(_first_line())
    commands = _Commands()
    threading.Thread(target=commands.read, daemon=True).start()

    def answer(**value: Any) -> None:
        try:
            answers.write(json.dumps(value) + "\n")
            answers.flush()
        except OSError:
            os._exit(0)  # the parent is gone

    from deploy.frame_ring import Slot

    slots = [Slot(file, writable=True) for file in settings["slots"]]
    commands.free.extend(range(len(slots)))
    while True:
        commands.wait_to_open()
        began = time.monotonic()
        try:
            _capture(settings, slots, commands, answer)
        except _Failed as failure:
            # A stream that answers and cannot be opened in haste is looked at with patience; then in haste again.
            settings["hasty"] = not (settings["hasty"] and 0.4 < time.monotonic() - began < 0.9 * settings["stall"])
            answer(failed=str(failure), kind=failure.kind)


def _print_by_lines() -> None:
    """OpenCV prints what FFmpeg says by C's standard output, which would keep it until much has come."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no glibc: the words come late
        libc = ctypes.CDLL(None)
        libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, _BY_LINES, 0)


def _first_line() -> bytes:
    """Not by way of a buffer, which would take the commands behind it as well."""
    line = bytearray()
    while not line.endswith(b"\n"):
        letter = os.read(0, 1)
        if not letter:
            os._exit(0)
        line += letter
    return bytes(line)


class _Failed(Exception):
    """The source cannot be opened or no longer be read. kind: as live_feed.py's failures have it; "" where standard
    error tells."""

    def __init__(self, reason: str, kind: str) -> None:
        super().__init__(reason)
        self.kind = kind


def _capture(settings: dict[str, Any], slots: list[Any], commands: _Commands, answer: Any) -> NoReturn:
    """Raises _Failed when no more frames come."""
    import cv2

    from deploy.errors import InputError
    from deploy.frame_ring import frame_bytes

    capture = _open_camera(settings, cv2) if settings["camera"] else _open_stream(settings, cv2)
    try:
        if not capture.isOpened():
            # FFmpeg has said why, on standard error.
            raise _Failed("it cannot be opened", "")
        size = [int(capture.get(code)) for code in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH)]
        if size[0] > 0 < size[1]:
            frame_bytes(*size)  # before a frame is decoded
        answer(opened=_granted(settings, capture, size, cv2))
        pace = _pace(settings, capture, cv2)
        load = _Load() if settings["threads"] == 1 and not settings["camera"] and pace is None else None
        dropped = spoiled = 0
        grabbed = _Grabbed(capture, 0 if settings["camera"] else _FAILURES)
        while grabbed.next():
            if pace is not None:
                pace()
            at = time.monotonic()
            if commands.ending:
                capture.release()
                os._exit(0)
            if load is not None and load.too_much(at):
                raise _Failed("one thread does not decode it in time, so that all are used from now on", "slow")
            try:
                number = commands.free.popleft()
            except IndexError:
                dropped += 1  # not even converted to BGR
                continue
            found = _retrieve(capture, slots[number], size, cv2)
            if found is None:
                # USB cameras send a spoiled picture now and then, mostly at their start.
                commands.free.append(number)
                grabbed.failures, spoiled = grabbed.failures + 1, spoiled + 1
                if spoiled > _FAILURES:
                    raise _Failed("its frames cannot be converted", "refused")
                continue
            size, spoiled = found, 0
            told = {"frame": number, "at": at, "height": size[0], "width": size[1]}
            answer(**told, dropped=dropped, corrupt=grabbed.failures)
        raise _Failed("its frames have ended", "lost")
    except InputError as error:
        raise _Failed(str(error), "refused") from error
    finally:
        capture.release()


class _Grabbed:
    """Frames, decoded one by one. One that cannot be decoded is passed over; FFmpeg tells the end of a stream in the
    same way, and then again and again."""

    def __init__(self, capture: Any, most_in_a_row: int) -> None:
        self._capture, self._most = capture, most_in_a_row
        self.failures = 0

    def next(self) -> bool:
        """False at the end."""
        before = self.failures
        while not self._capture.grab():
            if self.failures - before >= self._most:
                self.failures = before
                return False
            self.failures += 1
        return True


class _Load:
    """Whether this thread is busy all the time: what it decodes then comes later and later."""

    def __init__(self) -> None:
        self._since, self._busy = time.monotonic(), time.thread_time()

    def too_much(self, now: float) -> bool:
        if now < self._since + _JUDGE_SECONDS or (os.cpu_count() or 1) == 1:
            return False
        share = (time.thread_time() - self._busy) / (now - self._since)
        self._since, self._busy = now, time.thread_time()
        return share > _BUSY


def _pace(settings: dict[str, Any], capture: Any, cv2: Any) -> Callable[[], None] | None:
    """What waits until the frame that was grabbed is due, where the stream is a recording that a web server gives as
    fast as it is read; None where it is live."""
    if not settings["address"].lower().startswith("http") or not capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0:
        return None
    begin = time.monotonic()

    def wait() -> None:
        due = begin + capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 - time.monotonic()
        time.sleep(min(max(due, 0), 1))

    return wait


def _retrieve(capture: Any, slot: Any, size: list[int], cv2: Any) -> list[int] | None:
    """Puts the frame that was grabbed into the slot. Returns its [height, width]; None where there is no picture."""
    into = slot.pixels(*size) if size[0] > 0 < size[1] else None
    try:
        done, pixels = capture.retrieve(into)
    except cv2.error:
        return None
    if not done or pixels is None or pixels.ndim != 3 or pixels.shape[2] != 3:
        return None
    height, width = pixels.shape[:2]
    if into is None or pixels.shape != into.shape or not _same_memory(pixels, into):
        slot.pixels(height, width)[:] = pixels  # it has another size than the frame before
    return [height, width]


def _same_memory(one: Any, other: Any) -> bool:
    return bool(one.__array_interface__["data"][0] == other.__array_interface__["data"][0])


def _open_stream(settings: dict[str, Any], cv2: Any) -> Any:
    os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = ffmpeg_options(settings)
    limit = int(settings["open_seconds"] * 1000)
    # A read is as long as it takes until the first key frame.
    parameters = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit, cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit]
    parameters += [cv2.CAP_PROP_N_THREADS, settings["threads"]]
    return cv2.VideoCapture(settings["address"], cv2.CAP_FFMPEG, parameters)


def _open_camera(settings: dict[str, Any], cv2: Any) -> Any:
    """The codec is asked for first: the sizes and rates that a camera has depend on it."""
    path = settings["address"]
    if sys.platform != "linux":
        capture = cv2.VideoCapture(int(path.removeprefix("/dev/video")), cv2.CAP_ANY)
    else:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
        except OSError as error:
            raise _Failed(_why_no_camera(error), "unreachable") from error
        capture = cv2.VideoCapture(path, cv2.CAP_V4L2)
    wishes = (("fps", cv2.CAP_PROP_FPS), ("width", cv2.CAP_PROP_FRAME_WIDTH), ("height", cv2.CAP_PROP_FRAME_HEIGHT))
    if capture.isOpened():
        if settings["codec"]:
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*settings["codec"]))
        for name, code in reversed(wishes):
            if settings[name] is not None:
                capture.set(code, settings[name])
    return capture


def _why_no_camera(error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return "there is no such camera; plug it in. Its number may change then, its name in /dev/v4l/by-id does not"
    if error.errno == errno.EACCES:
        return "this user may not open the camera; add the user to the group video"
    if error.errno == errno.EBUSY:
        return "another program uses the camera"
    return f"the camera cannot be opened: {error.strerror}"


def _granted(settings: dict[str, Any], capture: Any, size: list[int], cv2: Any) -> dict[str, Any]:
    fps = capture.get(cv2.CAP_PROP_FPS)
    letters = int(capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF
    codec = letters.to_bytes(4, "little").decode("ascii", "replace").strip("\0 ")
    return {
        "height": size[0],
        "width": size[1],
        # Of a stream it is a guess of FFmpeg's.
        "fps": round(fps, 3) if settings["camera"] and 0 < fps <= 1000 else None,
        "codec": codec if codec.isascii() and codec.isprintable() else "",
    }


if __name__ == "__main__":
    main()
