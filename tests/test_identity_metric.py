import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.identity_metric import Named, identity_figures, read_mot
from deploy.errors import InputError


def named(**places: float) -> Named:
    """Identities such as i7, each a box of 10 at that x."""
    lefts = np.array(list(places.values()), float)
    boxes = np.stack([lefts, lefts * 0, lefts + 10, lefts * 0 + 10], axis=1)
    return Named(np.array([int(name[1:]) for name in places], np.int64), boxes)


def test_perfect() -> None:
    frames = [named(i1=0, i2=50), named(i1=1, i2=49)]
    figures = identity_figures(frames, [named(i8=50, i9=0), named(i9=1, i8=49)])
    assert figures["mota"] == figures["idf1"] == 1
    assert (figures["switches"], figures["missed"], figures["false"]) == (0, 0, 0)


def test_a_switch_costs_mota_one_and_idf1_the_shorter_half() -> None:
    truth = [named(i1=0)] * 10
    figures = identity_figures(truth, [named(i4=0)] * 7 + [named(i5=0)] * 3)
    assert figures["switches"] == 1 and figures["mota"] == 1 - 1 / 10
    assert figures["idf1"] == 2 * 7 / (10 + 10)
    assert (figures["true_identities"], figures["identities"]) == (1, 2)


def test_misses_and_false_ones() -> None:
    figures = identity_figures([named(i1=0, i2=50), named(i1=0)], [named(i4=0), named(i4=0, i5=90)])
    assert (figures["missed"], figures["false"], figures["switches"]) == (1, 1, 0)
    assert figures["mota"] == 1 - 2 / 3 and figures["idf1"] == 2 * 2 / (3 + 3)


def test_who_stood_for_a_truth_still_does_while_close() -> None:
    """4 of 10 pixels aside the overlap is 6 / 14 < 0.5, 3 aside 7 / 13 > 0.5: kept, though another is nearer."""
    truth = [named(i1=0), named(i1=0), named(i1=0)]
    figures = identity_figures(truth, [named(i4=0), named(i4=3, i5=0), named(i4=4, i5=0)])
    assert figures["switches"] == 1 and figures["missed"] == 0 and figures["false"] == 2


def test_a_gap_is_no_switch() -> None:
    truth = [named(i1=0)] * 3
    assert identity_figures(truth, [named(i4=0), named(), named(i4=0)])["switches"] == 0
    assert identity_figures(truth, [named(i4=0), named(), named(i5=0)])["switches"] == 1


def test_no_truth() -> None:
    figures = identity_figures([named()], [named(i1=0)])
    assert figures["mota"] is None and figures["idf1"] is None and figures["false"] == 1


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_idf1_is_the_best_of_all_ways_to_pair_identities(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Three places, far apart; who stands where changes.
    frames = [[rng.permutation(4)[:3] for _ in range(2)] for _ in range(5)]
    place = {0: 0.0, 1: 50.0, 2: 100.0}

    def film(side: int) -> list[Named]:
        return [named(**{f"i{name}": place[k] for k, name in enumerate(pair[side].tolist())}) for pair in frames]

    best = max(
        sum(int(other == partner[one]) for pair in frames for one, other in zip(*pair, strict=True))
        for partner in itertools.permutations(range(4))
    )
    assert identity_figures(film(0), film(1))["idf1"] == pytest.approx(2 * best / (15 + 15))


def test_mots_form(tmp_path: Path) -> None:
    path = tmp_path / "gt.txt"
    lines = ["1,3,10,20,30,40,1,1,0.5", "2,3,11,20,30,40,1,1,1", "2,4,0,0,5,5,0,1,1", "2,5,0,0,5,5,1,7,1"]
    path.write_text("\n".join([*lines, "3,6,1,2,3,4"]))
    frames = read_mot(path, 4)
    assert [frame.identities.tolist() for frame in frames] == [[3], [3], [6], []]
    assert frames[0].boxes.tolist() == [[10, 20, 40, 60]] and frames[3].boxes.shape == (0, 4)


@pytest.mark.parametrize("line", ["5,1,0,0,1,1", "0,1,0,0,1,1", "1,1,0,0,1", "a,b", "1,1,nan,0,1,1", ""])
def test_another_form_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "gt.txt"
    path.write_text(f"1,1,0,0,1,1\n{line}\n")
    with pytest.raises(InputError, match=r"line 2 of .*gt\.txt"):
        read_mot(path, 4)
