"""The command `detect`, and the program `python -m deploy`."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import click

from deploy.backend import BACKEND_HELP, CPU_BACKENDS
from deploy.command_line import debug_option, refuse_to_overwrite


@click.group()
def main() -> None:
    """The device side of slimdet: runs a detector file on pictures and videos.

    \b
    Example:
      python -m deploy detect yolo_int8.tflite --source photos --out seen --jsonl seen.jsonl
    """


def _fraction_option(name: str, default: float, text: str) -> Any:
    def check(_: click.Context, parameter: click.Parameter, value: float) -> float:
        if math.isnan(value):  # which a FloatRange lets through
            raise click.BadParameter("nan is not a number from 0 to 1", param=parameter)
        return value

    return click.option(
        name, type=click.FloatRange(0, 1), callback=check, default=default, show_default=True, metavar="P", help=text
    )


@main.command(no_args_is_help=True)
@click.argument("model", metavar="M.tflite", type=click.Path(path_type=Path))
@click.option(
    "--source",
    metavar="IMAGE|DIR|VIDEO",
    required=True,
    help="What to look at. A folder gives the pictures right in it, without those in folders below.",
)
@_fraction_option("--conf", 0.25, "Least score of a detection, 0 to 1.")
@_fraction_option("--iou", 0.45, "Of two boxes of a class that overlap by more, 0 to 1, the better one stays.")
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Write annotated pictures here under their own names, a video as NAME.mp4; not the source's own folder.",
)
@click.option(
    "--jsonl",
    metavar="FILE",
    help="Write one line of JSON a picture or frame; - is standard output. After Ctrl-C, FILE holds what was finished; "
    "after an error an older FILE stays as it was; after a kill too, and what was finished is in .FILE.PID.part.",
)
@click.option("--backend", default="cpu", show_default=True, help=BACKEND_HELP)
@click.option(
    "--threads", metavar="N", type=click.IntRange(1, 256), default=1, show_default=True, help="Interpreter's threads."
)
@debug_option
def detect(
    model: Path, source: str, conf: float, iou: float, out: Path | None, jsonl: str | None, backend: str, threads: int
) -> None:
    """Detects objects in a picture, a folder of pictures or a video.

    Without --out and --jsonl it prints what it sees. A picture of a folder that cannot be read is named and skipped.

    A line of --jsonl holds source, frame (its number in the video, 0 for a picture), time (seconds in the video, by its
    own timestamps) and detections, each with label, class_id, score and box (x1, y1, x2, y2 in pixels of the source).

    \b
    Example:
      slimdet detect yolo_int8.tflite --source photos --out seen --jsonl seen.jsonl
      slimdet detect yolo_int8.tflite --source street.mp4 --conf 0.4 --jsonl - | jq .detections
    """
    # numpy, OpenCV and the interpreter load here, so that --help is there at once.
    import cv2

    from deploy import file_run, output
    from deploy.detector import Detector
    from deploy.source import locate

    # OpenCV and FFmpeg write words of their own to standard error, unless the user has chosen which.
    if "OPENCV_LOG_LEVEL" not in os.environ:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    located = locate(source)
    if out is not None:
        output.output_folder(out, located)
    if jsonl is not None and jsonl != "-":
        refuse_to_overwrite("--jsonl", jsonl, [model, *located.files])
    detector = Detector(model, backend, threads, conf, iou)
    if backend not in CPU_BACKENDS:
        click.echo(f"{output.printable(f'{backend}: {detector.model.delegated}')}", err=True)
    file_run.run(detector, located, out, jsonl)
