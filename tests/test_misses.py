"""The cause of each error, against TIDE's order of questions in plain loops, and on cases known by heart."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_voc_metric import as_found, as_truths, found_rows, truth_rows

from benchmarks.class_figures import from_score, outcomes_at
from benchmarks.misses import FALSE_NEGATIVES, FALSE_POSITIVES, find_misses, misses_json

PROTOCOLS = ("voc07", "voc", "darknet", "coco")


def causes(truths, found, protocol):
    seen = outcomes_at(truths, found, 3, protocol)
    misses = find_misses(truths, found, seen, protocol)
    positives = [FALSE_POSITIVES[place] if place >= 0 else None for place in misses.positives]
    return positives, [FALSE_NEGATIVES[place] if place >= 0 else None for place in misses.negatives], seen


def plain_iou(a, b, edge):
    width, height = min(a[2], b[2]) - max(a[0], b[0]) + edge, min(a[3], b[3]) - max(a[1], b[1]) + edge
    common = max(width, 0) * max(height, 0)
    union = sum((c[2] - c[0] + edge) * (c[3] - c[1] + edge) for c in (a, b)) - common
    return common / union if common > 0 else 0.0


@settings(deadline=None, max_examples=200)
@given(truth_rows, found_rows, st.sampled_from(PROTOCOLS))
def test_every_error_has_the_cause_that_tides_questions_find_first(truth_rows, found_rows, protocol):
    truths, found = as_truths(truth_rows), as_found(found_rows)
    positives, negatives, seen = causes(truths, found, protocol)
    edge = 1.0 if protocol.startswith("voc") else 0.0
    blamed = {}
    for row in range(len(found)):
        if not seen.counted[row] or seen.truth[row] >= 0:
            assert positives[row] is None
            continue
        own, other = [(0.0, -1)], [(0.0, -1)]
        for i in range(len(truths)):
            if truths.images[i] == found.images[row] and not truths.difficult[i]:
                iou = plain_iou(found.boxes[row], truths.boxes[i], edge)
                (own if truths.class_ids[i] == found.class_ids[row] else other).append((iou, -i))
        (best, mine), (best_other, foreign) = max(own), max(other)
        reached = (lambda iou: iou > 0.5) if protocol == "darknet" else (lambda iou: iou >= 0.5)
        if best >= 0.1 and not reached(best):
            expected = "localisation"
            blamed.setdefault(-mine, set()).add(expected)
        elif reached(best_other):
            expected = "class"
            blamed.setdefault(-foreign, set()).add(expected)
        elif reached(best):
            expected = "duplicate"
        else:
            expected = "background" if max(best, best_other) <= 0.1 else "both"
        assert positives[row] == expected
    for i in range(len(truths)):
        found_it = truths.difficult[i] or i in seen.truth
        why = blamed.get(i, set())
        missed = "localisation" if "localisation" in why else "class" if "class" in why else "missed"
        assert negatives[i] == (None if found_it else missed)


BOX, HALF, FAR = (0, 0, 10, 10), (0, 0, 10, 4), (50, 50, 60, 60)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_each_cause_on_a_case_known_by_heart(protocol):
    truths = as_truths([(0, 0, BOX, False), (1, 0, BOX, False), (2, 1, BOX, False), (3, 1, BOX, False)])
    rows = [
        (0, 0, BOX, 0.9),  # a hit
        (0, 0, BOX, 0.8),  # duplicate
        (1, 0, HALF, 0.9),  # localisation: 0.4, with VOC's pixels 55/121 = 0.45
        (2, 0, BOX, 0.9),  # class
        (3, 0, HALF, 0.9),  # both
        (3, 0, FAR, 0.9),  # background
    ]
    positives, negatives, _ = causes(truths, as_found(rows), protocol)
    assert positives == [None, "duplicate", "localisation", "class", "both", "background"]
    assert negatives == [None, "localisation", "class", "missed"]


def test_counts_are_of_the_scored_classes_and_say_who_was_confused():
    truths = as_truths([(0, 1, BOX, False), (1, 1, BOX, False), (2, 0, BOX, False)])
    found = as_found([(0, 0, BOX, 0.9), (1, 0, BOX, 0.5), (2, 0, BOX, 0.8), (2, 2, FAR, 0.7)])
    seen = outcomes_at(truths, found, 3, "voc")
    misses = find_misses(truths, found, seen, "voc")
    told = misses_json(misses, truths, found, ("cat", "dog", "gnu"), [0, 1])
    assert told["false_positives"] == {"localisation": 0, "class": 2, "both": 0, "duplicate": 0, "background": 0}
    assert told["false_negatives"] == {"localisation": 0, "class": 2, "missed": 0}
    assert told["per_class"]["cat"]["false_positives"]["class"] == 2
    assert told["per_class"]["dog"]["false_negatives"]["class"] == 2 and "gnu" not in told["per_class"]
    assert told["confused"] == [{"is": "dog", "taken_for": "cat", "count": 2}]
    # Two truths of one class each missed, their false positives at 0.9 and 0.5, and the stray gnu at 0.7.
    assert misses.costs(found, truths, 4).tolist() == pytest.approx([1 + 0.9, 1 + 0.5, 0.7, 0])


def test_a_threshold_leaves_the_outcomes_of_better_detections_alone():
    random = np.random.default_rng(0)
    truths = as_truths([(int(i % 3), 0, (i, i, i + 8, i + 8), False) for i in range(9)])
    steps = random.integers(0, 8, 60)
    rows = [(int(random.integers(3)), 0, tuple(np.array(BOX) + step), random.random()) for step in steps]
    found = as_found(rows)
    for protocol in PROTOCOLS:
        everything, best = outcomes_at(truths, found, 1, protocol), from_score(found, 0.5)
        alone = outcomes_at(truths, best, 1, protocol).truth
        np.testing.assert_array_equal(alone, everything.truth[found.scores >= 0.5])
