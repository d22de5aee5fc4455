import numpy as np

from deploy.outlines import CLASSES, OUTLINES


def test_unit_outlines_fit_the_unit_circle() -> None:
    assert len(OUTLINES) == len(CLASSES)
    for outline in OUTLINES:
        radius = np.hypot(*outline.T).max()
        assert 0.9 < radius <= 1.14  # the square's corners lie at 0.8 * sqrt(2) = 1.131
