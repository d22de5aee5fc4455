"""The plain shapes that drawn scenes are made of: those that the embedded example's network is trained on."""

from __future__ import annotations

import numpy as np

#: Class names; a shape's number is its index here.
CLASSES = ("circle", "square", "triangle", "star", "cross", "heart")


def _unit_outline(shape: int) -> np.ndarray:
    """Vertices (n, 2) of a class's outline, within the unit circle, y downwards."""
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    match CLASSES[shape]:
        case "circle":
            return np.stack([np.cos(turn), np.sin(turn)], axis=1)
        case "square":
            return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.8
        case "triangle":
            corner = turn[:3] * 0 + np.array([0, 2, 4]) * np.pi / 3 - np.pi / 2
            return np.stack([np.cos(corner), np.sin(corner)], axis=1)
        case "star":
            corner = np.arange(10) * np.pi / 5 - np.pi / 2
            radius = np.where(np.arange(10) % 2, 0.42, 1.0)
            return np.stack([radius * np.cos(corner), radius * np.sin(corner)], axis=1)
        case "cross":
            long, short = 0.95, 0.3
            corners = [(short, long), (short, short), (long, short), (long, -short), (short, -short), (short, -long)]
            return np.array(corners + [(-x, -y) for x, y in corners])
        case _:
            # The heart curve, x = 16 sin³t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, scaled to the unit circle.
            x = 16 * np.sin(turn) ** 3
            y = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
            return np.stack([x, -y - 2.5], axis=1) / 17


#: Of each class, float64 (n, 2) x, y within the unit circle, y downwards.
OUTLINES = tuple(_unit_outline(shape) for shape in range(len(CLASSES)))
