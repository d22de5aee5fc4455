"""The report of a build: report.json for machines, report.md and one self-contained report.html for people.

All three say the same. The table compares every file with the original: a number in brackets is a ratio (5.4x: 5.4
times less) or, for mAP, a difference in points. Parameters and FLOPs are compared with the input model; size, mAP and
time, which only a .tflite has, with the float32 file of the network before it was compressed, or the only float32 file.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from toolchain import comparison_report, layer_table, training_report

Content = Mapping[str, Any]

COLUMNS = ("format", "size MB", "parameters", "FLOPs M", "mAP %", "p50 ms", "p90 ms", "verified")
NONE = "–"
#: Layers of a compared file in report.md; report.html has all.
_WORST = 10


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: a cell for each of COLUMNS."""

    cells: tuple[str, ...]
    unverified: bool = False


def write_report(content: Content, sample: Path | None, folder: Path) -> None:
    """Writes report.json, report.md, report.html and, where there is a picture with boxes, sample.jpg."""
    picture = sample.read_bytes() if sample else None
    if picture is not None:
        (folder / "sample.jpg").write_bytes(picture)
    (folder / "report.json").write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(as_markdown(content, picture is not None), encoding="utf-8")
    (folder / "report.html").write_text(as_html(content, picture), encoding="utf-8")


def table(content: Content) -> list[Row]:
    """The input model and every file, in COLUMNS."""
    first, last = content["stages"][0], content["stages"][-1]
    original = {key: first[key] for key in ("trainable", "non_trainable", "flops")}
    rows = [Row(("input model", NONE, f"{_parameters(first):,}", f"{original['flops'] / 1e6:.2f}", *[NONE] * 4))]
    base = _base(content)
    for file in content["files"]:
        compared = base if base is not file else None
        network, name = (first, "original, ") if _is_original(file) else (last, "")
        cells = (
            f"tflite {name}{file['precision']}",
            _ratio(file["bytes"] / 1e6, compared["bytes"] / 1e6 if compared else None),
            _ratio(_parameters(network), _parameters(first), as_integer=True),
            _ratio(network["flops"] / 1e6, first["flops"] / 1e6),
            _points(file, compared),
            *(_ratio(_milliseconds(file, key), _milliseconds(compared, key)) for key in ("p50_ms", "p90_ms")),
            "yes" if file["verification"] else "NO",
        )
        rows.append(Row(cells, unverified=not file["verification"]))
    return rows


def _is_original(file: Content) -> bool:
    """Whether a file is of the network before it was compressed."""
    return file.get("of") == "original"


def _base(content: Content) -> Content | None:
    """What the files are compared with: the original network's file where the network was compressed, else the float32
    one."""
    return next((file for file in content["files"] if file["precision"] == "float32"), None)


def sentences(content: Content) -> list[str]:
    """What the figures mean and what must be known of them, in plain words; the most important first."""
    found = []
    for file in content["files"]:
        if not file["verification"]:
            found.append(
                f"{file['path']} is NOT VERIFIED: the stage verify was skipped, so nothing shows that it computes "
                "what the model computes."
            )
    trainings = _trainings(content)
    found += [text for stage, told in trainings for text in training_report.sentences(stage, told)]
    found += [text for stage in content["stages"] for text in _of_stage(stage)]
    base = _base(content)
    for file in content["files"]:
        if file is not base and base is not None:
            found.append(_comparison(file, base))
    found += [verification_sentence(file) for file in content["files"] if file["verification"]]
    found += [calibration_sentence(file) for file in content["files"] if file.get("calibration")]
    found += [comparison_report.sentence(file["path"], file["layers"]) for file in _compared(content)]
    found += [_accuracy(file) for file in content["files"][:1]]
    found += [text for file in content["files"] for text in client_sentences(file)]
    for file in content["files"]:
        found += [f"{file['path']}: {text}." for text in file.get("latency", {}).get("warnings", [])]
    for stage in content["skipped"]:
        if stage != "verify":
            found.append(f"The stage {stage} was skipped.")
    if unknown := content["stages"][0].get("flops_unknown"):
        found.append(f"FLOPs leave out layers without a rule: {', '.join(unknown)}.")
    return found


def _trainings(content: Content) -> list[tuple[str, Content]]:
    """Name and facts of every stage that trained."""
    return [(stage["name"], stage["training"]) for stage in content["stages"] if "training" in stage]


def _compared(content: Content) -> list[Content]:
    """The files that were compared with the float32 one, layer by layer."""
    return [file for file in content["files"] if file.get("layers")]


def _of_stage(stage: Content) -> list[str]:
    """What a stage that made another network says of it."""
    told = [f"{stage['name']}: {text}." for text in stage.get("notes", ())]
    if "layers" in stage:
        told.append(f"{stage['name']}: {layer_table.summary(stage['layers'])[0]}.")
    return told


