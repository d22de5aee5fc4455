"""Frames in, detections out: in order, whole, overlapped, and ended in every state."""

import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from deploy.detections import Detections
from deploy.detector import Detector
from deploy.errors import BackendError, InputError
from deploy.pipeline import Pipeline, Take
from deploy.source import Frame
from toy_detector import write_toy


class Slow:
    """A detector of one number a picture: its first pixel. Its outputs lie in one place, as an interpreter's do."""

    def __init__(self, seconds: float = 0.0, post_seconds: float = 0.0, add: int = 0) -> None:
        self.seconds, self.post_seconds, self.add = seconds, post_seconds, add
        self.memory = np.zeros(1, np.int64)
        self.running = threading.Event()
        self.release: threading.Event | None = None

    def preprocessor(self) -> object:
        buffer = np.zeros(1, np.int64)

        def preprocess(bgr: np.ndarray) -> tuple[np.ndarray, None]:
            buffer[0] = bgr[0, 0, 0]
            return buffer, None

        return preprocess

    def invoke(self, tensor: np.ndarray) -> Mapping[str, np.ndarray]:
        self.running.set()
        time.sleep(self.seconds)
        if self.release is not None:
            self.release.wait(10)
        if tensor[0] == 255:
            raise BackendError("no more")
        self.memory[0] = tensor[0] + self.add
        return {"level": self.memory}

    def postprocess(self, outputs: Mapping[str, np.ndarray], placement: None) -> Detections:
        time.sleep(self.post_seconds)
        level = int(outputs["level"][0])
        box = [np.nan if level == 254 else 0.0, 0, 1, 1]
        return Detections(np.array([box], np.float32), np.ones(1, np.float32), np.array([level], np.int32))


def frame(level: int, index: int = 0, captured: float = 0.0) -> Frame:
    return Frame("f", index, 0.0, np.full((2, 2, 3), level, np.uint8), captured)


def in_order(frames: list[Frame]) -> Take:
    rest: Iterator[Frame] = iter(frames)
    return lambda stop: None if (one := next(rest, None)) is None else ("feed", one)


def classes(pipeline: Pipeline) -> list[int]:
    return [int(one.found.class_ids[0]) for one in pipeline]


def threads() -> int:
    return sum(thread.name.startswith("slimdet-") for thread in threading.enumerate())


@pytest.mark.parametrize("live", [False, True])
def test_every_frame_comes_out_in_order_with_its_own_result(live: bool) -> None:
    levels = list(range(100))
    with Pipeline([Slow()], in_order([frame(level, i) for i, level in enumerate(levels)]), live=live) as pipeline:
        found = list(pipeline)
    assert [one.frame.index for one in found] == levels
    assert [int(one.found.class_ids[0]) for one in found] == levels
    assert {tuple(one.milliseconds) for one in found} == {("preprocess", "invoke", "postprocess")}
    assert threads() == 0


def test_nothing_at_all_is_nothing() -> None:
    with Pipeline([Slow()], in_order([])) as pipeline:
        assert classes(pipeline) == []


