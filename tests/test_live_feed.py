"""Live feeds against a server that stalls, drops, refuses and sends damaged pictures, and against a made-up camera.

No camera is needed: FAKE_CAMERA is the real child with another opener. A real one was never unplugged here.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy import capture_process, live_feed
from deploy.address import parse_address
from deploy.capture import CaptureOptions, Feed, open_feed
from deploy.capture_process import without_secrets
from deploy.result import Event
from deploy.source import Frame
from mjpeg_server import MjpegServer

QUICK = CaptureOptions(stall=0.6)
#: A camera that is there while the file CAMERA names is, and 0.02 s between frames whose level counts up.
FAKE_CAMERA = """
import os, sys, time
import numpy as np
from deploy import capture_child

class Camera:
    number = 0
    def isOpened(self): return True
    def get(self, code): return {3: 32, 4: 24, 5: 50, 6: 0x47504A4D}.get(code, -1)
    def set(self, code, value): print("set", code, value, file=sys.stderr)
    def release(self): pass
    def grab(self):
        time.sleep(0.02)
        self.number += 1
        while os.path.exists(os.environ["CAMERA"] + ".hangs"): time.sleep(1)
        if os.path.exists(os.environ["CAMERA"] + ".crashes"): os.abort()
        return os.path.exists(os.environ["CAMERA"])
    def retrieve(self, into=None):
        if os.path.exists(os.environ["CAMERA"] + ".spoils") and self.number % 3:
            if self.number % 2: return False, None
            import cv2
            raise cv2.error("spoiled")
        return True, np.full((24, 32, 3), self.number % 250, np.uint8)

def open_camera(settings, cv2):
    if not os.path.exists(os.environ["CAMERA"]):
        raise capture_child._Failed("there is no such camera; plug it in", "unreachable")
    return Camera()

