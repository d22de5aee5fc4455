"""Batches that follow from the step's number alone."""

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from deploy.contract import Input, Tensor
from deploy.errors import InputError
from deploy.picture import read_picture
from deploy.preprocess import Preprocessor
from toolchain.training import Training
from toolchain.training_batches import Batches, feed
from toolchain.training_data import Example, Examples

INPUT = Input("images", 64, 64, fill=128)
SIZE = (64, 64)
PLAIN = Training(batch=4, flip=False)
WILD = Training(batch=3, mosaic=0.5, scale=0.5, shift=0.1, color=1.0, seed=5)


def example(folder: Path, name: str, pixels: np.ndarray, objects: list[list[float]]) -> Example:
    path = folder / f"{name}.png"
    cv2.imwrite(str(path), pixels)
    return Example(path, np.array(objects, np.float32).reshape(-1, 5))


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    """Ten noisy pictures of several shapes; picture i has i objects."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    pictures = []
    for index in range(10):
        height, width = rng.integers(40, 200, 2).tolist()
        corners = np.sort(rng.uniform(0, min(height, width), (index, 2, 2)), axis=1).reshape(index, 4)
        objects = np.column_stack([corners, np.full(index, index)])
        noise = rng.integers(0, 256, (height, width, 3), np.uint8)
        pictures.append(example(folder, str(index), noise, objects.tolist()))
    return Examples(tuple(pictures), ())


def by_the_device(path: Path, input: Input) -> np.ndarray:
    plain = dataclasses.replace(input, mean=(0.0,) * 3, std=(1.0,) * 3)
    tensor = Tensor(input.name, (1, input.height, input.width, 3), "uint8", scale=1.0)
    return Preprocessor(plain, tensor)(read_picture(path))[0][0].copy()


def test_a_batch_is_pixels_and_boxes_of_the_networks_input(tmp_path: Path) -> None:
    # 128 x 64 is halved and put between bars of 16 rows; BGR becomes RGB.
    wide = np.full((64, 128, 3), (10, 20, 30), np.uint8)
    one = example(tmp_path, "one", wide, [[20, 10, 60, 30, 1], [99, 49, 128, 60, 0]])
    images, truth = Batches(Examples((one,), ()), INPUT, Training(batch=1, flip=False)).make(0, SIZE, False)
    assert images.shape == (1, 64, 64, 3) and images.dtype == np.uint8
    assert (images[0, 16:48] == (30, 20, 10)).all() and (images[0, :16] == 128).all() and (images[0, 48:] == 128).all()
    expected = [(20 / 2, 10 / 2 + 16, 60 / 2, 30 / 2 + 16, 1), (99 / 2, 49 / 2 + 16, 128 / 2, 60 / 2 + 16, 0)]
    assert truth.dtype == np.float32 and truth.shape == (1, 8, 5)
    np.testing.assert_array_equal(truth[0, :2], np.float32(expected))
    assert (truth[0, 2:] == -1).all()


@pytest.mark.parametrize("color", ["RGB", "BGR"])
@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
def test_without_changes_pictures_of_any_size_are_what_the_device_sees(examples: Examples, color, resize) -> None:
    input = dataclasses.replace(INPUT, height=32, width=48, color=color, resize=resize)
    batches = Batches(examples, input, dataclasses.replace(PLAIN, batch=10))
    expected = {by_the_device(one.path, input).tobytes() for one in examples.pictures}
    for _ in range(2):  # decoded, and kept
        images, _ = batches.make(0, (32, 48), False)
        assert {image.tobytes() for image in images} == expected


def test_an_epoch_shows_every_picture_once_in_an_order_of_its_own(examples: Examples) -> None:
    batches = Batches(examples, INPUT, PLAIN)
    assert batches.steps_per_epoch == 10 // 4
    by_pixels = {by_the_device(one.path, INPUT).tobytes(): index for index, one in enumerate(examples.pictures)}
    epochs = []
    for epoch in range(20):
        made = [batches.make(2 * epoch + step, SIZE, False)[0] for step in range(2)]
        epochs.append([by_pixels[image.tobytes()] for images in made for image in images])
        assert len(set(epochs[-1])) == 8
    assert len({tuple(epoch) for epoch in epochs}) == 20
    assert {index for epoch in epochs for index in epoch} == set(range(10))


@pytest.mark.parametrize("training", [WILD, dataclasses.replace(PLAIN, flip=True)])
def test_a_batch_follows_from_seed_and_step_alone(examples: Examples, training: Training) -> None:
    first = Batches(examples, INPUT, training)
    made = [first.make(step, SIZE, True) for step in range(8)]
    other_way = Batches(examples, INPUT, training, limit_bytes=20_000)  # most are decoded each time
    for step in reversed(range(8)):
        for expected, found in zip(made[step], other_way.make(step, SIZE, True), strict=True):
            np.testing.assert_array_equal(found, expected)
    assert 0 < sum(shown.pixels.nbytes for shown in other_way._kept.values()) <= 20_000
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda step: Batches(examples, INPUT, training).make(step, SIZE, True), range(8)))
        shared = Batches(examples, INPUT, training)
        together = list(pool.map(lambda step: shared.make(step, SIZE, True), range(8)))
    for expected, found, also in zip(made, threaded, together, strict=True):
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(also[0], expected[0])
        np.testing.assert_array_equal(also[1], expected[1])
    seeds = Batches(examples, INPUT, dataclasses.replace(training, seed=6)).make(0, SIZE, True)
    assert (seeds[0] != made[0][0]).any()
    assert len({images.tobytes() for images, _ in made}) == 8


def test_mosaics_are_their_share_and_none_where_there_are_to_be_none(tmp_path: Path) -> None:
    # One grey level each: a single picture has one, a mosaic four.
    levels = [
        example(tmp_path, str(level), np.full((64, 64, 3), level, np.uint8), [[0, 0, 64, 64, level]])
        for level in range(8)
    ]
    training = Training(batch=8, mosaic=0.5, flip=False)
    batches = Batches(Examples(tuple(levels), ()), INPUT, training)
    counts = [len(np.unique(image)) for step in range(50) for image in batches.make(step, SIZE, True)[0]]
    assert set(counts) == {1, 4}
    # 400 coins, 3 standard deviations of sqrt(400) / 2.
    assert 200 - 30 <= counts.count(4) <= 200 + 30
    for step in range(5):
        images, truth = batches.make(step, SIZE, False)
        assert all((image == box[0, 4]).all() for image, box in zip(images, truth, strict=True))


def test_mosaics_of_fewer_pictures_than_four(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    few = tuple(example(tmp_path, str(index), pixels, [[0, 0, 64, 64, 0]] * 3) for index in range(2))
    batches = Batches(Examples(few, ()), INPUT, Training(batch=2, mosaic=1.0))
    assert batches.rows == 16  # 4 * 3, in eights
    most = max(int((batches.make(step, SIZE, True)[1][..., 4] >= 0).sum(axis=1).max()) for step in range(50))
    assert 3 < most <= 12


def test_rows_hold_the_fullest_mosaic(examples: Examples, tmp_path: Path) -> None:
    assert Batches(examples, INPUT, PLAIN).rows == 16  # 9
    assert Batches(examples, INPUT, WILD).rows == 32  # 9 + 8 + 7 + 6
    nothing = Examples((example(tmp_path, "none", np.zeros((9, 9, 3), np.uint8), []),), ())
    _, truth = Batches(nothing, INPUT, Training(batch=1)).make(0, SIZE, False)
    assert truth.shape == (1, 8, 5) and (truth == -1).all()


def test_another_size_is_drawn_anew(examples: Examples) -> None:
    batches = Batches(examples, INPUT, dataclasses.replace(PLAIN, batch=10, multi_scale=0.5))
    for size in ((32, 32), (64, 96), (96, 96)):
        images, truth = batches.make(0, size, False)
        input = dataclasses.replace(INPUT, height=size[0], width=size[1])
        # Nothing here is more than 2.25 times as large as the input, and so shrunk when it is read.
        small = [one for one in examples.pictures if max(read_picture(one.path).shape) <= 2.25 * 64]
        assert len(small) > 2
        expected = {by_the_device(one.path, input).tobytes() for one in small}
        assert expected <= {image.tobytes() for image in images}
        real = truth[truth[..., 4] >= 0]
        assert (real[:, :4] >= 0).all() and (real[:, 2:4] <= size[::-1]).all()


def test_large_pictures_are_kept_small(tmp_path: Path) -> None:
    large = example(tmp_path, "large", np.zeros((600, 800, 3), np.uint8), [[200, 150, 600, 450, 2]])
    batches = Batches(Examples((large,), ()), INPUT, Training(batch=1, scale=1e-9, flip=False))
    _, truth = batches.make(0, SIZE, False)
    assert batches._kept[0].pixels.shape == (72, 96, 3)  # 1.5 * 64 wide
    # 800 x 600 becomes 64 x 48 between bars of 8 rows.
    np.testing.assert_allclose(truth[0, 0], [200 * 64 / 800, 150 * 0.08 + 8, 600 * 0.08, 450 * 0.08 + 8, 2], rtol=1e-6)


def test_fewer_pictures_than_a_batch_are_refused(examples: Examples) -> None:
    with pytest.raises(InputError, match="10 do not fill one of 16"):
        Batches(examples, INPUT, Training())


def spoiled(examples: Examples, folder: Path) -> Examples:
    """The examples, the last of which has a whole header and a broken picture."""
    content = bytearray(cv2.imencode(".png", np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))[1])
    content[60:-16] = bytes(len(content) - 76)
    (folder / "broken.png").write_bytes(content)
    broken = Example(folder / "broken.png", np.zeros((0, 5), np.float32))
    return Examples((*examples.pictures[:-1], broken), ())


def test_a_picture_that_cannot_be_decoded_is_an_error_that_names_it(examples: Examples, tmp_path: Path) -> None:
    batches = Batches(spoiled(examples, tmp_path), INPUT, dataclasses.replace(PLAIN, batch=10))
    with pytest.raises(InputError, match="broken.png"):
        batches.make(0, SIZE, False)


@pytest.fixture(autouse=True)
def others() -> None:
    """Threads of trainings that another test's error cut off, as long as its traceback holds them."""
    _OTHERS.clear()
    _OTHERS.update(threading.enumerate())


