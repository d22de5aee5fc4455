"""Patches times kernel are what Keras's own convolution computes, with any kernel, stride, dilation and padding."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given, settings

from toolchain.graph import Node
from toolchain.patches import gather, windows

small = st.tuples(st.integers(1, 4), st.integers(1, 4))
sides = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=60, deadline=None)
@given(size=sides, channels=st.integers(1, 3), kernel=small, strides=small, dilation=small, padding=st.data())
def test_patches_times_kernel_are_the_convolution(
    size: tuple[int, int],
    channels: int,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilation: tuple[int, int],
    padding: Any,
) -> None:
    import keras

    chosen = padding.draw(st.sampled_from(["same", "valid"]))
    # Keras has strides or dilation, not both, and no output of no size.
    if max(strides) > 1:
        dilation = (1, 1)
    reach = [(taps - 1) * spread + 1 for taps, spread in zip(kernel, dilation)]
    assume(chosen == "same" or (reach[0] <= size[0] and reach[1] <= size[1]))
    random = np.random.default_rng(0)
    # Small whole numbers: sums are exact in every order.
    x = random.integers(-8, 9, (*size, channels)).astype(np.float32)
    weights = {"kernel": random.integers(-8, 9, (*kernel, channels, 5)).astype(np.float32)}
    attributes = {"kernel_size": list(kernel), "strides": list(strides), "dilation_rate": list(dilation)}
    node = Node("conv", "Conv2D", ("x",), {**attributes, "padding": chosen}, weights)
    where = windows(node, weights, x.shape)
    expected = keras.ops.convert_to_numpy(
        keras.ops.conv(x[None], weights["kernel"], strides, chosen, "channels_last", dilation)
    )[0]
    assert where.positions == expected.shape[:2]
    everywhere = np.arange(expected[..., 0].size)
    found = gather(x, where, everywhere) @ weights["kernel"].reshape(where.length, 5)
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)


def test_a_patch_is_taps_by_row_column_and_channel_with_zeros_outside() -> None:
    x = np.arange(1, 1 + 3 * 4 * 2, dtype=np.float32).reshape(3, 4, 2)
    node = Node("conv", "Conv2D", ("x",), {"kernel_size": [2, 2], "padding": "same", "strides": [2, 2]})
    where = windows(node, {}, x.shape)
    # Two rows of positions need 2 * 2 = 4 rows of input: one more than there are, and that one below.
    assert (where.positions, where.before, where.after, where.length) == ((2, 2), (0, 0), (1, 0), 2 * 2 * 2)
    last, first = gather(x, where, np.array([3, 0]))
    assert last.tolist() == [*x[2, 2], *x[2, 3], 0, 0, 0, 0]
    assert first.tolist() == [*x[0, 0], *x[0, 1], *x[1, 0], *x[1, 1]]


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_settings_that_a_node_leaves_out_are_kerass(padding: str) -> None:
    weights = {"kernel": np.zeros((3, 3, 2, 4), np.float32)}
    where = windows(Node("conv", "Conv2D", ("x",), {"padding": padding}, weights), weights, (5, 6, 2))
    assert (where.strides, where.dilation, where.kernel) == ((1, 1), (1, 1), (3, 3))
    assert where.positions == ((5, 6) if padding == "same" else (5 - 2, 6 - 2))
