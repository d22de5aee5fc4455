import dataclasses
import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.contract import RESIZES, Input, Tensor
from deploy.errors import ContractError, InputError
from deploy.preprocess import Placement, Preprocessor, pixel_table, place, to_source

INPUT = Input("image", 32, 64)
FLOAT = Tensor("image", (1, 32, 64, 3), "float32")
INT8 = Tensor("image", (1, 32, 64, 3), "int8", float(np.float32(1 / 255)), -128)


def quantized(dtype: str, scale: float, zero_point: int) -> Tensor:
    return Tensor("image", (1, 32, 64, 3), dtype, scale, zero_point)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        # height x width -> scale_x, scale_y, pad_x, pad_y in 32 x 64
        ((32, 64), (1, 1, 0, 0)),
        ((16, 16), (2, 2, (64 - 32) // 2, 0)),
        ((64, 16), (8 / 16, 0.5, (64 - 8) // 2, 0)),
        ((10, 640), (0.1, 1 / 10, 0, (32 - 1) // 2)),
        # 64 * 100 // 300 = 21 rows, of 100: the scales differ by the rounding.
        ((100, 300), (64 / 300, 21 / 100, 0, (32 - 21) // 2)),
        # A side never vanishes.
        ((5000, 1), (1.0, 32 / 5000, (64 - 1) // 2, 0)),
        ((1, 5000), (64 / 5000, 1.0, 0, (32 - 1) // 2)),
        ((1, 1), (32, 32, 16, 0)),
    ],
)
def test_letterbox_lies_where_darknet_puts_it(source: tuple[int, int], expected: tuple[float, ...]) -> None:
    placement = place(source, INPUT)
    found = (placement.scale_x, placement.scale_y, placement.pad_x, placement.pad_y)
    assert found == pytest.approx(expected, rel=1e-12)


def test_stretch_fills_the_input() -> None:
    placement = place((10, 20), dataclasses.replace(INPUT, resize="stretch"))
    assert placement == Placement(20, 10, 64, 32, 64 / 20, 32 / 10, 0, 0)


sides = st.integers(1, 3000)


@settings(deadline=None, max_examples=200)
@given(sides, sides, sides, sides, st.sampled_from(RESIZES))
def test_the_resized_picture_lies_inside_and_keeps_its_shape(
    h: int, w: int, height: int, width: int, resize: str
) -> None:
    placement = place((h, w), Input("image", height, width, resize))
    assert 1 <= placement.width <= width - 2 * placement.pad_x
    assert 1 <= placement.height <= height - 2 * placement.pad_y
    # One axis fills the input.
    assert placement.width == width or placement.height == height
    if resize == "letterbox" and min(placement.width, placement.height) > 1:
        # Rounding takes less than one pixel.
        assert abs(placement.width - w * height / h) < 1 or abs(placement.height - h * width / w) < 1


@settings(deadline=None, max_examples=200)
@given(sides, sides, st.sampled_from(RESIZES), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_to_source_is_the_inverse(h: int, w: int, resize: str, shares: list[float]) -> None:
    placement = place((h, w), dataclasses.replace(INPUT, resize=resize))
    source = np.sort(np.array(shares).reshape(2, 2), axis=0).reshape(1, 4) * [w, h, w, h]
    there = source * ([placement.scale_x, placement.scale_y] * 2) + [placement.pad_x, placement.pad_y] * 2
    # float32 pixels of the input, at most 64 with steps of 64 * 2**-24, over the scale; and the division's own
    # rounding.
    steps = 4 * 2.0**-24 * (64 / min(placement.scale_x, placement.scale_y) + max(h, w))
    np.testing.assert_allclose(to_source(there.astype(np.float32), placement), source, rtol=0, atol=steps)


def test_boxes_are_clipped_to_the_picture() -> None:
    placement = place((100, 300), INPUT)
    boxes = np.array([[-50, -50, 500, 500], [0, 0, 64, 2]], np.float32)
    found = to_source(boxes, placement)
    assert found.dtype == np.float32
    assert found.tolist() == [[0, 0, 300, 100], [0, 0, 300, 0]]
    assert boxes[0, 0] == -50
    assert to_source(np.zeros((0, 4), np.float32), placement).shape == (0, 4)


def test_the_tensor_is_the_resized_picture_between_grey_bars() -> None:
    source = picture(100, 300)
    tensor, placement = Preprocessor(INPUT, FLOAT)(source)
    assert tensor.shape == (1, 32, 64, 3) and tensor.dtype == np.float32
    expected = np.full((32, 64, 3), 128, np.uint8)
    # 21 rows from (32 - 21) // 2 = 5
    expected[5 : 5 + 21] = cv2.resize(source, (64, 21), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(tensor[0], expected[..., ::-1] / np.float32(255))
    assert placement == place((100, 300), INPUT)


@pytest.mark.parametrize("source_hw", [(100, 300), (17, 11), (32, 64), (1, 1), (64, 128)])
def test_asymmetric_stretching_counts_from_the_first_pixel(source_hw: tuple[int, int]) -> None:
    source = picture(*source_hw)
    asymmetric = dataclasses.replace(INPUT, resize="stretch_asymmetric")
    tensor, placement = Preprocessor(asymmetric, quantized("uint8", 1 / 255, 0))(source)
    assert placement == place(source_hw, dataclasses.replace(INPUT, resize="stretch"))
    # Between the four pixels around (x * scale, y * scale), the last ones repeated; one number at a time.
    height, width = source_hw
    expected = np.empty((32, 64, 3))
    for y in range(32):
        for x in range(64):
            row, column = y * height / 32, x * width / 64
            top, left = int(row), int(column)
            down, right = min(top + 1, height - 1), min(left + 1, width - 1)
            parts = ((top, left), (top, right), (down, left), (down, right))
            a, b = row - top, column - left
            weights = ((1 - a) * (1 - b), (1 - a) * b, a * (1 - b), a * b)
            expected[y, x] = sum(weight * source[place].astype(float) for weight, place in zip(weights, parts))
    # OpenCV places each pixel to 1/32 at most, half of that off, in both directions, between values of 0 to 255; and
    # rounds.
    most = 2 * 255 / 64 + 0.5
    np.testing.assert_allclose(tensor[0, ..., ::-1], expected, rtol=0, atol=most)
    if height % 32 == 0 and width % 64 == 0:
        np.testing.assert_array_equal(tensor[0, ..., ::-1], source[:: height // 32, :: width // 64])


@pytest.mark.parametrize("longest", [2**15 - 2, 2**15 - 1])
@pytest.mark.parametrize("turned", [False, True])
def test_a_picture_that_cannot_be_projected_is_refused(longest: int, turned: bool) -> None:
    prepare = Preprocessor(dataclasses.replace(INPUT, resize="stretch_asymmetric"), FLOAT)
    source = np.full((longest, 2, 3) if turned else (2, longest, 3), 255, np.uint8)
    if longest == 2**15 - 2:
        np.testing.assert_array_equal(prepare(source)[0], 1.0)
        return
    with pytest.raises(InputError, match=r"at most 32766 pixels, not (2x32767|32767x2); make it smaller"):
        prepare(source)


@pytest.mark.parametrize("color", ["RGB", "BGR"])
@pytest.mark.parametrize("tensor", [FLOAT, INT8, quantized("uint8", 1 / 255, 0), quantized("int8", 0.01, 3)])
def test_colours_come_in_the_order_that_is_asked_for(color: str, tensor: Tensor) -> None:
    source = picture(32, 64)
    input = Input("image", 32, 64, color=color, std=(255.0, 128.0, 64.0))
    found, _ = Preprocessor(input, tensor)(source)
    ordered = source if color == "BGR" else source[..., ::-1]
    table = pixel_table(input, tensor)
    expected = np.stack([table[ordered[..., channel], channel] for channel in range(3)], axis=-1)
    np.testing.assert_array_equal(found[0], expected)


def plain_value(pixel: int, mean: float, std: float, tensor: Tensor) -> float:
    """The rule, one number at a time, in Python's own arithmetic (round is half to even)."""
    value = (pixel - mean) / std
    if tensor.dtype == "float32":
        return float(np.float32(value))
    limits = np.iinfo(tensor.dtype)
    return min(max(round(value / tensor.scale) + tensor.zero_point, limits.min), limits.max)


tensors = st.just(FLOAT) | st.builds(
    quantized,
    st.sampled_from(["int8", "uint8"]),
    st.sampled_from([1 / 255, 1 / 128, 0.5, 0.02]),
    st.integers(-128, 255),
)
CENTERED = Input("image", 32, 64, mean=(128.0,) * 3, std=(128.0,) * 3)
ordinary = st.sampled_from([INPUT, CENTERED, Input("image", 32, 64, std=(1.0,) * 3)])
odd = st.builds(
    lambda mean, std: Input("image", 32, 64, mean=mean, std=std),
    st.tuples(*[st.floats(-10, 200)] * 3),
    st.tuples(*[st.floats(0.5, 300)] * 3),
)


@settings(deadline=None, max_examples=100)
@given(ordinary | odd, tensors)
def test_every_fast_way_gives_the_rule_s_values(input: Input, tensor: Tensor) -> None:
    # Every pixel value in every channel, through the whole preprocessing: a picture of the input's size is not resized.
    source = np.zeros((32, 64, 3), np.uint8)
    source[:4] = np.arange(256, dtype=np.uint8).reshape(4, 64, 1)
    found, _ = Preprocessor(input, tensor)(source)
    assert found.dtype == tensor.dtype
    for channel in range(3):
        expected = [plain_value(pixel, input.mean[channel], input.std[channel], tensor) for pixel in range(256)]
        assert found[0, :4, :, channel].reshape(-1).tolist() == expected


def test_halves_are_rounded_to_even_and_values_clipped() -> None:
    halves = pixel_table(Input("image", 32, 64, std=(1.0,) * 3), quantized("uint8", 2.0, 0))[:, 0]
    assert halves[:6].tolist() == [0, 0, 1, 2, 2, 2]
    clipped = pixel_table(Input("image", 32, 64, std=(1.0,) * 3), quantized("int8", 1.0, 0))[:, 0]
    assert clipped[[0, 127, 128, 255]].tolist() == [0, 127, 127, 127]


@pytest.mark.parametrize(("dtype", "scale"), [("int16", 0.1), ("int8", 0.0), ("float16", 0.0)])
def test_other_dtypes_are_refused(dtype: str, scale: float) -> None:
    with pytest.raises(ContractError, match="an input is float32, or quantized int8 or uint8"):
        Preprocessor(INPUT, quantized(dtype, scale, 0))


def test_bars_are_grey_again_after_a_picture_of_another_shape() -> None:
    preprocess = Preprocessor(INPUT, INT8)
    preprocess(picture(32, 64))
    tensor, _ = preprocess(picture(32, 32))
    assert (tensor[0, :, :16] == 0).all() and (tensor[0, :, 48:] == 0).all()
    assert (tensor[0, :, 16:48] != 0).any()


def test_the_buffers_are_used_again() -> None:
    preprocess = Preprocessor(INPUT, FLOAT)
    first, _ = preprocess(picture(40, 50))
    second, _ = preprocess(picture(50, 40))
    assert first is second


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3000), (3000, 1), (2, 3), (33, 65), (1080, 1920)])
@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
def test_pictures_of_any_shape(height: int, width: int, resize: str) -> None:
    source = np.full((height, width, 3), (10, 20, 30), np.uint8)
    tensor, placement = Preprocessor(dataclasses.replace(INPUT, resize=resize, std=(1.0,) * 3), FLOAT)(source)
    y, x = placement.pad_y, placement.pad_x
    inside = tensor[0, y : y + placement.height, x : x + placement.width]
    assert inside.size and (inside == [30, 20, 10]).all()
    outside = tensor.size - inside.size
    assert np.count_nonzero(tensor == 128) == outside
    assert math.prod(inside.shape) + outside == 32 * 64 * 3


def test_pictures_with_strides_are_taken() -> None:
    source = picture(64, 128)
    expected = Preprocessor(INPUT, FLOAT)(np.ascontiguousarray(source[::2, ::-2]))[0]
    np.testing.assert_array_equal(Preprocessor(INPUT, FLOAT)(source[::2, ::-2])[0], expected)


@pytest.mark.parametrize(
    "source",
    [
        np.zeros((2, 2), np.uint8),
        np.zeros((2, 2, 4), np.uint8),
        np.zeros((2, 2, 3), np.float32),
        np.zeros((0, 2, 3), np.uint8),
    ],
)
def test_what_is_no_bgr_picture_is_refused(source: np.ndarray) -> None:
    with pytest.raises(InputError, match="a picture is uint8"):
        Preprocessor(INPUT, FLOAT)(source)
