"""Analytic shapes against Keras's own, and every refusal."""

from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from deploy.errors import GraphError
from toolchain.graph import Graph, Node
from toolchain.shape_rules import padding_of, pair
from toolchain.shapes import has_rule, shapes

_SETTINGS = hypothesis.settings(deadline=None, max_examples=60)
_SIZE = st.integers(1, 40)
_PAIR = st.tuples(st.integers(1, 5), st.integers(1, 5))


def _shape(op: str, attributes: dict[str, Any], *inputs: tuple[int, ...], **weights: np.ndarray) -> tuple[int, ...]:
    nodes = [Node(f"in_{index}", "InputLayer", (), {"shape": list(shape)}) for index, shape in enumerate(inputs)]
    node = Node("node", op, tuple(node.name for node in nodes), attributes, weights)
    return shapes(Graph("g", (*nodes, node), ("node",)))["node"]


def _agree(op: str, attributes: dict[str, Any], *inputs: tuple[int, ...]) -> None:
    """Both give the same shape, or both refuse."""
    import keras

    batched: Any = [(None, *shape) for shape in inputs]
    try:
        expected = getattr(keras.layers, op)(**attributes).compute_output_shape(
            batched if len(inputs) > 1 else batched[0]
        )[1:]
    except (ValueError, TypeError):
        expected = None
    if expected is None or min(expected) < 1:
        with pytest.raises(GraphError, match="'node'"):
            _shape(op, attributes, *inputs)
    else:
        assert _shape(op, attributes, *inputs) == tuple(expected)


@_SETTINGS
@hypothesis.given(
    st.sampled_from(["Conv2D", "DepthwiseConv2D", "SeparableConv2D"]),
    _SIZE,
    _SIZE,
    st.integers(1, 4),
    _PAIR,
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from(["valid", "same"]),
    st.integers(1, 3),
)
def test_convolutions_agree_with_keras(
    op: str,
    height: int,
    width: int,
    channels: int,
    kernel: tuple[int, int],
    stride: int,
    dilation: int,
    padding: str,
    filters: int,
) -> None:
    # Keras itself allows only one of the two to differ from 1.
    hypothesis.assume(stride == 1 or dilation == 1)
    attributes: dict[str, Any] = {
        "kernel_size": kernel,
        "strides": stride,
        "padding": padding,
        "dilation_rate": dilation,
    }
    attributes |= {"depth_multiplier": filters} if op == "DepthwiseConv2D" else {"filters": filters}
    _agree(op, attributes, (height, width, channels))


@_SETTINGS
@hypothesis.given(
    st.integers(1, 9),
    st.integers(1, 9),
    _PAIR,
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from(["valid", "same"]),
    st.one_of(st.none(), st.integers(0, 3)),
)
def test_transposed_convolutions_agree_with_keras(
    height: int, width: int, kernel: tuple[int, int], stride: int, dilation: int, padding: str, extra: int | None
) -> None:
    hypothesis.assume((extra is None or extra < stride) and (stride == 1 or dilation == 1))
    attributes = {
        "filters": 5,
        "kernel_size": kernel,
        "strides": stride,
        "padding": padding,
        "dilation_rate": dilation,
        "output_padding": extra,
    }
    _agree("Conv2DTranspose", attributes, (height, width, 3))


@_SETTINGS
@hypothesis.given(
    st.sampled_from(["MaxPooling2D", "AveragePooling2D"]),
    _SIZE,
    _SIZE,
    _PAIR,
    st.one_of(st.none(), _PAIR),
    st.sampled_from(["valid", "same"]),
)
def test_pooling_agrees_with_keras(
    op: str, height: int, width: int, size: tuple[int, int], strides: tuple[int, int] | None, padding: str
) -> None:
    _agree(op, {"pool_size": size, "strides": strides, "padding": padding}, (height, width, 3))


