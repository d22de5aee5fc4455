"""The process that reads a camera or stream: what it says, and that it ends."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy import capture_child
from deploy.capture_child import _Grabbed, _Load, _why_no_camera, ffmpeg_options
from deploy.frame_ring import create_slots

ROOT = Path(__file__).parents[1]
SETTINGS: dict[str, Any] = {
    "address": "/dev/no-such-camera",
    "camera": True,
    "protocols": "",
    "transport": "tcp",
    "low_delay": False,
    "stall": 2.0,
    "open_seconds": 5.0,
    "hasty": True,
    "threads": 1,
    "width": None,
    "height": None,
    "fps": None,
    "codec": None,
    "user_options": "",
}


def options(**changes: Any) -> dict[str, str]:
    text = ffmpeg_options(SETTINGS | changes)
    return dict(part.split(";", 1) for part in text.split("|"))


def test_rtsp_comes_over_tcp_and_opens_soon() -> None:
    found = options(address="RTSP://cam/live", protocols="rtp,udp,tcp", stall=1.5)
    assert found == {
        "protocol_whitelist": "rtp,udp,tcp",
        "timeout": str(1_500_000),
        "rtsp_transport": "tcp",
        "analyzeduration": str(500_000),
    }
    assert options(address="rtsp://cam/live", transport="udp")["rtsp_transport"] == "udp"
    assert "analyzeduration" not in options(address="rtsp://cam/live", hasty=False)


def test_timeout_is_left_out_where_it_means_another_thing() -> None:
    assert "timeout" in options(address="http://cam/mjpg")
    assert "timeout" not in options(address="udp://:5000")
    assert "timeout" not in options(address="rtmp://cam/live")


def test_low_delay_and_the_users_own_options_come_last() -> None:
    found = options(address="rtsp://cam/live", low_delay=True, user_options="probesize;64|x;y")
    assert (found["fflags"], found["analyzeduration"], found["probesize"], found["x"]) == ("nobuffer", "0", "64", "y")


class FakeCapture:
    def __init__(self, results: list[bool]) -> None:
        self._results = iter(results)

    def grab(self) -> bool:
        return next(self._results, False)


def test_damaged_frames_are_passed_over_and_the_end_is_told() -> None:
    grabbed = _Grabbed(FakeCapture([True, False, False, True, True]), 3)
    assert [grabbed.next() for _ in range(4)] == [True, True, True, False]
    assert grabbed.failures == 2  # those before the end are none


def test_a_camera_that_fails_once_is_gone() -> None:
    assert not _Grabbed(FakeCapture([False, True]), 0).next()


def test_a_thread_that_is_always_busy_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"wall": 100.0, "busy": 5.0}
    monkeypatch.setattr(capture_child.time, "monotonic", lambda: clock["wall"])
    monkeypatch.setattr(capture_child.time, "thread_time", lambda: clock["busy"])
    monkeypatch.setattr(capture_child.os, "cpu_count", lambda: 4)
    load = _Load()
    assert not load.too_much(101.0)
    clock["busy"] += 2
    assert not load.too_much(105.0)  # 2 of 5 seconds
    clock["busy"] += 4.9
    clock["wall"] = 110.0
    assert load.too_much(110.0)
    monkeypatch.setattr(capture_child.os, "cpu_count", lambda: 1)
    assert not _Load().too_much(200.0)


class FakeRecording:
    def __init__(self, frames: float, milliseconds: float) -> None:
        self._values = {7: frames, 0: milliseconds}

    def get(self, code: int) -> float:
        return self._values[code]


class FakeCv2:
    CAP_PROP_FRAME_COUNT, CAP_PROP_POS_MSEC = 7, 0


def test_a_recording_from_a_web_server_is_played_by_its_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(capture_child.time, "monotonic", lambda: 100.0)
    monkeypatch.setattr(capture_child.time, "sleep", slept.append)
    web = SETTINGS | {"address": "http://host/film.mp4"}
    wait = capture_child._pace(web, FakeRecording(60, 400), FakeCv2)
    assert wait is not None
    wait()
    assert slept == [pytest.approx(0.4)]
    assert capture_child._pace(web, FakeRecording(-9e15, 400), FakeCv2) is None  # MJPEG
    assert capture_child._pace(SETTINGS | {"address": "rtsp://host/x"}, FakeRecording(60, 400), FakeCv2) is None


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOENT, "plug"), (errno.EACCES, "group video"), (errno.EBUSY, "another program"), (errno.EIO, "opened")],
)
def test_why_there_is_no_camera(number: int, words: str) -> None:
    assert words in _why_no_camera(OSError(number, os.strerror(number)))


@pytest.fixture()
def child() -> Iterator[subprocess.Popen[bytes]]:
    slots = create_slots()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "deploy.capture_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=slots,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(SETTINGS | {"slots": slots}).encode() + b"\n")
    process.stdin.flush()
    yield process
    process.kill()
    process.communicate()
    for slot in slots:
        os.close(slot)


def ask_to_open(child: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write(b"o")
    child.stdin.flush()
    answer: dict[str, Any] = json.loads(child.stdout.readline())
    return answer


def test_it_tries_as_often_as_it_is_asked_to(child: subprocess.Popen[bytes]) -> None:
    for _ in range(3):
        answer = ask_to_open(child)
        assert answer["kind"] == "unreachable"
        assert "no such camera" in answer["failed"]


def test_ctrl_c_is_not_for_it(child: subprocess.Popen[bytes]) -> None:
    ask_to_open(child)
    child.send_signal(signal.SIGINT)
    assert "failed" in ask_to_open(child)


def test_it_ends_with_its_parent(child: subprocess.Popen[bytes]) -> None:
    ask_to_open(child)
    assert child.stdin is not None
    child.stdin.close()
    child.stdin = None
    assert child.wait(10) == 0


def test_it_loads_neither_the_interpreter_nor_pillow() -> None:
    code = "import sys, deploy.capture_child, deploy.frame_ring; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert not {"ai_edge_litert", "PIL", "click", "http.server"} & set(done.stdout.decode().split())


def test_a_whole_process_is_over_though_its_parent_was_killed(tmp_path: Path) -> None:
    code = """
import threading, time
from deploy.address import parse_address
from deploy.capture import CaptureOptions, open_feed
open_feed("0", parse_address("/dev/video99"), CaptureOptions(), threading.Event(), lambda event: None)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        found = _eventually(lambda: _children(parent.pid))
    finally:
        parent.kill()
        parent.wait()
    assert found
    _eventually(lambda: not any(Path(f"/proc/{pid}").exists() and _alive(pid) for pid in found))


def _children(pid: int) -> list[int]:
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux tells a process's children in /proc")
    found = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(one) for one in thread.read_text().split()]
    return [one for one in found if b"capture_child" in Path(f"/proc/{one}/cmdline").read_bytes()]


def _alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def _eventually(value: Any) -> Any:
    limit = time.monotonic() + 20
    while not (found := value()):
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.02)
    return found
