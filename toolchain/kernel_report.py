"""What sparsity and clustering did to kernels: zeros, different values, and the size of all weights packed.

A .tflite has no batch norms: the converter multiplies each output channel of a convolution with the batch norm behind
it. A zero stays one; of a kernel of n values each channel gets n of its own. So weights are packed as they stand in the
file.
"""

from __future__ import annotations

import dataclasses
import gzip
from collections.abc import Mapping

import numpy as np

from toolchain.cost import node_costs
from toolchain.criteria import following_batch_norms
from toolchain.graph import Graph, Node, owner
from toolchain.pass_report import LayerReport
from toolchain.shapes import shapes

#: Weights that are kernels, of every layer that has one.
KERNELS = ("kernel", "depthwise_kernel", "pointwise_kernel")
#: Keras's, where a layer does not say its own.
_EPSILON = 1e-3


def kernel_of(node: Node) -> np.ndarray:
    """The kernel of a node that has one; of a SeparableConv2D that of its 1x1 convolution, the larger."""
    names = [name for name in reversed(KERNELS) if name in node.weights]
    return node.weights[names[0]]


def with_kernel(graph: Graph) -> list[Node]:
    """The nodes that run a kernel, their own or another's, in graph order."""
    return [node for node in graph.nodes if any(name in owner(graph, node).weights for name in KERNELS)]


def kernel_reports(before: Graph, after: Graph, reasons: Mapping[str, str]) -> tuple[LayerReport, ...]:
    """A report for every node with a kernel: its share of zeros and its different values before and after. Both graphs
    have the same layers; reasons: by node why it was left alone, "" where it was changed."""
    costs = node_costs(before)
    reports = []
    for node in with_kernel(before):
        first, second = kernel_of(owner(before, node)), kernel_of(owner(after, after.by_name[node.name]))
        cost = costs[node.name]
        reports.append(
            LayerReport(
                name=node.name,
                op=node.op,
                kernel=first.shape,
                parameters=(cost.total, cost.total),
                flops=(cost.flops, cost.flops),
                reason=reasons[node.name],
                zeros=(_zeros(first) / first.size, _zeros(second) / second.size),
                values=(len(np.unique(first)), len(np.unique(second))),
            )
        )
    return tuple(reports)


def share_of_zeros(graph: Graph) -> float:
    """The share of all kernels' values that are exactly 0."""
    kernels = [array for node in graph.nodes for name, array in node.weights.items() if name in KERNELS]
    return sum(map(_zeros, kernels)) / max(1, sum(kernel.size for kernel in kernels))


def _zeros(kernel: np.ndarray) -> int:
    return kernel.size - int(np.count_nonzero(kernel))


def packed_bytes(graph: Graph) -> int:
    """How long the weights are after gzip, float32, as they stand in a .tflite: those of one output channel after those
    of another."""
    content = b"".join(
        np.ascontiguousarray(_as_stored(node, name, array), np.float32).tobytes()
        for node in folded(graph).nodes
        for name, array in node.weights.items()
    )
    return len(gzip.compress(content, 6, mtime=0))


def _as_stored(node: Node, name: str, array: np.ndarray) -> np.ndarray:
    if name not in KERNELS or name == "depthwise_kernel":
        return array
    return np.moveaxis(array, -2 if node.op == "Conv2DTranspose" else -1, 0)


def folded(graph: Graph) -> Graph:
    """The graph with every kernel multiplied by the scale of a batch norm that alone reads its layer, as the converter
    does it, and that batch norm as the bias which is left. For its weights alone: it computes something else."""
    extents, changed = shapes(graph), {}
    for node in graph.nodes:
        norms = following_batch_norms(graph, node.name, len(extents[node.name]))
        alone = len(graph.readers[node.name]) == 1 and node.name not in graph.outputs and norms
        if alone and node.op in ("Conv2D", "DepthwiseConv2D", "Dense") and node.weights:
            scale, shift = _scale_and_shift(norms[0])
            name = next(name for name in KERNELS if name in node.weights)
            kernel = node.weights[name]
            weights = {**node.weights, name: (kernel * scale.reshape(_channels_of(node, kernel))).astype(np.float32)}
            changed[node.name] = dataclasses.replace(node, weights=weights)
            changed[norms[0].name] = dataclasses.replace(norms[0], weights={"beta": shift})
    return dataclasses.replace(graph, nodes=tuple(changed.get(node.name, node) for node in graph.nodes))


def _channels_of(node: Node, kernel: np.ndarray) -> tuple[int, ...]:
    """The shape in which a vector of the output channels multiplies a kernel."""
    return (1, 1, *kernel.shape[2:]) if node.op == "DepthwiseConv2D" else (kernel.shape[-1],)


def _scale_and_shift(norm: Node) -> tuple[np.ndarray, np.ndarray]:
    weights = norm.weights
    deviation = np.sqrt(weights["moving_variance"] + np.float32(norm.attributes.get("epsilon", _EPSILON)))
    scale = weights.get("gamma", np.float32(1)) / deviation
    return scale, weights.get("beta", np.float32(0)) - weights["moving_mean"] * scale
