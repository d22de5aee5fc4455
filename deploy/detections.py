"""What a detector found in one picture."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Detections:
    """n detections, best first after NMS."""

    #: float32 (n, 4): x1, y1, x2, y2 in pixels, x1 <= x2, y1 <= y2; pixel i covers i to i + 1.
    boxes: np.ndarray
    #: float32 (n,), 0..1.
    scores: np.ndarray
    #: int32 (n,), index into the contract's labels.
    class_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, indices: np.ndarray) -> Detections:
        """The detections at the indices, in their order; a boolean mask of length n works too."""
        return Detections(self.boxes[indices], self.scores[indices], self.class_ids[indices])


def no_detections() -> Detections:
    """n = 0."""
    return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
