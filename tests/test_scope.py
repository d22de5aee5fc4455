"""Scopes: every kind of pattern, and that none is passed over in silence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.errors import InputError
from toolchain.graph import Graph, Node
from toolchain.scope import select

NAMES = ("image", "stem", "conv2d", "conv2d_1", "conv2d_2", "conv2d_10", "block1_add", "out")
OPS = ("InputLayer", *["Conv2D"] * 5, "Add", "Conv2D")


def _graph() -> Graph:
    return Graph("net", tuple(Node(name, op) for name, op in zip(NAMES, OPS, strict=True)), ("out",))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("stem", {"stem"}),
        ("conv2d", {"conv2d"}),
        ("conv2d_?", {"conv2d_1", "conv2d_2"}),
        ("conv2d*", {"conv2d", "conv2d_1", "conv2d_2", "conv2d_10"}),
        ("conv2d_[12]", {"conv2d_1", "conv2d_2"}),
        ("re:conv2d_(1|10)", {"conv2d_1", "conv2d_10"}),
        ("re: conv2d_1", {"conv2d_1"}),
        ("type:Add", {"block1_add"}),
        ("type:Conv2D", {"stem", "conv2d", "conv2d_1", "conv2d_2", "conv2d_10", "out"}),
        ("stem ~ conv2d_1", {"stem", "conv2d", "conv2d_1"}),
        ("stem ~ stem", {"stem"}),
    ],
)
def test_patterns(pattern: str, expected: set[str]) -> None:
    assert select(_graph(), [pattern]) == expected
    assert select(_graph(), (), [pattern]) == set(NAMES) - expected


def test_without_patterns_everything_is_in_scope() -> None:
    assert select(_graph()) == set(NAMES)


def test_exclusion_wins() -> None:
    assert select(_graph(), ["conv2d*", "out"], ["conv2d_1*"]) == {"conv2d", "conv2d_2", "out"}


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("conv2d_11", "did you mean 'conv2d_1"),
        ("Conv2d_1", "did you mean 'conv2d_1'"),
        ("nothing_like_it", "slimdet inspect"),
        ("zebra*", "slimdet inspect"),
        ("type:conv2D", "did you mean 'Conv2D'"),
        ("type:Zzz", "its types are Add, Conv2D, InputLayer"),
        ("re:conv", "whole name"),
        ("re:conv(", "is a regular expression"),
        ("re:" + "a" * 501, "at most 500 letters"),
        ("stem ~ block1_ad", "did you mean 'block1_add'"),
        ("nowhere ~ stem", "between two nodes: 'nowhere'"),
        ("conv2d_1 ~ stem", "write stem ~ conv2d_1"),
        ("", "at least one node"),
    ],
)
@pytest.mark.parametrize("excluding", [False, True])
def test_a_pattern_that_takes_nothing_is_an_error(pattern: str, words: str, excluding: bool) -> None:
    with pytest.raises(InputError) as raised:
        select(_graph(), (), [pattern]) if excluding else select(_graph(), [pattern])
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_scope_that_excludes_everything_is_an_error() -> None:
    with pytest.raises(InputError, match="leaves something to work on"):
        select(_graph(), ["conv2d_*"], ["image ~ out"])


@given(st.lists(st.sampled_from(NAMES)), st.lists(st.sampled_from(NAMES)))
def test_names_are_sets(include: list[str], exclude: list[str]) -> None:
    expected = (set(include) or set(NAMES)) - set(exclude)
    if expected:
        assert select(_graph(), include, exclude) == expected
    else:
        with pytest.raises(InputError):
            select(_graph(), include, exclude)
