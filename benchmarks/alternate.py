"""Times several .tflite against each other on this machine, in alternation and in one process.

Two measurements one after the other often differ by more than what a change won: the clock rises and falls, others'
work comes and goes. Here every round runs each model once, in an order drawn anew, so that all of that meets every
model alike, and the times of one round belong together: ratio_interval of bootstrap.py compares them. What is timed is
the inference alone, on fixed random inputs that were set before. `slimdet bench compare` is compare.py.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from deploy.contract import Tensor
from deploy.errors import InputError, SlimdetError
from deploy.open_model import open_model


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

    Raises InputError, naming the model, for a file or a setting that cannot be used, BackendError where the backend
    cannot run one.
    """
    check_limits(runs=runs, min_secs=min_secs, max_secs=max_secs, warmup_secs=warmup_secs)
    inferences = {
        name: inference(name, model, backend=backend, threads=threads, seed=seed) for name, model in models.items()
    }
    in_rounds(inferences, runs=1, min_secs=warmup_secs, max_secs=max_secs, seed=seed)
    return in_rounds(inferences, runs=runs, min_secs=min_secs, max_secs=max_secs, seed=seed)


def check_limits(*, runs: int, min_secs: float, max_secs: float, warmup_secs: float) -> None:
    """Raises InputError for one that is out of range."""
    limits = (("runs", runs, 1), ("min_secs", min_secs, 0), ("max_secs", max_secs, 0), ("warmup_secs", warmup_secs, 0))
    for name, value, least in limits:
        if not least <= value < 1e9:
            raise InputError(f"{name} is a number from {least}, not {value}; give one")


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


def inference(name: str, model: bytes | Path, *, backend: str, threads: int, seed: int) -> Callable[[], None]:
    """What runs the model once more on its random inputs, which stay as they were set. See alternate."""
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
