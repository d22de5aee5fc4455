"""The commands `bench accuracy` and `bench latency`, and the program `python -m benchmarks`."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from benchmarks.device_command import with_devices
from benchmarks.device_table import devices_text
from benchmarks.tables import accuracy_text, latency_text
from deploy.command_line import debug_option, json_option, write_json

PROTOCOLS = ("voc07", "voc", "darknet", "coco")

#: Progress is told from here on, and then as often: on a terminal in one line, elsewhere in lines of their own.
QUIET_SECONDS, TERMINAL_SECONDS, LOG_SECONDS = 2.0, 0.2, 10.0

MODEL = click.argument("model", metavar="M.tflite", type=click.Path(path_type=Path))
BACKEND = click.option(
    "--backend", default="cpu", show_default=True, help="What runs the model: cpu, cpu-builtin or cpu-reference."
)
THREADS = click.option(
    "--threads",
    "--num-threads",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Threads of the interpreter.",
)


def _number(_: click.Context, parameter: click.Parameter, value: float) -> float:
    if math.isnan(value):  # what a FloatRange lets through
        raise click.BadParameter("nan is not a number", param=parameter)
    return value


@click.group()
def main() -> None:
    """Measures what slimdet's files do on this machine.

    \b
    Example:
      python -m benchmarks latency yolo_int8.tflite --threads 2
    """


@main.group()
def bench() -> None:
    """Measure the accuracy or the latency of a .tflite on this machine.

    \b
    Example:
      slimdet bench latency yolo_int8.tflite --threads 2
    """


@bench.command(no_args_is_help=True)
@MODEL
@click.option(
    "--data",
    metavar="DIR",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder in the layout of VOC, COCO or YOLO.",
)
@click.option(
    "--split",
    default="test",
    show_default=True,
    help="Of VOC a list in ImageSets/Main, of COCO annotations/instances_SPLIT.json, of YOLO images/SPLIT or "
    'SPLIT.txt. Empty ("") for all pictures.',
)
@click.option(
    "--names",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Of YOLO data that do not name their classes: the names, one a line.",
)
@click.option(
    "--protocol",
    type=click.Choice(PROTOCOLS),
    default="voc07",
    show_default=True,
    help="voc07: 11-point; voc: area under the curve; darknet: as darknet publishes it; coco: mean over IoU .50:.95.",
)
@json_option("Write the result here as JSON; - is standard output.")
@BACKEND
@THREADS
@click.option(
    "--conf",
    type=click.FloatRange(0, 1),
    callback=_number,
    default=0.005,
    show_default=True,
    help="Least score of a detection; small, since the curve needs the weak ones too.",
)
@click.option(
    "--iou",
    type=click.FloatRange(0, 1),
    callback=_number,
    default=0.45,
    show_default=True,
    help="Of two boxes of a class that overlap by more than this, the better one stays.",
)
@debug_option
def accuracy(
    model: Path,
    data: Path,
    split: str,
    names: Path | None,
    protocol: str,
    json_file: str | None,
    backend: str,
    threads: int,
    conf: float,
    iou: float,
) -> None:
    """Measures the mAP of a .tflite on labelled pictures.

    Classes are matched by name, VOC's and COCO's synonyms included; what has no partner is listed and not scored. A
    picture that cannot be read is left out, of the truth as well, and listed.

    \b
    Example:
      slimdet bench accuracy yolo_int8.tflite --data VOCdevkit/VOC2007 --split test --protocol voc07
      slimdet bench accuracy yolo_int8.tflite --data coco --split val2017 --protocol coco --json accuracy.json
    """
    _silence_opencv()
    # numpy, OpenCV and the interpreter load here, so that --help is there at once.
    from benchmarks.accuracy import measure_accuracy
    from benchmarks.yolo_dataset import read_names

    result = measure_accuracy(
        model,
        data,
        split or None,
        protocol,
        names=read_names(names) if names else (),
        backend=backend,
        threads=threads,
        conf=conf,
        iou=iou,
        progress=progress("pictures"),
    )
    if json_file != "-":
        click.echo(accuracy_text(result))
    if json_file:
        write_json(json_file, result)


@bench.command(no_args_is_help=True)
@MODEL
@json_option("Write the result here as JSON; - is standard output.")
@BACKEND
@THREADS
@click.option(
    "--runs", "--num-runs", type=click.IntRange(1), default=50, show_default=True, help="Least number of measured runs."
)
@click.option(
    "--min-secs",
    type=click.FloatRange(0),
    callback=_number,
    default=1.0,
    show_default=True,
    help="Least seconds of measured runs.",
)
@click.option(
    "--max-secs",
    type=click.FloatRange(0, min_open=True),
    callback=_number,
    default=150.0,
    show_default=True,
    help="Measuring ends here, and so does the warm-up.",
)
@click.option(
    "--warmup-runs", type=click.IntRange(0), default=1, show_default=True, help="Least number of runs before."
)
@click.option(
    "--warmup-min-secs",
    type=click.FloatRange(0),
    callback=_number,
    default=0.5,
    show_default=True,
    help="Least seconds of runs before.",
)
@click.option(
    "--picture", type=click.Path(path_type=Path), help="What is looked at; by default a drawn scene of 640x480."
)
@debug_option
def latency(
    model: Path,
    json_file: str | None,
    backend: str,
    threads: int,
    runs: int,
    min_secs: float,
    max_secs: float,
    warmup_runs: int,
    warmup_min_secs: float,
    picture: Path | None,
) -> None:
    """Measures the latency of a .tflite in a fresh process.

    p50_ms and its like are of the inference alone; pre- and post-processing are timed in the same runs and told apart.
    Every run counts: no outlier is left out.

    \b
    Example:
      slimdet bench latency yolo_int8.tflite
      slimdet bench latency yolo_int8.tflite --threads 4 --runs 200 --json latency.json
    """
    _silence_opencv()
    from benchmarks.latency import measure_latency

    result = measure_latency(
        model,
        backend=backend,
        threads=threads,
        runs=runs,
        min_secs=min_secs,
        max_secs=max_secs,
        warmup_runs=warmup_runs,
        warmup_min_secs=warmup_min_secs,
        picture=picture,
        progress=progress("runs"),
    )
    if json_file != "-":
        click.echo(latency_text(result))
    if json_file:
        write_json(json_file, result)


# `python -m benchmarks accuracy …` is short for `python -m benchmarks bench accuracy …`; both run on devices too.
for _command in (accuracy, latency):
    _on_devices = with_devices(_command, "benchmarks", devices_text)
    bench.add_command(_on_devices)
    main.add_command(_on_devices)


def _silence_opencv() -> None:
    """OpenCV writes its own words on damaged pictures to standard error; ours are enough. Read when it loads."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")


def progress(what: str) -> Callable[[int, int], None]:
    """What tells on standard error how far something is and how long it takes still, once it has taken two seconds."""
    start = time.monotonic()
    told = 0.0
    terminal = sys.stderr.isatty()

    def tell(done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if terminal and told and done >= total:
            click.echo("\r\033[K", nl=False, err=True)
        pause = TERMINAL_SECONDS if terminal else LOG_SECONDS if told else 0.0
        if done >= total or now - start < QUIET_SECONDS or now - told < pause:
            return
        told = now
        left = round((now - start) / max(done, 1) * (total - done))
        line = f"{done} of {total} {what}, {left // 60}:{left % 60:02d} left"
        click.echo(f"\r\033[K{line}" if terminal else line, nl=not terminal, err=True)

    return tell
