"""Channels that go for a share of the FLOPs: errors against a regression done at once, counts, and real networks."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_network import Layers, toy_graph

from deploy.errors import GraphError, InputError
from toolchain import activations
from toolchain.activations import PatchMoments
from toolchain.channels import Channels, analyse, remove
from toolchain.cost import cost
from toolchain.graph import Graph
from toolchain.least_squares_correction import RIDGE, folded, of_channels
from toolchain.one_file import Origin, read_origin
from toolchain.prune import Pruning, prune
from toolchain.reconstruction import measured_readers, removal_curves, within_flops
from toolchain.shapes import shapes

Moments = Callable[[str], PatchMoments]


def _moments(graph: Graph, seed: int = 0) -> Moments:
    """Of every layer correlated values of many sizes, as if pictures had been looked at."""

    def moments(name: str) -> PatchMoments:
        kernel = graph.by_name[name].weights["kernel"]
        random = np.random.default_rng((seed, *name.encode()))
        size = int(np.prod(kernel.shape[:3]))
        mixed = random.normal(0, 1, (size, size)) * random.uniform(0.1, 3, size)
        mean = random.normal(0, 1, size)
        return PatchMoments(mean, (mixed.T @ mixed / size + np.outer(mean, mean)).astype(np.float32), 4096)

    return moments


def _all(graph: Graph) -> Channels:
    return analyse(graph, [node.name for node in graph.nodes])


def _concatenated(side: int = 12) -> Graph:
    """A pyramid of pools: what reads it has every channel of "made" twice, and those of "other" once."""
    net = Layers(7)
    net.conv("made", "image", 3, side)
    net.conv("other", "image", 3, 8, size=1)
    net.add("pool", "MaxPooling2D", "made", pool_size=[3, 3], strides=[1, 1], padding="same")
    net.add("joined", "Concatenate", "made", "pool", "other", axis=-1)
    net.conv("reader", "joined", 2 * side + 8, 10)
    net.norm("reader_bn", "reader", 10)
    net.conv("last", "reader_bn", 10, 6)
    return Graph("net", tuple(net.nodes), ("last",))


def _left_by_regression(graph: Graph, channels: Channels, name: str, moments: Moments, gone: np.ndarray) -> float:
    """What a layer's output loses when the kept channels take over all they can, as a share of its energy."""
    node = graph.by_name[name]
    kernel = node.weights["kernel"].astype(np.float64)
    _, covariance = of_channels(moments(name), kernel.shape[2])
    covariance += np.eye(len(covariance)) * RIDGE * np.trace(covariance) / len(covariance)
    for norm in (reader for reader in graph.readers[name] if reader.op == "BatchNormalization"):
        kernel = kernel * norm.weights["gamma"] / np.sqrt(norm.weights["moving_variance"] + 1e-5)
    weights = np.moveaxis(kernel, 2, 0).reshape(kernel.shape[2], -1)
    lost = np.isin(channels.symbols[node.inputs[0]], gone)
    kept = covariance[np.ix_(~lost, ~lost)]
    across = covariance[np.ix_(lost, ~lost)]
    rest = covariance[np.ix_(lost, lost)] - across @ np.linalg.solve(kept, across.T)
    return float(np.sum(weights[lost] * (rest @ weights[lost])) / np.sum(weights * (covariance @ weights)))


