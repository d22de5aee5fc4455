"""A run that lasts, in this process: feeds that outlast a reload, what is told of it, and how it ends."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from toy_detector import write_toy

from deploy.address import parse_address
from deploy.capture import CaptureOptions
from deploy.detect_settings import DetectSettings, LinkSettings, SourceSettings
from deploy.errors import InputError
from deploy.feeds import Feeds
from deploy.live_run import run
from deploy.result import Event
from deploy.run_log import RunLog
from deploy.signals import Signals
from deploy.status import Snapshot

ROOT = Path(__file__).parents[1]


def source(name: str, text: str = "pattern", **options: object) -> SourceSettings:
    return SourceSettings(name, parse_address(text), CaptureOptions(**options))


def run_it(settings: DetectSettings) -> Snapshot:
    log = RunLog()
    with Signals(reload=False) as signals, Feeds(log) as feeds:
        return run(settings, feeds, signals, log)


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return write_toy(tmp_path / "toy.tflite")


def test_a_run_ends_by_itself_and_tells_how_it_was(toy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = set(threading.enumerate())
    last = run_it(DetectSettings((toy,), (source("a"), source("b")), seconds=1.5, track=True))
    # Others' may end meanwhile.
    assert set(threading.enumerate()) <= before
    assert last.results > 2 and last.seconds >= 1.5 and last.model == "toy.tflite"
    assert [feed.name for feed in last.feeds] == ["a", "b"] and all(feed.live for feed in last.feeds)
    assert last.age is not None and 0 < last.age.p50 <= last.age.p95
    assert set(last.milliseconds) == {"wait", "preprocess", "invoke", "postprocess", "track"}
    assert sum(last.detections.values()) > 0 and set(last.detections) <= {"red", "blue"}
    assert last.memory > 0
    told = capfd.readouterr().err
    assert "a: running: 640x480" in told and "b: running: 640x480" in told


def test_a_stop_from_outside_is_no_error(toy: Path) -> None:
    threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGTERM)).start()
    begin = time.monotonic()
    last = run_it(DetectSettings((toy,), (source("a"),)))
    assert last.seconds < 60 and time.monotonic() - begin < 60  # it would never end by itself


def test_variants_step_down_when_results_are_old(toy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fast = write_toy(tmp_path / "fast.tflite")
    last = run_it(DetectSettings((toy, fast), (source("a"),), most_age=1e-3, seconds=7.0))
    assert last.models == ("toy.tflite", "fast.tflite") and last.model == "fast.tflite"
    assert capfd.readouterr().err.count("model: fast.tflite instead of toy.tflite: results are ") == 1


def test_variants_have_the_same_labels(toy: Path, tmp_path: Path) -> None:
    other = write_toy(tmp_path / "other.tflite", ("cat", "dog"))
    with pytest.raises(InputError, match="variants are of one model: other.tflite has 2 labels that are not"):
        run_it(DetectSettings((toy, other), (source("a"),)))


def test_an_output_that_cannot_be_opened_ends_it_before_it_begins(toy: Path, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with pytest.raises(InputError, match="cannot write"):
        run_it(DetectSettings((toy,), (source("a"),), jsonl=str(tmp_path)))
    # Others' may end meanwhile.
    assert set(threading.enumerate()) <= before


def test_where_nothing_can_be_read_it_says_why(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="p.png"):
        run_it(DetectSettings((toy,), (source("a", str(tmp_path / "p.png")), source("b", str(tmp_path / "p.png")))))


def test_a_timed_run_without_a_frame_is_an_error(toy: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    told = rf"none came from http://127\.0\.0\.1:{port}/ in . s \(.*\); check the source"
    with pytest.raises(InputError, match=told):
        run_it(DetectSettings((toy,), (source("a", f"http://u:secret@127.0.0.1:{port}/"),), seconds=2.0))


def test_least_scores_by_label(toy: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "red.png"), np.full((8, 8, 3), (0, 0, 255), np.uint8))
    cv2.imwrite(str(tmp_path / "blue.png"), np.full((8, 8, 3), (255, 0, 0), np.uint8))
    sources = tuple(source(name, str(tmp_path / f"{name}.png")) for name in ("red", "blue"))
    assert run_it(DetectSettings((toy,), sources)).detections == {"red": 1, "blue": 1}
    assert run_it(DetectSettings((toy,), sources, classes={"red": 1.0})).detections == {"blue": 1}
    with pytest.raises(InputError, match="the model's own labels, which are not 'green'"):
        run_it(DetectSettings((toy,), sources, classes={"green": 0.5}))


def test_feeds_go_on_where_their_settings_stay(capfd: pytest.CaptureFixture[str]) -> None:
    told: list[Event] = []
    with Feeds(RunLog()) as feeds:
        one, two = feeds.open([source("a"), source("b")])
        feeds.listen(told.append)
        again, other, third = feeds.open([source("a"), source("b", width=320, height=240), source("c")])
        assert again is one and other is not two
        assert {feed.name for feed in (again, other, third)} == {"a", "b", "c"}
        with pytest.raises(InputError):
            feeds.open([source("a"), source("d"), source("e", "no such file.mp4")])
        assert not one.ended
    assert one.status().state == "ended"
    # What came before somebody listened is told too.
    assert [event.feed for event in told if event.kind == "opening"][:2] == ["a", "b"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_it_ends_in_time_while_nobody_reads_its_output(toy: Path, tmp_path: Path) -> None:
    """A film and a picture into a pipe: nothing may be lost, so the run waits, until it is told to end."""
    film = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(film), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48))
    for _ in range(1000):
        writer.write(np.full((48, 64, 3), 40, np.uint8))
    writer.release()
    os.mkfifo(tmp_path / "pipe")
    command = [sys.executable, "-m", "deploy", "detect", str(toy), "--source", str(film), "--source", str(film)]
    command += ["--jsonl", str(tmp_path / "pipe")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "1: running" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(2)  # the pipe's 64 KiB are full by then; where they are not, it ends all the sooner
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 0 and "Traceback" not in error


def test_a_dead_output_does_not_keep_a_film_that_has_ended(toy: Path, tmp_path: Path) -> None:
    """A server that takes connections and never answers."""
    cv2.imwrite(str(tmp_path / "red.png"), np.full((8, 8, 3), (0, 0, 255), np.uint8))
    with socket.create_server(("127.0.0.1", 0)) as server:
        hook = LinkSettings(f"http://127.0.0.1:{server.getsockname()[1]}/")
        begin = time.monotonic()
        last = run_it(DetectSettings((toy,), (source("a", str(tmp_path / "red.png")),), webhook=hook))
        assert last.results == 1 and time.monotonic() - begin < 30  # its attempts for three events take 50
        server.settimeout(5)
        server.accept()[0].close()  # it was tried


#: A model that takes a minute a frame, in a call that does not take Python's lock and cannot be interrupted.
ENDLESS = """
import sys, time
from deploy.cli import main
from deploy.command_line import run
from deploy.detector import Detector

def invoke(self, tensor):
    print("invoked", flush=True)
    time.sleep(60)

Detector.invoke = invoke
sys.argv = ["deploy", *sys.argv[1:]]
run(main, "deploy")
"""


@pytest.mark.parametrize("film", [False, True])
def test_it_ends_in_time_in_the_midst_of_an_inference(toy: Path, tmp_path: Path, film: bool) -> None:
    path = "pattern"
    if film:
        path = str(tmp_path / "film.avi")
        writer = cv2.VideoWriter(path, cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48))
        writer.write(np.full((48, 64, 3), 40, np.uint8))
        writer.release()
    command = [sys.executable, "-c", ENDLESS, "detect", str(toy), "--source", path]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "invoked\n"
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=30)  # the inference would take a minute
    # A file that was not looked at whole is a run that failed.
    assert process.returncode == (1 if film else 0) and "Traceback" not in error
