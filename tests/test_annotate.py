"""A result's picture: on a copy, scaled with its boxes, with tracks, zones and lines."""

import feed_values
import numpy as np
from feed_values import LABELS

from deploy import draw
from deploy.annotate import Shape, annotated
from deploy.detections import Detections, no_detections

CAPTIONS = draw.captions(LABELS)


def found(*rows: tuple[float, ...]) -> Detections:
    """Each row x1, y1, x2, y2, score, class."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int32))


def test_without_tracks_it_is_what_draw_draws_on_a_copy() -> None:
    one = feed_values.result(3, size=(200, 300), tracks=None)
    expected = one.frame.pixels.copy()
    draw.draw(expected, one.found, CAPTIONS)
    before = one.frame.pixels.copy()
    np.testing.assert_array_equal(annotated(one, CAPTIONS), expected)
    np.testing.assert_array_equal(one.frame.pixels, before)


def test_boxes_are_scaled_with_the_picture() -> None:
    one = feed_values.result(0, size=(400, 800), found=found((200, 100, 600, 300, 0.5, 1)), tracks=None)
    picture = annotated(one, CAPTIONS, most_width=200)
    assert picture.shape == (100, 200, 3)
    for x, y in ((50, 40), (149, 40), (100, 74)):
        assert tuple(picture[y, x]) == draw.colour(1)
    assert annotated(one, CAPTIONS, most_width=2000).shape == (400, 800, 3)
    flat = feed_values.result(0, size=(1, 900), found=no_detections(), tracks=())
    assert annotated(flat, CAPTIONS, most_width=100).shape == (1, 100, 3)


def test_a_track_s_number_stands_in_its_label() -> None:
    box = found((20, 40, 180, 150, 0.5, 1))
    pictures = [
        annotated(feed_values.result(0, size=(200, 300), found=box, tracks=tracks), CAPTIONS)
        for tracks in (None, (0,), (7,), (8,))
    ]
    np.testing.assert_array_equal(pictures[0], pictures[1])  # 0: none yet
    assert not (pictures[1] == pictures[2]).all() and not (pictures[2] == pictures[3]).all()


def test_zones_are_closed_lines_are_not_and_both_have_their_names() -> None:
    empty = feed_values.result(0, size=(201, 301), found=no_detections(), tracks=())
    corners = ((0.1, 0.5), (0.9, 0.5), (0.9, 0.9))
    zone, line = (annotated(empty, CAPTIONS, [Shape("z", corners, closed)]) for closed in (True, False))
    for picture in (zone, line):
        assert (picture[100, 150] == 255).all() and (picture[150, 270] == 255).all()
        assert (picture[97:100, 33:36] > 200).any()  # the name stands on the first corner
    assert (zone[140, 150] == 255).all() and not line[140, 150].any()
