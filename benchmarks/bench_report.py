"""The report of several measurements: report.json for machines, report.md and one self-contained report.html.

A line of its table is a configuration: a file, what ran it, and where. Latency and accuracy belong together by the
file's name, so that one name must not stand for two files. mAP is taken from the same device and backend where it was
measured there, else from the same backend, else from another; then the table says which.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from benchmarks.bench_results import Result
from benchmarks.misses import FALSE_NEGATIVES, FALSE_POSITIVES
from benchmarks.svg_plots import Point, front
from benchmarks.tables import DRIFT_COLUMNS, drift_cells
from deploy.command_line import write_atomically
from deploy.errors import InputError

SCHEMA = "slimdet.report/1"
NONE = "–"
COLUMNS = ("file", "runs on", "mAP %", "p50 ms", "p90 ms", "p99 ms", "speed-up", "size MB", "memory MB")


@dataclasses.dataclass(frozen=True)
class Row:
    """One configuration; what was not measured is None."""

    model: str
    precision: str | None
    #: Device, or its processor where it has no name.
    device: str
    backend: str | None
    threads: int | None
    map: float | None = None
    #: What the mAP was measured on, where that is not this configuration.
    map_from: str | None = None
    #: Protocol and pictures of the mAP: figures of different ones cannot be compared.
    map_of: str | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    #: Two ends of the 95 % interval of p50.
    p50_interval: tuple[float, float] | None = None
    speedup: float | None = None
    speedup_interval: tuple[float, float] | None = None
    size_mb: float | None = None
    peak_memory_mb: float | None = None
    #: Whether no other configuration of its device, backend and threads is both faster and better.
    on_front: bool = False

    @property
    def runs_on(self) -> str:
        threads = [] if self.threads is None else [f"{self.threads} thread{'s' * (self.threads != 1)}"]
        return ", ".join([self.device, *filter(None, [self.backend]), *threads])


def model_of(result: Result) -> str:
    """The file's name without its ending; of a latency without one, the name of the result's file."""
    return _name(result.content.get("model") or result.file.name)


def _name(path: str) -> str:
    # The device may have another system than this machine.
    name = PureWindowsPath(path).name if "\\" in path else PurePosixPath(path).name
    return (name.removesuffix(".json").removesuffix(".tflite") or path)[:200]


def device_of(result: Result) -> str:
    """Its name, or its processor."""
    content = result.content
    found = content.get("device") or content.get("environment", {}).get("cpu") or "unavailable"
    return " ".join(str(found).split())[:80]


def map_of(content: Mapping[str, Any]) -> str:
    """What a mAP was measured by and on."""
    data = PurePosixPath(content["data"]).name[:60]
    return f"{content['protocol']}, {content['images']} pictures of {data}"


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Without what all have in common up to a separator, where there are several."""
    prefix = os.path.commonprefix(list(names)) if len(set(names)) > 1 else ""
    prefix = prefix[: max(prefix.rfind(separator) for separator in "_-. ") + 1]
    return {name: name[len(prefix) :] or name for name in names}


def of_kind(results: Sequence[Result], kind: str) -> list[Result]:
    return [result for result in results if result.kind == kind]


def table(results: Sequence[Result]) -> list[Row]:
    """A row for each latency, each file of a comparison that no latency is of, and each accuracy that neither is of.

    Raises InputError where one name stands for two files.
    """
    accuracies = of_kind(results, "accuracy")
    _refuse_two_files_of_a_name(accuracies)
    rows = [_latency_row(result) for result in of_kind(results, "latency")]
    for result in of_kind(results, "compare"):
        rows = _with_comparison(rows, result)
    rows = [_with_map(row, accuracies) for row in rows]
    timed = {row.model for row in rows}
    for result in accuracies:
        if model_of(result) not in timed:
            content = result.content
            row = Row(model_of(result), content["precision"], device_of(result), content["backend"], content["threads"])
            rows.append(_with_map(row, [result]))
    return _with_fronts(rows)


def _refuse_two_files_of_a_name(accuracies: Sequence[Result]) -> None:
    seen: dict[str, Result] = {}
    for result in accuracies:
        other = seen.setdefault(model_of(result), result)
        if other.content["model_sha256"] != result.content["model_sha256"]:
            raise InputError(
                f"a report tells files apart by their names: {other.file} and {result.file} measured different ones "
                f"named {model_of(result)}; rename one and measure it anew, or leave one out"
            )


def _latency_row(result: Result) -> Row:
    content = result.content
    interval = content.get("intervals", {}).get("p50_ms")
    return Row(
        model_of(result),
        content.get("precision"),
        device_of(result),
        content["backend"],
        content["threads"],
        p50_ms=content["p50_ms"],
        p90_ms=_number(content["p90_ms"]),
        p99_ms=_number(content["p99_ms"]),
        p50_interval=_interval(interval),
        peak_memory_mb=_number(content.get("peak_memory_mb")),
    )


