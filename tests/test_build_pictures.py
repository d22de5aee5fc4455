"""Which pictures int8 is calibrated on: every class has its share; and which are left to measure a loss on."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from voc_folder import add_picture

from toolchain.build_pictures import calibration, others, spread_over_classes
from toolchain.recipe import Recipe, read_recipe

CLASSES = ("cat", "cow", "dog")
_SHOWN = st.lists(st.frozensets(st.sampled_from(CLASSES)), max_size=40)


def _pictures(shown: list[frozenset[str]]) -> list[tuple[Path, frozenset[str]]]:
    return [(Path(f"{index:02d}.jpg"), names) for index, names in enumerate(shown)]


@given(_SHOWN, st.integers(1, 45))
def test_at_most_so_many_in_their_order_and_the_same_again(shown: list[frozenset[str]], count: int) -> None:
    pictures = _pictures(shown)
    found = spread_over_classes(pictures, count)
    assert len(found) == min(count, len(shown)) and len(set(found)) == len(found)
    assert list(found) == sorted(found) and set(found) <= {path for path, _ in pictures}
    assert spread_over_classes(pictures, count) == found


@given(st.lists(st.sampled_from(CLASSES), min_size=1, max_size=40), st.integers(1, 40))
def test_no_class_is_behind_another_as_far_as_there_are_pictures(shown: list[str], count: int) -> None:
    """Of pictures with one class each: a class has as many as any other but for one, or all of its own."""
    pictures = _pictures([frozenset([name]) for name in shown])
    taken = [name for path, name in zip((path for path, _ in pictures), shown)
             if path in set(spread_over_classes(pictures, count))]  # fmt: skip
    most = max(taken.count(name) for name in CLASSES)
    for name in CLASSES:
        assert taken.count(name) >= most - 1 or taken.count(name) == shown.count(name)


@given(_SHOWN, st.integers(1, 40))
def test_every_class_is_shown_where_there_is_room(shown: list[frozenset[str]], count: int) -> None:
    pictures = _pictures(shown)
    there = frozenset().union(*shown)
    taken = set(spread_over_classes(pictures, count))
    seen = frozenset().union(*(names for path, names in pictures if path in taken))
    assert seen == there or count < len(there)
    # Pictures that show nothing come last.
    empty = sum(not names for path, names in pictures if path in taken)
    assert not empty or len(taken) - empty == sum(bool(names) for names in shown)


def test_they_are_spread_over_the_list() -> None:
    """Of 16 alike: none of the four quarters is left out by 4, nor a half by 2."""
    pictures = _pictures([frozenset(["cat"])] * 16)
    places = [int(path.stem) for path in spread_over_classes(pictures, 4)]
    assert [place // 4 for place in places] == [0, 1, 2, 3]
    assert [int(path.stem) // 8 for path in spread_over_classes(pictures, 2)] == [0, 1]


def _recipe(folder: Path, *lines: str) -> Recipe:
    text = "name: net\nmodel: {cfg: a, weights: b, names: c}\n" + "\n".join(lines)
    (folder / "recipe.yaml").write_text(text + "\n")
    return read_recipe(str(folder / "recipe.yaml")).recipe


def test_labelled_data_calibrate_by_class_and_leave_the_rest_to_measure_on(tmp_path: Path) -> None:
    for index in range(20):
        add_picture(tmp_path / "voc", f"{index:03d}", "blue" if index in (3, 17) else "red")
    (tmp_path / "photos").mkdir()
    for index in range(5):
        (tmp_path / "photos" / f"p{index}.png").write_bytes((tmp_path / "voc/JPEGImages/000.png").read_bytes())
    data = "data: {train: [{folder: voc, split: test}]}"
    found = calibration(_recipe(tmp_path, data, "calibration: {count: 4}"), None)
    # Both of the blue, which evenly spaced ones (0, 5, 10, 15) would miss.
    assert len(found) == 4 and {"003.png", "017.png"} <= {path.name for path in found}
    recipe = _recipe(tmp_path, data.replace("test}]", "test}], pictures: [photos]"), "calibration: {count: 5}")
    mixed = calibration(recipe, None)
    # Each kind has its share: 5 * 20 / 25 of the labelled.
    assert [path.parent.name for path in mixed] == ["JPEGImages"] * 4 + ["photos"]
    rest = others(recipe, None, mixed)
    assert len(rest) == 25 - 5 and not set(rest) & set(mixed)
    # All of them on which it is calibrated: nothing is left.
    recipe = _recipe(tmp_path, data, "calibration: {count: 50}")
    every = calibration(recipe, None)
    assert len(every) == 20 and others(recipe, None, every) == ()


def test_a_folder_of_its_own_goes_before_the_data(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for index in range(6):
        (tmp_path / "photos" / f"{index}.jpg").write_text(f"photo {index}")
    recipe = _recipe(tmp_path, "calibration: {pictures: photos, count: 3}")
    found = calibration(recipe, None)
    assert [path.stem for path in found] == ["0", "2", "4"]
    assert [path.stem for path in others(recipe, None, found)] == ["1", "3", "5"]
    # A loss is measured on the data's pictures too, whether or not they are labelled.
    add_picture(tmp_path / "voc", "000", "red")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "7.jpg").write_text("more")
    data = "data: {train: [{folder: voc, split: test}], pictures: [more]}"
    both = _recipe(tmp_path, data, "calibration: {pictures: photos, count: 3}")
    assert calibration(both, None) == found
    assert [path.stem for path in others(both, None, found)] == ["1", "3", "5", "000", "7"]