capture_child._open_camera = open_camera
capture_child.main()
"""


@pytest.fixture()
def server() -> Iterator[MjpegServer]:
    camera = MjpegServer()
    camera.start()
    yield camera
    camera.stop()


class Watched:
    """A feed, its events and the frames that were taken from it."""

    def __init__(self, address: str, options: CaptureOptions = QUICK) -> None:
        self.events: list[Event] = []
        self.frames: list[Frame] = []
        self.wake = threading.Event()
        self.feed: Feed = open_feed("cam", parse_address(address), options, self.wake, self.events.append)

    def until(self, true: Callable[[], bool], seconds: float = 30) -> None:
        limit = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < limit, f"it did not happen: {self.events}, {self.feed.status()}"
            if self.wake.wait(0.02):
                self.wake.clear()
            if (frame := self.feed.take()) is not None:
                self.frames.append(frame)

    def more(self, count: int = 3) -> None:
        self.until(lambda have=len(self.frames): len(self.frames) >= have + count)  # type: ignore[misc]

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


@contextlib.contextmanager
def watched(address: str, options: CaptureOptions = QUICK) -> Iterator[Watched]:
    one = Watched(address, options)
    try:
        yield one
    finally:
        one.feed.close()


def test_frames_come_and_are_counted(server: MjpegServer) -> None:
    # Not QUICK: a machine that sleeps for half a second is no stall here.
    with watched(server.address, CaptureOptions()) as one:
        one.more(10)
        status = one.feed.status()
    assert (status.state, status.live, status.size, status.reason) == ("running", True, (48, 64), "")
    assert status.address == server.address
    assert status.captured - status.dropped >= 10
    indices = [frame.index for frame in one.frames]
    assert indices == sorted(set(indices))
    times = [frame.time for frame in one.frames]
    assert times == sorted(times) and times[0] >= 0
    for frame in one.frames:
        assert frame.pixels.shape == (48, 64, 3)
        assert frame.pixels.min() == frame.pixels.max()
        assert frame.pixels.flags.owndata and frame.pixels.flags.writeable
        assert 0 < frame.captured <= time.monotonic()
    assert one.kinds() == ["opening", "running", "ended"], one.events
    assert one.feed.ended and one.feed.take() is None


def test_only_the_newest_frame_is_taken(server: MjpegServer) -> None:
    with watched(server.address) as one:
        one.more(1)
        have = one.feed.status().captured
        one_more = time.monotonic() + 20
        while one.feed.status().captured < have + 10:
            assert time.monotonic() < one_more
            time.sleep(0.02)
        frame = one.feed.take()
        assert frame is not None and frame.index >= have + 9
        assert one.feed.status().dropped >= 9


def test_sizes_may_change(server: MjpegServer) -> None:
    with watched(server.address) as one:
        one.more()
        for size in ((96, 128), (24, 32), (240, 320)):
            server.size = size
            one.until(lambda: one.frames[-1].pixels.shape == (*size, 3))
            assert one.frames[-1].pixels.min() == one.frames[-1].pixels.max()
        assert "size" in one.events[2].text
        assert one.feed.status().size == (240, 320)


def test_a_damaged_picture_is_counted_and_passed_over(server: MjpegServer) -> None:
    with watched(server.address) as one:
        one.more()
        server.cut_every = 5
        one.until(lambda: one.feed.status().corrupt >= 2)
        one.more()
        assert one.kinds() == ["opening", "running"]


def test_a_stall_is_noticed_and_survived(server: MjpegServer) -> None:
    with watched(server.address) as one:
        one.more()
        server.stalled = True
        one.until(lambda: "stalled" in one.kinds())
        server.stalled = False
        one.until(lambda: one.feed.status().state == "running")
        one.more()
        assert one.kinds()[:4] == ["opening", "running", "stalled", "waiting"]
        assert one.kinds()[-1] == "running"
        assert "again after" in one.events[-1].text
        assert one.feed.status().reconnects == 1


def test_a_machine_that_slept_hears_what_came_meanwhile(server: MjpegServer, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    messages = capture_process.CaptureProcess.messages

    def sleep_once(process: capture_process.CaptureProcess, seconds: float) -> object:
        if process.slots[0]._map is not None and not slept:  # it has given a frame
            process._child.send_signal(signal.SIGSTOP)
            messages(process, 0)  # what it gave before: nothing waits in the pipe
            slept.append(time.monotonic())
            time.sleep(2 * QUICK.stall)
            process._child.send_signal(signal.SIGCONT)
            return []
        return messages(process, seconds)

    monkeypatch.setattr(capture_process.CaptureProcess, "messages", sleep_once)
    with watched(server.address) as one:
        one.more(10)
        assert slept
        assert one.kinds() == ["opening", "running"], one.events


def test_a_dropped_connection_is_made_again(server: MjpegServer) -> None:
    with watched(server.address) as one:
        one.more()
        server.drop()
        one.until(lambda: one.feed.status().reconnects == 1)
        one.more()
        assert one.kinds() == ["opening", "running", "waiting", "running"]


def test_a_refused_connection_is_tried_until_it_works_and_told_once(server: MjpegServer) -> None:
    server.stop()
    with watched(server.address) as one:
        one.until(lambda: one.feed.status().reason == "Connection refused")
        until = time.monotonic() + 3
        one.until(lambda: time.monotonic() > until)
        assert one.kinds() == ["opening", "waiting"]
        server.start()
        one.more()
        assert one.feed.status().reconnects == 0  # it is the first


def test_an_answer_that_is_no_stream_is_told(server: MjpegServer) -> None:
    server.status = 404
    with watched(server.address) as one:
        one.until(lambda: "404" in one.feed.status().reason)
        assert server.connections < 20
        server.status = 200
        one.more()


def test_passwords_are_used_and_never_told(server: MjpegServer) -> None:
    server.login = "bob:s3cret-word"
    with watched(server.address.replace("//", "//bob:wrong-s3cret@")) as one:
        one.until(lambda: "401" in one.feed.status().reason)
        told = f"{one.events} {one.feed.status()} {_command_lines()}"
    assert "s3cret" not in told and "bob" not in told
    with watched(server.address.replace("//", "//bob:s3cret-word@")) as one:
        one.more()
        told = f"{one.events} {one.feed.status()} {one.frames[0].source} {_command_lines()}"
    assert "s3cret" not in told and "bob" not in told


def _command_lines() -> str:
    """Arguments and environment of this process's captures, as others of this machine see them."""
    found = b""
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in children.read_text().split():
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"capture_child" in line:
                    found += line + Path(f"/proc/{pid}/environ").read_bytes()
    return found.decode(errors="replace")


