"""The command `detect`, and the program `python -m deploy`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from deploy.backend import BACKEND_HELP
from deploy.command_line import debug_option


@click.group()
def main() -> None:
    """The device side of slimdet: runs a detector file on pictures, videos and cameras.

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
@click.argument("model", metavar="[M.tflite]", type=click.Path(path_type=Path), required=False)
@click.option(
    "--source",
    metavar="SOURCE",
    multiple=True,
    help="What to look at: a picture, a folder (the pictures right in it), a video file, a camera as 0 or /dev/video0, "
    "a stream as rtsp://, http:// (MJPEG), udp:// or rtmp://, or pattern, a drawn scene. May be repeated: feeds take "
    "turns, and are named 0, 1 and so on.",
)
@_fraction_option("--conf", 0.25, "Least score of a detection, 0 to 1.")
@_fraction_option("--iou", 0.45, "Of two boxes of a class that overlap by more, 0 to 1, the better one stays.")
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Write annotated pictures here under their own names, a video as NAME.mp4, a feed that lasts in files of ten "
    "minutes; not the source's own folder.",
)
@click.option(
    "--jsonl",
    metavar="FILE",
    help="Write one line of JSON a picture or frame; - is standard output. After Ctrl-C, FILE holds what was finished; "
    "after an error an older FILE stays as it was; after a kill too, and what was finished is in .FILE.PID.part. Lines "
    "of a camera or stream are appended to FILE.",
)
@click.option("--page", metavar="[HOST:]PORT", help="Serve a page with the live picture, /metrics and /healthz there.")
@click.option("--token", metavar="TEXT", envvar="SLIMDET_TOKEN", help="What visitors of the page must know.")
@click.option("--mqtt", metavar="URL", help="Publish to mqtt[s]://HOST[:PORT][/PREFIX].")
@click.option("--webhook", metavar="URL", help="Post events to this address.")
@click.option("--show", is_flag=True, help="Show a window.")
@click.option("--track", is_flag=True, help="Follow objects: each gets a number that it keeps.")
@click.option("--zone", metavar="NAME=X,Y,X,Y,X,Y", multiple=True, help="Count who is in it. 0 to 1 of the frame.")
@click.option("--line", metavar="NAME=X,Y,X,Y", multiple=True, help="Count who crosses it. 0 to 1 of the frame.")
@click.option("--realtime", is_flag=True, help="Play a video file by its own clock, and leave out what comes too fast.")
@click.option("--loop", is_flag=True, help="Begin a file anew at its end.")
@click.option("--size", metavar="WxH", help="Asked of a camera.")
@click.option("--fps", type=float, metavar="N", help="Asked of a camera.")
@click.option("--codec", metavar="CODE", help="Asked of a camera, such as MJPG.")
@click.option("--transport", type=click.Choice(["tcp", "udp"]), help="Of RTSP; tcp without it.")
@click.option(
    "--variant",
    metavar="F.tflite",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A faster file of the same model, which runs while the first one is too slow or the machine too hot. May be "
    "repeated, the fastest last.",
)
@click.option("--max-age", type=float, metavar="MS", help="Of results, for --variant; two frames' time without it.")
@click.option("--max-temperature", type=float, metavar="C", help="Of the machine, for --variant.")
@click.option("--for", "seconds", type=float, metavar="S", help="End after so many seconds.")
@click.option("--backend", default="cpu", show_default=True, help=BACKEND_HELP)
@click.option(
    "--threads", metavar="N", type=click.IntRange(1, 256), default=1, show_default=True, help="Interpreter's threads."
)
@click.option(
    "--config",
    metavar="FILE.yaml",
    type=click.Path(path_type=Path),
    help="Read all settings from here, in place of options. SIGHUP reads it anew.",
)
@click.option("--check", is_flag=True, help="Check the settings, open nothing, and end.")
@click.option("--systemd", is_flag=True, help="Print a unit file that runs --config as a service, and end.")
@debug_option
def detect(**options: Any) -> None:
    """Detects objects in pictures, videos, cameras and streams.

    Without --out and --jsonl it prints what it sees. A picture of a folder that cannot be read is named and skipped.

    A line of --jsonl holds source, frame (its number in the video, 0 for a picture), time (seconds in the video, by its
    own timestamps) and detections, each with label, class_id, score and box (x1, y1, x2, y2 in pixels of the source).

    \b
    Example:
      slimdet detect yolo_int8.tflite --source photos --out seen --jsonl seen.jsonl
      slimdet detect yolo_int8.tflite --source street.mp4 --conf 0.4 --jsonl - | jq .detections
      slimdet detect yolo_int8.tflite --source rtsp://10.0.0.7/live --track --page 8080
      slimdet detect --config cameras.yaml
    """
    # All else loads there, so that --help is there at once.
    from deploy.detect_command import detect as run_detect

    run_detect(options)
