"""Pictures and boxes that stay together, whatever is done to them."""

import dataclasses
import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.contract import Input, Tensor
from deploy.preprocess import Preprocessor, place
from toolchain.augment import LEAST_SIDE, Shown, _draw, _Drawing, _Rectangle, mosaic, single
from toolchain.training import Training

INPUT = Input("images", 96, 128, color="BGR")
PLAIN = Training(flip=False)
NOTHING = np.zeros((0, 5))
FILL = INPUT.fill


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def canvas_of(input: Input) -> np.ndarray:
    return np.zeros((input.height, input.width, 3), np.uint8)


def by_the_device(pixels: np.ndarray, input: Input) -> np.ndarray:
    plain = dataclasses.replace(input, mean=(0.0,) * 3, std=(1.0,) * 3)
    tensor = Tensor(input.name, (1, input.height, input.width, 3), "uint8", scale=1.0)
    return Preprocessor(plain, tensor)(pixels)[0][0].copy()


sides = st.integers(1, 300)
inputs = st.builds(
    Input,
    st.just("images"),
    st.integers(8, 130),
    st.integers(8, 130),
    st.sampled_from(["letterbox", "stretch"]),
    st.just("BGR"),
    fill=st.integers(0, 255),
)


@settings(deadline=None, max_examples=100)
@given(sides, sides, inputs)
def test_unchanged_a_picture_is_what_the_device_sees(height, width, input):
    pixels, canvas = noise(height, width), canvas_of(input)
    objects = np.array([[0, 0, width, height, 3]], float)
    found = single(canvas, Shown(pixels, objects), input, PLAIN, np.random.default_rng(1))
    np.testing.assert_array_equal(canvas, by_the_device(pixels, input))
    placement = place((height, width), input)
    x, y = placement.pad_x, placement.pad_y
    expected = [[x, y, x + placement.width, y + placement.height, 3]]
    if min(placement.width, placement.height) >= LEAST_SIDE:
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_mirrored_pictures_are_half_of_all_and_their_boxes_with_them():
    # 64 x 96 fits into the height of 96: twice as large would be too wide, so bars of 32 stand on both sides.
    pixels = noise(96, 64)
    objects = np.array([[10, 20, 30, 60, 1]], float)
    mirrored = 0
    for seed in range(100):
        canvas = canvas_of(INPUT)
        found = single(canvas, Shown(pixels, objects), INPUT, Training(), np.random.default_rng(seed))
        assert (canvas[:, :32] == FILL).all() and (canvas[:, -32:] == FILL).all()
        if (canvas[:, 32:-32] == pixels).all():
            assert found.tolist() == [[32 + 10, 20, 32 + 30, 60, 1]]
        else:
            np.testing.assert_array_equal(canvas[:, 32:-32], pixels[:, ::-1])
            assert found.tolist() == [[32 + 64 - 30, 20, 32 + 64 - 10, 60, 1]]
            mirrored += 1
    assert 35 <= mirrored <= 65  # 100 coins, 3 standard deviations of 5


GREEN = (0, 255, 0)


