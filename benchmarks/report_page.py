"""The benchmark report as one HTML page that needs no other file and no script. All text from results is escaped."""

from __future__ import annotations

import base64
import binascii
import html
from collections.abc import Sequence
from importlib import resources
from typing import Any

import cv2
import numpy as np

from benchmarks import svg_plots
from benchmarks.bench_report import (
    NONE,
    Row,
    class_rows,
    device_of,
    drift_rows,
    measured_columns,
    model_of,
    of_kind,
    plotted,
    sentences,
    short_names,
)
from benchmarks.bench_results import Result
from benchmarks.misses import FALSE_NEGATIVES, FALSE_POSITIVES
from benchmarks.tables import DRIFT_COLUMNS
from deploy.errors import InputError

#: In the order of the page's colours k0, k1, ….
_CAUSES = tuple(dict.fromkeys((*FALSE_POSITIVES, *FALSE_NEGATIVES)))
#: Most letters of a contact sheet in base64, and most pixels of its sides.
_SHEET_LIMIT, _SHEET_SIDE = 2 << 20, 4096
_MACHINE = (("usable_cores", "cores"), ("memory_mb", "MB"))
#: Operations that a table shows.
_OPERATIONS = 15


def as_html(results: Sequence[Result], rows: Sequence[Row]) -> str:
    """The whole page."""
    style = resources.files("benchmarks").joinpath("report.css").read_text(encoding="utf-8")
    accuracies = of_kind(results, "accuracy")
    names = _distinct(accuracies)
    body = [
        "<h1>Benchmark report</h1>",
        _table(*measured_columns(rows), "cards", marked=[row.on_front for row in rows]),
        '<p class="soft">Bold: no other file on the same device, backend and threads is both faster and better.</p>'
        if any(row.on_front for row in rows)
        else "",
        _list(sentences(results, rows)),
        *_pareto(rows),
        _percentiles(of_kind(results, "latency")),
        *_profiles(of_kind(results, "latency")),
        _drift(results),
        _precision_recall(accuracies, names),
        _misses(accuracies, names),
        _classes(accuracies, names),
        *_worst(accuracies),
        _made_with(results),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>Benchmark report</title>\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n" + "\n".join(filter(None, body)) + "\n</body>\n</html>\n"
    )


def _distinct(accuracies: Sequence[Result]) -> list[str]:
    """A short name of each accuracy; where a file was measured more than once, with what tells it apart."""
    short = short_names([model_of(result) for result in accuracies])
    names = [short[model_of(result)] for result in accuracies]
    return [
        name if names.count(name) == 1 else f"{name} ({one.content['backend']} on {device_of(one)}, {number})"
        for number, (name, one) in enumerate(zip(names, accuracies, strict=True), 1)
    ]


def _pareto(rows: Sequence[Row]) -> list[str]:
    parts = []
    for of, pairs in plotted(rows).items():
        points = [point for _, point in pairs]
        title = f"mAP against latency: {of}"
        parts += [f"<h2>{_e(title)}</h2>"]
        legend = {point.series: row.runs_on for row, point in pairs}
        parts.append(_legend([(f"s{place % svg_plots.SERIES}", name) for place, name in legend.items()]))
        plot = svg_plots.scatter(points, "p50 of the inference, ms", "mAP, %", title)
        parts.append(f'<div class="wide">{plot}</div>')
        steps = "the line joins the files that no other beats" if any(row.on_front for row, _ in pairs) else ""
        bars = "bars are 95 % intervals" if any(point.interval for point in points) else ""
        shown = "; ".join(filter(None, [steps, bars]))
        parts.append(f'<p class="soft">{_e(shown[:1].upper() + shown[1:])}.</p>' if shown else "")
    return parts


def _percentiles(latencies: Sequence[Result]) -> str:
    if not latencies:
        return ""
    ranks = ("p50", "p90", "p95", "p99", "min", "max", "mean", "std")
    parts = []
    for one in latencies:
        body = [
            (part, *(_milliseconds(times.get(f"{rank}_ms")) for rank in ranks))
            for part, times in one.content["parts"].items()
        ]
        where = f"{device_of(one)}, {one.content['backend']}, threads: {one.content['threads']}"
        parts.append(
            f"<details><summary>{_e(model_of(one))}: {_e(where)}</summary>{_table(('part', *ranks), body, 'scrolled')}"
            "</details>"
        )
    return f"<h2>Latency of each part, ms</h2>{''.join(parts)}"


def _milliseconds(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, int | float) else NONE


