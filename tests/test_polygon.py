import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.polygon import area, border_distance, inside

SQUARE = np.array([[0.0, 0], [10, 0], [10, 10], [0, 10]])
#: A U of three bars, open at the top (y = 0).
U = np.array([[0.0, 0], [10, 0], [10, 20], [20, 20], [20, 0], [30, 0], [30, 30], [0, 30]])


def test_square() -> None:
    points = np.array([[5, 5], [-1, 5], [11, 5], [5, -1], [5, 11], [9.99, 0.01]])
    assert inside(points, SQUARE).tolist() == [True, False, False, False, False, True]
    assert border_distance(points[:5], SQUARE).tolist() == [5, 1, 1, 1, 1]
    assert border_distance(np.array([[13.0, 14.0]]), SQUARE).tolist() == [5]  # to the corner: 3, 4, 5
    assert area(SQUARE) == 100


def test_a_bay_is_outside() -> None:
    points = np.array([[5, 5], [15, 5], [25, 5], [15, 25], [15, -5]])
    assert inside(points, U).tolist() == [True, False, True, True, False]
    assert area(U) == 30 * 30 - 10 * 20


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32 - 1), st.integers(0, 7), st.booleans())
def test_neither_the_first_vertex_nor_the_direction_matters(seed: int, shift: int, backwards: bool) -> None:
    points = np.random.default_rng(seed).uniform(-5, 35, (50, 2))
    turned = np.roll(U[::-1] if backwards else U, shift, axis=0)
    assert inside(points, turned).tolist() == inside(points, U).tolist()
    assert border_distance(points, turned) == pytest.approx(border_distance(points, U))


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32 - 1), st.integers(3, 12))
def test_a_convex_polygon_is_where_every_edge_is_on_the_same_side(seed: int, corners: int) -> None:
    rng = np.random.default_rng(seed)
    turn = np.sort(rng.uniform(0, 2 * np.pi, corners))
    polygon = 10 * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    points = rng.uniform(-12, 12, (200, 2))
    edges = np.roll(polygon, -1, axis=0) - polygon
    offsets = points[:, None] - polygon
    left = (edges[:, 0] * offsets[..., 1] - edges[:, 1] * offsets[..., 0] > 0).all(axis=1)
    assert inside(points, polygon).tolist() == left.tolist()


def test_no_points() -> None:
    nothing = np.zeros((0, 2))
    assert inside(nothing, SQUARE).shape == border_distance(nothing, SQUARE).shape == (0,)
