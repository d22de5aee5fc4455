"""Files as feeds: every frame in order, by the clock, again from the beginning, and what cannot be read."""

import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from deploy.address import parse_address
from deploy.capture import CaptureOptions, Feed, open_feed
from deploy.errors import InputError
from deploy.result import Event
from deploy.source import Frame
from test_source import GREY, write_video


def play(source: Path | str, options: CaptureOptions = CaptureOptions(), most: int = 10_000) -> tuple[
    list[Frame], list[Event], Feed
]:
    """All frames up to the feed's end, or `most` of them."""
    events: list[Event] = []
    wake = threading.Event()
    feed = open_feed("f", parse_address(str(source)), options, wake, events.append)
    frames: list[Frame] = []
    limit = time.monotonic() + 20
    while not feed.ended and len(frames) < most and time.monotonic() < limit:
        if (frame := feed.take()) is not None:
            frames.append(frame)
        elif not feed.ended:
            wake.wait(0.05)
            wake.clear()
    feed.close()
    return frames, events, feed


def test_a_video_gives_every_frame_in_order(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", frames=12, fps=10)
    frames, events, feed = play(path)
    assert [frame.index for frame in frames] == list(range(12))
    assert [round(frame.time, 3) for frame in frames] == [i / 10 for i in range(12)]
    assert [frame.source for frame in frames] == [path] * 12
    assert all(0 < frame.captured <= time.monotonic() for frame in frames)
    assert [event.kind for event in events] == ["opening", "running", "ended"]
    status = feed.status()
    assert (status.state, status.captured, status.dropped, status.live) == ("ended", 12, 0, False)
    assert status.size == (48, 64)


def test_a_file_waits_for_whoever_is_slow(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", frames=8)
    feed = open_feed("f", parse_address(str(path)), CaptureOptions(), threading.Event(), lambda _: None)
    time.sleep(0.3)
    assert not feed.ended
    assert feed.status().captured < 8
    assert feed.status().dropped == 0
    feed.close()


def test_realtime_keeps_the_files_own_clock(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", frames=6, fps=20)
    begin = time.monotonic()
    frames, _, feed = play(path, CaptureOptions(realtime=True))
    assert feed.live
    # Nothing comes before it is due; how much later it comes is the machine's affair.
    assert all(frame.captured - begin >= frame.time for frame in frames)
    assert frames[-1].index == 5
    assert feed.status().captured == 6


def test_realtime_drops_what_nobody_took(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", frames=10, fps=100)
    feed = open_feed("f", parse_address(str(path)), CaptureOptions(realtime=True), threading.Event(), lambda _: None)
    wait_until(lambda: feed.status().state == "ended")
    assert not feed.ended  # there is a frame to take
    frame = feed.take()
    assert frame is not None and frame.index == 9
    assert feed.take() is None
    assert feed.ended
    assert (feed.status().captured, feed.status().dropped) == (10, 9)
    feed.close()


def test_a_loop_counts_on(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", frames=4, fps=10)
    frames, _, feed = play(path, CaptureOptions(loop=True), most=10)
    assert [frame.index for frame in frames] == list(range(10))
    assert [round(frame.time, 3) for frame in frames] == [i / 10 for i in range(10)]
    assert [int(frame.pixels[0, 0, 0]) // 10 for frame in frames[:4]] == [
        int(frame.pixels[0, 0, 0]) // 10 for frame in frames[4:8]
    ]


def test_the_pattern_is_played_at_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pattern:
        def __init__(self, width: int = 640, height: int = 480, fps: float = 25.0) -> None:
            self.size, self.fps = (height, width, 3), fps

        def frame(self, number: int) -> tuple[np.ndarray, None]:
            return np.full(self.size, number, np.uint8), None

    module = types.ModuleType("deploy.pattern")
    module.Pattern = Pattern  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deploy.pattern", module)
    begin = time.monotonic()
    frames, _, feed = play("pattern", CaptureOptions(width=32, fps=50), most=5)
    assert feed.live
    assert frames[0].pixels.shape == (480, 32, 3)
    for frame in frames:
        assert frame.source == "pattern"
        assert frame.time == frame.index / 50
        assert frame.captured - begin >= frame.time
        assert (frame.pixels == frame.index).all()


def test_a_folder_leaves_out_what_cannot_be_read(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), GREY)
    (tmp_path / "b.png").write_text("no picture")
    cv2.imwrite(str(tmp_path / "c.png"), GREY)
    frames, events, feed = play(tmp_path)
    assert [Path(frame.source).name for frame in frames] == ["a.png", "c.png"]
    assert [event.kind for event in events] == ["opening", "running", "skipped", "ended"]
    assert "b.png" in events[2].text
    assert feed.status().corrupt == 1


def test_a_folder_without_a_readable_picture_fails(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_text("no picture")
    frames, events, feed = play(tmp_path)
    assert frames == []
    assert feed.status().state == "failed"
    assert "not one of 1 pictures" in feed.status().reason


def test_a_picture_is_one_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), GREY)
    (frame,), _, _ = play(path)
    np.testing.assert_array_equal(frame.pixels, GREY)
    assert (frame.index, frame.time) == (0, 0.0)


def test_a_damaged_picture_fails_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(cv2.imencode(".png", GREY)[1].tobytes()[:40])
    frames, _, feed = play(path)
    assert frames == []
    assert feed.status().state == "failed"
    assert "a.png" in feed.status().reason


def test_what_is_not_there_is_an_error_at_once() -> None:
    with pytest.raises(InputError, match="there is no"):
        play("no such file")


@pytest.mark.parametrize("options", [CaptureOptions(), CaptureOptions(realtime=True), CaptureOptions(loop=True)])
def test_nothing_is_left_after_the_close(tmp_path: Path, options: CaptureOptions) -> None:
    path = write_video(tmp_path / "a.avi", frames=50, fps=5)
    before = set(threading.enumerate())
    feed = open_feed("f", parse_address(str(path)), options, threading.Event(), lambda _: None)
    wait_until(lambda: feed.status().captured > 0)
    feed.close()
    feed.close()
    assert set(threading.enumerate()) == before
    assert feed.ended
    assert feed.take() is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 0},
        {"height": 70_000},
        {"fps": 0.0},
        {"fps": float("nan")},
        {"codec": "MJPEG"},
        {"transport": "sctp"},
        {"stall": 0.0},
        {"most_wait": float("inf")},
    ],
)
def test_options_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        CaptureOptions(**wrong)  # type: ignore[arg-type]


def wait_until(true: Callable[[], bool], seconds: float = 20) -> None:
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.01)
