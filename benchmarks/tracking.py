"""How many identities tracking gives on a film, for how many objects, and what it costs a frame.

    python -m benchmarks.tracking yolo_int8.tflite --video vtest.avi --sheet tracks.png
    python -m benchmarks.tracking yolo_int8.tflite --video MOT17-02.mp4 --mot gt.txt --label person
    python -m benchmarks.tracking shapes_int8.tflite

Without --video it is the drawn scene, which has truth. Whether an identity stays with its object only truth or eyes can
tell: --sheet shows every 50th frame with its identities, to be counted.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np

from benchmarks.environment import environment
from benchmarks.identity_metric import Named, identity_figures, read_mot
from benchmarks.tables import table
from deploy.command_line import debug_option, json_option, run, write_atomically, write_json
from deploy.detections import Detections
from deploy.detector import Detector
from deploy.draw import colour, draw_boxes
from deploy.errors import GateError, InputError
from deploy.pattern import Pattern
from deploy.source import Frame, Video
from deploy.tracking import Tracker, TrackSettings

SCHEMA = "slimdet.tracking/1"
#: Milliseconds a frame that tracking may cost at the median.
MOST_MS = 1.0
#: Frames of the sheet: every so many, so many in a row, and their width in pixels.
_SHEET_EVERY, _SHEET_COLUMNS, _SHEET_WIDTH = 50, 4, 480


@dataclasses.dataclass(frozen=True, eq=False)
class Tracked:
    """A frame of the film, what was found in it, and who that is."""

    frame: Frame
    found: Detections
    identities: np.ndarray
    #: Of Tracker.update alone: by the clock, and the processor's own time for it, which others' work does not stretch.
    clock_ms: float
    processor_ms: float


def track(detector: Detector, frames: Iterator[Frame], settings: TrackSettings) -> Iterator[Tracked]:
    """Runs detector and tracker over the frames. The detector's threshold is settings.unsure."""
    tracker = Tracker(settings)
    for frame in frames:
        found = detector.detect(frame.pixels)
        clock, processor = time.perf_counter(), time.thread_time()
        identities = tracker.update(found, frame.time)
        processor, clock = time.thread_time() - processor, time.perf_counter() - clock
        yield Tracked(frame, found, identities, clock * 1e3, processor * 1e3)


def drawn(pattern: Pattern, frames: int) -> Iterator[Frame]:
    """The drawn scene as frames."""
    for number in range(frames):
        yield Frame("pattern", number, number / pattern.fps, pattern.frame(number)[0])


class _Figures:
    """What a film's frames say, one after the other, so that none is kept."""

    def __init__(self, labels: Sequence[str], only: int | None) -> None:
        self._labels, self._only = labels, only
        self._clock: list[float] = []
        self._processor: list[float] = []
        self._detections: list[int] = []
        #: Of each identity its class, and in how many frames it was there.
        self._classes: dict[int, int] = {}
        self._frames: dict[int, int] = {}
        self.seen: list[Named] = []

    def add(self, one: Tracked) -> None:
        self._clock.append(one.clock_ms)
        self._processor.append(one.processor_ms)
        self._detections.append(len(one.found))
        named = one.identities > 0
        classes = one.found.class_ids[named].tolist()
        for identity, class_id in zip(one.identities[named].tolist(), classes, strict=True):
            self._classes[identity] = class_id
            self._frames[identity] = self._frames.get(identity, 0) + 1
        if self._only is not None:
            named &= one.found.class_ids == self._only
        self.seen.append(Named(one.identities[named], one.found.boxes[named]))

    def as_json(self) -> dict[str, Any]:
        """frames, detections a frame, milliseconds, and by label how many identities there were, and the median number
        of frames in which one was seen."""
        by_label: dict[str, list[int]] = {}
        for identity, class_id in self._classes.items():
            by_label.setdefault(self._labels[class_id], []).append(self._frames[identity])
        return {
            "frames": len(self._clock),
            "detections_a_frame": float(np.mean(self._detections)),
            "clock_ms": _spread(self._clock),
            "processor_ms": _spread(self._processor),
            "identities": {
                label: {"count": len(frames), "median_frames": float(np.median(frames))}
                for label, frames in sorted(by_label.items(), key=lambda item: (-len(item[1]), item[0]))
            },
        }


def _spread(milliseconds: Sequence[float]) -> dict[str, float]:
    p50, p95 = np.percentile(milliseconds, [50, 95])
    return {"p50": float(p50), "p95": float(p95), "max": float(max(milliseconds))}


