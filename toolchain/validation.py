"""What a network finds on pictures that it is not trained on, in the process that trains: its loss and its mAP."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.voc_metric import Found, Truths, average_precisions
from deploy.contract import Contract, Tensor
from deploy.errors import InputError
from deploy.picture import read_picture
from deploy.preprocess import Placement, Preprocessor
from toolchain.distillation import Objective
from toolchain.graph import Graph
from toolchain.raw_detections import contract_of, detections
from toolchain.training_data import Examples

#: From which IoU a detection is a hit.
_IOU = 0.5
#: From a box's outer edges to VOC's way to count pixels, from 1 and with both ends inside. Detections are moved by 1.
_VOC = np.array([1, 1, 0, 0])
#: images uint8 (n, h, w, 3), truth float32 (n, M, 5), and where each picture lies in the input; n is at most the batch.
_Batch = tuple[np.ndarray, np.ndarray, list[Placement]]
#: Most memory of the pictures that are kept between epochs, in bytes.
_KEPT = 2 << 30


@dataclasses.dataclass(eq=False)
class Validation:
    """Pictures to look at after every epoch; they are decoded once where memory allows it."""

    graph: Graph
    examples: Examples
    batch: int
    _kept: dict[int, _Batch] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def _contract(self) -> Contract:
        return contract_of(self.graph)

    def measure(
        self, predict: Callable[[np.ndarray], Sequence[Any]], objective: Objective, teach: Callable[[Any], Any] | None,
        *, labels: bool,
    ) -> dict[str, float]:  # fmt: skip
        """val_loss, the objective's mean over the pictures, and with labels map, 0 to 1: the darknet protocol's mean
        over the classes that have a truth.

        predict and teach: uint8 images (n, h, w, 3) to outputs as objective takes them, those of graph.outputs first.
        """
        total, seen = 0.0, 0
        found, truths = _Flat(), _Flat()
        for images, truth, placements in self._batches():
            outputs = predict(images)
            loss = objective(truth, outputs, teach(images) if teach else None)
            total += float(loss) * len(images)
            if labels:
                arrays = [np.asarray(output) for output in outputs[: len(self.graph.outputs)]]
                for row, placement in enumerate(placements):
                    objects = self.examples.pictures[seen + row].objects
                    truths.add(seen + row, objects[:, 4].astype(np.int64), objects[:, :4] + _VOC)
                    self._detect(found, seen + row, [array[row : row + 1] for array in arrays], placement)
            seen += len(images)
        figures = {"val_loss": total / seen}
        if labels:
            figures["map"] = self._map(truths, found)
        return figures

    def _map(self, truths: _Flat, found: _Flat) -> float:
        known = truths.arrays()
        every = Truths(known[0], known[1], known[2], np.zeros(len(known[0]), bool))
        images, classes, boxes, scores = found.arrays()
        figures = average_precisions(
            every, Found(images, classes, boxes, scores), len(self.graph.labels), "darknet", _IOU
        )
        scored = figures[~np.isnan(figures)]
        return float(scored.mean()) if len(scored) else 0.0

    def _detect(self, found: _Flat, index: int, outputs: Sequence[np.ndarray], placement: Placement) -> None:
        one = detections(self.graph, self._contract, outputs, placement)
        found.add(index, one.class_ids.astype(np.int64), one.boxes.astype(np.float64) + 1, one.scores)

    def _batches(self) -> Iterator[_Batch]:
        most = max(1, *(len(example.objects) for example in self.examples.pictures))
        with ThreadPoolExecutor(1, "validation") as pool:
            waiting = pool.submit(self._read, 0, most)
            for start in range(0, len(self.examples.pictures), self.batch):
                now = waiting.result()
                if start + self.batch < len(self.examples.pictures):
                    waiting = pool.submit(self._read, start + self.batch, most)
                yield now

    def _read(self, start: int, most: int) -> _Batch:
        if start in self._kept:
            return self._kept[start]
        input = self.graph.input
        assert input is not None
        # Mean 0 and standard deviation 1 keep the pixels whole.
        plain = dataclasses.replace(input, mean=(0.0,) * 3, std=(1.0,) * 3)
        shape = (input.height, input.width, 3)
        preprocess = Preprocessor(plain, Tensor(input.name, (1, *shape), "uint8", scale=1.0))
        examples = self.examples.pictures[start : start + self.batch]
        images = np.empty((len(examples), *shape), np.uint8)
        truth = np.full((len(examples), most, 5), -1, np.float32)
        placements = []
        for row, example in enumerate(examples):
            try:
                tensor, at = preprocess(read_picture(example.path))
            except InputError as error:
                raise InputError(f"a training's pictures can be read: {error}") from error
            images[row] = tensor[0]
            placements.append(at)
            scale, pad = np.array([at.scale_x, at.scale_y] * 2), np.array([at.pad_x, at.pad_y] * 2)
            truth[row, : len(example.objects), :4] = example.objects[:, :4] * scale + pad
            truth[row, : len(example.objects), 4] = example.objects[:, 4]
        if images.nbytes / len(images) * len(self.examples.pictures) <= _KEPT:
            self._kept[start] = images, truth, placements
        return images, truth, placements


@dataclasses.dataclass(eq=False)
class _Flat:
    """Boxes of many pictures, one array after the other."""

    parts: list[tuple[np.ndarray, ...]] = dataclasses.field(default_factory=list)

    def add(self, index: int, classes: np.ndarray, *others: np.ndarray) -> None:
        self.parts.append((np.full(len(classes), index), classes, *others))

    def arrays(self) -> tuple[np.ndarray, ...]:
        return tuple(np.concatenate(columns) for columns in zip(*self.parts, strict=True))
