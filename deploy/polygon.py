"""Points and polygons, many points at once."""

from __future__ import annotations

import numpy as np


def inside(points: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """bool (n,): which points lie in the polygon, by the even-odd rule; one on the border itself may be either.

    points: float (n, 2) x, y; polygon: float (m, 2), its last vertex joined to its first.
    """
    x, y = points[:, :1], points[:, 1:]
    x1, y1 = polygon.T
    x2, y2 = np.roll(polygon, -1, axis=0).T
    spans = (y1 > y) != (y2 > y)  # never where y1 = y2
    slope = (x2 - x1) / np.where(y1 == y2, 1, y2 - y1)
    crossed = spans & (x < x1 + (y - y1) * slope)
    odd: np.ndarray = crossed.sum(axis=1) % 2 == 1
    return odd


def border_distance(points: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """float64 (n,): from each point to the nearest point of the polygon's border. As inside."""
    edges = np.roll(polygon, -1, axis=0) - polygon
    to_points = points[:, None] - polygon
    squares = np.maximum((edges**2).sum(axis=1), np.finfo(np.float64).tiny)
    along = np.clip((to_points * edges).sum(axis=2) / squares, 0, 1)
    squared_distances = ((to_points - along[..., None] * edges) ** 2).sum(axis=2)
    distances: np.ndarray = np.sqrt(squared_distances.min(axis=1))
    return distances


def area(polygon: np.ndarray) -> float:
    """Of a polygon that does not cross itself. As inside."""
    x, y = polygon.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