def _profiles(latencies: Sequence[Result]) -> list[str]:
    """The operations that take most time, where there is a profile; why there is none, where that is said."""
    parts = []
    for one in latencies:
        profile = one.content.get("profile")
        if profile is None:
            continue
        title = f"<h3>{_e(model_of(one))} on {_e(device_of(one))}</h3>"
        # Kinds of operations where the profile sums them up, else each one.
        operations = profile.get("ops", profile.get("operations")) if isinstance(profile, dict) else None
        if not isinstance(operations, list):
            reason = profile.get("unavailable", profile) if isinstance(profile, dict) else profile
            parts.append(f"{title}<p>Profile: {_e(str(reason)[:300])}</p>")
            continue
        rows = [operation for operation in operations if isinstance(operation, dict)]
        keys = list(dict.fromkeys(key for row in rows for key in row))[:8]
        rows.sort(key=lambda row: -_size(row.get("ms")))
        body = [tuple(_cell(row.get(key, NONE)) for key in keys) for row in rows[:_OPERATIONS]]
        more = f'<p class="soft">The {_OPERATIONS} slowest of {len(rows)}.</p>' if len(rows) > _OPERATIONS else ""
        parts.append(title + _table([str(key) for key in keys], body, "scrolled") + more)
    return ["<h2>Time of each operation</h2>", *parts] if parts else []


def _size(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:80]


def _drift(results: Sequence[Result]) -> str:
    rows = drift_rows(results)
    names = short_names([row[0] for row in rows])
    rows = [(names[row[0]], *row[1:]) for row in rows]
    if not rows:
        return ""
    legend = (
        "Each file on several backends, held against its first. Partners are detections of one picture and class with "
        "an IoU of 0.5 at least, of which one reaches the working threshold. Crossing: the other one does not. Only "
        "first, only here: detections that reach it and have no partner."
    )
    table = _table(("file", "backend", "mAP %", *DRIFT_COLUMNS), rows, "scrolled")
    return f'<h2>Drift of boxes between backends</h2>{table}<p class="soft">{legend}</p>'


def _precision_recall(accuracies: Sequence[Result], names: Sequence[str]) -> str:
    told = [(place, one.content["classes"]) for place, one in enumerate(accuracies) if one.content.get("classes")]
    if not told:
        return ""
    means = []
    for place, classes in told:
        all_curves = [one["curve"] for one in classes.values() if len(one["curve"]) == 101]
        if all_curves:
            means.append((place, np.mean(all_curves, axis=0).tolist()))
    labels = dict.fromkeys(label for _, classes in told for label in classes)
    panels = []
    for label in labels:
        # Every other point: a telephone shows no more.
        lines = [(place, classes[label]["curve"][::2]) for place, classes in told if label in classes]
        plot = svg_plots.curves(lines, "recall", "precision", f"precision against recall of {label}", 220)
        panels.append(f"<figure>{plot}<figcaption>{_e(label)}</figcaption></figure>")
    whole = svg_plots.curves(means, "recall", "precision", "precision against recall, mean of the classes")
    return (
        "<h2>Precision against recall, IoU 0.5</h2>"
        + _legend([(f"s{place % svg_plots.SERIES}", names[place]) for place, _ in told])
        + f'<div class="wide">{whole}</div><p class="soft">Mean of all classes: the best precision at each recall or a '
        f'greater one.</p><details><summary>{len(panels)} classes</summary><div class="plots">{"".join(panels)}</div>'
        "</details>"
    )


def _misses(accuracies: Sequence[Result], names: Sequence[str]) -> str:
    told = [(names[place], one.content) for place, one in enumerate(accuracies) if one.content.get("misses")]
    if not told:
        return ""
    drawn, tables = [], []
    for key, what, causes in (
        ("false_positives", "false positives", FALSE_POSITIVES),
        ("false_negatives", "missed truths", FALSE_NEGATIVES),
    ):
        rows = [
            (name, [(_CAUSES.index(cause), content["misses"][key].get(cause, 0)) for cause in causes])
            for name, content in told
        ]
        legend = _legend([(f"k{_CAUSES.index(cause)}", cause) for cause in causes])
        drawn.append(f"<figure><h3>{what[:1].upper() + what[1:]}</h3>{legend}{svg_plots.bars(rows, what)}</figure>")
    for name, content in told:
        false, missed = [f"{one} (false)" for one in FALSE_POSITIVES], [f"{one} (missed)" for one in FALSE_NEGATIVES]
        columns = ("class", *false, *missed)
        body = [
            (
                label,
                *(str(counts["false_positives"].get(cause, 0)) for cause in FALSE_POSITIVES),
                *(str(counts["false_negatives"].get(cause, 0)) for cause in FALSE_NEGATIVES),
            )
            for label, counts in content["misses"]["per_class"].items()
        ]
        table = _table(columns, body, "scrolled")
        tables.append(f"<details><summary>{_e(name)}, each class</summary>{table}</details>")
    thresholds = sorted({content.get("working_conf", 0) for _, content in told})
    return (
        f"<h2>Causes of errors at score {', '.join(f'{one:g}' for one in thresholds)}</h2>"
        f'<div class="plots">{"".join(drawn)}</div>'
        '<p class="soft">Localisation: its own class, IoU 0.1 to 0.5. Class: another class, IoU 0.5 or more. Both: '
        "another class, IoU 0.1 to 0.5. Duplicate: a better detection has the truth. Background: nothing there. "
        f"Missed: nothing near was found (TIDE, ECCV 2020).</p>{''.join(tables)}"
    )


