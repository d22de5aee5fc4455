"""The three cuts, the policies of tied layers, and rounding to multiples, by hand and against loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolchain.channels import Channels, Group
from toolchain.pruning_cuts import Choice, Cut, Policy, choose, combined, lamp, to_multiple


def _lamp_in_a_loop(scores: np.ndarray) -> np.ndarray:
    order, found = sorted(range(len(scores)), key=lambda place: (scores[place], place)), np.zeros(len(scores))
    for position, place in enumerate(order):
        total = sum(scores[other] ** 2 for other in order[position:])
        found[place] = scores[place] ** 2 / total if total else 0.0
    return found


@given(st.lists(st.one_of(st.floats(1e-3, 1e3), st.just(0.0), st.just(2.0)), min_size=1, max_size=30))
@settings(max_examples=100, deadline=None)
def test_lamp_is_the_loop(scores: list[float]) -> None:
    found = lamp(np.array(scores))
    # The same positive terms in another order: of 30 terms less than 30 roundings.
    np.testing.assert_allclose(found, _lamp_in_a_loop(np.array(scores)), rtol=30 * 2**-52)
    assert found.max() == (1 if max(scores) else 0)


def _one(layer: str, count: int, start: int) -> Group:
    return Group((layer,), (1,), np.arange(start, start + count))


def _channels(*groups: Group) -> Channels:
    """Channels of layers that have their groups' symbols, in order."""
    symbols: dict[str, np.ndarray] = {}
    for group in groups:
        for layer, width in zip(group.layers, group.widths, strict=True):
            mine = np.tile(group.symbols, width)
            symbols[layer] = np.concatenate([symbols[layer], mine]) if layer in symbols else mine
    return Channels(symbols, groups, {})


def _gone(
    channels: Channels,
    scores: dict[str, list[float]],
    ratio: float,
    cut: Cut,
    policy: Policy = "average",
    scale_free: bool = True,
) -> list[list[int]]:
    given = {layer: np.array(values, float) for layer, values in scores.items()}
    choices = choose(channels, given, ratio, cut, policy, scale_free=scale_free)
    for choice in choices:
        assert bool(choice.reason) != choice.gone.any()
    return [choice.gone.astype(int).tolist() for choice in choices]


def test_uniform_takes_the_lowest_of_every_group_to_the_nearest_channel() -> None:
    channels = _channels(_one("a", 5, 0), _one("b", 4, 5))
    scores = {"a": [5, 1, 4, 2, 3], "b": [100, 400, 300, 200]}
    assert _gone(channels, scores, 0.5, "uniform") == [[0, 1, 0, 1, 1], [1, 0, 0, 1]]
    assert _gone(channels, scores, 0.3, "uniform") == [[0, 1, 0, 1, 0], [1, 0, 0, 0]]
    assert _gone(channels, scores, 0.99, "uniform") == [[0, 1, 1, 1, 1], [1, 0, 1, 1]]


def test_global_compares_layers_by_their_root_mean_square_or_as_they_are() -> None:
    channels = _channels(_one("a", 4, 0), _one("b", 4, 4))
    scores = {"a": [1, 2, 3, 4], "b": [100, 100, 100, 1000]}
    # a: over sqrt(30 / 4) = 2.74 .37 .73 1.10 1.46; b: over sqrt(1.03e6 / 4) = 507 .20 .20 .20 1.97.
    assert _gone(channels, scores, 0.5, "global") == [[1, 0, 0, 0], [1, 1, 1, 0]]
    assert _gone(channels, scores, 0.375, "global", scale_free=False) == [[1, 1, 1, 0], [0, 0, 0, 0]]


def test_one_threshold_never_empties_a_layer() -> None:
    channels = _channels(_one("a", 3, 0), _one("b", 3, 3))
    scores = {"a": [1, 3, 2], "b": [10, 20, 30]}
    assert _gone(channels, scores, 0.7, "global", scale_free=False) == [[1, 0, 1], [1, 0, 0]]


def test_equal_scores_at_the_threshold_stay() -> None:
    """Filters of one norm: the strongest k of every layer score 1, 1/2, ... 1/k, whatever its size."""
    sizes = (10, 20, 30)
    groups = [_one(f"layer_{size}", size, start) for size, start in zip(sizes, (0, 10, 30), strict=True)]
    scores = {f"layer_{size}": [0.1] * size for size in sizes}
    # 60 * 0.8 = 48 may go, 12 stay: 4 of each. With 0.82 49 may go, 11 stay, and the 12th is as good as the 11th.
    for ratio in (0.8, 0.82):
        gone = _gone(_channels(*groups), scores, ratio, "slamp")
        assert [size - sum(mask) for size, mask in zip(sizes, gone, strict=True)] == [4, 4, 4]


@given(st.integers(0, 1000), st.floats(0, 0.99))
@settings(max_examples=50, deadline=None)
def test_slamp_lets_at_most_the_share_go_and_just_about_that(seed: int, ratio: float) -> None:
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 30, 4)
    groups = [_one(f"layer_{i}", size, 100 * i) for i, size in enumerate(sizes)]
    scores = {f"layer_{i}": random.uniform(1, 2, size).tolist() for i, size in enumerate(sizes)}
    gone = sum(map(sum, _gone(_channels(*groups), scores, ratio, "slamp")))
    total = int(sizes.sum())
    # The best of every layer stays, whatever is asked for.
    assert min(ratio * total - 1, total - len(sizes)) <= gone + 1e-9
    assert gone <= ratio * total + 1e-9


