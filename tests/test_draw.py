"""What stands in an annotated picture."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy import draw
from deploy.detections import Detections, no_detections
from deploy.draw import captions, colour, text_colour

LABELS = ("cat", "traffic light")


def detections(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    """Each row x1, y1, x2, y2, score, class."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int32))


def painted(picture: np.ndarray, background: int = 0) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 of all that is not background."""
    rows, columns = np.nonzero((picture != background).any(axis=2))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_a_box_is_drawn_on_its_own_outermost_pixels() -> None:
    picture = np.zeros((100, 160, 3), np.uint8)  # small enough for lines of one pixel
    draw.draw(picture, detections((20, 40, 120, 90, 0.5, 1)), captions(LABELS))
    x1, _, x2, y2 = painted(picture)
    assert (x1, x2, y2) == (20, 120, 90)
    for y, x in [(45, 20), (45, 119), (89, 20), (89, 119), (89, 70)]:
        assert tuple(picture[y, x]) == colour(1)
    assert not picture[50:85, 25:115].any()  # nothing within


def test_the_label_stands_on_the_box_or_in_it_where_there_is_no_room() -> None:
    above, within = np.zeros((2, 100, 160, 3), np.uint8)
    draw.draw(above, detections((20, 40, 150, 90, 0.5, 0)), captions(LABELS))
    draw.draw(within, detections((20, 2, 150, 90, 0.5, 0)), captions(LABELS))
    assert painted(above)[1] < 40 and not above[50:80, 25:145].any()
    assert painted(within)[1] == 2 and within[5:10, 25:30].any()


def test_no_detections_leave_the_picture_alone() -> None:
    picture = np.full((20, 30, 3), 7, np.uint8)
    draw.draw(picture, no_detections(), captions(LABELS))
    assert (picture == 7).all()


def test_the_best_detection_is_on_top() -> None:
    both, best = np.zeros((2, 100, 160, 3), np.uint8)
    draw.draw(both, detections((20, 40, 120, 90, 0.9, 0), (20, 40, 120, 90, 0.3, 1)), captions(LABELS))
    draw.draw(best, detections((20, 40, 120, 90, 0.9, 0)), captions(LABELS))
    shown = best.any(axis=2)
    np.testing.assert_array_equal(both[shown], best[shown])


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 120),
    st.integers(1, 120),
    st.lists(
        st.tuples(*[st.floats(-20, 140, width=32)] * 4, st.floats(0, 1, width=32), st.integers(-2, 5)),
        max_size=4,
    ),
)
def test_any_box_in_any_picture_can_be_drawn(height: int, width: int, rows: list[tuple]) -> None:
    # One row and column more on each side would show what leaves the picture.
    canvas = np.zeros((height + 2, width + 2, 3), np.uint8)
    rows = [(min(a, c), min(b, d), max(a, c), max(b, d), score, number) for a, b, c, d, score, number in rows]
    draw.draw(canvas[1:-1, 1:-1], detections(*rows), captions(LABELS))
    canvas[1:-1, 1:-1] = 0
    assert not canvas.any()


def test_labels_stay_whole_at_the_right_edge() -> None:
    written = captions(LABELS)
    middle, edge = np.zeros((2, 100, 400, 3), np.uint8)
    draw.draw(middle, detections((100, 50, 110, 60, 0.5, 1)), written)
    draw.draw(edge, detections((390, 50, 400, 60, 0.5, 1)), written)
    widths = [x2 - x1 for x1, _, x2, _ in (painted(middle), painted(edge))]
    assert widths[0] == widths[1] > 60


def test_letters_and_lines_grow_with_the_picture() -> None:
    heights = []
    for side in (300, 1200):
        picture = np.zeros((side, side, 3), np.uint8)
        draw.draw(picture, detections((10, side / 2, side - 10, side - 10, 0.5, 0)), captions(LABELS))
        heights.append(side // 2 - painted(picture)[1])
    # Beyond the least size both grow in proportion; 300 is near it.
    assert heights[1] > 2 * heights[0]


def test_colours_are_the_same_everywhere_and_differ_between_classes() -> None:
    colours = [colour(i) for i in range(80)]
    assert colours == [colour(i) for i in range(80)]
    assert len(set(colours)) == 80
    assert all(0 <= v <= 255 for c in colours for v in c)
    neighbours = np.abs(np.diff(np.array(colours), axis=0)).max(axis=1)
    assert neighbours.min() > 80


def contrast(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
    """WCAG 2.1's ratio, 1 to 21, worked out here in floats of its own. BGR."""

    def luminance(bgr: tuple[int, int, int]) -> float:
        linear = [v / 255 / 12.92 if v / 255 <= 0.04045 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in bgr]
        return float(np.dot(linear, [0.0722, 0.7152, 0.2126]))

    light, dark = sorted([luminance(a), luminance(b)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_text_is_readable_on_every_colour() -> None:
    for i in range(200):
        black, white = contrast(colour(i), (0, 0, 0)), contrast(colour(i), (255, 255, 255))
        assert text_colour(colour(i)) == ((0, 0, 0) if black > white else (255, 255, 255))
        # Black or white always reaches sqrt(21) = 4.58, above the 4.5 that WCAG's level AA asks of text.
        assert max(black, white) > 4.5


def test_ascii_labels_use_the_font_that_pillow_carries() -> None:
    written = captions(["person", "potted plant", "100%"])
    assert (written.font, written.illegible) == (None, ())
    assert written.texts == ("person", "potted plant", "100%")


def test_control_characters_and_empty_labels_are_not_drawn() -> None:
    assert captions(["a\nb\x1b[31m", "  ", ""]).texts == ("a b [31m", "class 1", "class 2")


def test_letters_that_no_font_has_become_the_class_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw, "_FONTS", ("no such font.ttf",))
    written = captions(["cat", "猫", "Fußgänger"])
    assert (written.texts, written.font) == (("cat", "class 1", "class 2"), None)
    assert written.illegible == ("猫", "Fußgänger")


def test_a_font_of_the_machine_writes_other_letters() -> None:
    labels = ["Fußgänger", "собака"]
    written = captions(labels)
    if written.font is None:
        pytest.skip("this machine has none of the fonts that slimdet looks for")
    assert (written.texts, written.illegible) == (tuple(labels), ())
    # Each letter has a shape of its own: none is drawn as the empty box of a missing one.
    font = draw._font(written.font, 24)
    shapes = [draw._mask(letter, font).tobytes() for letter in "Fußgänerсобка"]
    assert len(set(shapes)) == len(shapes)


def test_the_fewest_illegible_labels_decide_the_font(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = {"first.ttf": set("猫я"), "second.ttf": set("猫"), "third.ttf": set("猫яé")}
    monkeypatch.setattr(draw, "_FONTS", tuple(lacking))
    monkeypatch.setattr(draw, "_missing", lambda letters, name: lacking[name])
    written = captions(["é", "猫", "я"])
    assert (written.font, written.texts, written.illegible) == ("second.ttf", ("é", "class 1", "я"), ("猫",))


def test_a_class_without_a_label_is_drawn_by_its_number() -> None:
    known, unknown = np.zeros((2, 60, 200, 3), np.uint8)
    draw.draw(known, detections((5, 30, 90, 55, 0.5, 7)), captions([""] * 7 + ["class 7"]))
    draw.draw(unknown, detections((5, 30, 90, 55, 0.5, 7)), captions(LABELS))
    np.testing.assert_array_equal(known, unknown)


def test_a_box_without_a_text_is_drawn_in_its_colour_and_has_no_label() -> None:
    picture = np.zeros((100, 100, 3), np.uint8)
    draw.draw_boxes(picture, np.array([[20.0, 40, 60, 80]]), [""], [(1, 2, 3)])
    assert np.unique(picture.reshape(-1, 3), axis=0).tolist() == [[0, 0, 0], [1, 2, 3]]
    assert (picture[40, 20:60] == (1, 2, 3)).all() and not picture[:40].any()


def test_a_label_of_two_parts_is_one_block_and_its_first_part_is_drawn_once() -> None:
    boxes = np.array([[20, 60, 150, 90]], np.float32)
    one, other = np.zeros((2, 100, 200, 3), np.uint8)
    draw.label.cache_clear()
    draw.draw_boxes(one, boxes, [("person #7", "0.52")], [colour(1)])
    draw.draw_boxes(other, boxes, [("person #7", "0.53")], [colour(1)])
    assert draw.label.cache_info().misses == 1 + 2
    parts = [draw.label(text, colour(1), 11, None) for text in ("person #7", "0.52")]
    # The gap within them is that of one label: what would be the second one's left margin is left out.
    width = parts[0].shape[1] + parts[1].shape[1] - max(2, 11 // 5)
    _, top, _, _ = painted(one)
    block = one[top : top + parts[0].shape[0], 20 : 20 + width]
    np.testing.assert_array_equal(block[:-1, : parts[0].shape[1]], parts[0][:-1])
    assert not (one == other).all()
