"""The settings of a recipe's stages that train: what training.Training holds, and what each has beside it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from toolchain.recipe_settings import Patterns, Scope, Seed, Settings, Share

_Epochs = Annotated[int, Field(ge=1, le=100_000)]
_Rate = Annotated[float, Field(ge=1e-12, le=10)]
_Norm = Annotated[float, Field(ge=1e-6, le=1e6)] | None
_Zoom = Annotated[float, Field(ge=0, le=4)]
_Shift = Annotated[float, Field(ge=0, le=0.5)]
_Strength = Annotated[float, Field(ge=0, le=2)]


class _Steps(Settings):
    """How to train, with values for a network that begins with nothing: what training.Training holds."""

    epochs: _Epochs = 10
    batch: Annotated[int, Field(ge=1, le=4096)] = 16
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: _Rate = 2e-3
    """The highest step size, reached after the warm-up; a cosine takes it down to 0 at the end."""
    warmup: Annotated[float, Field(ge=0, le=0.9)] = 0.05
    """Part of all steps in which the step size rises from 0."""
    weight_decay: Share = 1e-4
    """Of kernels alone."""
    momentum: Share = 0.9
    """Of sgd, with Nesterov's look ahead."""
    clip: _Norm = None
    """The gradients' greatest norm, of all together; longer ones are shortened. null: they stay as they are."""
    freeze: Patterns = ()
    """Layers that keep their weights and their batch norm's statistics, written as include is elsewhere."""
    flip: bool = True
    """Mirror every second picture."""
    mosaic: Share = 0.0
    """Share of the pictures that are put together of four."""
    close_mosaic: Share = 0.1
    """Share of the epochs, the last ones, that have no mosaics."""
    scale: _Zoom = 0.0
    """Enlarge pictures by at most this share, or make them smaller by as much."""
    shift: _Shift = 0.0
    """Move pictures by at most this share of the input's sides."""
    color: _Strength = 0.0
    """Strength of the changes of hue, saturation and brightness; at 1 those of YOLOv4."""
    seed: Seed = 1
    """Of the order of the pictures, and their changes."""


class _Course(Settings):
    """What is watched, averaged and varied on the way."""

    ema: Annotated[float, Field(ge=0, le=0.99999)] | None = None
    """Keep the weights' exponential moving average, each step with this share of the one before; null: the last
    weights."""
    multi_scale: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    """Give every epoch an input size of its own, by at most this share larger or smaller than the network's."""
    mixed_precision: bool | None = None
    """Compute in 16 bits where that is safe, on a GPU or a processor with AMX. Without it: where there is such a
    GPU."""
    patience: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """End when the validation has not been better for so many epochs. Without it: never."""
    tensorboard: bool = False
    """Write logs for TensorBoard."""


class Train(_Steps, _Course):
    """Trains all weights from the data's labels."""


class Recovery(_Steps):
    """How a network that computes something else than before is trained so that it finds its accuracy again."""

    epochs: _Epochs = 30
    learning_rate: _Rate = 1e-3
    """The highest step size, reached after the warm-up; a cosine takes it down to 0 at the end."""
    clip: _Norm = 10.0
    """The gradients' greatest norm, of all together; longer ones are shortened. null: they stay as they are."""
    mosaic: Share = 0.5
    """Share of the pictures that are put together of four."""
    scale: _Zoom = 0.5
    """Enlarge pictures by at most this share, or make them smaller by as much."""
    shift: _Shift = 0.1
    """Move pictures by at most this share of the input's sides."""
    color: _Strength = 1.0
    """Strength of the changes of hue, saturation and brightness; at 1 those of YOLOv4."""
    labels: bool | None = None
    """Learn from the data's labels. Without it: where they have some."""
    distill: Annotated[float, Field(ge=0, le=1000)] | None = None
    """Weight of what is learned from the outputs of the network before the first stage that compresses it; 0: nothing.
    Without it: 1 where there is such a stage."""


class Finetune(Recovery, _Course):
    """Trains all weights a little: from the data's labels, and from what the network computed before the first stage
    that compressed it."""

    ema: Annotated[float, Field(ge=0, le=0.99999)] | None = 0.998
    """Keep the weights' exponential moving average, each step with this share of the one before; null: the last
    weights."""
    freeze_statistics: bool = True
    """Batch norms normalize by the averages that they have, and keep them, while all else learns; dropout rests. false:
    by those of each batch, as in a training from nothing."""
    features: Patterns = ()
    """Layers whose outputs are held against those of that network too, written as include is elsewhere: value by value
    where no channel is gone, as behind a pruning within the blocks, else by where they are active."""


class Sparsify(Recovery, Scope):
    """Makes small weights 0 while it trains. The file packs better, and nothing gets faster."""

    sparsity: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Share of zeros in every layer in scope; the pattern 2:4 makes it half whatever is said here."""
    begin: Share = 0.0
    """Part of all steps after which the first weights become 0."""
    end: Share = 0.7
    """Part of all steps after which all have become 0."""
    pattern: Literal["unstructured", "2:4"] = "unstructured"
    """2:4 makes two of four neighbouring input channels 0."""

    @model_validator(mode="after")
    def _in_order(self) -> Sparsify:
        if not self.begin < self.end:
            raise ValueError(f"weights become 0 from begin to a later end, but {self.begin} and {self.end} came")
        return self


class Cluster(Recovery, Scope):
    """Leaves every kernel a few different values while it trains. The file packs better, and nothing gets faster."""

    clusters: Annotated[int, Field(ge=2, le=256)] = 16
    """Different values of each kernel in scope."""
    init: Literal["kmeans++", "linear", "density", "random"] = "kmeans++"
    """Where the values start."""
    keep_zeros: bool = False
    """What is 0 stays 0: for a network that was made sparse before. One of the clusters is 0 then."""

    @model_validator(mode="after")
    def _some_besides_zero(self) -> Cluster:
        if self.keep_zeros and self.clusters < 3:
            raise ValueError(f"with keep_zeros clusters are at least 3, zero among them, but {self.clusters} came")
        return self


class QuantizationAware(Recovery, Scope):
    """Trains with weights and tensors rounded to 8 bits, so that an int8 file is nearer. The network itself stays
    float."""

    preserve: Annotated[tuple[Literal["sparsity", "clusters"], ...], Field(max_length=2)] = ()
    """What the network has of zeros or clusters stays."""


def learns_from(settings: Settings, *, labelled: bool, compressed: bool) -> tuple[bool, float]:
    """What a stage that trains learns from: whether from labels, and the weight of the network before the first stage
    that compressed it. Where the recipe leaves it open: from all that there is."""
    if not isinstance(settings, Recovery):
        return True, 0.0
    labels = labelled if settings.labels is None else settings.labels
    return labels, float(compressed) if settings.distill is None else settings.distill