def test_nothing_that_is_said_by_ffmpeg_holds_a_secret() -> None:
    line = "[tcp @ 0x55d0] Connection to tcp://10.0.0.9:554?timeout=0 failed: Connection refused"
    assert without_secrets(line, ["u"]) == "Connection refused"
    assert without_secrets("cannot open rtsp://u:p4ss@cam/x for p4ss and u", ["p4ss", "u"]) == (
        "cannot open it for *** and ***"
    )
    assert "\x1b" not in without_secrets("\x1b[31mred", [])


def test_no_thread_process_or_file_is_left_after_many_connections(server: MjpegServer) -> None:
    before = _open_files(), set(threading.enumerate())
    server.fps = 100
    with watched(server.address, CaptureOptions(stall=0.6, most_wait=0.2)) as one:
        one.more()
        running = _open_files()
        for count in range(1, 6):
            server.drop()
            one.until(lambda: one.feed.status().reconnects >= count)
        one.more()
        # The server's connections are of this process too, and end a little later.
        _eventually(lambda: _open_files() <= running)
        assert _command_lines().count("capture_child") == 1
    server.stop()
    _eventually(lambda: _open_files() <= before[0] and set(threading.enumerate()) <= before[1])
    assert not _command_lines()


def _eventually(true: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not true():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.02)


def _open_files() -> int:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("only Linux tells open files in /proc")
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture()
def camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that stands for the camera's plug."""
    monkeypatch.setattr(capture_process, "CHILD", ("-c", FAKE_CAMERA))
    path = tmp_path / "camera"
    monkeypatch.setenv("CAMERA", str(path))
    path.touch()
    return path


def test_a_camera_that_is_unplugged_comes_back(camera: Path) -> None:
    with watched("/dev/video0", CaptureOptions(width=32, height=24, stall=0.6)) as one:
        one.more()
        camera.unlink()
        one.until(lambda: "no such camera" in one.feed.status().reason)
        camera.touch()
        one.until(lambda: one.feed.status().state == "running")
        one.more()
        assert one.kinds()[:3] == ["opening", "running", "waiting"]
        assert one.kinds()[-1] == "running"


def test_a_spoiled_picture_of_a_camera_is_passed_over(camera: Path) -> None:
    camera.with_name("camera.spoils").touch()
    with watched("0") as one:
        one.more(10)
        assert one.feed.status().corrupt >= 10
        assert one.kinds() == ["opening", "running"]


def test_what_a_camera_granted_is_told_beside_what_was_asked(camera: Path) -> None:
    with watched("0", CaptureOptions(width=1920, height=1080, fps=50, codec="MJPG")) as one:
        one.more()
        running = one.events[1]
    assert running.text == (
        "32x24 at 50 frames/s, MJPG (asked for width 1920, height 1080, fps 50, codec MJPG)"
    )
    assert running.facts["asked"]["width"] == 1920
    assert (running.facts["width"], running.facts["height"], running.facts["codec"]) == (32, 24, "MJPG")


def test_a_decoder_that_crashes_is_started_again(camera: Path) -> None:
    with watched("0") as one:
        one.more()
        crash = camera.with_name("camera.crashes")
        crash.touch()
        # An event stays to be seen; the status says so only until the next attempt.
        one.until(lambda: any("SIGABRT" in event.text for event in one.events))
        crash.unlink()
        one.more()
        assert one.feed.status().state == "running"


