"""The patches that a convolution multiplies its kernel with, gathered from its input at chosen output positions.

For output position (i, j), kernel tap (a, b) and input channel c the patch holds
    p[a, b, c] = x[i * stride_rows + a * dilation_rows - top, j * stride_columns + b * dilation_columns - left, c]
and 0 where that lies outside x. Flattened in that order it has d = kh * kw * cin values, and the convolution's output
at (i, j), without its bias, is kernel.reshape(d, cout)^T p.

Padding "same" makes ceil(size / stride) positions, and of the padding that these need the smaller half is top and left
(TensorFlow's rule); "valid" pads nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from toolchain.graph import Node
from toolchain.shape_rules import Shape, kernel_size, pair, window_output


@dataclasses.dataclass(frozen=True)
class Windows:
    """How a convolution walks over its input: every pair is (rows, columns)."""

    #: Of the input.
    size: tuple[int, int]
    channels: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int]
    #: Output positions.
    positions: tuple[int, int]
    #: Zeros above and to the left, and below and to the right.
    before: tuple[int, int]
    after: tuple[int, int]

    @property
    def length(self) -> int:
        """d, the values of one patch."""
        return self.kernel[0] * self.kernel[1] * self.channels


def windows(node: Node, weights: Mapping[str, np.ndarray], shape: Shape) -> Windows:
    """The windows of a Conv2D without groups. weights are those that it uses, shape its input's: (height, width,
    channels)."""
    kernel, strides = kernel_size(node, weights), pair(node.attributes.get("strides", 1))
    dilation, padding = pair(node.attributes.get("dilation_rate", 1)), node.attributes.get("padding", "valid")
    positions, before, after = [], [], []
    for size, taps, stride, spread in zip(shape[:2], kernel, strides, dilation, strict=True):
        count = window_output(size, taps, stride, spread, padding)
        needed = max((count - 1) * stride + (taps - 1) * spread + 1 - size, 0) if padding == "same" else 0
        positions.append(count)
        before.append(needed // 2)
        after.append(needed - needed // 2)
    return Windows(
        size=pair(shape[:2]),
        channels=shape[2],
        kernel=kernel,
        strides=strides,
        dilation=dilation,
        positions=pair(positions),
        before=pair(before),
        after=pair(after),
    )


def gather(x: np.ndarray, where: Windows, positions: np.ndarray) -> np.ndarray:
    """The patches (m, d) of one input x (height, width, channels), in x's dtype. positions: int (m,), each i * columns
    + j of an output position, 0 <= i < rows and 0 <= j < columns."""
    padded = np.pad(x, (*zip(where.before, where.after, strict=True), (0, 0)))
    row, column = np.divmod(positions, where.positions[1])
    rows = row[:, None] * where.strides[0] + np.arange(where.kernel[0]) * where.dilation[0]
    columns = column[:, None] * where.strides[1] + np.arange(where.kernel[1]) * where.dilation[1]
    flat = rows[:, :, None] * padded.shape[1] + columns[:, None, :]
    return padded.reshape(-1, where.channels)[flat].reshape(len(positions), where.length)
