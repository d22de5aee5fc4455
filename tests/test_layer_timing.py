"""Layers against what would stand in their place, on the interpreter. No test asserts a time."""

import dataclasses
import math

import numpy as np
import pytest

from deploy.errors import GraphError, InputError
from toolchain import child_process
from toolchain.graph import Graph, Node
from toolchain.layer_timing import Candidate, structure, time_candidates


def layer(
    name: str = "conv", cin: int = 8, cout: int = 16, *, side: int = 12, seed: int = 0, activation: str = "linear"
) -> Graph:
    """A 3x3 convolution of stride 2 with its picture's layer before it."""
    kernel = np.random.default_rng(seed).normal(0, 0.1, (3, 3, cin, cout)).astype(np.float32)
    settings = {"filters": cout, "kernel_size": [3, 3], "strides": [2, 2], "padding": "same", "use_bias": False}
    entry = Node(f"{name}_input", "InputLayer", (), {"shape": [side, side, cin]})
    settings["activation"] = activation
    return Graph(name, (entry, Node(name, "Conv2D", (entry.name,), settings, {"kernel": kernel})), (name,))


def split(whole: Graph, rank: int = 4) -> Graph:
    """Three convolutions in place of the one."""
    entry, conv = whole.nodes
    cin, cout = conv.weights["kernel"].shape[2:]
    random = np.random.default_rng(1)
    nodes, source = [entry], entry.name
    for index, (size, a, b) in enumerate(((1, cin, rank), (3, rank, rank), (1, rank, cout))):
        settings = {"filters": b, "kernel_size": [size, size], "use_bias": False, "padding": "same"}
        settings["strides"] = conv.attributes["strides"] if size == 3 else [1, 1]
        settings["activation"] = conv.attributes["activation"] if index == 2 else "linear"
        kernel = random.normal(0, 0.3, (size, size, a, b)).astype(np.float32)
        nodes.append(Node(f"{conv.name}_tucker_{index}", "Conv2D", (source,), settings, {"kernel": kernel}))
        source = nodes[-1].name
    return Graph(whole.name, tuple(nodes), (source,))


def pair(name: str = "conv", **settings) -> Candidate:
    whole = layer(name, **settings)
    return Candidate(name, whole, split(whole))


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_both_precisions_give_times_of_every_layer(precision):
    """Mish has no integer kernel: in int8 it shows that layers are lowered as networks are."""
    told = []
    candidates = [pair("plain"), pair("mish", activation="mish"), pair("again", seed=5)]
    times = time_candidates(candidates, precision=precision, progress=lambda done, total: told.append((done, total)))
    assert list(times) == ["plain", "mish", "again"]
    assert all(math.isfinite(value) and value > 0 for both in times.values() for value in both)
    # Measured once for both, so they are equal to the last bit.
    assert times["again"] == times["plain"]
    assert told == [(1, 2), (2, 2)]


def test_a_layer_that_keras_refuses_is_named():
    wrong = layer("odd")
    conv = dataclasses.replace(wrong.nodes[1], attributes={**wrong.nodes[1].attributes, "activation": "unheard"})
    candidate = Candidate("odd", layer("odd"), dataclasses.replace(wrong, nodes=(wrong.nodes[0], conv)))
    with pytest.raises(GraphError, match="^layer 'odd' cannot be timed: .*'odd' was refused"):
        time_candidates([candidate], precision="float32")


def test_structure_is_the_same_for_other_names_and_weights():
    one, other = layer("one"), layer("other", seed=9)
    assert structure(one) == structure(other)
    assert structure(split(one)) == structure(split(other))
    trained = dataclasses.replace(one.nodes[1], attributes={**one.nodes[1].attributes, "trainable": False})
    assert structure(dataclasses.replace(one, nodes=(one.nodes[0], trained))) == structure(one)


def test_structure_differs_with_all_that_time_depends_on():
    base = layer()
    others = [layer(cin=9), layer(cout=17), layer(side=13), layer(activation="relu"), split(base), split(base, 5)]
    entry, conv = base.nodes
    dilated = dataclasses.replace(conv, attributes={**conv.attributes, "strides": [1, 1]})
    others.append(dataclasses.replace(base, nodes=(entry, dilated)))
    add = Node("sum", "Add", ("conv", "conv"))
    others.append(dataclasses.replace(base, nodes=(*base.nodes, add), outputs=("sum",)))
    multiply = dataclasses.replace(add, op="Multiply")
    others.append(dataclasses.replace(base, nodes=(*base.nodes, multiply), outputs=("sum",)))
    others.append(dataclasses.replace(base, nodes=(*base.nodes, add), outputs=("sum", "conv")))
    assert len({structure(graph) for graph in [base, *others]}) == 1 + len(others)


def test_equal_pairs_are_measured_once(monkeypatch):
    asked = []

    def run(function, arguments, place, *, step):
        asked.append((arguments["names"], arguments["precision"], arguments["threads"]))
        return [[float(index), index + 0.5] for index in range(len(arguments["names"]))]

    monkeypatch.setattr(child_process, "run", run)
    whole = layer()
    candidates = [
        pair("a"),
        pair("b", cout=24),
        pair("c", seed=3),
        # The same layer before, another after.
        Candidate("d", whole, split(whole, 2)),
        pair("e", cout=24, seed=4),
    ]
    times = time_candidates(candidates, precision="int8", threads=2)
    assert asked == [(["a", "b", "d"], "int8", 2)]
    assert times == {"a": (0.0, 0.5), "b": (1.0, 1.5), "c": (0.0, 0.5), "d": (2.0, 2.5), "e": (1.0, 1.5)}


def test_no_candidates_start_no_process(monkeypatch):
    monkeypatch.setattr(child_process, "run", None)
    assert time_candidates([], precision="float32") == {}


def test_what_cannot_be_timed_is_refused_before_a_process_starts(monkeypatch):
    monkeypatch.setattr(child_process, "run", None)
    with pytest.raises(InputError, match="in float32 or int8, not in 'float16'"):
        time_candidates([pair()], precision="float16")
    with pytest.raises(GraphError, match="'conv' comes twice"):
        time_candidates([pair(), pair(side=20)], precision="float32")
    whole = layer()
    second = Node("more", "InputLayer", (), {"shape": [12, 12, 8]})
    free = dataclasses.replace(whole.nodes[0], attributes={"shape": [None, None, 8]})
    for nodes in ((second, *whole.nodes), (free, whole.nodes[1])):
        with pytest.raises(GraphError, match="one input of known size and an output: that of 'conv'"):
            time_candidates([Candidate("conv", whole, dataclasses.replace(whole, nodes=nodes))], precision="float32")
