"""What people read of two files that were compared layer by layer: rows of a table, sentences and a plot, for the
terminal and for the report of a build. found is what file_comparison.compare_files gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from toolchain.file_comparison import MUCH_CLIPPED
from toolchain.intermediates import node_names, short_name
from toolchain.text_columns import aligned

Found = Mapping[str, Any]

COLUMNS = ("layer", "op", "type", "dB", "adds", "range", "holds", "clipped", "used")
LEGEND = (
    "dB: signal to noise of a layer's values beyond the means of its channels, against float32. adds: noise as a share"
    " of the signal, less that at the layer's worst input, which is what the layer itself adds. range: of float32's"
    " values. holds: what the layer's integers can stand for. clipped: share of float32's values beyond that. used:"
    " share of that which they span."
)
#: Places of COLUMNS with numbers.
NUMBERS = (3, 4, 7, 8)
#: Behind a node's name and a colon, how a note of the conversion says why a layer stays float.
STAYS_FLOAT = "stays float, "
#: Decibels of a layer that copies, such as padding, are those of float's roundings: drawn, they would flatten the rest.
_EXACT = 100.0
#: Layers that are named; the others are counted.
_NAMED = 12


def row(layer: Found) -> tuple[str, ...]:
    """A row of COLUMNS."""
    return (
        _short(layer),
        layer["op"],
        layer["dtype"],
        f"{layer['decibels']:.1f}",
        _percent(layer["added"]),
        _ends(layer["range"]),
        _ends(layer["holds"]) if layer["holds"] else "float",
        "" if layer["clipped"] is None else _percent(layer["clipped"]),
        "" if layer["used"] is None else f"{100 * layer['used']:.0f} %",
    )


def worst(layers: Sequence[Found], count: int = _NAMED) -> list[Found]:
    """The layers that add most themselves, the worst first."""
    return sorted((one for one in layers if one["added"]), key=lambda one: -one["added"])[:count]


def sentence(file: str, found: Found) -> str:
    """In one sentence, where a build's file goes off from float32."""
    layers = found["layers"]
    listed = [f"{_short(one)} ({_percent(one['added'])} of its signal)" for one in worst(layers, 3)]
    noise = f"most noise is added at {_listed(listed)}" if listed else "none adds noise"
    parts = [f"of {len(layers)} layers, {noise}"]
    floats = len(_floats(layers))
    parts.append(f"{floats or 'none'} stay{'s' * (floats < 2)} float")
    much = sum(one["clipped"] is not None and one["clipped"] > MUCH_CLIPPED for one in layers)
    parts.append(f"{much or 'none'} cut{'s' * (much < 2)} off more than {100 * MUCH_CLIPPED:g} % of the values")
    pictures = f"{found['pictures']} picture{'s' * (found['pictures'] != 1)}"
    return f"{file} against float32, layer by layer on {pictures}: {'; '.join(parts)}."


def remarks(found: Found, notes: Sequence[str]) -> list[str]:
    """What must be known beside the table, each without a full stop. notes: of the conversion, "node: text" each."""
    told = [*found["warnings"], *found["notes"], *(f"not read: {text}" for text in found["skipped"])]
    by_reason: dict[str, list[str]] = {}
    for layer in _floats(found["layers"]):
        by_reason.setdefault(_why_float(layer["name"], notes), []).append(_short(layer))
    told += [f"stays float, {reason}: {_some(names)}" for reason, names in by_reason.items()]
    if left := list(map(short_name, found["not_compared"])):
        told.append(f"not compared, since the float32 file has no such tensor: {_some(left)}")
    return told


def _why_float(name: str, notes: Sequence[str]) -> str:
    names = (name, *node_names(name))
    for note in notes:
        node, _, text = note.partition(": ")
        if node in names and text.startswith(STAYS_FLOAT):
            return text.removeprefix(STAYS_FLOAT)
    return "kept float by the quantizer"


def _floats(layers: Sequence[Found]) -> list[Found]:
    return [layer for layer in layers if layer["dtype"] == "float32"]


def as_text(found: Found) -> str:
    """All of it for a terminal."""
    layers = found["layers"]
    lines = [*aligned([COLUMNS, *map(row, layers)], NUMBERS), ""]
    floats = _floats(layers)
    integers = len(layers) - len(floats)
    lines.append(
        f"{found['file']} against {found['against']} on {found['pictures']} pictures: {len(layers)} layers compared,"
        f" {integers} of integers, {len(floats)} float"
    )
    if integers and floats:
        lines.append(f"stays float: {_some([_short(one) for one in floats])}")
    if listed := worst(layers, 3):
        told = ", ".join(f"{_short(one)} ({_percent(one['added'])} of its signal)" for one in listed)
        lines.append(f"most noise is added at {told}")
    lines += [f"not read: {text}" for text in found["skipped"]]
    return "\n".join([*lines, *found["notes"], *(f"warning: {text}" for text in found["warnings"])])


def plot(found: Found) -> bytes:
    """A PNG: the signal to noise of every layer in order, and the layers that add most."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers, listed = found["layers"], worst(found["layers"])
    figure = Figure(figsize=(11, 5.5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    course, bars = figure.subplots(1, 2, width_ratios=(3, 2))
    course.plot([layer["decibels"] for layer in layers], color="#2b6cb0", linewidth=1.2, marker=".", markersize=4)
    places = {layer["name"]: place for place, layer in enumerate(layers)}
    marked = [places[one["name"]] for one in listed]
    course.plot(marked, [layers[place]["decibels"] for place in marked], "o", color="#c53030", markersize=5)
    course.set(xlabel="layer, in the order of the file", ylabel="signal to noise, dB", title="what is left of each")
    course.grid(alpha=0.3)
    if seen := [layer["decibels"] for layer in layers if layer["decibels"] < _EXACT]:
        course.set_ylim(min(seen) - 2, max(seen) + 2)
    bars.barh(range(len(listed)), [100 * one["added"] for one in listed], color="#c53030")
    bars.set_yticks(range(len(listed)), [_short(one)[-38:] for one in listed], fontsize=7)
    bars.invert_yaxis()
    bars.set(xlabel="noise added at the layer itself, % of its signal", title="the layers that add most")
    target = io.BytesIO()
    # Without the version that matplotlib writes otherwise, so that equal figures are equal files.
    figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()


def _short(layer: Found) -> str:
    return short_name(layer["name"])


def _listed(texts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(texts[:-1]), *texts[-1:])))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _ends(values: Sequence[float]) -> str:
    return f"{values[0]:.3g} to {values[1]:.3g}"
