"""Segments: paced by the clock, whole under their real names, and no more of them than there is room for."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import cv2
import feed_values
import numpy as np
import pytest
from feed_values import LABELS

from deploy import recording
from deploy.detect_settings import RecordSettings
from deploy.errors import InputError
from deploy.recording import Recording
from deploy.result import Result
from deploy.source import Frame

CODECS = [
    "mpeg4",
    pytest.param("h264", marks=pytest.mark.skipif(not recording.has_h264(), reason="no ffmpeg with libx264 here")),
]


def at(seconds: float, size: tuple[int, int] = (96, 128), feed: str = "door") -> Result:
    """A result whose frame arrived at that time."""
    frame = Frame("rtsp://cam/door", 0, seconds, np.full((*size, 3), int(seconds * 40) % 256, np.uint8), 1000 + seconds)
    return feed_values.result(feed=feed, frame=frame, finished=1000.02 + seconds)


def segments(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)


def read(path: Path) -> tuple[float, list[np.ndarray]]:
    """Frames a second, and the frames."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    fps = capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    return fps, frames


@pytest.mark.parametrize("codec", CODECS)
def test_the_film_runs_as_long_as_the_clock_whatever_the_feed_s_rate(tmp_path: Path, codec) -> None:
    for rate in (5, 40):
        folder = tmp_path / str(rate)
        record = Recording(RecordSettings(folder, fps=10, codec=codec), LABELS)
        for i in range(2 * rate + 1):
            record.result(at(i / rate))
        record.close()
        (path,) = segments(folder)
        assert re.fullmatch(r"door_\d{8}T\d{6}Z\.mp4", path.name)
        fps, frames = read(path)
        assert fps == pytest.approx(10) and len(frames) == 2 * 10 + 1
        assert frames[0].shape == (96, 128, 3) and abs(int(frames[-1][60, 100, 0]) - 2 * 40) < 12


def test_a_file_that_is_read_faster_than_it_runs_keeps_its_own_time_and_a_loop_begins_anew(tmp_path: Path) -> None:
    feeds = (feed_values.feed_status(live=False),)
    snapshot = feed_values.snapshot(feeds=feeds)
    record = Recording(RecordSettings(tmp_path, fps=10, codec="mpeg4"), LABELS, lambda: snapshot)
    for _ in range(2):
        for i in range(20):
            frame = Frame("v.mp4", i, i / 10, np.zeros((32, 48, 3), np.uint8), 1000 + i / 1000)
            record.result(feed_values.result(frame=frame))
    record.close()
    assert [len(read(path)[1]) for path in segments(tmp_path)] == [20, 20]


@pytest.mark.parametrize("codec", CODECS)
def test_a_new_segment_at_its_length_at_another_size_and_after_a_pause(tmp_path: Path, codec) -> None:
    record = Recording(RecordSettings(tmp_path, fps=10, seconds=1.0, codec=codec), LABELS)
    for i in range(15):
        record.result(at(i / 10))  # 1.0 s, then 0.5 s of the next one
    for i in range(4):
        record.result(at(1.5 + i / 10, size=(65, 81)))  # odd sides lose their last row and column
    for i in range(3):
        record.result(at(9.0 + i / 10, size=(65, 81)))  # after a pause
    record.close()
    lengths = [(len(frames), frames[0].shape[:2]) for _, frames in map(read, segments(tmp_path))]
    assert lengths == [(10, (96, 128)), (5, (96, 128)), (4, (64, 80)), (3, (64, 80))]


def test_each_feed_has_its_own_files_and_its_end_finishes_them(tmp_path: Path) -> None:
    record = Recording(RecordSettings(tmp_path, codec="mpeg4"), LABELS)
    for i in range(3):
        record.result(at(i, feed="../../etc/door"))
        record.result(at(i, feed="1"))
    record.event(feed_values.event("ended", "1"))
    record.event(feed_values.event("ended", "unknown"))
    assert sorted(path.name.split("_")[0] for path in tmp_path.iterdir() if ".part" not in path.name) == ["1"]
    record.close()
    assert sorted(path.name.split("_")[0] for path in tmp_path.iterdir()) == ["1", "etc-door"]


