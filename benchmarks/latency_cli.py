"""The commands `bench latency` and `bench compare`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.options import BACKEND, MODEL, THREADS, number, progress, silence_opencv
from benchmarks.tables import compare_text, latency_text, sweep_text
from deploy.command_line import debug_option, json_option, refuse_to_overwrite, write_json

#: Of the JSON of several numbers of threads: `results` holds one of `slimdet.latency/1` for each.
SWEEP_SCHEMA = "slimdet.latency-sweep/1"

_MOST_THREADS = 256


class _ThreadsList(click.ParamType):
    """Numbers of threads with commas between, each measured by itself."""

    name = "threads"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        words = str(value).split(",")
        if not all(word.isascii() and word.isdigit() and 1 <= int(word[:9]) <= _MOST_THREADS for word in words):
            self.fail(f"{value!r} is not 1 to {_MOST_THREADS}, or several with commas between", parameter, context)
        if len(set(map(int, words))) < len(words):
            self.fail(f"{value!r} has a number twice", parameter, context)
        return tuple(map(int, words))


class _Share(click.ParamType):
    """`2%` or `0.02`."""

    name = "share"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = 0.0
        if not 0 < share < 1:  # false for NaN too
            self.fail(f"{value!r} is no share above 0 and below 1, as 2% or 0.02", parameter, context)
        return share


PIN = click.option(
    "--pin",
    metavar="CORES",
    is_flag=False,
    flag_value="auto",
    help="Run on these cores alone, as 0,1. Alone, or with auto: on the fastest, as many as threads. Linux only.",
)
SEED = click.option(
    "--seed",
    type=click.IntRange(0, 10**9 - 1),
    default=0,
    show_default=True,
    help="Of the intervals, and where models alternate of their order and inputs.",
)
MIN_SECS = click.option(
    "--min-secs",
    "--min_secs",
    type=click.FloatRange(0),
    callback=number,
    default=1.0,
    show_default=True,
    help="Least seconds of measured runs.",
)


def _runs(default: int, text: str) -> Callable[[Any], Any]:
    return click.option(
        "--runs", "--num-runs", "--num_runs", type=click.IntRange(1), default=default, show_default=True, help=text
    )


def _max_secs(default: float, text: str) -> Callable[[Any], Any]:
    return click.option(
        "--max-secs", "--max_secs", type=click.FloatRange(0, min_open=True), callback=number, default=default,
        show_default=True, help=text,
    )  # fmt: skip


@click.command(no_args_is_help=True)
@MODEL
@json_option("Write the result here as JSON; - is standard output.")
@BACKEND
@click.option(
    "--threads",
    "--num-threads",
    "--num_threads",
    metavar="N,…",
    type=_ThreadsList(),
    default=(1,),
    show_default="1",
    help="Threads of the interpreter; several, as 1,2,4, are measured one after the other and shown in one table.",
)
@_runs(50, "Least number of measured runs.")
@MIN_SECS
@_max_secs(150.0, "Measuring ends here, and so does the warm-up.")
@click.option(
    "--until-within",
    metavar="SHARE",
    type=_Share(),
    help="Go on until the 95 % interval of the median is no wider than this share of it, as 2%, or --max-secs.",
)
@click.option(
    "--warmup-runs",
    "--warmup_runs",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Least number of runs before.",
)
@click.option(
    "--warmup-min-secs",
    "--warmup_min_secs",
    type=click.FloatRange(0),
    callback=number,
    default=0.5,
    show_default=True,
    help="Least seconds of runs before.",
)
@click.option(
    "--picture", type=click.Path(path_type=Path), help="What is looked at; by default a drawn scene of 640x480."
)
@PIN
@SEED
@click.option(
    "--profile",
    "--enable-op-profiling",
    "--enable_op_profiling",
    "ops",
    is_flag=True,
    help="Time each operation too, in a process of its own.",
)
@debug_option
def latency(model: Path, json_file: str | None, threads: Sequence[int], **settings: Any) -> None:
    """Measures the latency of a .tflite in a fresh process.

    p50_ms and its like are of the inference alone; pre- and post-processing are timed in the same runs and told apart.
    Every run counts: no outlier is left out. Intervals hold 95 %, and allow for runs that depend on each other. Peak
    memory and the cold start, from before the process starts to the first detections, are always told.

    It ends when there are --runs and --min-secs have passed, with --until-within when the interval is narrow too, at
    the latest at --max-secs; stopped_by says which it was. Names of TFLite's benchmark_model are known as well.

    \b
    Example:
      slimdet bench latency yolo_int8.tflite
      slimdet bench latency yolo_int8.tflite --threads 1,2,4 --until-within 1% --json latency.json
      slimdet bench latency yolo_int8.tflite --pin 2,3 --threads 2 --profile
    """
    silence_opencv()
    # numpy, OpenCV and the interpreter load here, so that --help is there at once.
    from benchmarks.latency import measure_latency

    results = [
        measure_latency(model, threads=number_of, progress=progress("runs"), **settings) for number_of in threads
    ]
    if json_file != "-":
        click.echo(latency_text(results[0]) if len(results) == 1 else sweep_text(results))
    if json_file:
        sweep = {"schema": SWEEP_SCHEMA, "threads": list(threads), "results": results}
        write_json(json_file, results[0] if len(results) == 1 else sweep)


@click.command(no_args_is_help=True)
@click.argument("models", metavar="A.tflite B.tflite ...", nargs=-1, required=True, type=click.Path(path_type=Path))
@json_option("Write the result here as JSON; - is standard output.")
@BACKEND
@THREADS
@_runs(30, "Least number of rounds.")
@MIN_SECS
@_max_secs(60.0, "Measuring ends here, even where a limit is undecided.")
@click.option(
    "--warmup-secs",
    type=click.FloatRange(0),
    callback=number,
    default=0.5,
    show_default=True,
    help="Least seconds of rounds before.",
)
@SEED
@PIN
@click.option(
    "--fail-below",
    metavar="RATIO",
    type=click.FloatRange(0, min_open=True),
    callback=number,
    help="Least speed-up of every file over the first.",
)
@click.option(
    "--budget",
    "budget_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Limits in TOML or JSON, by patterns of file names: p50_ms, p95_ms, size_mb, peak_memory_mb, speedup.",
)
@debug_option
def compare(
    models: tuple[Path, ...], json_file: str | None, budget_file: Path | None, **settings: Any
) -> None:
    """Times several .tflite in alternation, and compares each with the first.

    In six fresh processes, each round runs every model once, in an order drawn anew. The speed-up is the median over
    all rounds of the ratio of two times; from and to are its 95 % interval. Limits of runs and seconds are of all
    processes together, without their start.

    A limit is judged by the interval: met where all of it keeps the limit, missed where no part does. Where the limit
    lies within, more processes are measured until it is decided; at --max-secs an undecided limit counts as not met.
    Whenever it ends, a limit is judged wrongly with a chance of about 5 % at most.

    \b
    Exit code: 0 all limits are met, or there are none; 1 an input or setting cannot be used; 2 wrong use;
    3 a limit is not met.

    \b
    Example of a budget:
      ["*_int8.tflite"]
      p50_ms = 5.0
      size_mb = 1.2
      speedup = 1.5

    \b
    Example:
      slimdet bench compare yolo_float32.tflite yolo_int8.tflite --fail-below 1.2
      slimdet bench compare old.tflite new.tflite --budget budget.toml --json compare.json
    """
    silence_opencv()
    from benchmarks.budget import read_budget, require_met
    from benchmarks.compare import compare as compared

    if json_file not in (None, "-") and budget_file is not None:
        refuse_to_overwrite("--json", str(json_file), [budget_file])
    budget = None if budget_file is None else read_budget(budget_file)
    result = compared(models, budget=budget, progress=progress("processes"), **settings)
    if json_file != "-":
        click.echo(compare_text(result))
    if json_file:
        write_json(json_file, result)
    require_met(result["gate"])
