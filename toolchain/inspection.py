"""What a model is made of, as plain JSON and as text: layers, shapes, parameters, FLOPs and head; of a .tflite see
tflite_file.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.errors import InputError
from toolchain.carried import built_in_networks, carried_recipes
from toolchain.graph import Graph
from toolchain.text_columns import aligned

KERAS_SUFFIXES = (".keras", ".h5", ".hdf5")


def inspect_model(
    model: str,
    weights: Path | None = None,
    names: Path | None = None,
    head: Path | None = None,
    *,
    allow_lambda: bool = False,
) -> dict[str, Any]:
    """Looks at a cfg (with weights or without), a .keras, .h5 or .tflite file, the network of a recipe (a file or a
    carried one's name), or a built-in network of that name.

    head is the HEAD.yaml of a Keras model, whose file does not say what its outputs mean.

    Raises InputError for what is none of these or is damaged, GraphError for a network that does not fit together.
    """
    path = _path_of(model)
    if not _is_tflite(path):
        return inspect_graph(read_network(model, weights, names, head, allow_lambda=allow_lambda), path, weights)
    if weights or names or head:
        raise InputError(f"only a cfg has weights and names of its own; {path} comes alone, leave them out")
    from toolchain.tflite_file import inspect_tflite

    return inspect_tflite(path)


def read_network(
    model: str, weights: Path | None, names: Path | None, head: Path | None, *, allow_lambda: bool
) -> Graph:
    """The network that is looked at. Raises InputError for what is no network, or files that do not belong together."""
    path = _path_of(model)
    if _is_tflite(path):
        raise InputError(
            f"a network is read from a cfg, .keras or .h5, but {path} is a .tflite; give what it was made of"
        )
    if _is_recipe(path):
        if weights or names or head:
            raise InputError(f"a recipe names its model's files itself: {path} comes alone, leave the others out")
        return _network_of_recipe(model, allow_lambda)
    is_keras = path.suffix.lower() in KERAS_SUFFIXES
    if is_keras and (weights or names):
        raise InputError(f"only a cfg has weights and names of its own; {path} comes alone, leave them out")
    if not is_keras and head:
        raise InputError(f"only a Keras model has a HEAD.yaml; {path} says itself what its outputs mean, leave it out")
    if path != Path(model):
        names = names or path.with_suffix(".names")
    if is_keras and head is None:
        from toolchain.one_file import read_keras_apart

        return read_keras_apart(path, allow_lambda)
    from toolchain.one_file import Origin, read_origin

    return read_origin(Origin(path, weights, names, head, allow_lambda=allow_lambda))


def _network_of_recipe(recipe: str, allow_lambda: bool) -> Graph:
    from toolchain.build_network import model_files, model_settings
    from toolchain.recipe import read_recipe
    from toolchain.stages import read_model

    content = read_recipe(recipe).recipe
    settings = model_settings(content)
    return read_model({**settings, "allow_lambda": settings["allow_lambda"] or allow_lambda}, model_files(content))[0]


def _path_of(model: str) -> Path:
    """The model's file, or that of the built-in network or the carried recipe of that name."""
    path = Path(model)
    if not path.exists():
        carried = {**carried_recipes(), **built_in_networks()}
        if model not in carried:
            known = ", ".join(built_in_networks()) or "none"
            raise InputError(
                f"a model is a file or the name of a built-in network ({known}): there is no {model!r}; check the path"
            )
        return carried[model]
    if path.is_dir():
        raise InputError(f"a model is a file, but {path} is a folder; name the file inside")
    return path


def _is_recipe(path: Path) -> bool:
    return path.suffix.lower() in (".yaml", ".yml")


def _is_tflite(path: Path) -> bool:
    if path.suffix.lower() == ".tflite":
        return True
    with open(path, "rb") as file:
        return file.read(8)[4:] == b"TFL3"


def inspect_graph(graph: Graph, path: Path, weights: Path | None) -> dict[str, Any]:
    """Layers, totals, head, and what can be compressed, of a network that was read from a file."""
    from toolchain.cost import cost, node_costs
    from toolchain.shapes import shapes

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
        "compression": _compression(graph),
    }


def _compression(graph: Graph) -> dict[str, Any]:
    """Which channels go together, which layers Tucker can split, and why the others cannot be compressed."""
    from toolchain.channels import analyse
    from toolchain.tucker import why_not

    everything = frozenset(node.name for node in graph.nodes)
    groups = [
        {"name": group.name, "layers": list(group.layers), "channels": group.channels, "reason": group.frozen}
        for group in analyse(graph, everything).groups
    ]
    convolutions = [node for node in graph.nodes if node.op == "Conv2D"]
    tucker = [{"layer": node.name, "reason": why_not(graph, node, pointwise=False)} for node in convolutions]
    return {"groups": groups, "tucker": tucker}


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
    return "\n".join([*lines, *_head_lines(found), *_compression_lines(found["compression"])])


def _compression_lines(found: Mapping[str, Any]) -> Iterable[str]:
    groups = found["groups"]
    free = sum(not group["reason"] for group in groups)
    yield ""
    yield f"channels that are pruned together: {free} of {len(groups)} groups can be pruned"
    rows = [
        (f"  {group['name']}", str(group["channels"]), _names(group["layers"][1:]), group["reason"] or "can be pruned")
        for group in groups
    ]
    yield from aligned([("  group", "channels", "tied layers", ""), *rows], right=(1,))
    split = [entry["layer"] for entry in found["tucker"] if not entry["reason"]]
    yield f"Tucker can split {len(split)} of {len(found['tucker'])} convolutions: {_names(split, 12) or 'none'}"
    reasons: dict[str, list[str]] = {}
    for entry in found["tucker"]:
        if entry["reason"]:
            reasons.setdefault(entry["reason"], []).append(entry["layer"])
    for reason, names in reasons.items():
        yield f"  not {_names(names)}: {reason}"


def _names(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


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
