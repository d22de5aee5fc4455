"""Results of the measurements as tables for a reader."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

NONE = "-"


def accuracy_text(result: dict[str, Any]) -> str:
    """The result of `measure_accuracy` for a reader."""
    means = "   ".join(f"{name} {100 * result[name]:.2f}" for name in ("map", "map50", "map75") if name in result)
    sections = [
        f"{means}   ({result['protocol']}, {result['images']} pictures, {len(result['per_class'])} classes)",
        _classes_text(result),
        _misses_text(result),
        *_backends_text(result.get("backends", [])),
        table(
            ("seconds", "(decoding runs beside the rest)"),
            [
                (name.removesuffix("_s"), f"{result[name]:6.2f}")
                for name in ("decode_s", "preprocess_s", "invoke_s", "postprocess_s", "metric_s", "wall_s")
            ],
        ),
        f"{result['model']}: {result['precision']}, {result['resize']} to {result['input'][1]}x{result['input'][0]}, "
        f"conf {result['conf']}, iou {result['iou']}, {result['backend']}, "
        f"{result['threads']} thread{'s' * (result['threads'] > 1)}",
    ]
    if worst := result.get("worst"):
        sections.append(f"{len(worst['pictures'])} worst pictures in {worst['folder']}")
    return "\n\n".join(sections + _accuracy_notes(result))


def _classes_text(result: dict[str, Any]) -> str:
    conf = result["working_conf"]
    rows = [(name, 100 * one["ap"], one["truths"], one["working"]) for name, one in result["classes"].items()]
    rows.append(("all", 100 * result["map"], result["working"]["truths"], result["working"]))
    return table(
        ("class", "AP", "truths", f"detections from {conf:g}", "precision", "recall"),
        [
            (name, f"{ap:.2f}", str(truths), str(at["detections"]), _percent(at["precision"]), _percent(at["recall"]))
            for name, ap, truths, at in rows
        ],
    )


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f}"


def _misses_text(result: dict[str, Any]) -> str:
    misses = result["misses"]

    def line(what: str, counts: dict[str, int]) -> str:
        return f"{sum(counts.values())} {what}: " + ", ".join(f"{name} {count}" for name, count in counts.items())

    text = f"{line('false positives', misses['false_positives'])}\n{line('missed truths', misses['false_negatives'])}"
    if confused := misses["confused"][:3]:
        told = ", ".join(f"{one['is']} taken for {one['taken_for']} {one['count']}" for one in confused)
        text += f"\nconfused most often: {told}"
    return text


def _backends_text(backends: Sequence[dict[str, Any]]) -> list[str]:
    """Nothing where there is one alone."""
    if len(backends) < 2:
        return []
    rows = [(one["backend"], f"{100 * one['map']:.3f}", *drift_cells(one["drift"])) for one in backends]
    return [f"{table(('backend', 'map', *DRIFT_COLUMNS), rows)}\n(against {backends[0]['backend']})"]


DRIFT_COLUMNS = (
    *("pairs", "1 - IoU p50", "p95", "max", "score +- p50", "p95", "max"),
    *("crossing", "only first", "only here"),
)


def drift_cells(drift: dict[str, Any] | None) -> tuple[str, ...]:
    """A cell for each of DRIFT_COLUMNS; see box_drift."""
    if drift is None:
        return (NONE,) * len(DRIFT_COLUMNS)
    spreads = [drift[key][part] for key in ("iou_loss", "score_difference") for part in ("median", "p95", "max")]
    counts = [str(drift[key]) for key in ("crossing", "only_first", "only_here")]
    return (str(drift["pairs"]), *(NONE if value is None else f"{value:.2g}" for value in spreads), *counts)


def _accuracy_notes(result: dict[str, Any]) -> list[str]:
    """What a reader must know before believing the figure; one section, or none."""
    notes = []
    for key, words in (
        ("data_classes_without_partner", "classes of the data that the model does not know, NOT SCORED"),
        ("classes_without_truth", "classes without a truth that counts, not scored"),
        ("model_classes_without_partner", "classes of the model that the data do not have, not scored"),
        ("pictures_of_other_size_than_annotated", "pictures of another size than their annotation says"),
    ):
        if result[key]:
            notes.append(f"{words} ({len(result[key])}): {_first(result[key], 10)}")
    if result["skipped_count"]:
        reasons = [f"{one['id']}: {one['reason']}" for one in result["skipped"]]
        notes.append(f"pictures skipped, in the truth as well ({result['skipped_count']}):")
        notes += [f"  {reason}" for reason in reasons[:5]] + (["  …"] if len(reasons) > 5 else [])
    for key, words in (
        ("boxes_clipped", "cut at the picture's border"),
        ("boxes_dropped", "dropped, outside the picture or empty"),
    ):
        if result[key]:
            notes.append(f"boxes of the truth {words}: {result[key]}")
    return ["\n".join(notes)] if notes else []


def latency_text(result: dict[str, Any]) -> str:
    """The result of `measure_latency` for a reader."""
    names = ("p50", "p90", "p95", "p99", "min", "max", "mean", "std")
    rows = [(part, *(f"{times[f'{name}_ms']:.3f}" for name in names)) for part, times in result["parts"].items()]
    memory = result["peak_memory_mb"]
    once = [
        ("load", f"{result['load_ms']:.2f} ms"),
        ("allocate", f"{result['allocate_ms']:.2f} ms"),
        ("first invoke", f"{result['first_ms']:.2f} ms"),
        ("processor time", f"{result['cpu_ms']:.2f} ms an invoke"),
        ("peak memory", memory if isinstance(memory, str) else f"{memory:.0f} MB"),
        ("delegated", _delegated_words(result)),
        ("runs", f"{result['runs']} in {result['measured_s']:.2f} s, after {result['warmup_runs']} to warm up"),
        ("backend", f"{result['backend']}, {result['threads']} thread{'s' * (result['threads'] > 1)}"),
        ("machine", f"{result['environment']['cpu']}, {result['environment']['cores']} cores"),
    ]
    warnings = [f"warning: {text}" for text in result["warnings"]]
    return "\n\n".join(
        [table(("ms", *names), rows), table(("", ""), once), *(["\n".join(warnings)] if warnings else [])]
    )


def _delegated_words(result: dict[str, Any]) -> str:
    told, words = result["delegation"], f"{result['delegated_nodes']} of {result['nodes']} nodes"
    if told["adapter"] is not None:
        words += f" on {told['adapter']}"
    left = [f"{one['op']} x{one['count']}" for one in told["left"]]
    return f"{words}; left: {_first(left, 5)}" if left else words


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left; the others to the right if they are numbers all."""
    lines = [head, *rows] if any(head) else list(rows)
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    numbers = [all(_is_number(row[column]) or row[column] == NONE for row in rows) for column in range(len(head))]

    def cell(text: str, column: int) -> str:
        return text.rjust(widths[column]) if numbers[column] and column else text.ljust(widths[column])

    return "\n".join("  ".join(cell(text, column) for column, text in enumerate(line)).rstrip() for line in lines)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _first(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
