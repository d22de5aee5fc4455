"""What passes did with every layer, as tables for the report: what was changed, and what was left alone and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CHANGED = (
    "layer", "kernel", "ranks", "channels", "parameters", "FLOPs M", "error", "ms whole", "ms changed", "zeros",
    "values",
)  # fmt: skip
LEFT = ("layer", "op", "kernel", "why it was left alone")
#: Layers of one reason that are named; the others are counted.
_NAMED = 6


def is_changed(layer: Mapping[str, Any]) -> bool:
    """Whether a layer's report (pass_report.LayerReport as JSON) says that it was changed."""
    return not layer["reason"]


def changed_rows(layers: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A row of CHANGED for every layer that a pass changed."""
    return [
        (
            layer["name"],
            _sides(layer["kernel"]),
            _pair(layer["ranks"], ", "),
            _pair(layer["channels"], " → "),
            _before_and_after(layer["parameters"], "{:,}", 1),
            _before_and_after(layer["flops"], "{:,.2f}", 1e6),
            "" if layer["error"] is None else f"{layer['error']:#.4g}",
            *([""] * 2 if layer["milliseconds"] is None else (f"{time:.3f}" for time in layer["milliseconds"])),
            _share_before_and_after(layer.get("zeros")),
            _pair(layer.get("values"), " → "),
        )
        for layer in layers
        if is_changed(layer)
    ]


def left_rows(layers: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A row of LEFT for every layer that a pass left alone."""
    return [
        (layer["name"], layer["op"], _sides(layer["kernel"]), layer["reason"])
        for layer in layers
        if not is_changed(layer)
    ]


def summary(layers: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many layers were changed, and for each reason how many were left alone and which."""
    changed = sum(map(is_changed, layers))
    lines = [f"{changed} of {len(layers)} layers with a kernel were changed"]
    by_reason: dict[str, list[str]] = {}
    for layer in layers:
        if not is_changed(layer):
            by_reason.setdefault(layer["reason"], []).append(layer["name"])
    for reason, names in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        lines.append(f"left alone, {reason}: {', '.join(names[:_NAMED])}{more}")
    return lines


def without_empty_columns(
    columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """The table without the columns in which no row has anything."""
    kept = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    return [columns[place] for place in kept], [[row[place] for place in kept] for row in rows]


def _sides(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _pair(values: Sequence[int] | None, between: str) -> str:
    return "" if values is None else between.join(map(str, values))


def _share_before_and_after(shares: Sequence[float] | None) -> str:
    """`0.0 % → 80.0 %`"""
    return "" if shares is None else " → ".join(f"{share:.1%}".replace("%", " %") for share in shares)


def _before_and_after(values: Sequence[int], form: str, unit: float) -> str:
    """`864 → 249 (3.5x)`"""
    before, after = values
    ratio = f" ({before / after:.1f}x)" if after else ""
    texts = [form.format(value if unit == 1 else value / unit) for value in values]
    return " → ".join(texts) + ratio
