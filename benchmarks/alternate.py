"""Times several .tflite against each other on this machine, in alternation and in one process.

    python -m benchmarks.alternate WHOLE.tflite SMALLER.tflite [--threads 1] [--json FILE]

Two measurements one after the other often differ by more than what a change won: the clock rises and falls, others'
work comes and goes. Here every round runs each model once, in an order drawn anew, so that all of that meets every
model alike, and the times of one round belong together. What is timed is the inference alone, on fixed random inputs
that were set before.

Two models are compared by r = median(a) / median(b) of their times a and b. Its 95 % interval is the percentile
bootstrap (B. Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7, 1979): whole rounds
are drawn with replacement, both times of a round together, and r is taken of each draw. That holds rounds to be
independent of each other: a disturbance longer than a round makes the interval somewhat too narrow.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.environment import environment, load_average
from benchmarks.latency import time_statistics
from benchmarks.tables import table
from deploy.backend import BACKEND_HELP
from deploy.command_line import debug_option, json_option, run, write_json
from deploy.contract import Tensor
from deploy.errors import InputError, SlimdetError
from deploy.open_model import open_model

#: Of a bootstrap. With one less than a multiple of 40, both ends of the 95 % interval are draws themselves.
DRAWS = 1999
#: Drawn rounds that lie in memory at a time.
_BLOCK = 1 << 20


def alternate(
    models: Mapping[str, bytes | Path],
    *,
    backend: str = "cpu",
    threads: int = 1,
    runs: int = 30,
    min_secs: float = 1.0,
    max_secs: float = 60.0,
    warmup_secs: float = 0.5,
    seed: int = 0,
) -> dict[str, list[int]]:
    """Nanoseconds of each inference, equally many for each model and in the order of the rounds, by the models' names.

    A model is the content of a .tflite, or its path; it needs no contract. Rounds go on until there are `runs` of them
    and min_secs have passed, and end at max_secs, after one round at least; before them warmup_secs of rounds, one at
    least, are not counted. seed: of the inputs and of the order in each round.

    Raises InputError, naming the model, for a file or a setting that cannot be used, BackendError where the
    backend is not to be had or cannot run one.
    """
    limits = (("runs", runs, 1), ("min_secs", min_secs, 0), ("max_secs", max_secs, 0), ("warmup_secs", warmup_secs, 0))
    for name, value, least in limits:
        if not least <= value < 1e9:
            raise InputError(f"{name} is a number from {least}, not {value}; give one")
    inferences = {name: _inference(name, model, backend, threads, seed) for name, model in models.items()}
    in_rounds(inferences, runs=1, min_secs=warmup_secs, max_secs=max_secs, seed=seed)
    return in_rounds(inferences, runs=runs, min_secs=min_secs, max_secs=max_secs, seed=seed)


def in_rounds(
    calls: Mapping[str, Callable[[], object]],
    *,
    runs: int,
    min_secs: float,
    max_secs: float,
    seed: int = 0,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, list[int]]:
    """Nanoseconds of each call by name: every round makes each call once, in an order drawn anew. See alternate for
    the limits. clock: the time in nanoseconds."""
    order, shuffle = list(calls.items()), random.Random(seed).shuffle
    times: dict[str, list[int]] = {name: [] for name in calls}
    begin, rounds = clock(), 0
    while order:
        shuffle(order)
        for name, call in order:
            start = clock()
            call()
            times[name].append(clock() - start)
        rounds += 1
        passed = (clock() - begin) / 1e9
        if passed >= max_secs or (rounds >= runs and passed >= min_secs):
            break
    return times


def ratio_interval(first: Sequence[int], second: Sequence[int], *, seed: int = 0) -> tuple[float, float, float]:
    """median(first) / median(second), and the lower and upper end of its 95 % interval; see the module's docstring.

    first and second: times above 0 in one unit, (n,) each, that stand in the same order of rounds. With first and
    second exchanged, all three are the reciprocals. Raises InputError where the two do not fit together.
    """
    pairs = np.array([first, second], np.float64) if len(first) == len(second) else np.empty((2, 0))
    if not pairs.size or not (pairs > 0).all():
        raise InputError(
            f"times are compared in pairs above 0: {len(first)} and {len(second)} came, or one was 0; give the times of"
            " one alternating run"
        )
    generator, count = np.random.default_rng(seed), pairs.shape[1]
    medians = np.empty((2, DRAWS))
    step = max(1, _BLOCK // count)
    for start in range(0, DRAWS, step):
        drawn = generator.integers(0, count, (min(step, DRAWS - start), count))
        for which in (0, 1):
            medians[which, start : start + step] = np.median(pairs[which][drawn], axis=1)
    ratios = np.sort(medians[0] / medians[1])
    outside = (DRAWS + 1) // 40 - 1
    whole = np.median(pairs, axis=1)
    return float(whole[0] / whole[1]), float(ratios[outside]), float(ratios[-1 - outside])


def _inference(name: str, model: bytes | Path, backend: str, threads: int, seed: int) -> Callable[[], None]:
    """Runs the model once more on its random inputs, which stay as they were set."""
    try:
        opened = open_model(model if isinstance(model, bytes) else model.read_bytes(), backend, threads)
        generator = np.random.default_rng(seed)
        opened.run({tensor.name: _example(tensor, generator) for tensor in opened.inputs})
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror or error}; give an existing .tflite") from error
    except SlimdetError as error:
        raise type(error)(f"{name}: {error}") from error
    return opened.invoke


def _example(tensor: Tensor, generator: np.random.Generator) -> np.ndarray:
    """Something to compute on: 0 to 1, or all values of 8 bits; other integers may be indices, so 0."""
    if tensor.dtype.startswith("float"):
        return generator.random(tensor.shape).astype(tensor.dtype)
    if tensor.dtype in ("int8", "uint8"):
        return generator.integers(0, 256, tensor.shape, np.uint8).view(tensor.dtype)
    return np.zeros(tensor.shape, tensor.dtype)


def compare(models: Sequence[Path], **settings: Any) -> dict[str, Any]:
    """Files against the first of them, as plain JSON; settings are those of alternate.

    For each model its time statistics in milliseconds, and against the first, how many times as fast it is (`speedup`,
    of the medians, with the two ends of its 95 % interval). Raises what alternate raises, and InputError for fewer
    than two files or one that comes twice.
    """
    names = [str(path) for path in models]
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(f"different files are compared, two at least, not {', '.join(names) or 'none'}; name others")
    busy = load_average()
    times = alternate(dict(zip(names, models)), **settings)
    rows = []
    for name in names:
        speedup, low, high = ratio_interval(times[names[0]], times[name])
        rows.append(
            {"model": name, **time_statistics(times[name]), "speedup": speedup, "speedup_interval": [low, high]}
        )
    return {
        "rounds": len(times[names[0]]),
        "settings": settings,
        "models": rows,
        "environment": {**environment(), "load_average_before": busy or "unavailable"},
    }


@click.command(no_args_is_help=True, epilog="Example: python -m benchmarks.alternate whole.tflite pruned.tflite")
@click.argument("models", metavar="A.tflite B.tflite ...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--backend", default="cpu", show_default=True, help=BACKEND_HELP)
@click.option(
    "--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="Threads of each interpreter."
)
@click.option("--runs", type=click.IntRange(1), default=30, show_default=True, help="Least number of rounds.")
@click.option("--min-secs", type=click.FloatRange(0), default=1.0, show_default=True, help="Least seconds of rounds.")
@click.option("--max-secs", type=click.FloatRange(0), default=60.0, show_default=True, help="Measuring ends here.")
@click.option("--warmup-secs", type=click.FloatRange(0), default=0.5, show_default=True, help="Of rounds before.")
@json_option("Write the result here as JSON; - is standard output.")
@debug_option
def main(models: tuple[Path, ...], json_file: str | None, **settings: Any) -> None:
    """Times several .tflite in alternation, and compares each with the first."""
    result = compare(models, **settings)
    rows = []
    for row in result["models"]:
        numbers = (row["p50_ms"], row["speedup"], *row["speedup_interval"])
        rows.append((row["model"], *(f"{number:.3f}" for number in numbers)))
    if json_file != "-":
        click.echo(table(("model", "p50 ms", "speed-up", "from", "to"), rows))
        click.echo(f"\n{result['rounds']} rounds; from and to: 95 % interval of the speed-up over {models[0]}")
    if json_file:
        write_json(json_file, result)


if __name__ == "__main__":
    run(main, "python -m benchmarks.alternate")
