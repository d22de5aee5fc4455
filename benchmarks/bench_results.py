"""Reads the JSON that `bench accuracy`, `bench latency` and `bench compare` wrote: their own, or a stranger's.

Which kind a result is says its `schema`, `slimdet.KIND/VERSION`; older ones have none and are told by their fields. All
that a report uses is checked here, so that a damaged file is one sentence and never half a report. A file may hold one
result, a list of them, or an object with a list `results`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import UNAVAILABLE
from deploy.errors import InputError

#: Of one file, in bytes.
FILE_LIMIT = 64 << 20
KINDS = ("accuracy", "latency", "compare")
#: Fields by which a result without a schema is told, in this order.
_FIELDS = {"accuracy": "per_class", "latency": "parts", "compare": "models"}
VERSION = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """One measurement."""

    #: One of KINDS.
    kind: str
    #: Where it stands.
    file: Path
    #: As measured, checked.
    content: dict[str, Any]


def _number(value: Any) -> str:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return "" if good else "a finite number"


def _share(value: Any) -> str:
    return "" if not _number(value) and 0 <= value <= 1 else "a number from 0 to 1"


def _count(value: Any) -> str:
    return "" if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else "a whole number from 0"


def _text(value: Any) -> str:
    return "" if isinstance(value, str) else "a text"


def _told(value: Any) -> str:
    return "" if value == UNAVAILABLE or not _number(value) else f'a finite number or "{UNAVAILABLE}"'


def _some_number(value: Any) -> str:
    return "" if value is None or not _number(value) else "a finite number or null"


#: A shape is a check, which returns what a value must be where it is not; a list of one shape, for each entry; or a
#: dictionary by key: "?" at the end of a key marks what may be missing, the key "*" stands for all keys.
_INTERVALS = {"*": [_number]}
_SPREAD = {"median": _some_number, "p95": _some_number, "max": _some_number}
_DRIFT = {
    **dict.fromkeys(("pairs", "crossing", "only_first", "only_here"), _count),
    "iou_loss": _SPREAD,
    "score_difference": _SPREAD,
}
_WORKING = {"truths": _count, "detections": _count, "precision": _some_number, "recall": _some_number}
_SHAPES: dict[str, dict[str, Any]] = {
    "accuracy": {
        "map": _share,
        "map50?": _share,
        "map75?": _share,
        "per_class": {"*": _share},
        "protocol": _text,
        "images": _count,
        "truths": _count,
        "model": _text,
        "model_sha256": _text,
        "model_bytes?": _count,
        "precision": _text,
        "data": _text,
        "backend": _text,
        "threads": _count,
        "skipped_count": _count,
        "data_classes_without_partner": [_text],
        "working_conf?": _share,
        "working?": _WORKING,
        "classes?": {"*": {"ap": _share, "truths": _count, "working": _WORKING, "curve": [_share]}},
        "misses?": {
            "false_positives": {"*": _count},
            "false_negatives": {"*": _count},
            "per_class": {"*": {"false_positives": {"*": _count}, "false_negatives": {"*": _count}}},
        },
        "backends?": [{"backend": _text, "map": _share}],
        "worst?": {"cost": _text, "pictures": [{"id": _text, "cost": _number}]},
    },
    "latency": {
        "p50_ms": _number,
        **dict.fromkeys(("p90_ms", "p95_ms", "p99_ms", "min_ms", "max_ms"), _told),
        "backend": _text,
        "threads": _count,
        "parts": {"*": {"p50_ms": _told}},
        "model?": _text,
        "precision?": _text,
        "intervals?": _INTERVALS,
        "peak_memory_mb?": _told,
        "warnings?": [_text],
    },
    "compare": {
        "models": [
            {
                "model": _text,
                "p50_ms": _number,
                "speedup": _number,
                "speedup_interval": [_number],
                "intervals?": _INTERVALS,
                "size_mb?": _number,
            }
        ],
        "rounds": _count,
        "warnings?": [_text],
    },
}


def read_results(files: Sequence[Path]) -> list[Result]:
    """All results of the files, in their order.

    Raises InputError for a file that cannot be read, is no JSON, is of an unknown kind or a later version, or lacks a
    field, naming the place.
    """
    found = [Result(*_checked(one, file), content=one) for file in files for one in _contents(file)]
    if not found:
        raise InputError("a report is of one result at least; give a file that accuracy, latency or compare wrote")
    return found


def _contents(file: Path) -> Iterator[dict[str, Any]]:
    try:
        if file.stat().st_size > FILE_LIMIT:
            raise InputError(f"a result has at most {FILE_LIMIT >> 20} MiB: {file} has more; is it one?")
        content = json.loads(file.read_bytes(), parse_constant=_no_constant)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}; check the path") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"a result is JSON: {file} is not ({error}); give what --json wrote") from error
    if isinstance(content, dict) and isinstance(content.get("results"), list):
        content = content["results"]
    for one in content if isinstance(content, list) else [content]:
        if not isinstance(one, dict):
            raise InputError(f"a result is a JSON object: {file} has {type(one).__name__}; give what --json wrote")
        yield one


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _checked(content: dict[str, Any], file: Path) -> tuple[str, Path]:
    schema = content.get("schema")
    if schema is None:
        kind = next((kind for kind, field in _FIELDS.items() if field in content), None)
    else:
        known = {f"slimdet.{kind}/{VERSION}": kind for kind in KINDS}
        kind = known.get(schema) if isinstance(schema, str) else None
    if kind is None:
        raise InputError(
            f"a report is made of results of the kinds {', '.join(KINDS)}, version {VERSION}: {file} is "
            f"{str(schema)[:60]!r}; give what `slimdet bench` of this version wrote"
        )
    _check(content, _SHAPES[kind], f"{kind} of {file}")
    for key, shape in (("environment", {"cpu": _text}), ("device", _text)):
        if key in content:
            _check(content[key], shape, f"{key} of {file}")
    for row in content.get("backends", ()):
        if row.get("drift") is not None:
            _check(row["drift"], _DRIFT, f"drift of {file}")
    return kind, file


def _check(value: Any, shape: Any, place: str) -> None:
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            raise InputError(f"a result's {place} is an object, not {_short(value)}; measure it anew")
        for key, inner in shape.items():
            name = key.removesuffix("?")
            if key == "*":
                for own, one in value.items():
                    _check(one, inner, f"{str(own)[:40]} in {place}")
            elif name in value:
                _check(value[name], inner, f"{name} in {place}")
            elif not key.endswith("?"):
                raise InputError(f"a result has a field {name}: {place} has none; measure it anew")
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise InputError(f"a result's {place} is a list, not {_short(value)}; measure it anew")
        for number, one in enumerate(value):
            _check(one, shape[0], f"entry {number} of {place}")
    elif wanted := shape(value):
        raise InputError(f"a result's {place} is {wanted}, not {_short(value)}; measure it anew")


def _short(value: Any) -> str:
    return repr(value)[:60]