def _with_comparison(rows: Sequence[Row], result: Result) -> list[Row]:
    """The comparison's speed-ups in the rows of its device, backend and threads, and rows of what has none."""
    content = result.content
    settings: Mapping[str, Any] = content["settings"] if isinstance(content.get("settings"), dict) else {}
    device, backend = device_of(result), str(content.get("backend") or settings.get("backend") or "cpu")
    threads = content.get("threads", settings.get("threads"))
    threads = threads if isinstance(threads, int) else None
    rows = list(rows)
    for one in content["models"]:
        speedup, ends = one["speedup"], _interval(one["speedup_interval"])
        same = [
            place
            for place, row in enumerate(rows)
            if (row.model, row.device, row.backend, row.threads) == (_name(one["model"]), device, backend, threads)
        ]
        for place in same:
            rows[place] = dataclasses.replace(rows[place], speedup=speedup, speedup_interval=ends)
        if not same:
            row = Row(_name(one["model"]), None, device, backend, threads, speedup=speedup, speedup_interval=ends)
            p90, p99 = (_number(one.get(key)) for key in ("p90_ms", "p99_ms"))
            interval, size = _interval(one.get("intervals", {}).get("p50_ms")), _number(one.get("size_mb"))
            row = dataclasses.replace(row, p50_ms=one["p50_ms"], p50_interval=interval, size_mb=size)
            rows.append(dataclasses.replace(row, p90_ms=p90, p99_ms=p99))
    return rows


def _with_map(row: Row, accuracies: Sequence[Result]) -> Row:
    """The row with the mAP that fits it best."""
    measured = [
        ((device_of(result) == row.device) + 2 * (run["backend"] == row.backend), run, result)
        for result in accuracies
        if model_of(result) == row.model
        for run in (result.content.get("backends") or [result.content])
    ]
    if not measured:
        return row
    fit, run, result = max(measured, key=lambda one: one[0])  # the first of equals
    size = result.content.get("model_bytes")
    return dataclasses.replace(
        row,
        map=run["map"],
        map_from=None if fit == 3 else f"{run['backend']} on {device_of(result)}",
        map_of=map_of(result.content),
        precision=row.precision or result.content["precision"],
        size_mb=row.size_mb if size is None else size / 1e6,
    )


def plotted(rows: Sequence[Row]) -> dict[str, list[tuple[Row, Point]]]:
    """By what the mAP is of, the rows that have mAP and time, as points: p50 in ms against mAP in %, a series for each
    of what the files run on."""
    groups: dict[str, list[tuple[Row, Point]]] = {}
    names = short_names([row.model for row in rows])
    places: dict[str, int] = {}
    for row in rows:
        if row.map is not None and row.p50_ms is not None and row.map_of is not None:
            series = places.setdefault(row.runs_on, len(places))
            point = Point(row.p50_ms, 100 * row.map, names[row.model], series, row.p50_interval)
            groups.setdefault(row.map_of, []).append((row, point))
    return groups


def _with_fronts(rows: Sequence[Row]) -> list[Row]:
    best = set()
    for pairs in plotted(rows).values():
        for series in {point.series for _, point in pairs}:
            mine = [(row, point) for row, point in pairs if point.series == series]
            on = {id(point) for point in front([point for _, point in mine])}
            best |= {id(row) for row, point in mine if id(point) in on}
    return [dataclasses.replace(row, on_front=id(row) in best) for row in rows]


def _interval(ends: Any) -> tuple[float, float] | None:
    return (ends[0], ends[1]) if isinstance(ends, list) and len(ends) == 2 else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def cells(row: Row) -> tuple[str, ...]:
    """A cell for each of COLUMNS."""
    accuracy = NONE if row.map is None else f"{100 * row.map:.2f}" + "*" * (row.map_from is not None)
    return (
        row.model,
        row.runs_on,
        accuracy,
        _with_interval(row.p50_ms, row.p50_interval),
        _fixed(row.p90_ms),
        _fixed(row.p99_ms),
        _with_interval(row.speedup, row.speedup_interval, "x"),
        _fixed(row.size_mb),
        NONE if row.peak_memory_mb is None else f"{row.peak_memory_mb:.0f}",
    )