def _comparison(file: Content, float32: Content) -> str:
    of = "the original" if _is_original(float32) else "float32"
    parts = [f"{float32['bytes'] / file['bytes']:.1f} times smaller than {of}"]
    before, after = _milliseconds(float32, "p50_ms"), _milliseconds(file, "p50_ms")
    if before and after:
        ratio = f"{max(before / after, after / before):.1f}"
        speed = "as fast as it" if ratio == "1.0" else f"{ratio} times {'faster' if after < before else 'slower'}"
        parts.append(speed)
    if "map" in file and "map" in float32:
        points = 100 * (file["map"] - float32["map"])
        parts.append(f"{abs(points):.2f} points of mAP {'above' if points > 0 else 'below'} it")
    return f"{file['precision']} is {', '.join(parts)}."


def verification_sentence(file: Content) -> str:
    """How near a file came to the bound of its verification."""
    outputs = file["verification"]["outputs"]
    # Decibels are the better the more, everything else the less.
    worst = min(outputs, key=lambda output: _slack(output))
    bound = "at least" if worst["unit"].startswith("dB") else "at most"
    where = " generated" if file["verified_on_drawn_pictures"] else ""
    return (
        f"{file['path']} was held against the model on {file['verification']['pictures']}{where} pictures: the "
        "output nearest its "
        f"bound, {worst['output']}, has {worst['measured']:.3g} {worst['unit']}, {bound} {worst['bound']:.3g} allowed."
    )


def calibration_sentence(file: Content) -> str:
    """How many pictures fixed the int8 scales."""
    used, skipped, rule = (file["calibration"][key] for key in ("used", "skipped", "rule"))
    tail = f"; {len(skipped)} could not be read, the first {skipped[0]}" if skipped else ""
    return f"{file['precision']} was calibrated on {used} pictures, ranges by the rule {rule}{tail}."


def client_sentences(file: Content) -> list[str]:
    """What was made of a file for other people's programs."""
    return [
        f"{made['path']}, {made['bytes'] / 1e6:.2f} MB: {'; '.join(made['notes'])}." for made in file.get("clients", ())
    ]


def _slack(output: Content) -> float:
    ratio: float = output["measured"] / output["bound"]
    return ratio if output["unit"].startswith("dB") else 1 / max(ratio, 1e-30)


def _accuracy(file: Content) -> str:
    accuracy = file.get("accuracy")
    if accuracy is None:
        return "mAP was not measured: " + (
            "no data with truths was named in the recipe." if "latency" in file else "the stage benchmark was skipped."
        )
    skipped = f"; {accuracy['skipped_count']} pictures could not be used" if accuracy.get("skipped_count") else ""
    without = accuracy.get("data_classes_without_partner") or []
    missing = f"; classes that the model does not know: {', '.join(without)}" if without else ""
    return f"mAP: protocol {accuracy['protocol']}, {accuracy['images']} pictures{skipped}{missing}."


def _parameters(stage: Content) -> int:
    total: int = stage["trainable"] + stage["non_trainable"]
    return total


def _milliseconds(file: Content | None, key: str) -> float | None:
    value: float | None = (file or {}).get("latency", {}).get(key)
    return value


def _ratio(value: float | None, original: float | None, *, as_integer: bool = False) -> str:
    """`11459.69 (5.4x)`: how many times less than the original."""
    if value is None:
        return NONE
    text = f"{value:,}" if as_integer else f"{value:.2f}"
    return f"{text} ({original / value:.1f}x)" if original and value else text


def _points(file: Content, original: Content | None) -> str:
    """`87.23 (+5.01)`: mAP in percent, and the difference to the original in points."""
    if "map" not in file:
        return NONE
    text = f"{100 * file['map']:.2f}"
    return f"{text} ({100 * (file['map'] - original['map']):+.2f})" if original and "map" in original else text


def as_markdown(content: Content, has_sample: bool) -> str:
    """The report as GitHub's Markdown."""

    def line(cells: Any) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    lines = [f"# {content['name']}", "", line(COLUMNS), line(["---"] * len(COLUMNS))]
    lines += [line(row.cells) for row in table(content)]
    lines += ["", _BRACKETS, "", *(f"- {text}" for text in sentences(content)), ""]
    if has_sample:
        lines += ["![test pictures with the detector's boxes](sample.jpg)", ""]
    lines += ["## Stages", "", line(_STAGE_COLUMNS), line(["---"] * len(_STAGE_COLUMNS))]
    lines += [line(row) for row in _stage_rows(content)]
    if trainings := _trainings(content):
        lines += ["", "## Trainings", "", line(training_report.COLUMNS), line(["---"] * len(training_report.COLUMNS))]
        lines += [line(training_report.row(stage, told)) for stage, told in trainings]
        lines += ["", *(f"- {stage}: {training_report.settings_line(told)}" for stage, told in trainings)]
    for stage in content["stages"]:
        if "layers" in stage:
            lines += ["", f"## Layers of {stage['name']}", "", *(f"- {text}" for text in _summary(stage)), ""]
            for columns, rows in _layer_tables(stage):
                lines += [line(columns), line(["---"] * len(columns)), *(line(row) for row in rows), ""]
    for file in _compared(content):
        listed = comparison_report.worst(file["layers"]["layers"], _WORST)
        lines += ["", f"## {_comparison_title(file)}", ""]
        lines += [*(f"- {text}" for text in remarks), ""] if (remarks := _remarks(file)) else []
        lines += [f"The {len(listed)} layers that add most noise. {comparison_report.LEGEND}", ""]
        lines += [line(comparison_report.COLUMNS), line(["---"] * len(comparison_report.COLUMNS))]
        lines += [line(comparison_report.row(layer)) for layer in listed]
    lines += ["", "## Made with", "", *(f"- {name}: {value}" for name, value in _made_with(content)), ""]
    return "\n".join(lines)