def with_patch(seed: int) -> Shown:
    """A blue picture of any shape with one green rectangle, which is the object."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(60, 240, 2).tolist()
    w, h = rng.integers(16, 50, 2).tolist()
    x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
    pixels = np.full((height, width, 3), (255, 0, 0), np.uint8)
    pixels[y : y + h, x : x + w] = GREEN
    return Shown(pixels, np.array([[x, y, x + w, y + h, 1]], float))


def green_extent(canvas: np.ndarray) -> list[float]:
    """x1, y1, x2, y2 of what is more green than blue, to half a pixel."""
    rows, columns = np.nonzero(canvas[..., 1].astype(int) > canvas[..., 0].astype(int) + 1)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


WILD = Training(scale=1.0, shift=0.4)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["letterbox", "stretch"]))
def test_boxes_go_where_the_pixels_go(seed, resize):
    input, shown = dataclasses.replace(INPUT, resize=resize), with_patch(seed)
    canvas = canvas_of(input)
    found = single(canvas, shown, input, WILD, np.random.default_rng(seed))
    if len(found):
        # Half a pixel where linear interpolation mixes green and blue evenly, and half a pixel of rounding to pixels;
        # an edge that is enlarged spreads over as many pixels as it is enlarged by.
        np.testing.assert_allclose(green_extent(canvas), found[0, :4], rtol=0, atol=2.6)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32 - 1))
def test_boxes_stay_on_the_canvas_and_are_large_enough(seed):
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, 200, (30, 2, 2)), axis=1).reshape(30, 4)
    objects = np.column_stack([corners, np.arange(30)])
    shown = Shown(noise(200, 200), objects)
    for found in (
        single(canvas_of(INPUT), shown, INPUT, WILD, rng),
        mosaic(canvas_of(INPUT), [shown] * 4, INPUT, WILD, rng),
    ):
        assert found.dtype == np.float32 and found.shape[1] == 5
        assert (found[:, :2] >= 0).all() and (found[:, 2:4] <= (INPUT.width, INPUT.height)).all()
        # float32 has 24 bits, of which 7 are before the point.
        assert (found[:, 2:4] - found[:, :2] >= LEAST_SIDE - 2**-15).all()
        assert set(found[:, 4]) <= set(range(30))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("rectangle", [(-37, 10, 211, 83), (5, -60, 90, 300), (-50, -50, 228, 196), (100, 3, 64, 48)])
def test_what_sticks_out_is_cut_off_what_would_be_seen_whole(rectangle, mirrored):
    left, top, width, height = rectangle
    smooth = cv2.GaussianBlur(noise(48, 64), (0, 0), 4)
    canvas = canvas_of(INPUT)
    drawing = _Drawing(_Rectangle(*rectangle), False, mirrored, None)
    _draw(canvas, _Rectangle(0, 0, 128, 96), Shown(smooth, NOTHING), drawing)
    whole = cv2.resize(smooth[:, ::-1] if mirrored else smooth, (width, height), interpolation=cv2.INTER_LINEAR)
    large = np.zeros((400, 400, 3), np.uint8)  # begins at (-100, -100)
    large[100 + top : 100 + top + height, 100 + left : 100 + left + width] = whole
    steepest = max(int(np.abs(np.diff(smooth.astype(int), axis=axis)).max()) for axis in (0, 1))
    # warpAffine knows places to a 32nd of a pixel, in both directions, and rounds.
    difference = np.abs(canvas.astype(int) - large[100 : 100 + 96, 100 : 100 + 128])
    assert difference.max() <= 2 * steepest / 32 + 1


def seen_of(objects: list[list[float]], shift: float) -> list[int]:
    """The classes of the objects that stay when a picture of 100 x 100 is moved by shift of a canvas of 100."""

    class Fixed(np.random.Generator):
        def uniform(self, low=0.0, high=1.0, size=None):
            return np.array([shift, 0.0]) if (low, high) == (-0.5, 0.5) else np.zeros(size or 1)

    input = Input("images", 100, 100)
    rng = Fixed(np.random.PCG64(0))
    training = Training(flip=False, shift=0.5)
    found = single(canvas_of(input), Shown(noise(100, 100), np.array(objects, float)), input, training, rng)
    return found[:, 4].astype(int).tolist()


def test_what_is_mostly_cut_off_is_no_longer_an_object():
    # The left 30 columns go over the edge.
    assert seen_of([[10, 0, 35, 10, 0], [10, 0, 34, 10, 1]], -0.3) == [0]  # 5 of 25 columns are left, 4 of 24
    assert seen_of([[0, 50, 30, 60, 0], [30, 50, 32, 60, 1]], -0.3) == [1]  # nothing is left; all is
    assert seen_of([[25, 50, 31.5, 60, 0], [70, 50, 80, 51.5, 1]], -0.3) == []  # less than two pixels wide, high


def test_a_zoom_is_log_uniform_around_the_middle():
    pixels = np.full((96, 128, 3), 255, np.uint8)
    objects = np.array([[44, 33, 84, 63, 0]], float)  # 40 x 30 in the middle
    widths, heights = [], []
    for seed in range(400):
        (found,) = single(
            canvas_of(INPUT), Shown(pixels, objects), INPUT, Training(scale=1.0), np.random.default_rng(seed)
        )
        widths.append((found[2] - found[0]) / 40)
        heights.append((found[3] - found[1]) / 30)
        np.testing.assert_allclose([(found[0] + found[2]) / 2, (found[1] + found[3]) / 2], [64, 48], atol=1)
    both = np.log2(np.sqrt(np.multiply(widths, heights)))
    apart = np.log2(np.divide(widths, heights))
    # Rounding to whole pixels is worth 0.5 / 48 of the smallest side.
    assert -1.02 < both.min() < -0.95 and 0.95 < both.max() < 1.02
    assert -0.53 < apart.min() < -0.45 and 0.45 < apart.max() < 0.53
    # The standard deviation of a uniform number in -1 to 1 is 1 / sqrt(3); the mean of 400 has a twentieth of it.
    assert abs(both.mean()) < 3 / math.sqrt(3) / 20
    assert both.std() == pytest.approx(1 / math.sqrt(3), rel=0.1)


def test_shrinking_passes_over_no_pixel():
    # A checkerboard is grey from afar; sampled here and there it would be black and white.
    checkers = np.indices((960, 1280)).sum(0) % 2 * np.uint8(255)
    pixels = np.repeat(checkers[..., None], 3, axis=2).astype(np.uint8)
    for seed in range(10):
        canvas = canvas_of(INPUT)
        mosaic(canvas, [Shown(pixels, NOTHING)] * 4, INPUT, PLAIN, np.random.default_rng(seed))
        assert 100 < canvas.min() and canvas.max() < 155


def colored(level: int) -> Shown:
    return Shown(np.full((96, 128, 3), level, np.uint8), np.array([[0, 0, 128, 96, level]], float))


@pytest.mark.parametrize("seed", range(30))
def test_a_mosaic_has_four_pictures_that_meet_in_a_point(seed):
    canvas = canvas_of(INPUT)
    found = mosaic(canvas, [colored(level) for level in (10, 20, 30, 40)], INPUT, PLAIN, np.random.default_rng(seed))
    x = int((canvas[0, :, 0] == 10).sum())
    y = int((canvas[:, 0, 0] == 10).sum())
    assert 0.2 * 128 - 1 < x < 0.8 * 128 + 1 and 0.2 * 96 - 1 < y < 0.8 * 96 + 1
    # No zoom: every region is filled to its borders.
    expected = np.empty((96, 128), np.uint8)
    expected[:y, :x], expected[:y, x:], expected[y:, :x], expected[y:, x:] = 10, 20, 30, 40
    np.testing.assert_array_equal(canvas, np.repeat(expected[..., None], 3, axis=2))
    boxes = {10: [0, 0, x, y], 20: [x, 0, 128, y], 30: [0, y, x, 96], 40: [x, y, 128, 96]}
    # A region of less than a fifth of its picture does not show it: at half size two fifths of both sides are 0.16.
    for box in found:
        assert box[:4].tolist() == boxes[int(box[4])]
    assert len(found) >= 1


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32 - 1))
def test_boxes_of_a_mosaic_go_where_the_pixels_go(seed):
    # One picture has a patch, the others have none.
    for corner in range(4):
        shown = [Shown(np.full((80, 90, 3), (255, 0, 0), np.uint8), NOTHING)] * 4
        shown[corner] = with_patch(seed)
        canvas = canvas_of(INPUT)
        found = mosaic(canvas, shown, INPUT, Training(scale=0.5), np.random.default_rng(seed))
        if len(found):
            np.testing.assert_allclose(green_extent(canvas), found[0, :4], rtol=0, atol=2.6)


def test_mosaics_show_objects_between_half_and_full_size():
    sizes = []
    for seed in range(200):
        small = Shown(noise(96, 128), np.array([[60, 44, 68, 52, 0]], float))  # 8 x 8 in the middle
        found = mosaic(canvas_of(INPUT), [small] * 4, INPUT, PLAIN, np.random.default_rng(seed))
        whole = found[(found[:, 0] > 0) & (found[:, 2] < 128)]
        sizes += ((whole[:, 2] - whole[:, 0]) / 8).tolist()
    assert max(sizes) <= 1.0 + 1e-6
    # Those that a region cuts are narrower.
    assert np.mean(np.array(sizes) < 0.495) < 0.15
    assert 0.6 < np.median(sizes) < 0.9


def test_colours_change_within_their_bounds_and_bars_never():
    pixels = np.full((96, 64, 3), (40, 60, 120), np.uint8)  # hue 5/6 to red, saturation 2/3, value 120
    seen = []
    for seed in range(200):
        canvas = canvas_of(INPUT)
        found = single(
            canvas,
            Shown(pixels, np.array([[0, 0, 64, 96, 0]], float)),
            INPUT,
            dataclasses.replace(PLAIN, color=1.0),
            np.random.default_rng(seed),
        )
        assert (canvas[:, :32] == FILL).all() and (canvas[:, -32:] == FILL).all()
        assert (canvas[:, 32:-32] == canvas[0, 32]).all()
        assert found.tolist() == [[32, 0, 96, 96, 0]]
        seen.append(cv2.cvtColor(canvas[:1, 32:33], cv2.COLOR_BGR2HSV_FULL)[0, 0])
    hue, saturation, value = np.array(seen, float).T
    first_hue, first_saturation, first_value = cv2.cvtColor(pixels[:1, :1], cv2.COLOR_BGR2HSV_FULL)[0, 0].astype(float)
    turn = (hue - first_hue + 128) % 256 - 128
    # Eight bits of a dark colour say its hue to some 4 of 256.
    assert -0.1 * 256 - 5 < turn.min() < -20 and 20 < turn.max() < 0.1 * 256 + 5
    assert first_value == 120 and 120 / 1.5 - 1 <= value.min() < 84 and 172 < value.max() <= 120 * 1.5 + 1
    assert saturation.min() == pytest.approx(first_saturation / 1.5, rel=0.1)
    assert saturation.max() == 255 == min(255, first_saturation * 1.5)


@pytest.mark.parametrize("training", [WILD, Training(scale=0.5, shift=0.1, color=1.0, mosaic=1.0)])
def test_the_same_numbers_give_the_same_picture(training):
    shown = [with_patch(seed) for seed in range(4)]
    for draw, what in ((single, shown[0]), (mosaic, shown)):
        results = []
        for seed in (5, 5, 6):
            canvas = canvas_of(INPUT)
            objects = draw(canvas, what, INPUT, training, np.random.default_rng(seed))
            results.append((canvas.tobytes(), objects.tobytes()))
        assert results[0] == results[1] != results[2]
