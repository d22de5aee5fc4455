"""Slots that two processes share: whole frames, any size, and no trust in the writer."""

import os
import queue
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.errors import InputError
from deploy.frame_ring import SLOTS, Slot, create_slots, frame_bytes
from deploy.picture import MOST_PIXELS


@pytest.fixture()
def files() -> Iterator[tuple[int, ...]]:
    created = create_slots()
    yield created
    for file in created:
        os.close(file)


def test_what_one_side_writes_the_other_reads(files: tuple[int, ...]) -> None:
    writer, reader = Slot(files[0], True), Slot(files[0], False)
    for height, width in ((4, 6), (2, 3), (40, 60), (4, 6)):
        expected = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3) + np.uint8(height)
        writer.pixels(height, width)[:] = expected
        np.testing.assert_array_equal(reader.pixels(height, width), expected)


def test_slots_are_apart(files: tuple[int, ...]) -> None:
    for number, file in enumerate(files):
        Slot(file, True).pixels(2, 2)[:] = number + 1
    assert [int(Slot(file, False).pixels(2, 2)[0, 0, 0]) for file in files] == [1, 2, 3]
    assert len(files) == SLOTS == 3


def test_the_reader_cannot_write(files: tuple[int, ...]) -> None:
    Slot(files[0], True).pixels(2, 2)
    with pytest.raises(ValueError, match="read-only"):
        Slot(files[0], False).pixels(2, 2)[:] = 1


def test_the_reader_believes_no_size_that_is_not_there(files: tuple[int, ...]) -> None:
    Slot(files[0], True).pixels(2, 2)
    with pytest.raises(InputError, match="not there"):
        Slot(files[0], False).pixels(4, 4)
    with pytest.raises(InputError, match="pixels"):
        Slot(files[0], False).pixels(MOST_PIXELS, 2)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only Linux can keep a file from shrinking")
def test_the_writer_cannot_take_away_what_the_reader_has_mapped(files: tuple[int, ...]) -> None:
    Slot(files[0], True).pixels(100, 100)
    with pytest.raises(PermissionError):
        os.ftruncate(files[0], 10)


@given(st.integers(-10, 2**40), st.integers(-10, 2**40))
def test_sizes_are_bounded(height: int, width: int) -> None:
    if height > 0 and width > 0 and height * width <= MOST_PIXELS:
        assert frame_bytes(height, width) == height * width * 3
    else:
        with pytest.raises(InputError):
            frame_bytes(height, width)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=3, max_size=5))
def test_a_frame_is_never_torn(sizes: list[tuple[int, int]]) -> None:
    """One thread writes as fast as it gets slots, another keeps the newest, as the two processes do."""
    created = create_slots()
    free, told = queue.Queue[int](), queue.Queue[tuple[int, int, int, int]]()
    for number in range(SLOTS):
        free.put(number)

    def write() -> None:
        slots = [Slot(file, True) for file in created]
        for count in range(200):
            number = free.get()
            height, width = sizes[count % len(sizes)]
            slots[number].pixels(height, width)[:] = count % 251
            told.put((number, count, height, width))
        told.put((-1, 0, 0, 0))

    writer = threading.Thread(target=write)
    writer.start()
    slots = [Slot(file, False) for file in created]
    taken = 0
    while True:
        newest = told.get()
        while not told.empty() and newest[0] >= 0:
            free.put(newest[0])
            newest = told.get()
        number, count, height, width = newest
        if number < 0:
            break
        copy = slots[number].pixels(height, width).copy()
        free.put(number)
        assert (copy == count % 251).all()
        taken += 1
    writer.join()
    for file in created:
        os.close(file)
    assert taken > 0
