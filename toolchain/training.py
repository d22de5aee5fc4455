"""How a network is trained: plain settings and results, which need neither TensorFlow nor Keras."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from deploy.errors import InputError
from toolchain.graph import Graph

#: What is told while training: epoch 0 of epochs before the first step; then, every few seconds and at the end of
#: every epoch, epoch (how many are done, with fractions), epochs, loss (mean of the epoch so far), seconds and
#: seconds_left; at the end of an epoch also what was measured on the validation pictures, val_loss and, with labels,
#: map.
Progress = Callable[[Mapping[str, float]], None]


#: Keras's memories, which are too long for a short training: those of AdamW's gradients and of their squares (the
#: first, huge gradients would brake it until its end) and of batch norm's averages. In steps, at most; and the part of
#: all steps that they are at most, but never below the least.
GRADIENTS, SQUARES, AVERAGES = (10, 1 / 100, 6), (1000, 1 / 15, 50), (100, 1 / 40, 20)


def memory(steps: int, limits: tuple[int, float, int]) -> float:
    """The share of the old in a moving average whose memory suits a training of so many steps."""
    most, part, least = limits
    return 1 - 1 / min(most, max(least, steps * part))


@dataclasses.dataclass(frozen=True)
class Training:
    """How to train. Raises InputError when a value makes no sense."""

    epochs: int = 10
    batch: int = 16
    optimizer: Literal["adamw", "sgd"] = "adamw"
    #: The highest step size, reached after the warm-up; a cosine takes it down to 0 at the end.
    learning_rate: float = 2e-3
    #: Part of all steps in which the step size rises from 0.
    warmup: float = 0.05
    #: Of kernels alone.
    weight_decay: float = 1e-4
    #: Of sgd, with Nesterov's look ahead.
    momentum: float = 0.9
    #: The gradients' greatest norm, of all together; longer ones are shortened. None: as they are.
    clip: float | None = None
    #: What is kept are the weights' exponential moving average, each step with this share of the one before; None: the
    #: last weights. The share is less in the first steps, so that the weights they began with are forgotten.
    ema: float | None = None
    #: Layers that keep their weights and their batch norm's statistics: patterns as scope.py has them.
    freeze: tuple[str, ...] = ()
    #: Batch norms normalize by the averages that they have, and keep them, while all else learns; dropout rests. A
    #: batch's own statistics would undo what a compression's corrections put right where detections are made.
    freeze_statistics: bool = False
    #: Mirrors every second picture.
    flip: bool = True
    #: Share of the pictures that are put together of four.
    mosaic: float = 0.0
    #: Share of the epochs, the last ones, that have no mosaics.
    close_mosaic: float = 0.1
    #: Pictures are enlarged by at most this share, or made smaller by as much.
    scale: float = 0.0
    #: Pictures are moved by at most this share of the input's sides.
    shift: float = 0.0
    #: Strength of the changes of hue, saturation and brightness; at 1 those of YOLOv4.
    color: float = 0.0
    #: Every epoch has an input size of its own, by at most this share larger or smaller than the network's.
    multi_scale: float = 0.0
    #: Learn from the boxes that the data name.
    labels: bool = True
    #: Weight of what is learned from the teacher's outputs; 0: nothing.
    distill: float = 0.0
    #: Layers whose outputs are held against the teacher's too: patterns as scope.py has them.
    features: tuple[str, ...] = ()
    #: Compute in 16 bits where that is safe, on a GPU or a processor with AMX. None: where there is such a GPU.
    mixed_precision: bool | None = None
    #: End when the validation has not been better for so many epochs. None: never.
    patience: int | None = None
    #: Write logs for TensorBoard beside the checkpoint.
    tensorboard: bool = False
    #: Of the order of the pictures and their changes.
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {
            "epochs": (1, 100_000),
            "batch": (1, 4096),
            "learning_rate": (1e-12, 10.0),
            "warmup": (0.0, 0.9),
            "weight_decay": (0.0, 1.0),
            "momentum": (0.0, 1.0),
            "clip": (1e-6, 1e6),
            "ema": (0.0, 0.99999),
            "mosaic": (0.0, 1.0),
            "close_mosaic": (0.0, 1.0),
            "scale": (0.0, 4.0),
            "shift": (0.0, 0.5),
            "color": (0.0, 2.0),
            "multi_scale": (0.0, 0.9),
            "distill": (0.0, 1000.0),
            "patience": (1, 100_000),
            "seed": (0, 2**32 - 1),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InputError(f"{name} of a training is {low} to {high}: got {value}; correct it")
        if not (self.labels or self.distill):
            raise InputError("a training learns from labels or a teacher: it has neither; give distill a weight")


@dataclasses.dataclass(frozen=True)
class PictureFolder:
    """Pictures to train on."""

    folder: Path
    #: Of a folder in VOC, COCO or YOLO layout; None: all pictures that it has.
    split: str | None = None
    #: False: pictures alone, right in the folder; nothing is read about what they show.
    labelled: bool = True


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What is trained on, and what is watched and never trained on."""

    train: tuple[PictureFolder, ...]
    #: Empty: a share of train is held out.
    validation: tuple[PictureFolder, ...] = ()
    #: Share of train's pictures that are held out, the same in every training.
    share: float = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """The graph with its new weights, and what must be known of the training as plain JSON.

    facts: history (what was told at the end of every epoch), left_out (of the data, a sentence each), pictures (how
    many were trained on), validation_pictures, steps, best_epoch (of the weights that the graph has, counted from 1),
    watched ("map" or "val_loss"), device, precision, seconds_per_step, ended ("" or why before the last epoch).
    """

    graph: Graph
    facts: Mapping[str, Any]
