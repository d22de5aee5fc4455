import numpy as np

from deploy.detections import Detections, no_detections


def test_take_keeps_the_parts_together() -> None:
    found = Detections(np.arange(12, dtype=np.float32).reshape(3, 4), np.float32([0.1, 0.2, 0.3]), np.int32([5, 6, 7]))
    for chosen in (found.take(np.array([2, 0])), found.take(np.array([True, False, True])).take(np.array([1, 0]))):
        assert len(chosen) == 2
        assert chosen.boxes.tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]
        assert chosen.scores.tolist() == np.float32([0.3, 0.1]).tolist()
        assert chosen.class_ids.tolist() == [7, 5]


def test_none() -> None:
    none = no_detections()
    assert (len(none), none.boxes.shape, none.scores.shape, none.class_ids.shape) == (0, (0, 4), (0,), (0,))
    assert (none.boxes.dtype, none.scores.dtype, none.class_ids.dtype) == (np.float32, np.float32, np.int32)