_TIED = _channels(Group(("a", "b"), (1, 1), np.arange(4)))


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        # (.5 2.5 2 2.5), (1 5 4 5) or (1 4 3 3): the lowest two.
        ("average", [1, 0, 1, 0]),
        ("sum", [1, 0, 1, 0]),
        ("maximum", [1, 0, 1, 0]),
        # a lets 0 and 1 go, b 0 and 2.
        ("union", [1, 1, 1, 0]),
        ("intersection", [1, 0, 0, 0]),
    ],
)
def test_policies_of_tied_layers_for_a_uniform_cut(policy: Policy, expected: list[int]) -> None:
    scores = {"a": [0, 1, 3, 2], "b": [1, 4, 1.5, 3]}
    assert _gone(_TIED, scores, 0.5, "uniform", policy, scale_free=False) == [expected]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("average", [1, 0, 1, 0]), ("maximum", [1, 0, 1, 0]), ("union", [1, 1, 1, 0]), ("intersection", [1, 0, 0, 0])],
)
def test_policies_of_tied_layers_for_a_threshold(policy: Policy, expected: list[int]) -> None:
    scores = {"a": [0, 1, 3, 3], "b": [1, 4, 0.5, 3.5]}
    assert _gone(_TIED, scores, 0.5, "global", policy, scale_free=False) == [expected]


def test_where_all_would_go_the_best_stays() -> None:
    scores = {"a": [0.0, 1, 2, 3], "b": [3.0, 2, 1, 0.5]}
    assert _gone(_TIED, scores, 0.5, "uniform", "union", scale_free=False) == [[1, 1, 1, 0]]


def test_combined_scores() -> None:
    rows = np.array([[1.0, 2], [3, 8]])
    assert [combined(rows, policy).tolist() for policy in ("average", "sum", "maximum", "union", "intersection")] == [
        [2, 5],
        [4, 10],
        [3, 8],
        [2, 5],
        [2, 5],
    ]


def test_a_symbol_counts_as_many_filters_as_it_is() -> None:
    """Of 4 + 2 filters half may go: of "wide" each symbol is two of them, and scores their mean."""
    channels = _channels(Group(("wide",), (2,), np.arange(2)), _one("b", 2, 2))
    scores = {"wide": [1, 5, 2, 6], "b": [1.7, 9]}
    # 1.5 for two filters and 1.7 for one.
    assert _gone(channels, scores, 0.5, "global", scale_free=False) == [[1, 0], [1, 0]]
    assert _gone(channels, scores, 0.4, "global", scale_free=False) == [[1, 0], [0, 0]]


def _rounded(count: int, gone: int, multiple: int, widths: tuple[int, ...] = (1,)) -> Choice:
    group = Group(tuple("abc"[: len(widths)]), widths, np.arange(count))
    mask = np.zeros(count, bool)
    mask[:gone] = True
    return to_multiple(Choice(group, mask, np.arange(count, dtype=float)), multiple)


@pytest.mark.parametrize(
    ("count", "left", "multiple", "expected"),
    [
        (64, 35, 8, 32),
        (64, 36, 8, 40),
        (64, 37, 8, 40),
        (64, 1, 8, 8),
        (64, 61, 8, 64),
        (64, 60, 8, 64),
        (20, 18, 8, 16),
        (20, 20 - 1, 8, 16),
        (20, 1, 8, 8),
        (21, 20, 8, 21),
        (8, 3, 8, 8),
        (7, 3, 8, 7),
        (7, 3, 1, 3),
    ],
)
def test_channels_end_on_the_nearest_multiple(count: int, left: int, multiple: int, expected: int) -> None:
    choice = _rounded(count, count - left, multiple)
    assert (~choice.gone).sum() == expected
    # The lowest scores go.
    assert not choice.gone[count - expected :].any()
    assert bool(choice.reason) == (expected == count)


def test_the_reasons_of_what_is_rounded_to_all() -> None:
    assert _rounded(7, 4, 8).reason == "7 channels are fewer than the multiple of 8 on which they must end"
    assert _rounded(64, 3, 8).reason == "61 of 64 channels would be left, which to a multiple of 8 are all of them"


@pytest.mark.parametrize(
    ("widths", "step"), [((1,), 8), ((2,), 4), ((4,), 2), ((8,), 1), ((3,), 8), ((6,), 4), ((4, 1), 8), ((16,), 1)]
)
def test_every_layer_of_a_group_ends_on_the_multiple(widths: tuple[int, ...], step: int) -> None:
    # 48 symbols, 25 left: the nearest number of symbols that gives each layer a multiple of 8.
    left = int((~_rounded(48, 23, 8, widths).gone).sum())
    assert left == {8: 24, 4: 24, 2: 26, 1: 25}[step]
    assert all(left * width % 8 == 0 for width in widths)


def test_what_stays_by_itself_is_not_rounded() -> None:
    choice = Choice(_one("a", 13, 0), np.zeros(13, bool), np.ones(13), "no channel is below the cut")
    assert to_multiple(choice, 8) is choice
