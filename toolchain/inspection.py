"""What a model is made of, as plain JSON and as text: layers, shapes, parameters, FLOPs and head; of a .tflite see
tflite_file.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.errors import InputError
from toolchain.carried import built_in_networks

KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")


def inspect_model(
    model: str, weights: Path | None = None, names: Path | None = None, *, allow_lambda: bool = False
) -> dict[str, Any]:
    """Looks at a cfg (with weights or without), a .keras, .h5 or .tflite file, or a built-in network of that name.

    Raises InputError for what is none of these or is damaged, GraphError for a network that does not fit together.
    """
    path = Path(model)
    if not path.exists():
        if model not in built_in_networks():
            known = ", ".join(built_in_networks()) or "none"
            raise InputError(
                f"a model is a file or the name of a built-in network ({known}): there is no {model!r}; check the path"
            )
        path = built_in_networks()[model]
        names = names or path.with_suffix(".names")
    if path.is_dir():
        raise InputError(f"a model is a file, but {path} is a folder; name the file inside")
    single = path.suffix.lower() in KERAS_SUFFIXES or _is_tflite(path)
    if single and (weights or names):
        raise InputError(f"only a cfg has weights and names of its own; {path} comes alone, leave them out")
    if _is_tflite(path):
        from toolchain.tflite_file import inspect_tflite

        return inspect_tflite(path)
    return inspect_graph(path, weights, names, allow_lambda=allow_lambda)


def _is_tflite(path: Path) -> bool:
    if path.suffix.lower() == ".tflite":
        return True
    with open(path, "rb") as file:
        return file.read(8)[4:] == b"TFL3"


def inspect_graph(path: Path, weights: Path | None, names: Path | None, *, allow_lambda: bool) -> dict[str, Any]:
    """Layers, totals and head of a network that a reader can read."""
    from toolchain.cost import cost, node_costs
    from toolchain.shapes import shapes

    if path.suffix.lower() in KERAS_SUFFIXES:
        from toolchain.one_file import read_keras_apart

        graph = read_keras_apart(path, allow_lambda)
    else:
        from toolchain.darknet_reader import read_darknet

        graph = read_darknet(path, weights, names)
    found, costs, total = shapes(graph), node_costs(graph), cost(graph)
    layers = [
        {
            "name": node.name,
            "op": node.op,
            "inputs": list(node.inputs),
            "shape": list(found[node.name]),
            "trainable": costs[node.name].trainable,
            "non_trainable": costs[node.name].non_trainable,
            "flops": costs[node.name].flops,
        }
        for node in graph.nodes
    ]
    head = None
    if graph.head is not None:
        scales = [
            {"stride": scale.stride, "anchors": [list(anchor) for anchor in scale.anchors],
             "scale_x_y": scale.scale_x_y,
             "outputs": dict(scale.outputs)}
            for scale in graph.head.scales
        ]  # fmt: skip
        head = {"box": graph.head.box, "class_activation": graph.head.class_activation, "scales": scales}
    return {
        "kind": "network",
        "file": str(path),
        "weights": "random" if path.suffix == ".cfg" and weights is None else "read",
        "name": graph.name,
        "input": dataclasses.asdict(graph.input) if graph.input else None,
        "outputs": list(graph.outputs),
        "layers": layers,
        "totals": {
            "trainable": total.trainable,
            "non_trainable": total.non_trainable,
            "parameters": total.total,
            "flops": total.flops,
            "flops_unknown": list(total.flops_unknown),
        },
        "head": head,
        "labels": list(graph.labels),
    }


def as_text(found: Mapping[str, Any]) -> str:
    """The same for a terminal."""
    if found["kind"] == "tflite":
        from toolchain.tflite_file import as_text as tflite_as_text

        return tflite_as_text(found)
    layers = [
        (
            layer["name"],
            layer["op"],
            _shape(layer["shape"]),
            f"{layer['trainable'] + layer['non_trainable']:,}",
            f"{layer['flops'] / 1e6:.3f}",
        )
        for layer in found["layers"]
    ]
    lines = [*aligned([("name", "op", "output", "parameters", "FLOPs M"), *layers], right=(3, 4)), ""]
    totals = found["totals"]
    lines.append(
        f"{found['name']}: {totals['parameters']:,} parameters ({totals['trainable']:,} trainable, "
        f"{totals['non_trainable']:,} not), "
        f"{totals['flops'] / 1e6:,.2f} MFLOPs"
    )
    if found["weights"] == "random":
        lines.append("no weights were given")
    if totals["flops_unknown"]:
        lines.append(f"FLOPs leave out layers without a rule: {', '.join(totals['flops_unknown'])}")
    if found["input"]:
        entry = found["input"]
        lines.append(f"input: {entry['height']}x{entry['width']} {entry['color']}, {entry['resize']}")
    return "\n".join([*lines, *_head_lines(found)])


def _head_lines(found: Mapping[str, Any]) -> Iterable[str]:
    head = found["head"]
    if head is None:
        yield "head: not described in the file"
        return
    labels = found["labels"]
    shown = f": {', '.join(labels[:8])}{', …' if len(labels) > 8 else ''}" if labels else ""
    yield f"head: boxes {head['box']}, classes {head['class_activation']}, {len(labels)} labels{shown}"
    for scale in head["scales"]:
        anchors = "  ".join(f"{width:g}x{height:g}" for width, height in scale["anchors"])
        yield f"  stride {scale['stride']}: anchors {anchors}; reads {', '.join(scale['outputs'].values())}"


def _shape(shape: Sequence[int]) -> str:
    return "x".join(str(side) for side in shape)


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Rows as lines with columns of equal width; the columns in `right` end together."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
