import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.motion import boxes_of, correct, first_state, predict

BOXES = np.array([[10, 20, 30, 80], [0, 0, 400, 300], [5, 5, 5, 5]], np.float32)


def test_a_box_seen_once_stays_where_it_is() -> None:
    state = first_state(BOXES)
    assert boxes_of(state) == pytest.approx(BOXES, abs=1e-3)
    predict(state, 2.0)
    assert boxes_of(state) == pytest.approx(BOXES, abs=1e-3)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 3), min_size=1, max_size=6))
def test_many_steps_are_one_long_step(steps: list[float]) -> None:
    many = first_state(BOXES)
    predict(many, 0.1)
    correct(many, BOXES + np.float32(3))
    one = many.copy()
    for seconds in steps:
        predict(many, seconds)
    predict(one, sum(steps))
    assert many == pytest.approx(one, rel=1e-9, abs=1e-9)


def test_velocity_is_learnt_at_any_rate() -> None:
    steps = np.random.default_rng(0).uniform(0.02, 0.3, 40)
    state, time = first_state(BOXES[:2]), 0.0
    for seconds in steps:
        time += seconds
        predict(state, seconds)
        correct(state, BOXES[:2] + np.array([50, -20, 50, -20]) * time)
    assert state[:, 1] == pytest.approx(np.array([[50, -20, 0, 0]] * 2), abs=1)
    predict(state, 1.0)
    assert boxes_of(state) == pytest.approx(BOXES[:2] + np.array([50, -20, 50, -20]) * (time + 1), abs=2)


def test_the_filter_is_the_textbooks() -> None:
    """One coordinate's five numbers, against matrices."""
    state = first_state(BOXES[:1])
    predict(state, 0.2)
    part = state[0, :, 0].copy()
    mean, covariance = part[:2], np.array([[part[2], part[3]], [part[3], part[4]]])
    observe = np.array([[1.0, 0.0]])
    noise = (np.sqrt(20 * 60) / 20) ** 2
    gain = covariance @ observe.T / (observe @ covariance @ observe.T + noise)
    mean = mean + gain[:, 0] * (25 - mean[0])
    covariance = covariance - gain @ observe @ covariance
    correct(state, np.array([[15, 20, 35, 80]]))
    assert state[0, :, 0] == pytest.approx([*mean, covariance[0, 0], covariance[0, 1], covariance[1, 1]])


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_boxes_stay_boxes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    state = first_state(np.sort(rng.uniform(-50, 50, (4, 4)), axis=1)[:, [0, 1, 2, 3]])
    for _ in range(20):
        predict(state, rng.exponential(1))
        low = rng.uniform(-1e4, 1e4, (4, 2))
        correct(state, np.concatenate([low, low + rng.choice([0, 1e-6, 5, 1e4], (4, 2))], axis=1))
        assert np.isfinite(state).all() and (state[:, [2, 4]] >= 0).all()
        boxes = boxes_of(state)
        assert (boxes[:, 2:] >= boxes[:, :2]).all()