class _Sheet:
    """Frames with their identities, side by side."""

    def __init__(self) -> None:
        self._tiles: list[np.ndarray] = []

    def add(self, one: Tracked) -> None:
        if one.frame.index % _SHEET_EVERY:
            return
        picture, named = one.frame.pixels.copy(), one.identities > 0
        names = one.identities[named].tolist()
        draw_boxes(picture, one.found.boxes[named], [str(name) for name in names], [colour(name) for name in names])
        height = max(1, round(picture.shape[0] * _SHEET_WIDTH / picture.shape[1]))
        tile = cv2.resize(picture, (_SHEET_WIDTH, height), interpolation=cv2.INTER_AREA)
        cv2.putText(tile, str(one.frame.index), (4, height - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 255), 2)
        self._tiles.append(tile)

    def write(self, path: Path) -> None:
        missing = -len(self._tiles) % _SHEET_COLUMNS
        tiles = self._tiles + [np.zeros_like(self._tiles[0])] * missing
        rows = [np.hstack(tiles[start : start + _SHEET_COLUMNS]) for start in range(0, len(tiles), _SHEET_COLUMNS)]
        _, png = cv2.imencode(".png", np.vstack(rows))
        write_atomically(path, png.tobytes())


def as_text(result: dict[str, Any]) -> str:
    """The figures for a reader."""
    identities = [
        (label, str(one["count"]), f"{one['median_frames']:g}") for label, one in result["identities"].items()
    ]
    costs = [
        (name, *(f"{result[key][part]:.3f}" for part in ("p50", "p95", "max")))
        for name, key in (("by the clock", "clock_ms"), ("of the processor", "processor_ms"))
    ]
    sections = [
        table(("label", "identities", "frames of each, median"), identities),
        table(("ms a frame", "p50", "p95", "max"), costs),
        f"{result['frames']} frames, {result['detections_a_frame']:.1f} detections a frame from {result['unsure']:g}",
    ]
    if truth := result["against_truth"]:
        percent = [f"{100 * truth[key]:.1f}" if truth[key] is not None else "-" for key in ("mota", "idf1")]
        rows = [(*percent, *(str(truth[key]) for key in ("true_identities", "identities", "switches")))]
        sections.append(table(("MOTA", "IDF1", "objects", "identities", "switches"), rows))
    return "\n\n".join(sections)


@click.command(no_args_is_help=True, epilog="Example: python -m benchmarks.tracking yolo_int8.tflite --video town.mp4")
@click.argument("model", metavar="M.tflite", type=click.Path(path_type=Path))
@click.option("--video", type=click.Path(path_type=Path), help="Film to track; the drawn scene without it.")
@click.option("--mot", type=click.Path(path_type=Path), help="Truth of the film in MOTChallenge's form.")
@click.option("--label", help="The only class that is held against --mot.")
@click.option("--frames", type=click.IntRange(1), default=1000, show_default=True, help="Of the drawn scene.")
@click.option("--conf", type=click.FloatRange(0, 1), default=0.25, show_default=True, help="That begins a track.")
@click.option("--sheet", type=click.Path(path_type=Path), help=f"Picture (PNG) of every {_SHEET_EVERY}th frame.")
@json_option("Write the result here as JSON; - is standard output.")
@debug_option
def main(
    model: Path,
    video: Path | None,
    mot: Path | None,
    label: str | None,
    frames: int,
    conf: float,
    sheet: Path | None,
    json_file: str | None,
) -> None:
    """Counts a film's identities and times the tracking. Exit code 3 where it costs more than 1 ms a frame."""
    settings = TrackSettings(sure=conf, unsure=min(TrackSettings.unsure, conf))
    detector = Detector(model, conf=settings.unsure)
    labels = detector.contract.labels
    if mot is not None and (video is None or label not in labels):
        raise InputError(f"--mot needs the film's --video, and a --label of the model ({', '.join(labels[:5])}, ...)")
    only = labels.index(label) if mot is not None and label is not None else None
    figures, picture = _Figures(labels, only), _Sheet()
    if video is not None:
        with Video(video) as film:
            for one in track(detector, film.frames(), settings):
                figures.add(one)
                picture.add(one)
        truth = read_mot(mot, len(figures.seen)) if mot is not None else None
    else:
        pattern = Pattern()
        for one in track(detector, drawn(pattern, frames), settings):
            figures.add(one)
            picture.add(one)
        truths = [pattern.frame(number)[1] for number in range(frames)]
        truth = [Named(one.identities, one.found.boxes) for one in truths]
    result: dict[str, Any] = {"schema": SCHEMA, "model": str(model), "video": str(video or "pattern"), "conf": conf}
    result |= {"unsure": settings.unsure, **figures.as_json()}
    result["against_truth"] = identity_figures(truth, figures.seen) if truth is not None else None
    result["environment"] = environment()
    if sheet is not None:
        picture.write(sheet)
    if json_file != "-":
        click.echo(as_text(result))
    if json_file:
        write_json(json_file, result)
    median = result["clock_ms"]["p50"]
    if median > MOST_MS:
        raise GateError(f"tracking may cost {MOST_MS:g} ms a frame, the median is {median:.2f}; is the machine busy?")


if __name__ == "__main__":
    run(main, "python -m benchmarks.tracking")
