"""How much of what the bare inference allows `detect` keeps on a video, as fast as it goes.

    python -m benchmarks.feed_speed MODEL --video CLIP [--outputs] [--fail-below 0.97]

Rounds of both come in turns, in one process, and the ratio is that of the two times of each round: a slow clock or
others' work meets both alike. The bare inference runs again and again on a real frame's tensor, and does nothing else.
The pipeline decodes, preprocesses, runs, postprocesses and takes in every frame; with --outputs a page, JSON lines and
an annotated mp4 take what they can, as they do of a camera.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import click

from benchmarks.bootstrap import ratio_interval
from benchmarks.environment import environment
from benchmarks.machine_state import change, machine_state, state_warnings
from deploy.address import parse_address
from deploy.analysis import Analysis
from deploy.command_line import debug_option, json_option, run, write_json
from deploy.detect_command import SWITCH_INTERVAL
from deploy.detect_settings import DetectSettings, PageSettings, RecordSettings, SourceSettings
from deploy.detector import Detector
from deploy.errors import GateError
from deploy.outbox import Outbox
from deploy.outputs import open_outputs
from deploy.pipeline import Found, Pipeline
from deploy.source import Frame, Video
from deploy.stage_times import StageTimes
from deploy.status import Snapshot

SCHEMA = "slimdet.feed_speed/1"
#: Frames of each round before it is timed: more than the pipeline holds, so that what is timed is its steady pace.
_LEAD = 10
#: Seconds that an output has to finish its file.
_PATIENCE = 10.0


def measure(model: Path, video: Path, *, rounds: int, frames: int, threads: int, outputs: bool) -> dict[str, Any]:
    """Milliseconds a frame of both, their ratio with its 95 % interval, and the stages' medians, as plain JSON.

    frames: of each round. outputs: with page, JSON lines and mp4.
    """
    settings = DetectSettings((model,), (SourceSettings("0", parse_address(str(video))),), threads=threads)
    before, busy = machine_state(), time.process_time()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        detector = Detector(model, "cpu", threads)
        labels = detector.contract.labels
        times = StageTimes()
        analysis = Analysis(settings, settings.sources[0], labels, live=False)
        boxes = _outputs(settings, labels, times, Path(folder), stack) if outputs else []
        source = stack.enter_context(contextlib.closing(_frames(video)))

        def take_in(count: int) -> None:
            for one in itertools.islice(pipeline.found, count):
                result = analysis.result(one)
                times.add(result.milliseconds, None, result.found.class_ids.tolist())
                for box in boxes:
                    box.offer(result)

        pipeline = stack.enter_context(_Pausable(detector, source))
        tensor, _ = detector.preprocess(next(source).pixels)
        bare_ns, pipeline_ns = [], []
        for number in range(rounds + 1):
            if number % 2:
                bare_ns.append(_timed(lambda: _bare(detector, tensor, frames)))
            pipeline.resume()
            take_in(_LEAD)
            pipeline_ns.append(_timed(lambda: take_in(frames)))
            pipeline.pause()
            if not number % 2:
                bare_ns.append(_timed(lambda: _bare(detector, tensor, frames)))
        for box in boxes:
            box.close(_PATIENCE)
        sent = {status.name: status.sent for status in (box.status() for box in boxes)}
    after = machine_state()
    between = change(before, after, time.process_time() - busy)
    # The first round warms both up.
    ratio, low, high = ratio_interval(bare_ns[1:], pipeline_ns[1:])
    stages = {name: round(spread.p50, 3) for name, spread in times.milliseconds().items()}
    return {
        "schema": SCHEMA, "model": model.name, "video": video.name, "threads": threads, "rounds": rounds,
        "frames": frames, "outputs": sent, "bare_ms": _median_ms(bare_ns[1:], frames),
        "pipeline_ms": _median_ms(pipeline_ns[1:], frames), "ratio": ratio, "ratio_interval": [low, high],
        "stages_ms": stages, "environment": environment(), "machine": between,
        "warnings": state_warnings(before, after, between),
    }  # fmt: skip


class _Pausable:
    """The pipeline over frames without end, which stands still while the bare inference is timed."""

    def __init__(self, detector: Detector, frames: Iterator[Frame]) -> None:
        self._changed = threading.Condition()
        self._goes, self._taken = True, 0

        def take(stop: threading.Event) -> tuple[str, Frame] | None:
            with self._changed:
                while not self._changed.wait_for(lambda: self._goes, 0.1):
                    if stop.is_set():
                        return None
                self._taken += 1
            return "0", next(frames)

        self._pipeline = Pipeline([detector], take)
        self.found: Iterator[Found] = iter(self._pipeline)

    def __enter__(self) -> _Pausable:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipeline.close()

    def resume(self) -> None:
        with self._changed:
            self._goes = True
            self._changed.notify()

    def pause(self) -> None:
        """Returns when the interpreter is idle; what it has done by then is taken in before the next round is timed."""
        with self._changed:
            self._goes = False
        while self._pipeline.inferred < self._taken:
            time.sleep(0.001)


def _frames(video: Path) -> Generator[Frame, None, None]:
    while True:
        with Video(video) as opened:
            yield from opened.frames()


def _outputs(
    settings: DetectSettings, labels: tuple[str, ...], times: StageTimes, folder: Path, stack: contextlib.ExitStack
) -> list[Outbox]:
    """A page that nobody looks at, JSON lines, and an mp4."""
    given = DetectSettings(
        settings.models, settings.sources, jsonl=str(folder / "seen.jsonl"), page=PageSettings(port=0),
        record=RecordSettings(folder / "recorded"),
    )  # fmt: skip
    begin = time.monotonic()

    def snapshot() -> Snapshot:
        return Snapshot(
            time.monotonic() - begin, settings.models[0].name, (settings.models[0].name,), times.results, times.fps(),
            times.milliseconds(), None, {}, (), (), None, 0,
        )  # fmt: skip

    return open_outputs(given, labels, snapshot, {}, stack, lossless=False, tell=lambda _: None)


def _bare(detector: Detector, tensor: Any, frames: int) -> None:
    detector.invoke(tensor)
    for _ in range(frames - 1):
        detector.model.invoke()


def _timed(part: Callable[[], object]) -> int:
    begin = time.perf_counter_ns()
    part()
    return time.perf_counter_ns() - begin


def _median_ms(times: list[int], frames: int) -> float:
    middle = sorted(times)[len(times) // 2]
    return round(middle / frames / 1e6, 4)


@click.command(no_args_is_help=True)
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--video", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--rounds", type=click.IntRange(2), default=20, show_default=True)
@click.option("--frames", type=click.IntRange(1), default=50, show_default=True, help="Of each round.")
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="Interpreter's threads.")
@click.option("--outputs", is_flag=True, help="With page, JSON lines and mp4.")
@click.option("--fail-below", type=float, metavar="R", help="Exit code 3 unless the whole interval is at least that.")
@json_option("Write all figures there.")
@debug_option
def main(
    model: Path, video: Path, rounds: int, frames: int, threads: int, outputs: bool, fail_below: float | None,
    json_file: str | None,
) -> None:  # fmt: skip
    """Times the pipeline of `detect` against the bare inference, in turns.

    \b
    Example:
      python -m benchmarks.feed_speed yolo_int8.tflite --video vtest.avi --fail-below 0.97
    """
    sys.setswitchinterval(SWITCH_INTERVAL)
    found = measure(model, video, rounds=rounds, frames=frames, threads=threads, outputs=outputs)
    low, high = found["ratio_interval"]
    click.echo(
        f"{found['model']}: bare {found['bare_ms']:.3f} ms, pipeline {found['pipeline_ms']:.3f} ms a frame, "
        f"{found['ratio']:.3f} [{low:.3f}, {high:.3f}] of what the bare inference allows"
    )
    click.echo("medians: " + ", ".join(f"{name} {ms:.2f} ms" for name, ms in found["stages_ms"].items()))
    if found["outputs"]:
        frames_in_all = (rounds + 1) * (frames + _LEAD)
        told = ", ".join(f"{name} {sent}" for name, sent in found["outputs"].items())
        click.echo(f"outputs took, of {frames_in_all} frames: {told}")
    for warning in found["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    if json_file is not None:
        write_json(json_file, found)
    if fail_below is not None and low < fail_below:
        raise GateError(
            f"the whole interval is to be at least {fail_below:g}, but begins at {low:.3f}; quiet the machine, or give "
            "more rounds"
        )


if __name__ == "__main__":
    run(main, "python -m benchmarks.feed_speed")
