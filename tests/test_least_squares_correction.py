"""Removed channels folded into those that stayed: exact where they are a linear function of them."""

import dataclasses

import numpy as np
import pytest
from toy_network import Layers

from toolchain.activations import PatchMoments
from toolchain.channels import analyse, remove
from toolchain.graph import Graph
from toolchain.least_squares_correction import folded, of_channels, readers

_REMOVED, _CHANNELS, _OUT = (1, 4), 6, 5


def _network(*, norm: bool) -> Graph:
    net = Layers(4)
    net.conv("first", "image", 3, _CHANNELS)
    net.conv("second", "first", _CHANNELS, _OUT)
    if norm:
        net.norm("second_bn", "second", _OUT)
    net.add("active", "ReLU", net.nodes[-1].name)
    net.conv("last", "active", _OUT, 4)
    return Graph("net", tuple(net.nodes), ("last",))


def _pruned(graph: Graph) -> tuple[Graph, dict[str, np.ndarray]]:
    channels = analyse(graph, ["first"])
    gone = channels.symbols["first"][list(_REMOVED)]
    kept = {name: np.flatnonzero(~np.isin(symbols, gone)) for name, symbols in channels.symbols.items()}
    return remove(graph, channels, gone), kept


def _moments(patches: np.ndarray) -> PatchMoments:
    rows = len(patches)
    return PatchMoments(patches.mean(0), (patches.T @ patches / rows).astype(np.float32), rows)


def _dependent_patches() -> np.ndarray:
    """(n, 9 * 6): at every tap the two removed channels are a linear function, with a constant, of the other four."""
    random = np.random.default_rng(2)
    values = random.normal(1, 1, (4000, 9, _CHANNELS))
    stays = [channel for channel in range(_CHANNELS) if channel not in _REMOVED]
    values[..., _REMOVED] = values[..., stays] @ random.normal(0, 1, (4, 2)) + random.normal(0, 1, 2)
    return values.reshape(4000, -1)


@pytest.mark.parametrize("norm", [False, True])
def test_channels_that_follow_from_others_cost_nothing(norm: bool) -> None:
    graph, patches = _network(norm=norm), _dependent_patches()
    pruned, kept = _pruned(graph)
    assert readers(graph, kept) == ["second"]
    # As bias_correction leaves it: with the removed channels' mean.
    whole = graph.by_name["second"].weights["kernel"].reshape(-1, _OUT)
    gone = np.tile(np.isin(np.arange(_CHANNELS), _REMOVED), 9)
    mean_part = patches.mean(0)[gone] @ whole[gone]
    found = folded(graph, pruned, kept, lambda _: of_channels(_moments(patches), _CHANNELS))
    second = found.by_name["second"]
    constant = second.weights["bias"] if not norm else np.zeros(_OUT)
    if norm:
        before, after = (one.by_name["second_bn"].weights["moving_mean"] for one in (pruned, found))
        constant = before - after
        assert "bias" not in second.weights
    outputs = patches[:, ~gone] @ second.weights["kernel"].reshape(-1, _OUT) + constant + mean_part
    expected = patches @ whole
    without = patches[:, ~gone] @ whole[~gone] + mean_part
    # The constant is that of the mean over all taps; a single tap's over 4000 rows is 4000^-1/2 of a deviation off it.
    # (The ridge, 1e-3 of the kept channels' variance, puts A off by only 1e-3 of itself.)
    error, before_error = (np.linalg.norm(values - expected) for values in (outputs, without))
    assert error < 2 * 4000**-0.5 * before_error


def test_independent_channels_leave_the_kernel_nearly_alone() -> None:
    graph, random = _network(norm=False), np.random.default_rng(3)
    pruned, kept = _pruned(graph)
    count = 20_000
    patches = random.normal(0, 1, (count, 9 * _CHANNELS))
    found = folded(graph, pruned, kept, lambda _: of_channels(_moments(patches), _CHANNELS))
    moved = found.by_name["second"].weights["kernel"] - pruned.by_name["second"].weights["kernel"]
    # Sample correlations of independent values are 1/sqrt(9 * count) = 0.0024 each; 4 kept channels, 2 removed ones.
    assert np.abs(moved).max() < 2 * 5 * (9 * count) ** -0.5 * np.abs(graph.by_name["second"].weights["kernel"]).max()


def test_nothing_removed_and_what_cannot_be_folded() -> None:
    graph = _network(norm=True)
    everything = {node.name: np.arange(_CHANNELS) for node in graph.nodes}
    assert readers(graph, everything) == []
    assert readers(graph, {}) == []
    assert folded(graph, graph, {}, lambda _: pytest.fail("asked")).nodes == graph.nodes
    nodes = [
        dataclasses.replace(node, attributes={**node.attributes, "groups": 2}) if node.name == "second" else node
        for node in graph.nodes
    ]
    assert readers(dataclasses.replace(graph, nodes=tuple(nodes)), {"first": np.arange(4)}) == []


def test_a_channel_that_never_varies_is_no_trouble() -> None:
    graph = _network(norm=False)
    pruned, kept = _pruned(graph)
    constant = np.ones((100, 9 * _CHANNELS))
    found = folded(graph, pruned, kept, lambda _: of_channels(_moments(constant), _CHANNELS))
    assert np.isfinite(found.by_name["second"].weights["kernel"]).all()
