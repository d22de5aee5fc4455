"""Darknet's cfg, weights and names -> Graph; what the nodes are is told in darknet_layers.py."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np

from deploy.contract import Input, YoloHead
from deploy.errors import InputError
from toolchain.darknet_cfg import parse_cfg
from toolchain.darknet_layers import Network, read_sections
from toolchain.darknet_weights import (
    ConvolutionShape,
    ConvolutionWeights,
    from_keras_kernel,
    random_weights,
    read_weights,
    to_keras_kernel,
)
from toolchain.graph import Graph, reachable

#: Largest cfg or names file, in bytes.
_MAX_TEXT = 2**20


def read_darknet(
    cfg: Path,
    weights: Path | None,
    names: Path | None,
    *,
    resize: Literal["letterbox", "stretch"] = "letterbox",
    seed: int = 0,
) -> Graph:
    """The network of a cfg and its weights, with its labels and, where the cfg has detection sections, its head.

    Without weights they are random, the same for the same seed. Without names there are no labels: good for looking at
    a network, not for packaging it. Nodes that no output depends on are left out.

    Raises InputError for a file that cannot be used, with its line, and GraphError for layers that do not fit together.
    """
    net, sections = parse_cfg(_read_text(cfg, "cfg"), cfg.name)
    network = read_sections(net, sections, cfg.name)
    described = Input("image", net.height, net.width, resize)
    head = _head(network)
    labels = () if head is None or names is None else _labels(network, names)
    graph = Graph(cfg.stem, tuple(network.nodes), _outputs(network), described, head, labels)
    if weights is None:
        layers = random_weights(network.convolutions, _predictions(network, graph), seed)
    else:
        _, layers = read_weights(weights, network.convolutions)
    return reachable(_with_weights(graph, network.convolutions, layers))


def to_darknet_weights(graph: Graph) -> tuple[ConvolutionWeights, ...]:
    """The weights of a graph that read_darknet made, in the order and layout of a .weights file."""
    layers = []
    for node in graph.nodes:
        if node.op not in ("Conv2D", "DepthwiseConv2D"):
            continue
        kernel = from_keras_kernel(node.weights["kernel"], node.op == "DepthwiseConv2D")
        if "bias" in node.weights:
            layers.append(ConvolutionWeights(node.weights["bias"], kernel))
        else:
            norm = graph.by_name[f"{node.name}_bn"].weights
            arrays = norm["gamma"], norm["moving_mean"], norm["moving_variance"]
            layers.append(ConvolutionWeights(norm["beta"], kernel, *arrays))
    return tuple(layers)


def _read_text(path: Path, kind: str) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_TEXT + 1)
    except OSError as error:
        raise InputError(f"cannot read the {kind} {path}: {error.strerror or error}") from error
    if len(content) > _MAX_TEXT:
        raise InputError(f"a {kind} file has at most {_MAX_TEXT:,} bytes; {path} has more: is it another file?")
    return content


def _outputs(network: Network) -> tuple[str, ...]:
    if network.detections:
        return tuple(dict.fromkeys(scale.outputs["raw"] for _, scale in network.detections))
    return tuple(output.node for output in network.outputs[-1:] if output is not None)


def _head(network: Network) -> YoloHead | None:
    if not network.detections:
        return None
    first = network.detections[0][0]
    for section, _ in network.detections:
        for field in ("classes", "new_coords", "in_cells"):
            if getattr(section, field) != getattr(first, field):
                sentence = f"all detections of a network are alike; {field} is not that of line {first.line}"
                raise network.error(section, sentence)
    return YoloHead(
        scales=tuple(scale for _, scale in network.detections),
        box="scaled" if first.new_coords else "exp",
        class_activation="softmax" if first.in_cells else "sigmoid",
    )


def _labels(network: Network, names: Path) -> tuple[str, ...]:
    content = _read_text(names, "names")
    try:
        labels = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(f"a names file is UTF-8 text, one class a line; {names} is not: save it as UTF-8") from error
    while labels and not labels[-1]:
        labels.pop()
    if "" in labels:
        raise InputError(f"{names}:{labels.index('') + 1}: a names file has one class a line; this line is blank")
    section, _ = network.detections[0]
    again, times = Counter(labels).most_common(1)[0] if labels else ("", 0)
    if times > 1:
        raise InputError(f"{names}: every class has a name of its own, but {again!r} stands {times} times; rename it")
    if len(labels) != section.classes:
        raise InputError(
            f"{network.file}:{section.line}: the network has {section.classes} classes; {names} names {len(labels)}:"
            " give the names that belong to it"
        )
    return tuple(labels)


def _predictions(network: Network, graph: Graph) -> dict[str, int]:
    """The convolutions whose own output is a head's, with their outputs for each anchor."""
    return {
        scale.outputs["raw"]: 5 + section.classes
        for section, scale in network.detections
        if graph.by_name[scale.outputs["raw"]].op == "Conv2D"
    }


def _with_weights(graph: Graph, shapes: list[ConvolutionShape], layers: tuple[ConvolutionWeights, ...]) -> Graph:
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for shape, layer in zip(shapes, layers):
        depthwise = graph.by_name[shape.name].op == "DepthwiseConv2D"
        inputs = shape.filters // graph.by_name[shape.name].attributes["depth_multiplier"] if depthwise else 0
        arrays[shape.name] = {"kernel": to_keras_kernel(layer.kernel, depthwise, inputs)}
        if layer.scales is None or layer.means is None or layer.variances is None:
            arrays[shape.name]["bias"] = layer.biases
        else:
            arrays[f"{shape.name}_bn"] = {
                "gamma": layer.scales,
                "beta": layer.biases,
                "moving_mean": layer.means,
                "moving_variance": layer.variances,
            }
    nodes = (dataclasses.replace(node, weights=arrays.get(node.name, {})) for node in graph.nodes)
    return dataclasses.replace(graph, nodes=tuple(nodes))
