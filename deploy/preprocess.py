"""From a picture to the input tensor, and boxes back: the one way in for calibration, verification, accuracy and
camera.

The picture is resized in 8 bits, its colours are put in the network's order, and a look-up table of 256 entries a
channel makes the tensor's values: every dtype is exact, and the same on every machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np

from deploy.contract import Input, Tensor
from deploy.errors import ContractError, InputError

#: Longest side of a picture that OpenCV projects.
_MOST_WARPED = 2**15 - 2


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a picture lies in the input: x_input = x_source * scale_x + pad_x, and the same for y. All in pixels."""

    source_width: int
    source_height: int
    input_width: int
    input_height: int
    #: Side of the resized picture in the input over the source's; the two differ by rounding with letterbox.
    scale_x: float
    scale_y: float
    #: Left and upper bar.
    pad_x: int
    pad_y: int

    @property
    def width(self) -> int:
        """Of the resized picture."""
        return round(self.source_width * self.scale_x)

    @property
    def height(self) -> int:
        return round(self.source_height * self.scale_y)


def place(source_hw: tuple[int, int], input: Input) -> Placement:
    """Where a picture of (height, width) lies. Letterbox keeps its shape, centred between bars, in the whole-number
    arithmetic of darknet's letterbox_image; both ways to stretch fill the input."""
    source_height, source_width = source_hw
    width, height = input.width, input.height
    if input.resize == "letterbox":
        if input.width * source_height < input.height * source_width:
            height = max(1, source_height * input.width // source_width)
        else:
            width = max(1, source_width * input.height // source_height)
    return Placement(
        source_width,
        source_height,
        input.width,
        input.height,
        width / source_width,
        height / source_height,
        (input.width - width) // 2,
        (input.height - height) // 2,
    )


def to_source(boxes: np.ndarray, placement: Placement, *, clip: bool = True) -> np.ndarray:
    """Boxes in pixels of the source, float32 (n, 4), clipped to the picture unless clip is False. boxes: float (n, 4)
    as x1, y1, x2, y2 in pixels of the input."""
    scale = np.array([placement.scale_x, placement.scale_y] * 2, np.float32)
    pad = np.array([placement.pad_x, placement.pad_y] * 2, np.float32)
    most = np.array([placement.source_width, placement.source_height] * 2, np.float32)
    moved: np.ndarray = (np.asarray(boxes, np.float32) - pad) / scale
    if not clip:
        return moved
    return np.minimum(np.maximum(moved, 0, out=moved), most, out=moved)


def pixel_table(input: Input, tensor: Tensor) -> np.ndarray:
    """The tensor's value of every pixel value, (256, 3) in the tensor's dtype and the input's channel order.

    Quantized values are rounded to the nearest, halves to even, and clipped. Raises ContractError for another dtype.
    """
    pixels = np.arange(256, dtype=np.float64)[:, None]
    values = (pixels - np.array(input.mean)) / np.array(input.std)
    if tensor.dtype == "float32":
        return values.astype(np.float32)
    if tensor.dtype not in ("int8", "uint8") or tensor.scale <= 0:
        raise ContractError(f"an input is float32, or quantized int8 or uint8, not {tensor.dtype}; build the file anew")
    limits = np.iinfo(tensor.dtype)
    quantized = np.rint(values / tensor.scale) + tensor.zero_point
    return np.clip(quantized, limits.min, limits.max).astype(tensor.dtype)


class Preprocessor:
    """Makes input tensors of pictures, in buffers of its own: the result is valid until the next call."""

    def __init__(self, input: Input, tensor: Tensor) -> None:
        self._input = input
        self._resized = np.empty((input.height, input.width, 3), np.uint8)
        self._colored = np.empty_like(self._resized) if input.color == "RGB" else self._resized
        self._tensor = np.empty((1, input.height, input.width, 3), tensor.dtype)
        self._convert = _conversion(pixel_table(input, tensor), input, self._colored, self._tensor[0])
        self._placement: Placement | None = None

    def __call__(self, bgr: np.ndarray) -> tuple[np.ndarray, Placement]:
        """The tensor (1, height, width, 3) and where the picture lies in it. bgr: uint8 (h, w, 3), neither side 0.

        Raises InputError for another shape or dtype, and for a side that is too long.
        """
        if bgr.dtype != np.uint8 or bgr.ndim != 3 or bgr.shape[2] != 3 or not bgr.size:
            raise InputError(
                f"a picture is uint8 (h, w, 3) and not empty, not {bgr.dtype} {bgr.shape}; convert it with to_bgr"
            )
        height, width = bgr.shape[:2]
        placement = self._placement
        if placement is None or (placement.source_height, placement.source_width) != (height, width):
            placement = self._placement = place((height, width), self._input)
            self._resized.fill(self._input.fill)
        x, y = placement.pad_x, placement.pad_y
        window = self._resized[y : y + placement.height, x : x + placement.width]
        if self._input.resize == "stretch_asymmetric":
            _warp(bgr, window)
        else:
            cv2.resize(bgr, (placement.width, placement.height), dst=window, interpolation=cv2.INTER_LINEAR)
        if self._input.color == "RGB":
            cv2.cvtColor(self._resized, cv2.COLOR_BGR2RGB, dst=self._colored)
        self._convert()
        return self._tensor, placement


def _warp(bgr: np.ndarray, window: np.ndarray) -> None:
    """Fills window with the picture as MediaPipe does: by a projection of the corners, which OpenCV rounds otherwise
    than an affine one (mediapipe/calculators/tensor/image_to_tensor_converter_opencv.cc). Raises InputError for a
    picture beyond its 16-bit places."""
    if max(bgr.shape) > _MOST_WARPED:
        raise InputError(
            f"a picture for MediaPipe's file has sides of at most {_MOST_WARPED} pixels, not {bgr.shape[1]}x"
            f"{bgr.shape[0]}; make it smaller"
        )
    height, width = window.shape[:2]
    corners = np.array([[0, 1], [0, 0], [1, 0], [1, 1]], np.float32)
    source, wanted = (corners * np.array(side, np.float32) for side in (bgr.shape[1::-1], (width, height)))
    projection = cv2.getPerspectiveTransform(source, wanted)
    cv2.warpPerspective(
        bgr, projection, (width, height), dst=window, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )


def _conversion(table: np.ndarray, input: Input, pixels: np.ndarray, tensor: np.ndarray) -> Callable[[], object]:
    """Writes table[pixels] to tensor, by arithmetic where that is faster and gives the very same 256 values.

    pixels: uint8 (h, w, 3); tensor: (h, w, 3) in the table's dtype.
    """
    every = np.arange(256, dtype=np.uint8)[:, None]
    if table.dtype == np.uint8 and (table == every).all():
        return lambda: np.copyto(tensor, pixels)
    if table.dtype == np.int8 and (table.view(np.uint8) == every ^ 128).all():
        return lambda: np.bitwise_xor(pixels, np.uint8(128), out=tensor.view(np.uint8))
    divisor = np.float32(input.std[0])
    if table.dtype == np.float32 and (table == every / divisor).all():
        return lambda: np.divide(pixels, divisor, out=tensor)
    channels = 1 if (table == table[:, :1]).all() else 3
    entries: np.ndarray = np.ascontiguousarray(table[:, :channels]).reshape(1, 256, channels)
    if table.dtype == np.int8:  # OpenCV's tables know it as bytes only
        entries, tensor = entries.view(np.uint8), tensor.view(np.uint8)
    return lambda: cv2.LUT(pixels, entries, dst=tensor)
