"""Shows that the figures of `bench latency` and `bench compare` can be trusted on this machine.

    python -m benchmarks.trust NET.tflite --repeats 20 --pairs 20

First, each file is compared with a copy of itself, again and again: the 95 % interval of the speed-up must hold 1 in
all but one of 20 repetitions. (Of intervals that are exactly right 19 of 20 hold 1 in three of four such trials; ours
are somewhat wider than that.) Second, its latency is measured in turns with the benchmark that comes with LiteRT
itself, on the CPU, each in a process of its own: the median over all turns of the ratio of the two medians must be
within 5 % of 1. Theirs times the run alone; ours sets the input and reads the outputs as well.
"""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.compare import compare
from benchmarks.environment import environment
from benchmarks.latency import measure_latency
from benchmarks.tables import table
from deploy.command_line import debug_option, json_option, run, write_json
from deploy.errors import BackendError, GateError, InputError

SCHEMA = "slimdet.trust/1"

#: LiteRT's own benchmark, the program litert-benchmark.
THEIRS = "ai_edge_litert.tools.benchmark_litert_model"
#: Share of the repetitions whose interval must hold 1, and how far the two benchmarks may be apart.
HELD, APART = 0.95, 0.05
#: Seconds after which their benchmark is given up.
_PATIENCE = 600


def against_itself(model: Path, *, repeats: int, threads: int, min_secs: float) -> list[dict[str, Any]]:
    """Of each comparison of the file with its copy the speed-up, its 95 % interval, and whether that holds 1."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, model.name)
        try:
            shutil.copyfile(model, copy)
        except OSError as error:
            raise InputError(f"cannot read {model}: {error.strerror or error}; give an existing .tflite") from error
        for repeat in range(repeats):
            result = compare([model, copy], threads=threads, min_secs=min_secs, seed=repeat)
            row = result["models"][1]
            low, high = row["speedup_interval"]
            rows.append({"speedup": row["speedup"], "interval": [low, high], "holds_1": low <= 1 <= high})
            rows[-1] |= {"rounds": result["rounds"], "others_cores": result["machine"]["change"]["others_cores"]}
            click.echo(f"{model.name} against itself: {repeat + 1} of {repeats}", err=True)
    return rows


def against_theirs(model: Path, *, pairs: int, threads: int, runs: int) -> list[dict[str, float]]:
    """Of each pair of processes, ours and theirs in turns, which comes first in turns too: the two medians in
    milliseconds."""
    if importlib.util.find_spec(THEIRS) is None:
        raise BackendError(f"the comparison needs {THEIRS}, which this version of ai-edge-litert lacks; give --pairs 0")

    def ours() -> float:
        found = measure_latency(model, threads=threads, runs=runs, min_secs=0.0, warmup_runs=5, warmup_min_secs=0.0)
        median: float = found["p50_ms"]
        return median

    rows = []
    for pair in range(pairs):
        if pair % 2:
            theirs = _theirs(model, threads, runs)
            rows.append({"ours_ms": ours(), "theirs_ms": theirs})
        else:
            first = ours()
            rows.append({"ours_ms": first, "theirs_ms": _theirs(model, threads, runs)})
        click.echo(f"{model.name} against LiteRT's benchmark: {pair + 1} of {pairs}", err=True)
    return rows


def _theirs(model: Path, threads: int, runs: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        command = [sys.executable, "-P", "-m", THEIRS, "--model", str(model), "--num_threads", str(threads)]
        command += ["--num_runs", str(runs), "--warmup_runs", "5", "--result_json", str(result)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE)
        except subprocess.TimeoutExpired as error:
            raise BackendError(f"LiteRT's benchmark took more than {_PATIENCE} s; give fewer --runs") from error
        try:
            found = json.loads(result.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            words = (done.stderr.strip().splitlines() or ["no word"])[-1]
            raise BackendError(f"LiteRT's benchmark left no result ({words[:200]}); give --pairs 0") from error
    return _median_of(found)


def _median_of(found: Any) -> float:
    try:
        return float(found["latency"]["median_ms"])
    except (KeyError, TypeError, ValueError) as error:
        raise BackendError("LiteRT's benchmark tells latency.median_ms, but this version does not") from error


def verdicts(found: dict[str, Any]) -> list[str]:
    """What was not shown, in words; nothing where all was."""
    failed = []
    for name, row in found["models"].items():
        held, repeats = sum(one["holds_1"] for one in row["itself"]), len(row["itself"])
        if held < math.floor(HELD * repeats):
            failed.append(f"{name} against itself: {held} of {repeats} intervals hold 1, and {HELD:.0%} must")
        if row["theirs"] and abs(row["ratio"] - 1) > APART:
            failed.append(f"{name} against LiteRT's benchmark: {row['ratio']:.3f}, and 1 within {APART:.0%} is wanted")
    return failed


def as_text(found: dict[str, Any]) -> str:
    """The figures for a reader."""
    rows = []
    for name, row in found["models"].items():
        widths = [one["interval"][1] - one["interval"][0] for one in row["itself"]]
        held = f"{sum(one['holds_1'] for one in row['itself'])} of {len(row['itself'])}"
        width = f"{100 * statistics.median(widths):.2f} %" if widths else "-"
        ours, theirs = ([f"{one[key]:.3f}" for one in row["theirs"]] for key in ("ours_ms", "theirs_ms"))
        medians = [f"{statistics.median(map(float, side)):.3f}" if side else "-" for side in (ours, theirs)]
        rows.append((name, held, width, *medians, f"{row['ratio']:.3f}" if row["theirs"] else "-"))
    head = ("model", "intervals that hold 1", "their width", "our ms", "LiteRT's ms", "ratio")
    return table(head, rows)


@click.command(no_args_is_help=True, epilog="Example: python -m benchmarks.trust yolo_float32.tflite yolo_int8.tflite")
@click.argument("models", metavar="M.tflite ...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--repeats", type=click.IntRange(0), default=20, show_default=True, help="Comparisons with itself.")
@click.option("--pairs", type=click.IntRange(0), default=20, show_default=True, help="Turns with LiteRT's benchmark.")
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="Of each interpreter.")
@click.option("--min-secs", type=click.FloatRange(0), default=2.0, show_default=True, help="Of each comparison.")
@click.option("--runs", type=click.IntRange(1), default=100, show_default=True, help="Of each turn.")
@json_option("Write the result here as JSON; - is standard output.")
@debug_option
def main(
    models: Sequence[Path],
    repeats: int,
    pairs: int,
    threads: int,
    min_secs: float,
    runs: int,
    json_file: str | None,
) -> None:
    """Compares each file with itself, and its latency with that of LiteRT's own benchmark.

    Exit code 3 where the one or the other is not as it must be.
    """
    found: dict[str, Any] = {"schema": SCHEMA, "threads": threads, "models": {}}
    for model in models:
        itself = against_itself(model, repeats=repeats, threads=threads, min_secs=min_secs)
        theirs = against_theirs(model, pairs=pairs, threads=threads, runs=runs) if pairs else []
        ratio = statistics.median([one["ours_ms"] / one["theirs_ms"] for one in theirs]) if theirs else None
        found["models"][str(model)] = {"itself": itself, "theirs": theirs, "ratio": ratio}
    found["environment"] = environment()
    if json_file != "-":
        click.echo(as_text(found))
    if json_file:
        write_json(json_file, found)
    failed = verdicts(found)
    if failed:
        raise GateError(f"{'; '.join(failed)}; measure on a quieter machine, or longer")


if __name__ == "__main__":
    run(main, "python -m benchmarks.trust")
