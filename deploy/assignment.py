"""Which row goes with which column, so that the pairs together are worth most: exact, and small.

The problems of a tracker are nearly trivial: most tracks overlap one detection, which overlaps no other track. Such
pairs are taken at once; shortest augmenting paths over the pairs that gain anything solve the rest, in plain Python,
which a handful of pairs is too few to be slow in. SciPy has the same, in 40 MB.
"""

from __future__ import annotations

import heapq

import numpy as np


#: Of each row the columns that it may take, with their costs.
Edges = list[list[tuple[int, float]]]


def assign(gain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pairs, int64 (k,) each, in the order of rows, no row and no column twice, with the
    greatest sum of gains. Pairs that gain nothing are none.

    gain: float (n, m), finite; what is not above 0 is never taken.
    """
    rows, columns = (gain > 0).nonzero()
    alone = (np.bincount(rows, minlength=1)[rows] == 1) & (np.bincount(columns, minlength=1)[columns] == 1)
    if not alone.all():
        shared_rows, shared_columns = rows[~alone], columns[~alone]
        rows, columns = rows[alone], columns[alone]
        costs = (-gain[shared_rows, shared_columns]).tolist()
        more_rows, more_columns = _solve(shared_rows.tolist(), shared_columns.tolist(), costs, gain.shape[1])
        rows, columns = np.concatenate([rows, more_rows]), np.concatenate([columns, more_columns])
        order = np.argsort(rows)
        rows, columns = rows[order], columns[order]
    return rows, columns


def _solve(rows: list[int], columns: list[int], costs: list[float], width: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs with the least sum of costs, of those listed, in the order of rows; costs are below 0; columns are
    below width.

    Crouse, "On implementing 2D rectangular assignment algorithms", IEEE Transactions on Aerospace and Electronic
    Systems 52(4), 2016, section III, begun as Jonker and Volgenant (1987) do: each row takes its cheapest column where
    that is free. A column of its own, at no cost, lets a row stay alone.
    """
    numbers = sorted(set(rows))
    place = {row: index for index, row in enumerate(numbers)}
    edges: Edges = [[(width + index, 0.0)] for index in range(len(numbers))]
    for row, column, cost in zip(rows, columns, costs, strict=True):
        edges[place[row]].append((column, cost))
    row_price = [0.0] * len(numbers)
    column_price = [0.0] * (width + len(numbers))
    column_of = [-1] * len(numbers)
    row_of: dict[int, int] = {}
    for row, edge in enumerate(edges):
        column, row_price[row] = min(edge, key=lambda one: one[1])
        if column not in row_of:
            column_of[row], row_of[column] = column, row
    for row, column in enumerate(column_of.copy()):
        if column < 0:
            _augment(edges, row, row_price, column_price, column_of, row_of)
    taken = [(row, column) for row, column in zip(numbers, column_of, strict=True) if column < width]
    pairs = np.array(taken, np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _augment(
    edges: Edges,
    start: int,
    row_price: list[float],
    column_price: list[float],
    column_of: list[int],
    row_of: dict[int, int],
) -> None:
    """Gives row `start` a column along the shortest path to a free one, by Dijkstra over reduced costs, and adjusts
    prices so that reduced costs stay above 0, and 0 for the pairs. Changes all but the first two."""
    length: dict[int, float] = {}
    before: dict[int, int] = {}
    done: set[int] = set()
    queue: list[tuple[float, int]] = []
    row, so_far = start, 0.0
    while True:
        for column, cost in edges[row]:
            through = so_far + cost - row_price[row] - column_price[column]
            if column not in done and through < length.get(column, np.inf):
                length[column], before[column] = through, row
                heapq.heappush(queue, (through, column))
        column = heapq.heappop(queue)[1]
        while column in done:  # pushed again since, with a shorter path
            column = heapq.heappop(queue)[1]
        so_far = length[column]
        if column not in row_of:
            break
        done.add(column)
        row = row_of[column]
    row_price[start] += so_far
    for passed in done:
        row_price[row_of[passed]] += so_far - length[passed]
        column_price[passed] -= so_far - length[passed]
    while True:
        row = before[column]
        row_of[column] = row
        column_of[row], column = column, column_of[row]
        if row == start:
            break
