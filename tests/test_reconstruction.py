"""Channels that go for a share of the FLOPs: errors against a regression done at once, counts, and real networks."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_here import values
from toy_network import Layers, toy_graph

from deploy.errors import GraphError, InputError
from toolchain import activations
from toolchain.activations import ChannelMoments
from toolchain.channels import Channels, analyse, remove
from toolchain.cost import cost
from toolchain.graph import Graph
from toolchain.least_squares_correction import RIDGE, folded
from toolchain.one_file import Origin, read_origin
from toolchain.prune import Pruning, prune
from toolchain.reconstruction import measured_sources, removal_curves, within_flops
from toolchain.shapes import shapes
from toolchain.taylor import output_weights


def _moments(graph: Graph, seed: int = 0) -> dict[str, ChannelMoments]:
    """Of every node that has channels correlated values of many sizes, as if pictures had been looked at."""
    found = {}
    for name, shape in shapes(graph).items():
        random = np.random.default_rng((seed, *name.encode()))
        mixed, slopes = (random.normal(0, 1, (shape[-1],) * 2) * random.uniform(0.1, 3, shape[-1]) for _ in range(2))
        mean = random.normal(0, 1, shape[-1])
        second = mixed.T @ mixed / shape[-1] + np.outer(mean, mean)
        found[name] = ChannelMoments(slopes.T @ slopes, second, mean)
    return found


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


def _left_by_regression(symbols: np.ndarray, moments: ChannelMoments, gone: np.ndarray) -> float:
    """E[(Σ a·e)²] when the kept channels take over all they can, all at once."""
    covariance = moments.covariance + np.eye(len(symbols)) * RIDGE * np.trace(moments.covariance) / len(symbols)
    lost = np.isin(symbols, gone)
    kept = covariance[np.ix_(~lost, ~lost)]
    across = covariance[np.ix_(lost, ~lost)]
    rest = covariance[np.ix_(lost, lost)] - across @ np.linalg.solve(kept, across.T)
    return float(np.sum(moments.slopes[np.ix_(lost, lost)] * rest))


@pytest.mark.parametrize("graph", [_concatenated(), toy_graph()], ids=["pyramid", "toy"])
def test_the_errors_are_those_of_a_regression_on_all_that_is_left(graph: Graph) -> None:
    channels, moments = _all(graph), _moments(graph)
    curves = removal_curves(graph, channels, moments)
    assert curves
    read = {name: channels.symbols[name] for name in measured_sources(graph, channels)}
    for group, curve in curves.items():
        sources = {name: symbols for name, symbols in read.items() if np.isin(symbols, group.symbols).any()}
        for count in (1, len(group.symbols) // 2, len(group.symbols) - 1):
            gone = group.symbols[curve.order[:count]]
            wanted = sum(_left_by_regression(symbols, moments[name], gone) for name, symbols in sources.items())
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
    held = random.normal(0, 1, (4000, 12))
    held[:, [2, 7]] = held[:, [0, 5]] @ random.normal(0, 1, (2, 2))
    moments = ChannelMoments(np.eye(12), held.T @ held / 4000, held.mean(0))
    channels = _all(graph)
    (curve,) = removal_curves(graph, channels, {"made": moments}).values()
    # Two of the four are a function of the other two, whichever they are: the ridge is what they cost.
    assert set(curve.order[:2].tolist()) < {0, 2, 5, 7}
    assert curve.errors[2] < 12 * RIDGE < curve.errors[3]


def test_what_detections_mind_stays() -> None:
    net = Layers(3)
    net.conv("made", "image", 3, 12)
    net.conv("reader", "made", 12, 5, size=1)
    graph = Graph("net", tuple(net.nodes), ("reader",))
    slopes = np.random.default_rng(4).permutation(12) + 1.0
    # Equally large and independent channels: the slopes alone decide.
    moments = ChannelMoments(np.diag(slopes), np.eye(12), np.zeros(12))
    (curve,) = removal_curves(graph, _all(graph), {"made": moments}).values()
    assert curve.order.tolist() == np.argsort(slopes).tolist()[:-1]


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
    # Another measure than the share of scores that pruning by ratio reports, and told as such.
    assert "to first order" in result.error and "scores by" not in result.error


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
def test_a_real_networks_detections_change_less_than_by_norms(real_data: Path, tmp_path: Path) -> None:
    weights = real_data / "weights"
    files = [weights / f"MobileNetV2-YOLOv3-Nano-voc.{kind}" for kind in ("cfg", "weights")]
    graph = read_origin(Origin(*files, weights / "voc.names", None, "stretch", False), seed=0)
    pictures = sorted((real_data / "voc2007" / "calibration200" / "JPEGImages").glob("*.jpg"))
    every = [node.name for node in graph.nodes]
    moments = activations.channel_moments(graph, measured_sources(graph, analyse(graph, every)), pictures[:16])
    by_norm = prune(graph, every, Pruning(0.12, cut="uniform"))
    share = cost(by_norm.graph).flops / cost(graph).flops
    assert 0.7 < share < 0.9
    chosen = prune(graph, every, Pruning(flops=share), moments=moments)

    def statistics(layer: str) -> tuple[np.ndarray, np.ndarray]:
        found = moments[graph.by_name[layer].inputs[0]]
        return found.mean, found.covariance

    networks = [folded(graph, made.graph, made.kept, statistics) for made in (chosen, by_norm)]
    assert cost(networks[0]).flops <= cost(networks[1]).flops
    outputs = list(graph.outputs)
    whole, *found = (values(one, outputs, pictures[100:104], tmp_path) for one in (graph, *networks))
    assert graph.head is not None
    weights_of = output_weights(graph.head, whole)
    errors = [sum(np.square(weights_of[name] * (one[name] - whole[name])).sum() for name in outputs) for one in found]
    assert errors[0] < errors[1]
