import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.errors import InputError
from deploy.pattern import Pattern


def test_any_frame_in_any_order_is_the_same_in_every_run() -> None:
    one, two = Pattern(96, 64, objects=3, seed=4), Pattern(96, 64, objects=3, seed=4)
    first = {number: one.frame(number) for number in (0, 1, 500)}
    for number in (500, 0, 1):
        pixels, truth = two.frame(number)
        assert (pixels == first[number][0]).all()
        assert truth.identities.tolist() == first[number][1].identities.tolist()
        assert truth.found.boxes.tolist() == first[number][1].found.boxes.tolist()
    assert (first[0][0] != first[1][0]).any()
    assert (Pattern(96, 64, objects=3, seed=5).frame(0)[0] != first[0][0]).any()


def test_its_own_rate_is_the_only_clock() -> None:
    slow, fast = Pattern(96, 64, fps=10), Pattern(96, 64, fps=50)
    assert (slow.frame(7)[0] == fast.frame(35)[0]).all()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(48, 400), st.integers(48, 400), st.integers(0, 99))
def test_a_truth_box_is_tight_around_what_is_drawn(number: int, width: int, height: int, seed: int) -> None:
    pattern = Pattern(width, height, objects=1, seed=seed)
    pixels, truth = pattern.frame(number)
    assert pixels.shape == (height, width, 3) and pixels.dtype == np.uint8
    # Half covered, and not only touched by the edge's smoothing.
    difference = np.abs(pixels.astype(int) - pattern._background).max(axis=2)
    rows, columns = np.nonzero(difference > difference.max() / 2)
    if not len(truth.found):
        assert len(rows) < 0.25 * pattern._world.prod()
        return
    drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    # The star's tip is the thinnest: between two pixels it covers half of both only where it is a pixel wide, which is
    # 1 / (2 tan) of half its angle from its end. That row is one more pixel, and half of one is rounding.
    inner = 0.42 * np.exp(1j * np.pi / 5)
    thin = (1 - inner.real) / inner.imag / 2
    assert np.abs(drawn - truth.found.boxes[0]).max() <= thin + 1 + 0.5


def test_who_leaves_comes_back_as_somebody_new() -> None:
    pattern = Pattern(64, 64, objects=1, seed=1)
    seen = []
    for number in range(4000):
        identities = pattern.frame(number)[1].identities.tolist()
        if identities and identities != seen[-1:]:
            seen += identities
    assert len(seen) > 3 and len(set(seen)) == len(seen)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**9), st.integers(1, 20))
def test_truth_is_in_the_picture_and_nobody_is_there_twice(number: int, objects: int) -> None:
    pattern = Pattern(80, 60, objects=objects)
    _, truth = pattern.frame(number)
    boxes = truth.found.boxes
    assert (boxes >= 0).all() and (boxes <= [80, 60, 80, 60]).all() and (boxes[:, 2:] > boxes[:, :2]).all()
    assert len(set(truth.identities.tolist())) == len(truth.found) <= objects
    assert (truth.identities >= 1).all() and truth.identities.dtype == np.int64
    assert set(truth.found.class_ids.tolist()) <= set(range(len(pattern.labels)))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"width": 16}, "32 to 8192 pixels, not 16x480"),
        ({"height": 10_000}, "not 640x10000"),
        ({"fps": 0.0}, "at most 1000 frames a second, not 0.0"),
        ({"fps": float("nan")}, "not nan"),
        ({"objects": 0}, "1 to 100 objects, not 0"),
    ],
)
def test_senseless_numbers_are_refused(settings: dict, told: str) -> None:
    with pytest.raises(InputError, match=told):
        Pattern(**settings)


def test_frames_count_from_0() -> None:
    with pytest.raises(InputError, match="count from 0, not -1"):
        Pattern(64, 64).frame(-1)
