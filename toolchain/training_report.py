"""What a report says of a training: a row of figures, its settings, what must be known, and a drawing of its epochs.

A training is the JSON of training.Trained's facts with `settings`, those of training.Training, beside them. What it
does not say is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Told = Mapping[str, Any]

COLUMNS = ("stage", "learns from", "pictures", "watched on", "epochs", "best", "best value", "device", "s a step")
NONE = "–"
#: Of one panel of the drawing, in its own units: whole size, and the space around the lines.
_WIDTH, _HEIGHT = 440, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 26, 30


def row(stage: str, told: Told) -> tuple[str, ...]:
    """A row of COLUMNS."""
    settings = told["settings"]
    sources = (("labels", settings["labels"]), ("the original", settings["distill"]))
    return (
        stage,
        " and ".join(name for name, weight in sources if weight),
        *(f"{told[key]:,}" if key in told else NONE for key in ("pictures", "validation_pictures")),
        f"{len(told['history'])} of {settings['epochs']}",
        f"epoch {told['best_epoch']}",
        _best(told),
        ", ".join(told[key] for key in ("device", "precision") if key in told) or NONE,
        f"{told['seconds_per_step']:.3f}" if "seconds_per_step" in told else NONE,
    )


def _best(told: Told) -> str:
    best: Told = next((epoch for epoch in told["history"] if epoch["epoch"] == told["best_epoch"]), {})
    if "map" in best:
        return f"mAP {100 * best['map']:.2f} %"
    return f"loss {best['val_loss']:.4g}" if "val_loss" in best else NONE


def settings_line(told: Told) -> str:
    """All settings in one line."""
    return ", ".join(f"{key} {_value(value)}" for key, value in told["settings"].items())


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "unset"}[value]
    return (" ".join(map(str, value)) or "none") if isinstance(value, list | tuple) else str(value)


def sentences(stage: str, told: Told) -> list[str]:
    """What must be known of a training, in plain words."""
    found = []
    if told.get("ended"):
        found.append(
            f"The training {stage} ended early, after {len(told['history'])} of {told['settings']['epochs']} epochs: "
            f"{told['ended']}."
        )
    if left_out := told.get("left_out"):
        more = f", and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        found.append(f"The training {stage} left out {left_out[0]}{more}.")
    return found


def plot(told: Told) -> str:
    """Two panels side by side, loss and mAP of every epoch, as SVG that takes its colours from the page; mAP alone
    where the data have labels."""
    history = told["history"]
    losses = [("trained", "line", [epoch.get("loss") for epoch in history])]
    losses.append(("watched", "line other", [epoch.get("val_loss") for epoch in history]))
    panels = [_panel("loss", losses, told["best_epoch"])]
    scores = [100 * epoch["map"] if epoch.get("map") is not None else None for epoch in history]
    if any(score is not None for score in scores):
        panels.append(_panel("mAP, %", [("watched", "line other", scores)], told["best_epoch"]))
    return "\n".join(panels)


def _panel(title: str, lines: Sequence[tuple[str, str, Sequence[float | None]]], best: int) -> str:
    """One panel: a line for each (name, CSS classes, value of each epoch), and a mark at the best epoch."""
    known = [value for _, _, values in lines for value in values if value is not None]
    if not known:
        return ""
    ticks = _ticks(min(known), max(known))
    low, high = ticks[0], ticks[-1]
    epochs = max(len(values) for _, _, values in lines)

    def x(epoch: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * ((epoch - 1) / (epochs - 1) if epochs > 1 else 0.5)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - low) / (high - low)

    parts = [f'<text class="title" x="{_LEFT}" y="14">{title}</text>']
    for tick in ticks:
        parts.append(f'<path class="grid" d="M{_LEFT} {y(tick):.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 6}" y="{y(tick) + 4:.1f}">{tick:g}</text>')
    for epoch in (1, epochs) if epochs > 1 else ():
        parts.append(f'<text class="middle" x="{x(epoch):.1f}" y="{_HEIGHT - 10}">{epoch}</text>')
    parts.append(f'<text class="middle" x="{(_LEFT + _WIDTH - _RIGHT) / 2:.1f}" y="{_HEIGHT - 10}">epoch</text>')
    if 1 <= best <= epochs:
        parts.append(f'<path class="best" d="M{x(best):.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text class="middle" x="{x(best):.1f}" y="{_TOP - 4}">best</text>' if 1 < best < epochs else "")
    for place, (name, classes, values) in enumerate(lines):
        points = [(x(epoch), y(value)) for epoch, value in enumerate(values, 1) if value is not None]
        if points:
            path = "L".join(f"{across:.1f} {down:.1f}" for across, down in points)
            parts.append(f'<path class="{classes}" d="M{path}"/>')
            parts.append(f'<circle class="{classes} dot" cx="{points[-1][0]:.1f}" cy="{points[-1][1]:.1f}" r="2.5"/>')
        if len(lines) > 1:
            across = _WIDTH - _RIGHT - 150 + 80 * place
            parts.append(f'<path class="{classes}" d="M{across} 10h18"/><text x="{across + 23}" y="14">{name}</text>')
    label = f"{title} of each of {epochs} epochs, best epoch {best}"
    head = f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
    # Nothing in it comes from outside: numbers, and words of this module.
    return head + "".join(parts) + "</svg>"


def _ticks(low: float, high: float) -> list[float]:
    """Some five round numbers that hold low and high between them; at least two."""
    # Values that are nearly equal are not drawn as if they were far apart.
    span = max(high - low, 1e-3 * max(abs(low), abs(high)), 1e-9)
    unit = 10 ** math.floor(math.log10(span / 4))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= span / 4)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [float(f"{count * step:.9g}") for count in range(first, max(last, first + 1) + 1)]