@pytest.mark.parametrize("graph", [_concatenated(), toy_graph()], ids=["pyramid", "toy"])
def test_the_errors_are_those_of_a_regression_on_all_that_is_left(graph: Graph) -> None:
    channels, moments = _all(graph), _moments(graph)
    curves = removal_curves(graph, channels, moments)
    assert curves
    read = {name: channels.symbols[graph.by_name[name].inputs[0]] for name in measured_readers(graph, channels)}
    for group, curve in curves.items():
        readers = [name for name, symbols in read.items() if np.isin(symbols, group.symbols).any()]
        for count in (1, len(group.symbols) // 2, len(group.symbols) - 1):
            gone = group.symbols[curve.order[:count]]
            wanted = sum(_left_by_regression(graph, channels, name, moments, gone) for name in readers)
            # Downdates of a condition number of some 1e4 (RIDGE and sizes from 0.1 to 3), one after another.
            assert curve.errors[count] == pytest.approx(wanted, rel=1e-8)
        assert np.all(np.diff(curve.errors) >= 0)
        assert len(set(curve.order.tolist())) == len(group.symbols) - 1


def test_what_others_make_goes_first_and_costs_nothing() -> None:
    net = Layers(3)
    net.conv("made", "image", 3, 12)
    net.conv("reader", "made", 12, 5, size=1)
    graph = Graph("net", tuple(net.nodes), ("reader",))
    random = np.random.default_rng(1)
    values = random.normal(0, 1, (4000, 12))
    values[:, [2, 7]] = values[:, [0, 5]] @ random.normal(0, 1, (2, 2))
    moments = PatchMoments(values.mean(0), (values.T @ values / 4000).astype(np.float32), 4000)
    channels = _all(graph)
    (curve,) = removal_curves(graph, channels, lambda name: moments).values()
    # Two of the four are a function of the other two, whichever they are: the ridge is what they cost.
    assert set(curve.order[:2].tolist()) < {0, 2, 5, 7}
    assert curve.errors[2] < 12 * RIDGE < curve.errors[3]


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0.3, 1.0), multiple=st.sampled_from([1, 3, 4, 8]))
def test_at_most_the_share_is_left_and_channels_end_on_the_multiple(share: float, multiple: int) -> None:
    graph = toy_graph()
    channels = _all(graph)
    curves = removal_curves(graph, channels, _moments(graph))
    try:
        choices = within_flops(graph, channels, curves, share, multiple)
    except GraphError as error:
        assert "is the least in this scope" in str(error)
        return
    removed = np.concatenate([choice.group.symbols[choice.gone] for choice in choices])
    after = remove(graph, channels, removed.tolist())
    assert cost(after).flops <= share * cost(graph).flops
    extents = shapes(after)
    for choice in choices:
        if choice.gone.any():
            assert all(extents[layer][-1] % multiple == 0 for layer in choice.group.layers if layer != "grouped")
        else:
            assert choice.reason
    if share == 1.0:
        assert not removed.size


def test_a_share_out_of_reach_says_what_is_in_reach() -> None:
    graph = toy_graph()
    with pytest.raises(GraphError, match=r"of 'toy' 0\.\d+ is the least in this scope, and 0\.01 came; widen"):
        prune(graph, [node.name for node in graph.nodes], Pruning(flops=0.01), moments=_moments(graph))


def test_what_no_regression_can_make_up_for_stays_and_says_so() -> None:
    net = Layers(5)
    net.conv("made", "image", 3, 16)
    net.conv("split", "made", 16, 16, groups=2)
    net.conv("wide", "split", 16, 16)
    net.conv("last", "wide", 16, 4)
    graph = Graph("net", tuple(net.nodes), ("last",))
    result = prune(graph, [node.name for node in graph.nodes], Pruning(flops=0.9, multiple=2), moments=_moments(graph))
    reports = {layer.name: layer for layer in result.layers}
    assert reports["made"].reason == "read by 'split', a Conv2D that no regression can make up for"
    assert reports["wide"].channels is not None and reports["wide"].channels[1] < 16
    assert reports["wide"].error is not None and reports["wide"].error > 0


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(InputError, match="give ratio or flops"):
        Pruning(0.5, flops=0.5)
    with pytest.raises(InputError, match="give ratio or flops"):
        Pruning()
    with pytest.raises(InputError, match="0 came; 0.5 halves"):
        Pruning(flops=0)
    graph = toy_graph()
    with pytest.raises(InputError, match="looks at pictures: none are given"):
        prune(graph, [node.name for node in graph.nodes], Pruning(flops=0.5))


@pytest.mark.real_data
@pytest.mark.slow
def test_a_real_network_changes_less_than_by_norms_at_equal_flops(real_data: Path) -> None:
    weights = real_data / "weights"
    files = [weights / f"MobileNetV2-YOLOv3-Nano-voc.{kind}" for kind in ("cfg", "weights")]
    graph = read_origin(Origin(*files, weights / "voc.names", None, "stretch", False), seed=0)
    pictures = sorted((real_data / "voc2007" / "calibration200" / "JPEGImages").glob("*.jpg"))
    every = [node.name for node in graph.nodes]
    channels = analyse(graph, every)
    with activations.patch_moments(graph, measured_readers(graph, channels), pictures[:16]) as moments:
        chosen = prune(graph, every, Pruning(flops=0.75), moments=moments)
        by_norm = prune(graph, every, Pruning(0.16, cut="uniform"))
        networks = [folded(graph, made.graph, made.kept, moments) for made in (chosen, by_norm)]
    flops = [cost(one).flops / cost(graph).flops for one in networks]
    assert flops[0] <= 0.75 and flops[0] <= flops[1] < 0.8
    outputs = list(graph.outputs)
    whole, *found = (activations.channel_means(one, outputs, pictures[100:108]) for one in (graph, *networks))
    errors = [sum(float(np.square(one[name] - whole[name]).sum()) for name in outputs) for one in found]
    assert errors[0] < errors[1]
