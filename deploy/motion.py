"""Boxes that move: a Kalman filter for many boxes at once, over time steps of any length.

Centre and size of a box are four coordinates that know nothing of each other, so covariances are three numbers a
coordinate and nothing is inverted. Centres move at a constant velocity that white noise accelerates (Bar-Shalom, Li and
Kirubarajan, "Estimation with Applications to Tracking and Navigation", 2001, section 6.2.2); sizes drift (a random
walk). Both are laws of continuous time: two short steps are exactly one long one, which a live feed that drops frames
asks for, where SORT and ByteTrack count frames.

A state is float64 (n, 5, 4): position, velocity, and the variance of the position, their covariance and the variance of
the velocity; the last axis is centre x, centre y, width, height. Pixels and seconds. Noise is told in units of the
box's own size, as in ByteTrack: a large box is near, and moves and errs by more pixels.
"""

from __future__ import annotations

import numpy as np

#: Standard deviation of a detection's coordinates, in sizes of the box; ByteTrack's.
_MEASURED = 1 / 20
#: How much the velocity of a centre wanders: sizes a second, after one second. This and the next were chosen on a few
#: drawn scenes with truth, which hardly tell half or twice as much apart.
_ACCELERATION = 0.6
#: How much sizes drift, and centres beside their velocity: sizes, after one second.
_DRIFT = np.array([0.3, 0.3, 0.45, 0.45])
_WANDER, _DRIFT_SQUARED = _ACCELERATION**2 * np.array([1, 1, 0, 0]), _DRIFT**2
#: Standard deviation of the velocity of a box that was seen once, sizes a second. People and cars seen from a street
#: camera move by one to three of their heights a second.
_FIRST_VELOCITY = 2.0
#: No box is smaller than this after it was predicted or corrected, pixels.
_LEAST_SIDE = 1e-3


def first_state(boxes: np.ndarray) -> np.ndarray:
    """States of boxes seen once, at rest. boxes: (n, 4) x1, y1, x2, y2, finite."""
    state = np.zeros((len(boxes), 5, 4))
    state[:, 0] = _to_center(boxes)
    area = _area(state)[:, 0]
    state[:, 2] = _MEASURED**2 * area
    state[:, 4, :2] = _FIRST_VELOCITY**2 * area
    return state


def predict(state: np.ndarray, seconds: float) -> None:
    """Moves states on by the time, in place. seconds: finite, at least 0."""
    t = seconds
    # Every number of a state after the time is a sum of those before, times these,
    step = np.array(
        [[1, t, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 2 * t, t * t], [0, 0, 0, 1, t], [0, 0, 0, 0, 1]], np.float64
    )
    # and what the noise adds, for a box of the size 1.
    wander = t * _WANDER
    noise = np.zeros((5, 4))
    noise[2] = wander * (t * t / 3) + t * _DRIFT_SQUARED
    noise[3] = wander * (t / 2)
    noise[4] = wander
    area = _area(state)
    np.copyto(state, step @ state)
    state += area * noise


def correct(state: np.ndarray, boxes: np.ndarray) -> None:
    """Learns from a detection for each state, in place. boxes: (n, 4) x1, y1, x2, y2, finite."""
    error = _to_center(boxes) - state[:, 0]
    covariance = state[:, 3].copy()
    gains = state[:, 2:4] / (state[:, 2] + _MEASURED**2 * _area(state)[:, 0])[:, None]
    state[:, :2] += gains * error[:, None]
    state[:, 2:4] *= 1 - gains[:, :1]
    state[:, 4] -= gains[:, 1] * covariance
    np.maximum(state[:, 0, 2:], _LEAST_SIDE, out=state[:, 0, 2:])


def boxes_of(state: np.ndarray) -> np.ndarray:
    """float64 (n, 4) x1, y1, x2, y2."""
    center, half = state[:, 0, :2], state[:, 0, 2:] / 2
    return np.concatenate([center - half, center + half], axis=1)


def _area(state: np.ndarray) -> np.ndarray:
    """(n, 1, 1): of the boxes, square pixels; the square of what is called their size here."""
    area: np.ndarray = state[:, 0, 2] * state[:, 0, 3]
    return area[:, None, None]


def _to_center(boxes: np.ndarray) -> np.ndarray:
    boxes = np.asarray(boxes, np.float64)
    low, high = boxes[:, :2], boxes[:, 2:]
    return np.concatenate([(low + high) / 2, np.maximum(high - low, _LEAST_SIDE)], axis=1)