@pytest.mark.parametrize(
    ("op", "attributes", "inputs"),
    [
        ("ZeroPadding2D", {"padding": 2}, [(5, 6, 3)]),
        ("ZeroPadding2D", {"padding": [1, 2]}, [(5, 6, 3)]),
        ("ZeroPadding2D", {"padding": [[0, 1], [2, 3]]}, [(5, 6, 3)]),
        ("ZeroPadding2D", {}, [(5, 6, 3)]),
        ("Cropping2D", {"cropping": [[1, 0], [2, 1]]}, [(5, 6, 3)]),
        ("Cropping2D", {"cropping": 3}, [(5, 6, 3)]),
        ("UpSampling2D", {"size": [2, 3]}, [(5, 6, 3)]),
        ("UpSampling2D", {}, [(5, 6, 3)]),
        ("GlobalAveragePooling2D", {}, [(5, 6, 3)]),
        ("GlobalAveragePooling2D", {"keepdims": True}, [(5, 6, 3)]),
        ("GlobalMaxPooling2D", {"keepdims": True}, [(5, 6, 3)]),
        ("Flatten", {}, [(5, 6, 3)]),
        ("Reshape", {"target_shape": (10, -1)}, [(5, 6, 3)]),
        ("Reshape", {"target_shape": (7, -1)}, [(5, 6, 3)]),
        ("Permute", {"dims": (3, 1, 2)}, [(5, 6, 3)]),
        ("RepeatVector", {"n": 4}, [(7,)]),
        ("Dense", {"units": 4}, [(5, 6, 3)]),
        ("BatchNormalization", {}, [(5, 6, 3)]),
        ("LayerNormalization", {}, [(5, 6, 3)]),
        ("Rescaling", {"scale": 2.0}, [(5, 6, 3)]),
        ("PReLU", {"shared_axes": [1, 2]}, [(5, 6, 3)]),
        ("Softmax", {}, [(5, 6, 3)]),
        ("Dropout", {"rate": 0.5}, [(5, 6, 3)]),
        ("Add", {}, [(5, 6, 3), (5, 6, 3)]),
        ("Multiply", {}, [(5, 6, 3), (1, 1, 3)]),
        ("Maximum", {}, [(5, 6, 3), (5, 6, 1)]),
        ("Average", {}, [(5, 6, 3), (4, 6, 3)]),
        ("Concatenate", {}, [(5, 6, 3), (5, 6, 4)]),
        ("Concatenate", {"axis": 1}, [(5, 6, 3), (4, 6, 3)]),
        ("Concatenate", {"axis": 3}, [(5, 6, 3), (5, 6, 2)]),
    ],
)
def test_layers_agree_with_keras(op: str, attributes: dict[str, Any], inputs: list[tuple[int, ...]]) -> None:
    _agree(op, attributes, *inputs)


