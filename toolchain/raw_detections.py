"""From a network's raw outputs to detections, as its float32 file would give them: for figures taken before there is a
file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from deploy.contract import ROLES, Contract, Tensor
from deploy.decode import decode
from deploy.detections import Detections
from deploy.nms import nms
from deploy.preprocess import Placement, to_source
from toolchain.graph import Graph
from toolchain.reference import by_role
from toolchain.shapes import shapes

#: Least score of a detection, the IoU of its suppression, and how many are kept: as in benchmarks.accuracy.
_CONF, _NMS_IOU, _LIMIT = 0.005, 0.45, 10_000


def detections(
    graph: Graph, contract: Contract, outputs: Sequence[np.ndarray], placement: Placement
) -> Detections:
    """What a network finds on one picture, in the picture's pixels, not cut at its border.

    contract: contract_of(graph). outputs: of graph.outputs, (1, h, w, channels) each. placement: of the picture.
    """
    head = graph.head
    assert head is not None
    by_node = dict(zip(graph.outputs, outputs, strict=True))
    arrays = {
        f"{role}_{scale.stride}": array for scale in head.scales for role, array in by_role(by_node, scale).items()
    }
    found = decode(arrays, contract, _CONF)
    found = found.take(nms(found.boxes, found.scores, found.class_ids, _NMS_IOU, _LIMIT))
    return Detections(to_source(found.boxes, placement, clip=False), found.scores, found.class_ids)


def contract_of(graph: Graph) -> Contract:
    """As a float32 file of the graph would have it, so that its outputs are decoded alike."""
    assert graph.input is not None and graph.head is not None
    found, tensors, scales = shapes(graph), [], []
    for scale in graph.head.scales:
        height, width = found[next(iter(scale.outputs.values()))][:2]
        widths = {"xy": 2, "wh": 2, "objectness": 1, "classes": len(graph.labels)}
        for role in ROLES:
            shape = (1, height, width, len(scale.anchors) * widths[role])
            tensors.append(Tensor(f"{role}_{scale.stride}", shape, "float32"))
        outputs: dict[str, str] = {role: f"{role}_{scale.stride}" for role in ROLES}
        scales.append(dataclasses.replace(scale, outputs=outputs))
    head = dataclasses.replace(graph.head, scales=tuple(scales))
    return Contract(graph.name, graph.labels, graph.input, head, "float32", tuple(tensors))