def as_text(content: Content) -> str:
    """The table and what it means, for a terminal."""
    rows = [COLUMNS, *(row.cells for row in table(content))]
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(COLUMNS))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths))
        )
        for cells in rows
    ]
    return "\n".join([*lines, "", *sentences(content)])


def as_html(content: Content, sample: bytes | None) -> str:
    """The report as one page that needs no other file."""
    import jinja2

    page = resources.files("toolchain").joinpath("report.html").read_text(encoding="utf-8")
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return template.from_string(page).render(
        name=content["name"],
        columns=COLUMNS,
        rows=table(content),
        brackets=_BRACKETS,
        sentences=sentences(content),
        sample=base64.b64encode(sample).decode() if sample else None,
        classes=_per_class(content),
        precisions=["original" if _is_original(file) else file["precision"] for file in content["files"]],
        layers=[
            (stage["name"], _summary(stage), _layer_tables(stage)) for stage in content["stages"] if "layers" in stage
        ],
        training_columns=training_report.COLUMNS,
        trainings=[
            (stage, training_report.row(stage, told), training_report.settings_line(told), training_report.plot(told))
            for stage, told in _trainings(content)
        ],
        comparison_columns=comparison_report.COLUMNS,
        comparison_legend=comparison_report.LEGEND,
        comparisons=[
            (
                _comparison_title(file),
                _remarks(file),
                base64.b64encode(comparison_report.plot(file["layers"])).decode(),
                [comparison_report.row(layer) for layer in file["layers"]["layers"]],
            )
            for file in _compared(content)
        ],
        stage_columns=_STAGE_COLUMNS,
        stages=_stage_rows(content),
        made_with=_made_with(content),
    )


def _comparison_title(file: Content) -> str:
    return f"Layers of {file['path']} against float32"


def _remarks(file: Content) -> list[str]:
    return [f"{text}." for text in comparison_report.remarks(file["layers"], file.get("notes", ()))]


def _summary(stage: Content) -> list[str]:
    meaning = [f"error: {stage['error']}"] if stage.get("error") else []
    return [f"{text}." for text in (*layer_table.summary(stage["layers"]), *meaning)]


def _layer_tables(stage: Content) -> list[tuple[Sequence[str], Sequence[Sequence[str]]]]:
    """Columns and rows of the layers that a stage changed, and of those that it left alone; without empty tables."""
    changed = layer_table.without_empty_columns(layer_table.CHANGED, layer_table.changed_rows(stage["layers"]))
    left = (layer_table.LEFT, layer_table.left_rows(stage["layers"]))
    return [table for table in (changed, left) if table[1]]


_BRACKETS = (
    "In brackets: how many times less than the original, for mAP the difference in points. Parameters and FLOPs "
    "are compared with the input model; size, mAP and time with the float32 file of the original network."
)
_STAGE_COLUMNS = ("stage", "parameters", "FLOPs M", "seconds", "this build", "why it ran last")


def _stage_rows(content: Content) -> list[tuple[str, ...]]:
    return [
        (
            stage["name"],
            f"{_parameters(stage):,}",
            f"{stage['flops'] / 1e6:.2f}",
            f"{stage['seconds']:.1f}",
            stage["build"],
            stage["reason"],
        )
        for stage in content["stages"]
    ]


def _per_class(content: Content) -> list[tuple[str, list[str]]]:
    """AP of each class in percent, a value for each file."""
    measured = [file.get("accuracy", {}).get("per_class", {}) for file in content["files"]]
    names = dict.fromkeys(name for per_class in measured for name in per_class)
    return [(name, [f"{100 * found[name]:.2f}" if name in found else NONE for found in measured]) for name in names]


def _made_with(content: Content) -> list[tuple[str, str]]:
    machine = content["machine"]
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items() if name != "slimdet")
    seeds = ", ".join(f"{name} {seed}" for name, seed in content["seeds"].items()) or "none"
    return [
        ("recipe", f"{content['recipe']['file']}, SHA-256 {content['recipe']['sha256']}"),
        ("seeds", seeds),
        (
            "machine",
            f"{machine['cpu']}, {machine['usable_cores']} cores, {machine['memory_mb']} MB, {machine['architecture']}",
        ),
        ("versions", f"slimdet {content['slimdet']}, Python {machine['python']}, {libraries}"),
    ]
