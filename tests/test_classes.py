"""Matching of class names."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.classes import SYNONYMS, canonical, match_classes

VOC = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
).split()
COCO_PARTNERS = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}


def test_every_voc_class_has_its_coco_partner():
    labels = ["traffic light", *(COCO_PARTNERS.get(name, name) for name in VOC), "zebra"]
    matching = match_classes(labels, VOC)
    assert matching.pairs == {place + 1: place for place in range(20)}
    assert matching.model_only == ("traffic light", "zebra")
    assert matching.data_only == ()


def test_and_the_other_way_round():
    names = sorted(COCO_PARTNERS.values())
    matching = match_classes(VOC, names)
    assert {VOC[label]: names[name] for label, name in matching.pairs.items()} == COCO_PARTNERS
    assert matching.data_only == ()


@pytest.mark.parametrize("spelling", ["TV monitor", "tv-monitor", "tv_monitor", " TVMonitor ", "tv", "television"])
def test_spellings(spelling):
    assert match_classes([spelling], ["tvmonitor"]).pairs == {0: 0}


def test_what_has_no_partner_is_listed_on_both_sides():
    matching = match_classes(["cat", "gnu"], ["dog", "cat"])
    assert matching.pairs == {0: 1}
    assert (matching.model_only, matching.data_only) == (("gnu",), ("dog",))


def test_the_same_name_goes_before_a_synonym():
    assert match_classes(["couch", "sofa"], ["sofa"]).pairs == {1: 0}
    # Neither takes the other's partner.
    assert match_classes(["couch", "sofa"], ["sofa", "couch"]).pairs == {0: 1, 1: 0}


def test_free_places_of_a_label_file_match_nothing():
    matching = match_classes(["???", "cat", "???", ""], ["???", "cat"])
    assert matching.pairs == {1: 1}
    assert (matching.model_only, matching.data_only) == ((), ("???",))


def test_synonyms_are_canonical_and_in_one_group_only():
    every = [name for group in SYNONYMS for name in group]
    assert len(every) == len(set(every))
    assert [canonical(name) for name in every] == every


names = st.lists(st.sampled_from([*VOC, *COCO_PARTNERS.values(), "???", "Gnu"]), max_size=12)


@settings(deadline=None, max_examples=100)
@given(names, names.map(lambda every: sorted(set(every))))
def test_one_to_one_and_nothing_is_lost(labels, data):
    matching = match_classes(labels, data)
    assert len(set(matching.pairs.values())) == len(matching.pairs)
    assert len(matching.pairs) + len(matching.data_only) == len(data)
    assert len(matching.pairs) + len(matching.model_only) == len(labels) - labels.count("???")
