"""One table of what a command found on several devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.tables import table

#: Column, key of the result, and how it is written.
_LATENCY = tuple((name, f"{name}_ms", "{:.3f}") for name in ("p50", "p90", "p95", "p99", "min", "max", "mean", "std"))
_ACCURACY = (
    ("mAP %", "map", "{:.2%}"), ("pictures", "images", "{}"), ("detections", "detections", "{}"),
    ("invoke s", "invoke_s", "{:.2f}"),
)  # fmt: skip


def devices_text(results: Sequence[Mapping[str, Any]]) -> str:
    """A row a device, or several where it measured several settings; then what went wrong, a line each.

    results: of one command, each with `device`, and `error` in place of all else where it failed. Times are in
    milliseconds. What a device does not tell is written so.
    """
    good = [one for one in results if "error" not in one]
    sections = []
    if good:
        columns = _ACCURACY if any("map" in one for one in good) else _LATENCY
        head = ("device", "cpu", "backend", "threads", *(name for name, _, _ in columns))
        rows = []
        for one in good:
            for found in _settings(one):
                cpu = one.get("environment", {}).get("cpu")
                first = (one["device"], cpu, found.get("backend"), found.get("threads"))
                rows.append([*map(_shown, first), *(_shown(found.get(key), form) for _, key, form in columns)])
        sections.append(table(head, rows))
    notes = [f"{one['device']}: warning: {text}" for one in good for text in one.get("warnings", [])]
    notes += [f"{one['device']}: error: {one['error']}" for one in results if "error" in one]
    return "\n\n".join(sections + (["\n".join(notes)] if notes else []))


def _settings(result: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The result itself, or the list of results within it, one for each setting."""
    if "p50_ms" in result or "map" in result:
        yield result
        return
    lists = [value for value in result.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    nested = [value for value in lists if "p50_ms" in value[0] or "map" in value[0]]
    yield from nested[0] if nested else [result]


def _shown(value: object, form: str = "{}") -> str:
    if value is None:
        return "unavailable"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return form.format(value).removesuffix("%") if number else str(value)
