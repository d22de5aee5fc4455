"""Frames that pass from one process to another through memory that both see: three slots, one writer, one reader.

The writer fills a slot that is free and tells the reader its number by other means, a pipe. The reader keeps the newest
that it was told, gives the others back at once, and the newest when it has copied it out. A slot is thus never written
while it is read, without any lock between the processes. Every slot is a file of its own that no folder names, so that
frames may change their size at any time, and it may grow, but not shrink below what the reader has mapped.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
from typing import TYPE_CHECKING

from deploy.errors import InputError

if TYPE_CHECKING:
    import numpy as np

#: One that is written, one that is the newest, one that is copied out.
SLOTS = 3


def create_slots() -> tuple[int, ...]:
    """File descriptors of SLOTS empty slots, which the caller closes."""
    return tuple(_create_slot() for _ in range(SLOTS))


def _create_slot() -> int:
    if not hasattr(os, "memfd_create"):  # not Linux
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())
    slot = os.memfd_create("slimdet-frame", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    # A mapping of a file that shrank kills whoever reads it, and the writer reads what strangers send.
    fcntl.fcntl(slot, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return slot


def frame_bytes(height: int, width: int) -> int:
    """Bytes of a BGR frame.

    Raises InputError for sizes that are none, and for more than MOST_PIXELS.
    """
    from deploy.picture import MOST_PIXELS  # here, so that the child is on its way before its parent loads OpenCV

    if not (height > 0 and width > 0 and height * width <= MOST_PIXELS):
        raise InputError(f"a frame has 1 to {MOST_PIXELS} pixels, this one {width}x{height}; ask for a smaller one")
    return height * width * 3


class Slot:
    """One slot, seen by one of the two processes."""

    def __init__(self, file: int, writable: bool) -> None:
        self._file = file
        self._access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        self._writable = writable
        self._map: mmap.mmap | None = None

    def pixels(self, height: int, width: int) -> np.ndarray:
        """uint8 (height, width, 3): the slot's memory itself, read-only on the reader's side.

        Raises InputError where the size is none, or more than the writer has made room for.
        """
        import numpy as np

        size = frame_bytes(height, width)
        if self._map is None or len(self._map) < size:
            if os.fstat(self._file).st_size < size:
                if not self._writable:
                    raise InputError(f"a frame of {width}x{height} was told that is not there; the capture is damaged")
                os.ftruncate(self._file, size)
            # The old mapping goes with the last array that shows it.
            self._map = mmap.mmap(self._file, size, access=self._access)
        return np.frombuffer(self._map, np.uint8, size).reshape(height, width, 3)