def test_ops_of_ours() -> None:
    assert _shape("Slice", {"axis": -1, "start": 2, "stop": 5}, (4, 6, 8)) == (4, 6, 5 - 2)
    assert _shape("Slice", {"axis": -3, "start": 1, "stop": 2}, (4, 6, 8)) == (1, 6, 8)
    assert _shape("Resize", {"height": 9, "width": 7, "interpolation": "nearest"}, (4, 6, 8)) == (9, 7, 8)
    assert _shape("DarknetReorg", {"stride": 2}, (4, 6, 8)) == (4 // 2, 6 // 2, 8 * 2 * 2)
    assert _shape("MirrorPad", {"padding": [[1, 2], [3, 4]], "mode": "symmetric"}, (4, 6, 8)) == (4 + 3, 6 + 7, 8)


def test_sizes_come_from_the_kernel_where_the_attributes_do_not_say_them() -> None:
    kernel = np.zeros((3, 5, 2, 7), np.float32)
    assert _shape("Conv2D", {"groups": 2}, (10, 10, 4), kernel=np.zeros((3, 5, 2, 8), np.float32)) == (
        10 - 2,
        10 - 4,
        8,
    )
    assert _shape("Conv2D", {"padding": "same"}, (10, 10, 2), kernel=kernel) == (10, 10, 7)
    assert _shape("DepthwiseConv2D", {}, (10, 10, 4), kernel=np.zeros((3, 3, 4, 1), np.float32)) == (8, 8, 4)
    assert _shape("Dense", {}, (10,), kernel=np.zeros((10, 3), np.float32)) == (3,)


def test_an_op_without_a_rule_has_the_shape_that_was_recorded() -> None:
    assert not has_rule("MultiHeadAttention") and has_rule("Conv2D") and has_rule("Add") and has_rule("Dropout")
    assert _shape("MultiHeadAttention", {"recorded_shape": [7, 3]}, (7, 3)) == (7, 3)
    with pytest.raises(GraphError, match="MultiHeadAttention 'node' has no recorded_shape"):
        _shape("MultiHeadAttention", {}, (7, 3))
    with pytest.raises(GraphError, match="give the input size"):
        _shape("MultiHeadAttention", {"recorded_shape": [None, 3]}, (7, 3))


@pytest.mark.parametrize(
    ("op", "attributes", "shape", "sentence"),
    [
        ("Conv2D", {"kernel_size": 7, "filters": 1}, (5, 5, 3), "at least one element"),
        ("Conv2D", {"kernel_size": 1, "filters": 4, "groups": 2}, (5, 5, 3), "groups divide the channels"),
        ("Conv2D", {"kernel_size": 1, "filters": 4, "padding": "causal"}, (5, 5, 3), "padding is valid or same"),
        ("Conv2D", {"kernel_size": 1, "filters": 4, "strides": 0}, (5, 5, 3), "at least 1"),
        ("Conv2D", {"kernel_size": 1, "filters": 4}, (5, 3), "reads \\(height, width, channels\\)"),
        ("Conv2D", {"filters": 4}, (5, 5, 3), "has neither the attribute kernel_size nor the weight kernel"),
        ("Conv2D", {"kernel_size": "three", "filters": 4}, (5, 5, 3), "malformed"),
        ("Resize", {"height": 4}, (5, 5, 3), "'width' is missing"),
        ("DarknetReorg", {"stride": 2}, (5, 6, 4), "reorg's stride divides"),
        ("DarknetReorg", {"stride": 2}, (2, 6, 1), "reorg's stride divides"),
        ("Slice", {"start": 1, "stop": 9}, (5, 6, 8), "takes 1:9 of 8"),
        ("Slice", {"start": 3, "stop": 3}, (5, 6, 8), "takes 3:3 of 8"),
        ("Slice", {"axis": 0, "start": 0, "stop": 1}, (5, 6, 8), "an axis lies inside"),
        ("MirrorPad", {"padding": 6, "mode": "symmetric"}, (5, 6, 8), "no more than there is"),
        ("MirrorPad", {"padding": 5, "mode": "reflect"}, (5, 6, 8), "no more than there is"),
        ("Reshape", {"target_shape": [-1, -1]}, (5, 6, 8), "keeps the number of elements"),
        ("Permute", {"dims": [1, 2]}, (5, 6, 8), "names every axis once"),
    ],
)
def test_what_cannot_be_is_refused_with_the_node(
    op: str, attributes: dict[str, Any], shape: tuple[int, ...], sentence: str
) -> None:
    with pytest.raises(GraphError, match=sentence) as caught:
        _shape(op, attributes, shape)
    assert "'node'" in str(caught.value)


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(GraphError, match=r"kernel of Conv2D 'node' is \(3, 3, 4, 8\), expected \(3, 3, 3, 8\)"):
        _shape("Conv2D", {}, (9, 9, 3), kernel=np.zeros((3, 3, 4, 8), np.float32))
    with pytest.raises(GraphError, match=r"gamma of BatchNormalization 'node' is \(4,\), expected \(3,\)"):
        _shape("BatchNormalization", {}, (9, 9, 3), gamma=np.ones(4, np.float32))


def test_the_number_of_inputs_is_checked() -> None:
    with pytest.raises(GraphError, match="reads 1 node"):
        _shape("ReLU", {}, (3,), (3,))
    with pytest.raises(GraphError, match="reads at least one node"):
        shapes(Graph("g", (Node("node", "Add"),), ("node",)))


def test_only_the_joined_axis_may_differ() -> None:
    with pytest.raises(GraphError, match="all axes but the joined one agree: Concatenate 'node'"):
        _shape("Concatenate", {"axis": 3}, (5, 6, 3), (4, 6, 3))


def test_an_open_input_size_is_refused() -> None:
    with pytest.raises(GraphError, match=r"InputLayer 'a' is \(None, None, 3\); give the input size"):
        shapes(Graph("g", (Node("a", "InputLayer", (), {"shape": [None, None, 3]}),), ("a",)))


def test_a_call_that_shares_weights_is_checked_against_them() -> None:
    kernel = np.zeros((1, 1, 3, 5), np.float32)
    nodes = (
        Node("a", "InputLayer", (), {"shape": [4, 4, 3]}),
        Node("b", "Conv2D", ("a",), {}, {"kernel": kernel}),
        Node("c", "Conv2D", ("a",), {}, shared_with="b"),
        Node("d", "Conv2D", ("a",), {}, shared_with="c"),
    )
    assert shapes(Graph("g", nodes, ("c",)))["d"] == (4, 4, 5)


def test_small_functions() -> None:
    assert pair(3) == (3, 3) and pair([1, 2]) == (1, 2)
    assert padding_of(Node("a", "ZeroPadding2D", (), {"padding": [1, [2, 3]]})) == ((1, 1), (2, 3))
