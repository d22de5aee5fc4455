"""The batches that a training takes: decoded once where memory allows, changed anew each time, made ahead by threads.

What a batch shows follows from the training's seed and the step's number alone, so a training that goes on after a kill
sees what it would have seen.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import threading
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

import cv2
import numpy as np

from deploy.contract import Input
from deploy.errors import InputError
from deploy.picture import read_picture
from deploy.preprocess import place
from toolchain import augment
from toolchain.augment import Shown
from toolchain.training import Training
from toolchain.training_data import Example, Examples

#: Most memory that decoded pictures may take, in bytes.
LIMIT_BYTES = 3 << 30
#: Pictures are kept at most so many times as large as the network needs them: what a zoom shows stays sharp.
_SPARE = 1.5
#: A mosaic's pictures.
_TILES = 4
#: Rows of truth are a multiple of this.
_ROWS = 8
#: Random streams that never meet: of an epoch's order, and of a picture's changes.
_ORDER, _CHANGES = 1, 2


class Batches:
    """Batches of pictures for a network's input, any of them at any time.

    Pictures larger than the largest input of the training, by _SPARE where it zooms, are shrunk to that when they are
    read, and kept until limit_bytes are full; the others are decoded each time. May be used by several threads at once.
    """

    def __init__(self, examples: Examples, input: Input, training: Training, limit_bytes: int = LIMIT_BYTES) -> None:
        """Raises InputError when there are fewer pictures than a batch has."""
        count = len(examples.pictures)
        self.steps_per_epoch = count // training.batch
        if not self.steps_per_epoch:
            raise InputError(
                f"a batch is at most all pictures: {count} do not fill one of {training.batch}; make the batch smaller"
            )
        self._examples = examples.pictures
        self._input = input
        self._training = training
        self._left = limit_bytes
        self._kept: dict[int, Shown] = {}
        self._lock = threading.Lock()
        counts = sorted((len(example.objects) for example in self._examples), reverse=True)
        most = counts[0]
        if training.mosaic:
            most = sum(counts[:_TILES]) if count >= _TILES else _TILES * counts[0]
        #: M, the rows of a picture's truth.
        self.rows = _ROWS * max(1, math.ceil(most / _ROWS))

    def make(self, step: int, size: tuple[int, int], mosaic: bool) -> tuple[np.ndarray, np.ndarray]:
        """The batch of a step, counted from 0 over all epochs.

        size: (height, width) of the pictures, at most the input's times 1 + multi_scale. mosaic: whether this epoch has
        mosaics at all; how many is up to the training.

        Returns images, uint8 (batch, height, width, 3) in the network's order of colours, and truth, float32
        (batch, rows, 5): x1, y1, x2, y2 in pixels of size, and the class, which is -1 in rows that are padding.

        Raises InputError for a picture that cannot be decoded.
        """
        batch = self._training.batch
        epoch, place_in_epoch = divmod(step, self.steps_per_epoch)
        order = _order(self._training.seed, epoch, len(self._examples))
        images = np.empty((batch, *size, 3), np.uint8)
        truth = np.full((batch, self.rows, 5), -1, np.float32)
        input = dataclasses.replace(self._input, height=size[0], width=size[1])
        canvas = np.empty((*size, 3), np.uint8)
        for index in range(batch):
            rng = np.random.default_rng((_CHANGES, self._training.seed, step, index))
            drawn = canvas if input.color == "RGB" else images[index]
            objects = self._draw(drawn, int(order[place_in_epoch * batch + index]), input, mosaic, rng)
            if drawn is canvas:
                cv2.cvtColor(canvas, cv2.COLOR_BGR2RGB, dst=images[index])
            truth[index, : len(objects)] = objects
        return images, truth

    def _draw(
        self, canvas: np.ndarray, first: int, input: Input, mosaics: bool, rng: np.random.Generator
    ) -> np.ndarray:
        if not (rng.random() < self._training.mosaic and mosaics):
            return augment.single(canvas, self._shown(first), input, self._training, rng)
        tiles = [first, *_others(first, len(self._examples), rng)]
        return augment.mosaic(canvas, [self._shown(index) for index in tiles], input, self._training, rng)

    def _shown(self, index: int) -> Shown:
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        shown = _decoded(self._examples[index], self._input, self._training)
        with self._lock:
            if index not in self._kept and shown.pixels.nbytes <= self._left:
                self._left -= shown.pixels.nbytes
                self._kept[index] = shown
        return shown


def feed(
    batches: Batches, first: int, last: int, size: tuple[int, int], mosaic: bool, workers: int
) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
    """The batches of steps first to last - 1, in order, made ahead by so many threads.

    workers: at least 1; at most workers + 1 batches wait or are at work at a time. The threads end with the iterator:
    when it is exhausted, closed or raises.
    """
    waiting: deque[Future[tuple[np.ndarray, np.ndarray]]] = deque()
    pool = ThreadPoolExecutor(workers, "batches")
    steps = iter(range(first, last))
    try:
        for step in itertools.islice(steps, workers + 1):
            waiting.append(pool.submit(batches.make, step, size, mosaic))
        while waiting:
            made = waiting.popleft().result()
            for step in itertools.islice(steps, 1):
                waiting.append(pool.submit(batches.make, step, size, mosaic))
            yield made
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    order = np.random.default_rng((_ORDER, seed, epoch)).permutation(count)
    order.flags.writeable = False
    return order


def _others(first: int, count: int, rng: np.random.Generator) -> list[int]:
    """The pictures beside the first in a mosaic: all different, unless there are too few."""
    if count < _TILES:
        return rng.integers(count, size=_TILES - 1).tolist()
    return [other + (other >= first) for other in rng.choice(count - 1, _TILES - 1, replace=False).tolist()]


def _decoded(example: Example, input: Input, training: Training) -> Shown:
    """The picture, no larger than the training needs it."""
    pixels = read_picture(example.path)
    height, width = pixels.shape[:2]
    moves = bool(training.scale or training.shift or training.mosaic or training.multi_scale)
    # Without zooms it is resized as on the device, once and for all: place leaves what it has placed as it is.
    spare = _SPARE * (1 + training.multi_scale) if moves else 1.0
    largest = dataclasses.replace(input, height=math.ceil(input.height * spare), width=math.ceil(input.width * spare))
    placement = place((height, width), largest)
    kept_width, kept_height = placement.width, placement.height
    if moves:
        kept_width, kept_height = min(kept_width, width), min(kept_height, height)
    if kept_width * kept_height >= height * width:
        return Shown(pixels, example.objects.astype(np.float64))
    interpolation = cv2.INTER_AREA if moves else cv2.INTER_LINEAR
    objects = example.objects.astype(np.float64)
    objects[:, :4] *= (kept_width / width, kept_height / height) * 2
    return Shown(cv2.resize(pixels, (kept_width, kept_height), interpolation=interpolation), objects)