def _classes(accuracies: Sequence[Result], names: Sequence[str]) -> str:
    if not accuracies:
        return ""
    parts = ["<h2>AP of each class, %</h2>", _table(("class", *names), list(class_rows(accuracies)), "scrolled")]
    for name, one in zip(names, accuracies, strict=True):
        if not one.content.get("classes"):
            continue
        body = [
            (
                label,
                f"{100 * figures['ap']:.2f}",
                str(figures["truths"]),
                str(figures["working"]["detections"]),
                _percent(figures["working"]["precision"]),
                _percent(figures["working"]["recall"]),
            )
            for label, figures in one.content["classes"].items()
        ]
        conf = f"from {one.content.get('working_conf', 0):g}"
        columns = ("class", "AP %", "truths", f"detections {conf}", "precision %", "recall %")
        parts.append(
            f"<details><summary>{_e(name)}: precision and recall {conf}</summary>{_table(columns, body, 'scrolled')}"
            "</details>"
        )
    return "".join(parts)


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f}"


def _worst(accuracies: Sequence[Result]) -> list[str]:
    parts = []
    for one in accuracies:
        worst = one.content.get("worst", {})
        if sheet := worst.get("contact_sheet"):
            name = f"Worst pictures of {model_of(one)}"
            image = f'<img alt="{_e(name)}" src="data:image/jpeg;base64,{_jpeg(one, sheet)}">'
            parts.append(
                f'<h3>{_e(model_of(one))}</h3><div class="scroll">{image}</div>'
                f'<p class="soft">Cost: {_e(worst["cost"])}.</p>'
            )
    return ["<h2>Worst pictures</h2>", *parts] if parts else []


def _jpeg(result: Result, text: Any) -> str:
    """The contact sheet, encoded anew: what comes from a file may be anything. Its size is read before its pixels."""
    wrong = f"a contact sheet is a JPEG in base64 of at most {_SHEET_SIDE} pixels a side: {result.file} has none"
    try:
        content = base64.b64decode(text, validate=True) if isinstance(text, str) and len(text) <= _SHEET_LIMIT else b""
    except binascii.Error:
        content = b""
    size = _jpeg_size(content)
    pixels = None
    if size is not None and 0 < min(size) and max(size) <= _SHEET_SIDE:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise InputError(f"{wrong}; measure it anew with --worst")
    return base64.b64encode(cv2.imencode(".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, 60))[1].tobytes()).decode()


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Width and height from the header of a JPEG, None where it is none."""
    import io

    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as header:
            return header.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _made_with(results: Sequence[Result]) -> str:
    lines = []
    for result in results:
        machine = result.content.get("environment", {})
        libraries = machine.get("libraries")
        versions = [f"{name} {version}" for name, version in libraries.items()] if isinstance(libraries, dict) else []
        told = [
            device_of(result),
            *(f"{machine[key]} {unit}" for key, unit in _MACHINE if key in machine),
            *(str(machine[key]) for key in ("architecture", "kernel") if key in machine),
            *(str(version) for version in versions),
        ]
        text = f"{result.kind}: {', '.join(told)}"
        lines.append(f"<dt>{_e(result.file.name)}</dt><dd>{_e(text[:500])}</dd>")
    return f"<h2>Made with</h2><details><summary>{len(lines)} results</summary><dl>{''.join(lines)}</dl></details>"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], look: str, marked: Sequence[bool] = ()) -> str:
    head = "".join(f"<th>{_e(column)}</th>" for column in columns)
    lines = []
    for place, row in enumerate(rows):
        strong = ' class="best"' if place < len(marked) and marked[place] else ""
        cells_of = "".join(
            f'<td data-label="{_e(column)}">{_e(cell)}</td>' for column, cell in zip(columns, row, strict=True)
        )
        lines.append(f"<tr{strong}>{cells_of}</tr>")
    table = f'<table class="{look}"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


def _list(texts: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_e(text)}</li>' for text in texts)}</ul>" if texts else ""


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    spans = "".join(f'<span><i class="{look}"></i>{_e(name)}</span>' for look, name in entries)
    return f'<p class="legend">{spans}</p>'


def _e(text: str) -> str:
    return html.escape(text, quote=True)