def test_the_toy_finds_through_the_pipeline_what_it_finds_alone(tmp_path: Path) -> None:
    detector = Detector(write_toy(tmp_path / "toy.tflite"))
    rng = np.random.default_rng(0)
    frames = [
        Frame("f", i, 0.0, rng.integers(0, 256, (20 + i, 30, 3), np.uint8) // [1, 1, 1 + i % 3], 0.0) for i in range(12)
    ]
    frames = [Frame(f.source, f.index, f.time, f.pixels.astype(np.uint8)) for f in frames]
    alone = [detector.detect(one.pixels) for one in frames]
    with Pipeline([detector], in_order(frames)) as pipeline:
        for one, expected in zip(pipeline, alone, strict=True):
            np.testing.assert_array_equal(one.found.boxes, expected.boxes)
            np.testing.assert_array_equal(one.found.scores, expected.scores)
            np.testing.assert_array_equal(one.found.class_ids, expected.class_ids)


def test_postprocessing_overlaps_the_next_inference() -> None:
    release = threading.Event()
    detector = Slow()
    detector.release = release
    release.set()
    with Pipeline([detector], in_order([frame(1), frame(2)])) as pipeline:
        rest = iter(pipeline)
        release.clear()
        detector.running.clear()
        release.set()
        next(rest)
        # While the caller holds the first result, the second frame is already with the detector.
        assert detector.running.wait(5)
        assert int(next(rest).found.class_ids[0]) == 2


def test_a_live_frame_is_taken_while_the_interpreter_runs_and_not_before_it_began() -> None:
    """Of a feed with a new frame each instant: when frame n is taken, the interpreter has begun n - 1."""
    detector = Slow(seconds=0.02)
    begun: list[int] = []
    invoke = detector.invoke

    def noted(tensor: np.ndarray) -> Mapping[str, np.ndarray]:
        begun.append(int(tensor[0]))
        return invoke(tensor)

    detector.invoke = noted
    seen = []

    def take(stop: threading.Event) -> tuple[str, Frame] | None:
        seen.append(len(begun))
        return ("f", frame(len(seen), len(seen), time.monotonic())) if len(seen) <= 20 else None

    with Pipeline([detector], take, live=True) as pipeline:
        found = list(pipeline)
    assert seen == list(range(21))
    assert all(one.milliseconds["wait"] >= 0 for one in found)


def test_another_variant_runs_from_the_next_frame_on() -> None:
    with Pipeline([Slow(), Slow(add=100)], in_order([frame(1)] * 20)) as pipeline:
        found = []
        for one in pipeline:
            found.append(int(one.found.class_ids[0]))
            assert found[-1] == (101 if one.variant else 1)
            pipeline.variant = 1
    assert found[0] == 1 and found[-1] == 101 and found == sorted(found)


def test_an_error_comes_after_what_was_found_before_it() -> None:
    found = []
    with Pipeline([Slow()], in_order([frame(1), frame(255), frame(2)])) as pipeline:
        with pytest.raises(BackendError, match="no more"):
            for one in pipeline:
                found.append(one)
    assert len(found) == 1 and threads() == 0


def test_an_error_of_the_source_comes_too() -> None:
    def take(stop: threading.Event) -> tuple[str, Frame] | None:
        raise InputError("cut")

    with Pipeline([Slow()], take) as pipeline, pytest.raises(InputError, match="cut"):
        list(pipeline)


def test_what_is_no_number_is_an_error() -> None:
    with Pipeline([Slow()], in_order([frame(254)])) as pipeline:
        with pytest.raises(InputError, match="finite numbers"):
            list(pipeline)


@pytest.mark.parametrize("live", [False, True])
def test_it_ends_while_it_waits_for_a_frame(live: bool) -> None:
    def take(stop: threading.Event) -> None:
        stop.wait(30)

    with Pipeline([Slow()], take, live=live) as pipeline:
        threading.Timer(0.05, pipeline.stop).start()
        assert classes(pipeline) == []
    assert threads() == 0


def test_it_ends_while_nobody_takes_what_it_found() -> None:
    with Pipeline([Slow()], in_order([frame(1)] * 50)) as pipeline:
        next(iter(pipeline))
    assert threads() == 0


def test_how_long_an_inference_has_been_running_is_known() -> None:
    detector = Slow()
    detector.release = threading.Event()
    with Pipeline([detector], in_order([frame(1)])) as pipeline:
        assert pipeline.busy_seconds == 0
        thread = threading.Thread(target=lambda: list(pipeline))
        thread.start()
        assert detector.running.wait(5)
        time.sleep(0.01)
        assert pipeline.busy_seconds > 0 and pipeline.waiting == 0
        detector.release.set()
        thread.join()
        assert pipeline.busy_seconds == 0
