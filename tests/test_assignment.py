import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploy.assignment import assign


def most(gain: np.ndarray) -> float:
    """The greatest sum of gains, by trying all assignments."""
    if len(gain) > gain.shape[1]:
        gain = gain.T
    positive = np.maximum(gain, 0)
    every = itertools.permutations(range(gain.shape[1]), len(gain))
    return max(float(sum(positive[row, column] for row, column in enumerate(columns))) for columns in every)


def check(gain: np.ndarray) -> float:
    """The sum that assign finds, after looking that it keeps its word."""
    rows, columns = assign(gain)
    assert rows.dtype == columns.dtype == np.int64
    assert (np.diff(rows) > 0).all() and len(set(columns.tolist())) == len(columns)
    assert (gain[rows, columns] > 0).all()
    return float(gain[rows, columns].sum())


small = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=4)


@settings(deadline=None, max_examples=200)
@given(small.flatmap(lambda shape: hnp.arrays(np.int8, shape, elements=st.integers(-2, 6))))
def test_equals_brute_force(whole: np.ndarray) -> None:
    # Small whole numbers: many equal sums, and gains of nothing.
    gain = whole.astype(np.float64)
    assert check(gain) == most(gain)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 6))
def test_equals_brute_force_on_real_numbers(seed: int, rows: int, columns: int) -> None:
    gain = np.random.default_rng(seed).uniform(-0.3, 0.8, (rows, columns))
    assert check(gain) == pytest.approx(most(gain), abs=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 60))
def test_a_large_one_that_was_built_around_its_answer(seed: int, rows: int, columns: int) -> None:
    """By duality: gains of row + column prices at the hidden pairs, and less elsewhere."""
    rng = np.random.default_rng(seed)
    pairs = min(rows, columns)
    i, j = rng.permutation(rows)[:pairs], rng.permutation(columns)[:pairs]
    row_price, column_price = np.zeros(rows), np.zeros(columns)
    row_price[i], column_price[j] = rng.uniform(0.1, 1, pairs), rng.uniform(0.1, 1, pairs)
    gain = row_price[:, None] + column_price - rng.uniform(0, 1, (rows, columns))
    gain[i, j] = row_price[i] + column_price[j]
    assert check(gain) == pytest.approx(row_price.sum() + column_price.sum())


def test_the_best_pair_is_given_up_where_two_others_are_worth_more() -> None:
    rows, columns = assign(np.array([[0.9, 0.8], [0.8, 0.1]]))
    assert rows.tolist() == [0, 1] and columns.tolist() == [1, 0]


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (2, 3)])
def test_nothing_to_gain(shape: tuple[int, int]) -> None:
    rows, columns = assign(np.zeros(shape))
    assert rows.shape == columns.shape == (0,)