_OTHERS: set[threading.Thread] = set()


def makers() -> list[threading.Thread]:
    return [thread for thread in set(threading.enumerate()) - _OTHERS if thread.name.startswith("batches")]


@pytest.mark.parametrize("workers", [1, 3])
def test_a_feed_gives_the_steps_in_order(examples: Examples, workers: int) -> None:
    batches = Batches(examples, INPUT, WILD)
    fed = list(feed(batches, 2, 9, SIZE, True, workers))
    assert len(fed) == 9 - 2
    for step, (images, truth) in enumerate(fed, 2):
        expected = batches.make(step, SIZE, True)
        np.testing.assert_array_equal(images, expected[0])
        np.testing.assert_array_equal(truth, expected[1])
    assert not makers()
    assert list(feed(batches, 5, 5, SIZE, True, workers)) == []


def test_a_feed_is_never_far_ahead_and_ends_its_threads(examples: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = Batches(examples, INPUT, WILD)
    made: list[int] = []
    real = batches.make
    monkeypatch.setattr(batches, "make", lambda step, size, mosaic: (made.append(step), real(step, size, mosaic))[1])
    feeding = feed(batches, 0, 1000, SIZE, True, 2)
    for _ in range(3):
        next(feeding)
    time.sleep(0.2)
    assert sorted(made) == list(range(3 + 2 + 1))
    assert makers()
    feeding.close()
    assert not makers()
    assert len(made) == 3 + 2 + 1


def test_a_feed_passes_an_error_on_and_ends_its_threads(examples: Examples, tmp_path: Path) -> None:
    batches = Batches(spoiled(examples, tmp_path), INPUT, dataclasses.replace(PLAIN, batch=10))
    with pytest.raises(InputError, match="broken.png"):
        list(feed(batches, 0, 50, SIZE, False, 2))
    assert not makers()
