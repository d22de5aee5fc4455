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
#: How much the velocity of a centre wanders: sizes a second, after one second. This and the next were chosen by the
#: drawn scene's truth (IDF1 of three runs of Pattern), and are no finer than what that can tell: half or twice as much
#: costs it 0.02 at most.
_ACCELERATION = 0.6
#: How much sizes drift, and centres beside their velocity: sizes, after one second.
_DRIFT = np.array([0.3, 0.3, 0.45, 0.45])
#: Standard deviation of the velocity of a box that was seen once, sizes a second. People and cars seen from a street
#: camera move by one to three of their heights a second.
_FIRST_VELOCITY = 2.0
#: No box is smaller than this after it was predicted or corrected, pixels.
_LEAST_SIDE = 1e-3


def first_state(boxes: np.ndarray) -> np.ndarray:
    """States of boxes seen once, at rest. boxes: (n, 4) x1, y1, x2, y2, finite."""
    state = np.zeros((len(boxes), 5, 4))
    state[:, 0] = _to_center(boxes)
    size = _size(state)
    state[:, 2] = (_MEASURED * size) ** 2
    state[:, 4, :2] = (_FIRST_VELOCITY * size) ** 2
    return state


def predict(state: np.ndarray, seconds: float) -> None:
    """Moves states on by the time, in place. seconds: finite, at least 0."""
    position, velocity, variance, covariance, velocity_variance = (state[:, part] for part in range(5))
    size = _size(state)
    wander = np.zeros_like(position)
    wander[:, :2] = (_ACCELERATION * size) ** 2
    position += seconds * velocity
    variance += seconds * (2 * covariance + seconds * (velocity_variance + wander * (seconds / 3)))
    variance += seconds * (_DRIFT * size) ** 2
    covariance += seconds * (velocity_variance + wander * (seconds / 2))
    velocity_variance += seconds * wander


def correct(state: np.ndarray, boxes: np.ndarray) -> None:
    """Learns from a detection for each state, in place. boxes: (n, 4) x1, y1, x2, y2, finite."""
    position, velocity, variance, covariance, velocity_variance = (state[:, part] for part in range(5))
    measured = _to_center(boxes)
    noise = (_MEASURED * _size(state)) ** 2
    error = measured - position
    total = variance + noise
    gain, velocity_gain = variance / total, covariance / total
    position += gain * error
    velocity += velocity_gain * error
    velocity_variance -= velocity_gain * covariance
    covariance *= 1 - gain
    variance *= 1 - gain
    np.maximum(position[:, 2:], _LEAST_SIDE, out=position[:, 2:])


def boxes_of(state: np.ndarray) -> np.ndarray:
    """float64 (n, 4) x1, y1, x2, y2."""
    center, half = state[:, 0, :2], state[:, 0, 2:] / 2
    return np.concatenate([center - half, center + half], axis=1)


def _size(state: np.ndarray) -> np.ndarray:
    """(n, 1): side of a square of the box's area, pixels."""
    size: np.ndarray = np.sqrt(state[:, 0, 2:3] * state[:, 0, 3:4])
    return size


def _to_center(boxes: np.ndarray) -> np.ndarray:
    boxes = np.asarray(boxes, np.float64)
    low, high = boxes[:, :2], boxes[:, 2:]
    return np.concatenate([(low + high) / 2, np.maximum(high - low, _LEAST_SIDE)], axis=1)
