import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.errors import InputError
from file_kernels import file_kernels
from small_training import TRAINING, data, small_graph, train_here
from toolchain.convert import convert
from toolchain.graph import Graph
from toolchain.kernel_report import packed_bytes, share_of_zeros
from toolchain.sparsity import _UPDATES, Sparsity, sparsify, update_steps
from toy_network import toy_graph

PREDICTS = "it predicts; include it by name"
DEPTHWISE = "DepthwiseConv2D: tensorflow-model-optimization leaves its few weights alone"


def kernel(graph: Graph, name: str) -> np.ndarray:
    return graph.by_name[name].weights["kernel"]


def test_every_layer_in_scope_gets_its_share_of_zeros_and_they_reach_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    graph = toy_graph()
    with monkeypatch.context() as patch:
        train_here(patch)
        result = sparsify(graph, Sparsity(0.8, exclude=("near",)), TRAINING, data())
        convert(result.graph, "float32", tmp_path / "sparse.tflite")
    reasons = {layer.name: layer.reason for layer in result.layers if layer.reason}
    assert reasons == {"near": "left out by the scope", "far": PREDICTS, "depthwise": DEPTHWISE}
    for layer in result.layers:
        if not layer.reason:
            array = kernel(result.graph, layer.name)
            # What stays is a whole number of weights.
            assert (array != 0).sum() == round(array.size * 0.2), layer.name
            assert layer.zeros == (0.0, (array == 0).mean())
            # No -0 among them, which would not pack as well.
            assert not np.signbit(array[array == 0]).any()
    assert (kernel(result.graph, "near") != 0).all()
    assert result.facts["zeros"] == [0.0, share_of_zeros(result.graph)]
    before, after = result.facts["packed_bytes"]
    assert (before, after) == (packed_bytes(graph), packed_bytes(result.graph)) and after < 0.6 * before
    assert result.notes[0].startswith("sparsity makes the compressed file smaller and nothing faster")
    assert f"{after / 1e6:.2f} MB after gzip, {before / 1e6:.2f} MB before" in result.notes[0]
    names = ("conv_0", "conv_1", "grouped", "depthwise", "conv_2", "conv_3")
    for name, found in zip(names, file_kernels(tmp_path / "sparse.tflite"), strict=False):
        if name != "depthwise":
            np.testing.assert_array_equal(found == 0, np.moveaxis(kernel(result.graph, name), -1, 0) == 0)


def test_two_of_four_input_channels_are_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    train_here(monkeypatch)
    result = sparsify(toy_graph(), Sparsity(pattern="2:4"), TRAINING, data())
    assert {layer.name: layer.reason for layer in result.layers if layer.reason} == {
        "conv_0": "2:4 counts input channels of a convolution in fours: Conv2D with 3",
        "depthwise": DEPTHWISE,
        "far": PREDICTS,
        "near": PREDICTS,
    }
    for name in ("conv_1", "grouped", "conv_2", "conv_3"):
        array = kernel(result.graph, name)
        fours = array.reshape(*array.shape[:2], -1, 4, array.shape[3])
        assert ((fours == 0).sum(3) == 2).all(), name


def test_the_smallest_weights_go(monkeypatch: pytest.MonkeyPatch) -> None:
    train_here(monkeypatch)
    graph = small_graph()
    # Hardly a step: the order of the weights stays.
    still = dataclasses.replace(TRAINING, learning_rate=1e-12, epochs=1)
    result = sparsify(graph, Sparsity(0.5, include=("conv_1",)), still, data())
    before, after = np.abs(kernel(graph, "conv_1")), kernel(result.graph, "conv_1")
    assert before[after == 0].max() <= before[after != 0].min()
    np.testing.assert_allclose(after[after != 0], kernel(graph, "conv_1")[after != 0], rtol=1e-6)


@given(begin=st.floats(0, 1), end=st.floats(0, 1), steps=st.integers(1, 100_000))
def test_the_last_update_is_the_last_step_of_its_part(begin: float, end: float, steps: int) -> None:
    begin, end = sorted((begin, end))
    first, last, frequency = update_steps(begin, end, steps)
    assert 0 <= first < last <= steps and frequency >= 1
    assert last == max(1, round(end * steps))
    assert (last - first) % frequency == 0 and (last - first) // frequency < 2 * _UPDATES
    # No earlier than asked for, unless that is the end; and later by less than one update.
    assert min(round(begin * steps), last - 1) <= first < min(round(begin * steps), last - 1) + frequency


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"sparsity": 0.0}, "above 0 and below 1: got 0.0"),
        ({"sparsity": 1.0}, "above 0 and below 1: got 1.0"),
        ({"sparsity": float("nan")}, "above 0 and below 1: got nan"),
        ({"begin": 0.7}, "got 0.7 and 0.7"),
        ({"begin": -0.1}, "got -0.1 and 0.7"),
        ({"end": 1.1}, "got 0.0 and 1.1"),
        ({"pattern": "1:2"}, "unstructured or 2:4: got '1:2'"),
    ],
)
def test_senseless_settings_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Sparsity(**settings)
