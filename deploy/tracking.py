"""Who is who from frame to frame: identities for detections, by where boxes were and how they moved.

ByteTrack (Zhang et al., "ByteTrack: Multi-Object Tracking by Associating Every Detection Box", ECCV 2022, algorithm 1):
sure detections are associated first; the unsure ones, half hidden people mostly, may then only continue a track that
was there a moment ago. It differs from the paper in what a live feed and several classes ask for: time is measured in
seconds and not in frames, a track keeps its class, and an identity is given when a track has been seen often enough, so
that identities count objects. Its authors' program also drops tracks that come to lie on others; on drawn scenes with
truth that changed nothing. Nothing looks at pixels: who is hidden for long, or comes back, is somebody new.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from deploy.assignment import assign
from deploy.detections import Detections
from deploy.errors import InputError
from deploy.motion import boxes_of, correct, first_state, predict

#: Intersection over union, times the score in the first association, below which two are not the same: of sure
#: detections and all tracks; of unsure detections and tracks of the last frame; of sure detections and tracks without
#: an identity. ByteTrack's own program has 0.2, 0.5 and 0.3, for sure detectors and 30 frames a second. At 0.2 a score
#: of 0.3 asks for two thirds of overlap; and who walks is not where a box seen once was, 0.2 s later. Chosen on a few
#: drawn scenes with truth, where they were no worse and sometimes better; no other scenes have confirmed them.
_SURE, _UNSURE, _YOUNG = 0.1, 0.5, 0.1


@dataclasses.dataclass(frozen=True)
class TrackSettings:
    """Raises InputError where a number is out of range."""

    #: Least score of a detection that may begin a track, 0..1: the detector's own threshold for what it shows.
    sure: float = 0.25
    #: Least score of one that may continue a track, 0..1, at most `sure`: what the detector is run with.
    unsure: float = 0.1
    #: In how many frames, one after the other, something is seen before it gets an identity.
    hits: int = 3
    #: Seconds after which something that is not seen is forgotten. In a feed with fewer frames nothing is followed.
    lost_seconds: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.unsure <= self.sure <= 1:
            raise InputError(
                f"a track's scores are 0 <= unsure <= sure <= 1, not {self.unsure} and {self.sure}; give some such as "
                "0.1 and 0.25"
            )
        if self.hits < 1:
            raise InputError(f"a track is seen in at least 1 frame before it counts, not {self.hits}; give 1 to 10")
        if not (math.isfinite(self.lost_seconds) and self.lost_seconds > 0):
            raise InputError(f"lost_seconds is more than 0 seconds, not {self.lost_seconds}; give some such as 2")


class Tracker:
    """Of one feed. Identities count from 1 and are never given twice.

    The detector's threshold is to be settings.unsure, and the user's own settings.sure; what is shown are sure
    detections, and unsure ones that continue a track (analysis.py). Not for several threads at once.
    """

    def __init__(self, settings: TrackSettings) -> None:
        self._settings = settings
        self._given = 0
        self._time = -math.inf
        self._forget()

    def _forget(self) -> None:
        """No tracks. Of each: its motion, class, identity (0 before it has one), frames in which it was seen, and
        when last."""
        self._state = np.zeros((0, 5, 4))
        self._classes = np.zeros(0, np.int64)
        self._identities = np.zeros(0, np.int64)
        self._hits = np.zeros(0, np.int64)
        self._seen = np.zeros(0)

    def update(self, found: Detections, time: float) -> np.ndarray:
        """The identity of each detection, int64 (n,); 0 for one that has none, or none yet.

        found: with finite boxes. time: of the frame in seconds, finite, on whatever clock the feed's frames have. Where
        it falls, as that of a film that begins anew, or leaps by more than lost_seconds, everything is forgotten.
        """
        elapsed = time - self._time
        if not 0 <= elapsed <= self._settings.lost_seconds:
            self._forget()
            elapsed = 0.0
        recent = self._seen == self._time
        self._time = time
        # Whatever order detections come in, the same ones get the same identities.
        order = np.lexsort((*found.boxes.T, found.class_ids, -found.scores))
        boxes, scores = found.boxes[order].astype(np.float64), found.scores[order].astype(np.float64)
        classes = found.class_ids[order].astype(np.int64)
        predict(self._state, elapsed)
        track_of = self._associate(boxes, scores, classes, recent)
        seen = (track_of >= 0).nonzero()[0]
        tracks = track_of[seen]
        state = self._state[tracks]
        correct(state, boxes[seen])
        self._state[tracks] = state
        self._hits[tracks] += 1
        self._seen[tracks] = time
        begun = ((track_of < 0) & (scores >= self._settings.sure)).nonzero()[0]
        if len(begun):
            track_of[begun] = len(self._seen) + np.arange(len(begun))
            self._begin(boxes[begun], classes[begun])
        self._name()
        identities = np.zeros(len(order), np.int64)
        some = track_of >= 0
        identities[order[some]] = self._identities[track_of[some]]
        self._drop()
        return identities

    def _associate(
        self, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, recent: np.ndarray
    ) -> np.ndarray:
        """The track of each detection, -1 for none. recent: bool, tracks that were seen in the frame before."""
        track_of = np.full(len(boxes), -1)
        overlap = overlaps(boxes_of(self._state), boxes)
        overlap[self._classes[:, None] != classes] = 0
        sure = scores >= self._settings.sure
        named = self._identities > 0
        free = np.ones(len(self._seen), bool)
        for tracks, detections, worth, least in (
            (named, sure, overlap * scores, _SURE),
            (named & recent, ~sure & (scores >= self._settings.unsure), overlap, _UNSURE),
            (~named, sure, overlap, _YOUNG),
        ):
            both = (tracks & free)[:, None] & (detections & (track_of < 0))
            if both.any():
                row, column = assign(np.where(both, worth - least, 0))
                track_of[column] = row
                free[row] = False
        return track_of

    def _begin(self, boxes: np.ndarray, classes: np.ndarray) -> None:
        count = len(boxes)
        self._state = np.concatenate([self._state, first_state(boxes)])
        self._classes = np.concatenate([self._classes, classes])
        self._identities = np.concatenate([self._identities, np.zeros(count, np.int64)])
        self._hits = np.concatenate([self._hits, np.ones(count, np.int64)])
        self._seen = np.concatenate([self._seen, np.full(count, self._time)])

    def _name(self) -> None:
        """Gives identities to tracks that have been seen often enough."""
        new = ((self._identities == 0) & (self._hits >= self._settings.hits)).nonzero()[0]
        if len(new):
            self._identities[new] = self._given + 1 + np.arange(len(new))
            self._given += len(new)

    def _drop(self) -> None:
        """Takes away what was not seen: at once what has no identity, after lost_seconds what has one."""
        lost_for = self._time - self._seen
        stays = lost_for <= np.where(self._identities > 0, self._settings.lost_seconds, 0)
        if not stays.all():
            self._state, self._classes = self._state[stays], self._classes[stays]
            self._identities, self._hits = self._identities[stays], self._hits[stays]
            self._seen = self._seen[stays]


def overlaps(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Intersection over union of every box of one and every box of two, (n, m); 0 where a box has no area."""
    width = np.minimum(one[:, None, 2], two[:, 2]) - np.maximum(one[:, None, 0], two[:, 0])
    height = np.minimum(one[:, None, 3], two[:, 3]) - np.maximum(one[:, None, 1], two[:, 1])
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    areas, others = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (one, two))
    union = areas[:, None] + others - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=intersection > 0)
