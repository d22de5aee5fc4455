"""From files through the detector to wherever their detections go: every frame, in order."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import statistics
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click

from deploy import draw
from deploy.analysis import Analysis
from deploy.annotate import Shape, annotated
from deploy.detector import Detector
from deploy.errors import InputError
from deploy.output import JsonLines, Progress, VideoFile, in_words, printable, write_picture
from deploy.pipeline import Pipeline, Take
from deploy.result import Result
from deploy.result_json import result_json
from deploy.source import Frame, Source, Video, read_pictures

#: Takes each result.
Sink = Callable[[Result], None]


def run(detector: Detector, source: Source, out: Path | None, jsonl: str | None, analysis: Analysis) -> None:
    """Runs the detector over the source.

    out: folder of annotated pictures, jsonl: file of JSON lines or "-"; with neither, a line of words a picture is
    printed. A summary follows: on standard output in that case, else on standard error.

    Raises InputError where nothing can be read, a result cannot be written, or the model gives numbers that are none.
    """
    labels = detector.contract.labels
    tally = _Tally()
    with contextlib.ExitStack() as stack:
        video = stack.enter_context(Video(source.path)) if source.kind == "video" else None
        sinks: list[Sink] = []
        if out is not None:
            sinks.append(_annotator(labels, out, video, analysis.shapes, stack))
        if jsonl is not None:
            # Entered last, so finished first: whatever becomes of the annotated video, the lines are safe.
            sinks.append(functools.partial(_write_line, stack.enter_context(JsonLines(jsonl, labels)), labels))
        if not sinks and video is None:
            sinks.append(functools.partial(_tell, labels, tally))
        elif not (jsonl == "-" and sys.stdout.isatty()):
            total, unit = (video.announced, "frames") if video else (len(source.files), "pictures")
            sinks.append(stack.enter_context(Progress(total, unit)).step)
        frames = video.frames() if video else read_pictures(source, tally.skip)
        # Entered last, so ended first: the video must not be closed under a thread that reads it.
        for one in stack.enter_context(Pipeline([detector], _in_order(frames))):
            result = analysis.result(one)
            tally.add(result)
            for sink in sinks:
                sink(result)
        if not tally.seconds:
            raise InputError(f"not one of {tally.skipped} pictures in {source.path} can be read; see the lines above")
    _summarize(labels, tally, source, video, to_stderr=out is not None or jsonl is not None)


@dataclasses.dataclass
class _Tally:
    """What a run has seen so far."""

    #: Detections by class number.
    counts: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    #: Time that each picture or frame took from pixels to boxes, waits left out.
    seconds: list[float] = dataclasses.field(default_factory=list)
    skipped: int = 0

    def add(self, result: Result) -> None:
        self.counts.update(result.found.class_ids.tolist())
        self.seconds.append(sum(ms for stage, ms in result.milliseconds.items() if stage != "wait") / 1000)

    def skip(self, _: Path, reason: str) -> None:
        self.skipped += 1
        click.echo(f"skipped: {printable(reason)}", err=True)


def _in_order(frames: Iterator[Frame]) -> Take:
    def take(_: threading.Event) -> tuple[str, Frame] | None:
        frame = next(frames, None)
        return None if frame is None else ("", frame)

    return take


def _write_line(lines: JsonLines, labels: Sequence[str], result: Result) -> None:
    if result.tracks is None:
        lines.write(result.frame, result.found)
    else:
        lines.write_line(result_json(result, labels))


def _annotator(
    labels: Sequence[str], out: Path, video: Video | None, shapes: Sequence[Shape], stack: contextlib.ExitStack
) -> Sink:
    """What draws each frame and writes it."""
    captions = draw.captions(labels)
    if captions.illegible:
        count = len(captions.illegible)
        click.echo(
            f"note: no font of this machine has the letters of {count} label{'s' if count > 1 else ''}, such as "
            f"{printable(captions.illegible[0])}; pictures show class numbers instead. A Noto or DejaVu font helps",
            err=True,
        )
    if video is None:

        def write(result: Result) -> None:
            write_picture(out, Path(result.frame.source), annotated(result, captions, shapes))

    else:
        film = stack.enter_context(VideoFile(out / f"{video.path.stem}.mp4", video.fps, video.size))

        def write(result: Result) -> None:
            film.write(annotated(result, captions, shapes))

    return write


def _tell(labels: Sequence[str], tally: _Tally, result: Result) -> None:
    """Prints one line of a picture for people."""
    words = in_words(collections.Counter(result.found.class_ids.tolist()), labels)
    click.echo(f"{printable(result.frame.source)}: {words}  {tally.seconds[-1] * 1000:.1f} ms")


def _summarize(labels: Sequence[str], tally: _Tally, source: Source, video: Video | None, to_stderr: bool) -> None:
    count = len(tally.seconds)
    # Containers that count their frames by duration may be off by one or two.
    if video and count < min(video.announced - 2, video.announced * 0.99):
        click.echo(
            f"note: {printable(source.path)} announces {video.announced} frames, {count} can be read; "
            "it is cut or damaged after them",
            err=True,
        )
    if source.kind == "picture" and not to_stderr:
        return  # its one line says it all
    unit = "frame" if video else "picture"
    units = f"{count} {unit}{'s' if count > 1 else ''}" + (f" ({tally.skipped} skipped)" if tally.skipped else "")
    milliseconds = statistics.median(tally.seconds) * 1000
    click.echo(
        f"{printable(source.path)}: {units}, {in_words(tally.counts, labels)}, {milliseconds:.1f} ms a {unit} (median)",
        err=to_stderr,
    )