def test_a_driver_that_hangs_is_left_behind_and_the_feed_closes_soon(camera: Path) -> None:
    with watched("0") as one:
        one.more()
        camera.with_name("camera.hangs").touch()
        one.until(lambda: "stalled" in one.kinds())
        camera.with_name("camera.hangs").unlink()
        one.more()
        camera.with_name("camera.hangs").touch()
    assert one.feed.ended
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("feed")]


LIAR = """
import json, os, sys
sys.stdin.buffer.readline()
for line in json.loads(os.environ["LIES"]):
    os.write(1, line.encode() + b"\\n")
import time
time.sleep(20)
"""


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[1]",
        '{"frame": 9, "at": 1, "height": 2, "width": 2, "dropped": 0, "corrupt": 0}',
        '{"frame": 0, "at": 1, "height": 2, "width": 2, "dropped": 0, "corrupt": 0}',
        '{"frame": 0, "at": 1, "height": 99999, "width": 99999, "dropped": 0, "corrupt": 0}',
        '{"frame": 0}',
        '{"frame": 0, "at": "x", "height": 2, "width": 2, "dropped": 0, "corrupt": 0}',
        '{"frame": 0, "at": NaN, "height": 2, "width": 2, "dropped": 0, "corrupt": 0}',
        '{"frame": -1, "at": 1, "height": 2, "width": 2, "dropped": 0, "corrupt": 0}',
        '{"opened": {"fps": "fast", "codec": ""}}',
        '{"opened": 1}',
        '{"frame": "x", "at": 1, "height": 2, "width": 2, "dropped": 0, "corrupt": 0}',
        '{"opened": {"fps": "x' + "y" * 70_000,
    ],
)
def test_a_child_that_tells_nonsense_is_not_believed(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.setattr(capture_process, "CHILD", ("-c", LIAR))
    monkeypatch.setenv("LIES", json.dumps([line]))
    with watched("0") as one:
        one.until(lambda: one.feed.status().state == "waiting")
        assert "the capture's process" in one.feed.status().reason
        assert one.feed.status().captured == 0


def test_words_of_a_child_are_one_printable_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_process, "CHILD", ("-c", LIAR))
    lie = {"failed": "\x1b[2J\nrtsp://u:p@h/ " + "x" * 999, "kind": "lost"}
    monkeypatch.setenv("LIES", json.dumps([json.dumps(lie)]))
    with watched("0") as one:
        one.until(lambda: one.feed.status().state == "waiting")
        reason = one.feed.status().reason
    assert reason.isprintable() and len(reason) <= 200 and "u:p" not in reason


def test_pauses_grow_and_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    class Feed(live_feed.LiveFeed):
        def __init__(self) -> None:
            self._options = CaptureOptions(most_wait=5)
            self._stop = self  # type: ignore[assignment]
            self.is_set = lambda: True

        def wait(self, seconds: float) -> None:
            waits.append(seconds)

        def _change(self, *_: object) -> None:
            pass

    for attempt in range(8):
        Feed()._wait(live_feed._Failure("lost", "x"), attempt)
    for attempt, wait in enumerate(waits):
        middle = min(5, 0.25 * 2**attempt)
        assert 0.75 * middle <= wait <= 1.25 * middle
    waits.clear()
    Feed()._wait(live_feed._Failure("unreachable", "x"), 1000)
    assert 0.75 <= waits[0] <= 1.25


def test_a_program_that_ends_without_closing_its_feed_does_not_hang(server: MjpegServer) -> None:
    code = f"""
import threading
from deploy.address import parse_address
from deploy.capture import CaptureOptions, open_feed
wake = threading.Event()
feed = open_feed("0", parse_address("{server.address}"), CaptureOptions(), wake, lambda event: None)
while feed.take() is None:
    wake.wait(0.1)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], timeout=60, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_events_are_one_line(server: MjpegServer) -> None:
    with watched(server.address) as one:
        one.more()
        server.drop()
        one.until(lambda: one.feed.status().reconnects == 1)
    for event in one.events:
        assert re.fullmatch(r"[^\n]+", event.text)
        assert event.feed == "cam"
