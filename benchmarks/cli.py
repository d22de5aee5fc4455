"""The commands `bench accuracy` and `bench report`, the group `bench`, and the program `python -m benchmarks`."""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.device_command import with_devices
from benchmarks.device_table import devices_text
from benchmarks.latency_cli import compare, latency
from benchmarks.options import MODEL, THREADS, number, progress, silence_opencv
from benchmarks.tables import accuracy_text
from deploy.command_line import debug_option, json_option, write_json

PROTOCOLS = ("voc07", "voc", "darknet", "coco")


@click.group()
def main() -> None:
    """Measures what slimdet's files do on this machine.

    \b
    Example:
      python -m benchmarks latency yolo_int8.tflite --threads 2
    """


@main.group()
def bench() -> None:
    """Measure the accuracy or the latency of a .tflite on this machine, or compare several.

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
@click.option(
    "--backend",
    "backends",
    multiple=True,
    default=("cpu",),
    show_default=True,
    help="What runs the model: cpu, cpu-builtin or cpu-reference. May be repeated: each is held against the first.",
)
@THREADS
@click.option(
    "--conf",
    type=click.FloatRange(0, 1),
    callback=number,
    default=0.005,
    show_default=True,
    help="Least score of a detection; small, since the curve needs the weak ones too.",
)
@click.option(
    "--iou",
    type=click.FloatRange(0, 1),
    callback=number,
    default=0.45,
    show_default=True,
    help="Of two boxes of a class that overlap by more than this, the better one stays.",
)
@click.option(
    "--working-conf",
    type=click.FloatRange(0, 1),
    callback=number,
    help="Score from which detections are used: precision, recall, the causes of errors and the drift of boxes are "
    "told there.  [default: 0.25, or --conf if that is more]",
)
@click.option(
    "--worst",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Draw the pictures whose errors cost most into this folder, and a contact sheet of them.",
)
@click.option(
    "--worst-count",
    type=click.IntRange(1, 100),
    default=12,
    show_default=True,
    help="Most pictures that --worst draws.",
)
@debug_option
def accuracy(
    model: Path,
    data: Path,
    split: str,
    names: Path | None,
    protocol: str,
    json_file: str | None,
    backends: tuple[str, ...],
    threads: int,
    conf: float,
    iou: float,
    working_conf: float | None,
    worst: Path | None,
    worst_count: int,
) -> None:
    """Measures the mAP of a .tflite on labelled pictures.

    Classes are matched by name, VOC's and COCO's synonyms included; what has no partner is listed and not scored. A
    picture that cannot be read is left out, of the truth as well, and listed. With several backends the same file runs
    on each, and the drift of the boxes against the first is told.

    \b
    Example:
      slimdet bench accuracy yolo_int8.tflite --data VOCdevkit/VOC2007 --split test --protocol voc07
      slimdet bench accuracy yolo_int8.tflite --data coco --split val2017 --protocol coco --json accuracy.json
      slimdet bench accuracy yolo_int8.tflite --data VOCdevkit/VOC2007 --backend cpu --backend cpu-reference --worst out
    """
    silence_opencv()
    # numpy, OpenCV and the interpreter load here, so that --help is there at once.
    from benchmarks.backends import measure_backends
    from benchmarks.yolo_dataset import read_names

    result = measure_backends(
        model,
        data,
        split or None,
        protocol,
        backends,
        names=read_names(names) if names else (),
        threads=threads,
        conf=conf,
        iou=iou,
        working_conf=working_conf,
        worst=worst,
        worst_count=worst_count,
        progress=progress("pictures"),
    )
    if json_file != "-":
        click.echo(accuracy_text(result))
    if json_file:
        write_json(json_file, result)


@bench.command(no_args_is_help=True)
@click.argument("results", metavar="RESULT.json...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder that receives report.json, report.md and report.html.",
)
@debug_option
def report(results: tuple[Path, ...], out: Path) -> None:
    """Makes one report of what accuracy, latency and compare wrote with --json, of any models and devices.

    Results belong together by the name of the model's file. The page needs no other file and no script.

    \b
    Example:
      slimdet bench report accuracy_*.json latency_*.json --out report
    """
    silence_opencv()
    from benchmarks.bench_report import write_report
    from benchmarks.bench_results import read_results

    for path in write_report(read_results(results), out):
        click.echo(path)


bench.add_command(compare)
# `python -m benchmarks accuracy …` is short for `python -m benchmarks bench accuracy …`; both run on devices too.
for _command in (accuracy, latency):
    _on_devices = with_devices(_command, "benchmarks", devices_text)
    bench.add_command(_on_devices)
    main.add_command(_on_devices)
main.add_command(compare)
main.add_command(report)
