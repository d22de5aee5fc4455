"""What a compression changed in the statistics of batch norms' inputs, given to their moving averages.

Statistics of a few pictures are not those of a whole training: put in their place, they move even an untouched
network's outputs. So they are measured of the network before (a) and after (b) on the same pictures, and only what
changed counts. With the trained moving mean μ and variance σ² of a channel that stayed:
    μ' = μ + mean_b - mean_a
    σ'² = σ² (var_b + ε) / (var_a + ε)
An unchanged network stays as it is, to the last bit, whatever the pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from toolchain.activations import reestimate_batch_norms
from toolchain.graph import Graph, Node

#: Keras's, where a layer does not say its own.
_EPSILON = 1e-3


def corrected_batch_norms(
    before: Graph,
    after: Graph,
    pictures: Sequence[Path],
    *,
    kept: Mapping[str, np.ndarray] | None = None,
    allow_lambda: bool = False,
    progress: Callable[[float, float], None] | None = None,
) -> Graph:
    """The network after a compression with its batch norms' statistics corrected as above; batch norms that before does
    not have stay as they are.

    kept: of a batch norm's channels in before the indices of those in after; all where it is not named.

    Raises InputError when no picture can be read, and what running the networks raises.
    """
    common = [
        node.name
        for node in after.nodes
        if node.op == "BatchNormalization" and node.name in before.by_name and node.weights
    ]
    if not common:
        return after

    def half(number: int) -> Callable[[float, float], None] | None:
        if progress is None:
            return None
        return lambda done, total: progress(number * total + done, 2 * total)

    whole = reestimate_batch_norms(before, pictures, allow_lambda=allow_lambda, progress=half(0))
    measured = reestimate_batch_norms(after, pictures, allow_lambda=allow_lambda, progress=half(1))
    changed = {}
    for name in common:
        stay = (kept or {}).get(name, slice(None))
        first, second, third = (graph.by_name[name].weights for graph in (before, whole, measured))
        changed[name] = _corrected(
            after.by_name[name],
            {key: first[key][stay] for key in _STATISTICS},
            {key: second[key][stay] for key in _STATISTICS},
            {key: third[key] for key in _STATISTICS},
        )
    return dataclasses.replace(after, nodes=tuple(changed.get(node.name, node) for node in after.nodes))


_STATISTICS = ("moving_mean", "moving_variance")


def _corrected(
    node: Node, trained: Mapping[str, np.ndarray], before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]
) -> Node:
    epsilon = np.float32(node.attributes.get("epsilon", _EPSILON))
    mean = trained["moving_mean"] + (after["moving_mean"] - before["moving_mean"])
    ratio = (after["moving_variance"] + epsilon) / (before["moving_variance"] + epsilon)
    found = {"moving_mean": mean, "moving_variance": trained["moving_variance"] * ratio}
    weights = {key: found.get(key, array).astype(array.dtype) for key, array in node.weights.items()}
    return dataclasses.replace(node, weights=weights)


def write_kept(path: Path, before: Graph, kept: Mapping[str, np.ndarray]) -> None:
    """Writes, as an .npz, which channels of the batch norms stayed in a pruning.

    before: the network before it. kept: by node (n,) indices of the channels of its output that stayed.
    """
    norms = [node.name for node in before.nodes if node.op == "BatchNormalization" and node.name in kept]
    indices = {f"kept_{index}": kept[name] for index, name in enumerate(norms)}
    np.savez(path, names=np.array(norms, np.str_), **indices)  # type: ignore[arg-type]


def read_kept(paths: Sequence[Path]) -> dict[str, np.ndarray]:
    """What write_kept wrote of one pruning after the other, oldest first: by batch norm (n,) the indices in the network
    before all of them of the channels that stayed."""
    found: dict[str, np.ndarray] = {}
    for path in paths:
        with np.load(path, allow_pickle=False) as arrays:
            for index, name in enumerate(arrays["names"].tolist()):
                kept = arrays[f"kept_{index}"]
                found[name] = found[name][kept] if name in found else kept
    return found
