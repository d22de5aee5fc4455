"""Limits for what is measured, and whether they are kept: the gate of `bench compare`.

A limit is judged by the interval of its figure, not by the figure, so that a gate does not open and close by chance:
"met" where the whole interval keeps it, "missed" where no part does, "undecided" where it lies within. Undecided limits
are measured on and looked at again. To look again and again until the answer pleases would make any answer likely; so
at look k the interval has the confidence 1 - 0.05 / (k (k + 1)). The sum of all 0.05 / (k (k + 1)) is 0.05: whenever it
ends, a limit is judged wrongly with a chance of at most 5 % (Boole's inequality).

A budget is a TOML or JSON file of tables, by a pattern of file names:

    ["*_int8.tflite"]
    p50_ms = 5.0
    size_mb = 1.2
    speedup = 1.5

p50_ms, p95_ms (of the inference), size_mb (millions of bytes of the file), peak_memory_mb (of a process with that model
alone): at most. speedup (against the first file): at least.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bootstrap import percentile_draws, ratio_draws
from deploy.errors import GateError, InputError

#: What is judged by an interval, with the percentile; of speedup there is none.
TIMED = {"p50_ms": 50, "p95_ms": 95, "speedup": None}
MEASURES = (*TIMED, "size_mb", "peak_memory_mb")

_LARGEST_FILE = 1 << 20
#: The chance of a wrong judgement of one limit, over all looks.
_WRONG = 0.05


@dataclasses.dataclass(frozen=True)
class Limit:
    #: The model's path as it was given.
    model: str
    #: One of MEASURES.
    measure: str
    #: At most, of a speedup at least.
    bound: float


def read_budget(path: Path) -> dict[str, dict[str, float]]:
    """The limits by pattern and measure. Raises InputError, naming the place, for a file that is no budget."""
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise InputError(f"a budget has at most {_LARGEST_FILE >> 20} MiB: {path} is larger; is it one?")
        text = path.read_text(encoding="utf-8-sig")
        tables = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; give an existing budget") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"a budget is TOML, or JSON in a .json: {path} is neither ({error}); correct it") from error
    if not isinstance(tables, dict) or not tables:
        raise InputError(f"a budget has a table for each pattern of file names: {path} has none; write one")
    for pattern, table in tables.items():
        _check_table(f"{path}, {pattern!r}", table)
    return {pattern: {name: float(value) for name, value in table.items()} for pattern, table in tables.items()}


def _check_table(place: str, table: Any) -> None:
    if not isinstance(table, dict) or not table:
        raise InputError(f"a pattern of a budget has limits: {place} has none; write one of {', '.join(MEASURES)}")
    for name, value in table.items():
        if name not in MEASURES:
            raise InputError(f"a limit is one of {', '.join(MEASURES)}: {place} has {name!r}; correct it")
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
            raise InputError(f"a limit is a number above 0: {place}, {name} is {value!r}; correct it")


def limits_for(
    models: Sequence[str], budget: Mapping[str, Mapping[str, float]], least_speedup: float | None
) -> tuple[Limit, ...]:
    """All limits of the models; every pattern that matches a file's name counts. least_speedup: of all but the first.

    Raises InputError for a model that no pattern of the budget matches: else a slip of the pen would open the gate.
    """
    found = [Limit(model, "speedup", least_speedup) for model in models[1:] if least_speedup is not None]
    for model in models:
        tables = [table for pattern, table in budget.items() if fnmatch.fnmatchcase(Path(model).name, pattern)]
        if budget and not tables:
            raise InputError(
                f"a budget has a pattern for every file: of {', '.join(budget)} none matches {Path(model).name}; add "
                "one"
            )
        found += [Limit(model, name, bound) for table in tables for name, bound in table.items()]
    return tuple(dict.fromkeys(found))


def judged(
    limits: Sequence[Limit],
    times: Mapping[str, Sequence[int]],
    other: Mapping[str, Mapping[str, Any]],
    look: int,
    *,
    sizes: Sequence[int] = (),
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Each limit with its figure, interval and verdict (met, missed or undecided), as plain JSON.

    times: nanoseconds by model in rounds, the first model's first; sizes: rounds of each process. other: by model, what
    has no interval, by measure; where it is a word ("unavailable") instead of a number, the verdict is missed. look:
    from 1.
    """
    confidence = 1 - _WRONG / (look * (look + 1))
    rows = []
    for limit in limits:
        if limit.measure in TIMED:
            value, low, high = _timed(limit, times, confidence, sizes, seed)
        else:
            value = low = high = other[limit.model][limit.measure]
        rows.append(
            {
                **dataclasses.asdict(limit),
                "value": value,
                "interval": [low, high],
                "confidence": confidence if limit.measure in TIMED else 1.0,
                "verdict": _verdict(limit, low, high),
            }
        )
    return rows


def _timed(
    limit: Limit, times: Mapping[str, Sequence[int]], confidence: float, sizes: Sequence[int], seed: int
) -> tuple[float, float, float]:
    rank, own = TIMED[limit.measure], times[limit.model]
    if rank is None:
        ratio, draws = ratio_draws(next(iter(times.values())), own, sizes=sizes, seed=seed)
        return ratio, *draws.interval(confidence)
    draws = percentile_draws(own, (rank,), sizes=sizes, seed=seed)[rank]
    low, high = draws.interval(confidence)
    return float(np.percentile(own, rank)) / 1e6, low / 1e6, high / 1e6


def _verdict(limit: Limit, low: float | str, high: float | str) -> str:
    if isinstance(low, str) or isinstance(high, str):
        return "missed"
    if limit.measure == "speedup":
        return "met" if low >= limit.bound else "missed" if high < limit.bound else "undecided"
    return "met" if high <= limit.bound else "missed" if low > limit.bound else "undecided"


def require_met(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raises GateError, naming all of them, where a limit is not met."""
    failed = [row for row in rows if row["verdict"] != "met"]
    if failed:
        raise GateError(
            f"a limit is kept by the whole interval: {'; '.join(map(limit_text, failed))}; make the file faster or "
            "smaller, raise --max-secs where it is undecided, or move the limit"
        )


def limit_text(row: Mapping[str, Any]) -> str:
    """One limit for a reader."""
    sense = "at least" if row["measure"] == "speedup" else "at most"
    if isinstance(row["value"], str):
        value = row["value"]
    else:
        ends = [f"{end:.3f}" for end in row["interval"]]
        value = f"{row['value']:.3f}" + (f" [{', '.join(ends)}]" if ends[0] != ends[1] else "")
    return f"{row['model']} {row['measure']} {value}, {sense} {row['bound']:g}: {row['verdict']}"