def measured_columns(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """COLUMNS and the cells of each row, without the columns that nothing was measured of."""
    body = [cells(row) for row in rows]
    kept = [place for place in range(len(COLUMNS)) if any(line[place] != NONE for line in body)]
    return [COLUMNS[place] for place in kept], [[line[place] for place in kept] for line in body]


def _fixed(value: float | None, unit: str = "") -> str:
    return NONE if value is None else f"{value:.2f}{unit}"


def _with_interval(value: float | None, ends: tuple[float, float] | None, unit: str = "") -> str:
    return _fixed(value, unit) + (f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends and value is not None else "")


def sentences(results: Sequence[Result], rows: Sequence[Row]) -> list[str]:
    """What must be known of the figures, in plain words."""
    found = []
    if kinds := list(dict.fromkeys(row.map_of for row in rows if row.map_of)):
        found.append(f"mAP: {'; '.join(kinds)}.")
    if len(kinds) > 1:
        found.append("mAP of different protocols or pictures cannot be compared: each has a plot of its own.")
    if foreign := list(dict.fromkeys(row.map_from for row in rows if row.map_from)):
        found.append(f"* The mAP was measured elsewhere: {'; '.join(foreign)}.")
    if any(row.p50_interval or row.speedup_interval for row in rows):
        found.append("In square brackets: the two ends of the 95 % interval.")
    for result in of_kind(results, "compare"):
        first = _name(result.content["models"][0]["model"]) if result.content["models"] else "the first"
        found.append(f"Speed-ups are over {first}, {result.content['rounds']} rounds in alternation.")
        found += [f"The comparison: {text}." for text in result.content.get("warnings", [])]
    for result in of_kind(results, "latency"):
        found += [f"{model_of(result)}: {text}." for text in result.content.get("warnings", [])]
    for result in of_kind(results, "accuracy"):
        content, name = result.content, model_of(result)
        if content["skipped_count"]:
            found.append(f"{name}: {content['skipped_count']} pictures could not be used.")
        if without := content["data_classes_without_partner"]:
            found.append(f"{name} does not know these classes, which are NOT SCORED: {', '.join(without)}.")
    return list(dict.fromkeys(found))


def drift_rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """File, backend, mAP and a cell for each of DRIFT_COLUMNS, of every accuracy on several backends."""
    return [
        (model_of(result), run["backend"], f"{100 * run['map']:.2f}", *drift_cells(run.get("drift")))
        for result in of_kind(results, "accuracy")
        if len(result.content.get("backends", ())) > 1
        for run in result.content["backends"]
    ]


def class_rows(accuracies: Sequence[Result]) -> Iterator[tuple[str, ...]]:
    """Class and its AP in percent by each accuracy."""
    names = dict.fromkeys(name for result in accuracies for name in result.content["per_class"])
    for name in names:
        values = [result.content["per_class"].get(name) for result in accuracies]
        yield name, *(NONE if value is None else f"{100 * value:.2f}" for value in values)


def as_json(results: Sequence[Result], rows: Sequence[Row]) -> dict[str, Any]:
    """The table, and what it was made of, as plain JSON."""
    files = {result.file: hashlib.sha256(result.file.read_bytes()).hexdigest() for result in results}
    return {
        "schema": SCHEMA,
        "rows": [dataclasses.asdict(row) for row in rows],
        "notes": sentences(results, rows),
        "results": [
            {
                "kind": result.kind,
                "file": str(result.file),
                "sha256": files[result.file],
                "model": None if result.kind == "compare" else model_of(result),
                "device": device_of(result),
            }
            for result in results
        ],
    }


def as_markdown(results: Sequence[Result], rows: Sequence[Row]) -> str:
    """The report as GitHub's Markdown."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(_markdown(cell) for cell in cells) + " |"

    def lines(columns: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
        return [line(columns), line(["---"] * len(columns)), *map(line, body), ""]

    text = ["# Benchmark report", "", *lines(*measured_columns(rows))]
    text += [*(f"- {_markdown(told)}" for told in sentences(results, rows)), ""]
    if drift := drift_rows(results):
        text += ["## Drift of boxes between backends", "", *lines(("file", "backend", "mAP %", *DRIFT_COLUMNS), drift)]
    accuracies = of_kind(results, "accuracy")
    if told := [result for result in accuracies if "misses" in result.content]:
        kinds = [("false_positives", name) for name in FALSE_POSITIVES]
        kinds += [("false_negatives", name) for name in FALSE_NEGATIVES]
        columns = ("file", *(f"{name} ({'false' if key == 'false_positives' else 'missed'})" for key, name in kinds))
        body = [
            (model_of(one), *(str(one.content["misses"][key].get(name, NONE)) for key, name in kinds)) for one in told
        ]
        text += ["## Causes of errors", "", *lines(columns, body)]
    if accuracies:
        text += ["## AP of each class, %", ""]
        text += lines(("class", *map(model_of, accuracies)), list(class_rows(accuracies)))
    return "\n".join(text)


def _markdown(text: str) -> str:
    """Plain text, in which nothing is markup."""
    flat = " ".join(str(text).split())
    return "".join(f"\\{letter}" if letter in "\\|`*_[]<>#" else letter for letter in flat)


def write_report(results: Sequence[Result], folder: Path) -> list[Path]:
    """Writes report.json, report.md and report.html into the folder, each atomically, and returns their paths.

    Raises InputError where one name stands for two files, a file that was read would be overwritten, or the folder
    cannot be written to.
    """
    from benchmarks.report_page import as_html  # it needs what stands here

    rows = table(results)
    texts = {
        "report.json": json.dumps(as_json(results, rows), indent=2, allow_nan=False) + "\n",
        "report.md": as_markdown(results, rows),
        "report.html": as_html(results, rows),
    }
    read = {os.path.realpath(result.file) for result in results}
    for name in texts:
        if os.path.realpath(folder / name) in read:
            raise InputError(f"{folder / name} is a result itself, which must not be overwritten; choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror or error}; choose another") from error
    for name, text in texts.items():
        write_atomically(folder / name, text.encode("utf-8", "replace"))
    return [folder / name for name in texts]