def test_the_oldest_segments_make_room(tmp_path: Path) -> None:
    other = tmp_path / "holiday.mp4"
    other.write_bytes(b"0" * 100_000)
    left_by_a_kill = tmp_path / "door_20200101T000000Z.part.mp4"
    left_by_a_kill.write_bytes(b"0" * 1000)
    os.utime(left_by_a_kill, (0, 0))
    record = Recording(RecordSettings(tmp_path, seconds=1.0, fps=5, codec="mpeg4", most_bytes=1), LABELS)
    for i in range(12):
        record.result(at(i / 4))
    record.close()
    assert other.exists() and not left_by_a_kill.exists()
    assert len(segments(tmp_path)) == 1 + 1  # the newest one stays


def test_frames_that_are_too_wide_are_scaled_and_the_result_is_left_alone(tmp_path: Path) -> None:
    record = Recording(RecordSettings(tmp_path, codec="mpeg4", most_width=64), LABELS)
    one = at(0)
    before = one.frame.pixels.copy()
    record.result(one)
    record.close()
    np.testing.assert_array_equal(one.frame.pixels, before)
    assert read(segments(tmp_path)[0])[1][0].shape == (48, 64, 3)


@pytest.mark.parametrize("codec", CODECS)
def test_a_killed_run_leaves_finished_segments_whole(tmp_path: Path, codec) -> None:
    script = (
        "import sys, os, signal; sys.path[:0] = ['tests', '.']\n"
        "from pathlib import Path; from test_recording import at, LABELS, Recording, RecordSettings\n"
        "record = Recording(RecordSettings(Path(sys.argv[1]), fps=10, seconds=1, codec=sys.argv[2]), LABELS)\n"
        "for i in range(25): record.result(at(i / 10))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path), codec], cwd=root, timeout=120)
    assert done.returncode == -9
    whole = [path for path in tmp_path.iterdir() if ".part." not in path.name]
    assert [len(read(path)[1]) for path in whole] == [10, 10]
    assert len(list(tmp_path.iterdir())) == 3
    if codec == "h264":  # what was begun can be played as well, when its ffmpeg has gone
        (begun,) = tmp_path.glob("*.part.mp4")
        end = time.monotonic() + 20
        while not recording.is_readable(begun) and time.monotonic() < end:
            time.sleep(0.1)
        assert len(read(begun)[1]) == 5


@pytest.mark.skipif(not recording.has_h264(), reason="no ffmpeg with libx264 here")
def test_an_ffmpeg_that_dies_is_an_error_and_after_a_rest_another_one_begins(tmp_path: Path, monkeypatch) -> None:
    record = Recording(RecordSettings(tmp_path, fps=10, codec="h264"), LABELS)
    record.result(at(0))
    process = record._segments["door"]._writer._process
    process.kill()
    process.wait()
    began = []
    whole = recording._Segment
    monkeypatch.setattr(recording, "_Segment", lambda *a: (began.append(1), whole(*a))[1])
    failed = 0
    for i in range(1, 30):
        try:
            record.result(at(i / 10))
        except InputError as error:
            assert "ffmpeg ended while it wrote" in str(error)
            failed += 1
    assert failed >= 29 - 2 and not began  # it fails, and does not begin a process a frame
    assert list(tmp_path.iterdir()) == []  # nothing of it can be played
    record._resting.clear()
    record.result(at(4.0))
    record.close()
    assert began == [1] and [len(read(path)[1]) for path in tmp_path.iterdir()] == [1]


def test_what_cannot_be_recorded_is_said_before_the_feed_opens(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the folder"):
        Recording(RecordSettings(tmp_path / "file" / "in"), LABELS)
    monkeypatch.setattr(recording, "has_h264", lambda: False)
    with pytest.raises(InputError, match="ffmpeg with libx264"):
        Recording(RecordSettings(tmp_path, codec="h264"), LABELS)
    assert Recording(RecordSettings(tmp_path), LABELS).codec == "mpeg4"
