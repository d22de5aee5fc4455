"""The devices that a training runs on, their precision, and how they share its batches.

In the process that trains, on any of Keras's backends; several devices by tf.distribute.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from deploy.errors import InputError

#: images and truth of one batch after the other, as training_batches.py has them.
Fed = Generator[tuple[np.ndarray, np.ndarray], None, None]


@contextlib.contextmanager
def every_device(batch: int) -> Iterator[int]:
    """All GPUs that TensorFlow sees, where there are several; yields the number of devices.

    Raises InputError for a batch that they cannot share evenly.
    """
    if keras.backend.backend() != "tensorflow":
        yield 1
        return
    import tensorflow as tf

    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if len(devices) < 2:
        yield 1
        return
    if batch % len(devices):
        raise InputError(
            f"a batch is shared evenly by all devices: {batch} pictures, {len(devices)} {devices[0].device_type}s; "
            f"make the batch a multiple of {len(devices)}"
        )
    with tf.distribute.MirroredStrategy([device.name for device in devices]).scope():
        yield len(devices)


def shared(feeding: Callable[[], Fed], devices: int) -> Any:
    """The batches as Keras's fit takes them: with several devices each gets an equal part of every batch."""
    if devices == 1:
        return feeding()
    import tensorflow as tf

    def parts() -> Fed:
        # Keras looks at the first batch, and then begins anew.
        with contextlib.closing(feeding()) as fed:
            for images, truth in fed:
                yield from zip(np.split(images, devices), np.split(truth, devices), strict=True)

    with contextlib.closing(parts()) as some:
        signature = tuple(tf.TensorSpec((None, *array.shape[1:]), array.dtype) for array in next(some))
    dataset = tf.data.Dataset.from_generator(parts, output_signature=signature).prefetch(2 * devices)
    return tf.distribute.get_strategy().distribute_datasets_from_function(lambda context: dataset)


def precision(mixed: bool | None) -> str:
    """Keras's policy: 16 bits where the device multiplies them faster, bfloat16 where it can. mixed: asked for, or not;
    None takes them on a GPU alone, for a processor gains little. Raises InputError where it is asked for and cannot be
    had."""
    capability = gpu_capability()
    if mixed is None:
        mixed = capability is not None and capability >= (7, 0)
    if not mixed:
        return "float32"
    if capability is None and not processor_has_amx():
        raise InputError(
            "mixed precision needs a GPU or a processor with AMX, and neither is here; leave mixed_precision out"
        )
    return "mixed_bfloat16" if capability is None or capability >= (8, 0) else "mixed_float16"


def gpu_capability() -> tuple[int, int] | None:
    """Of the first GPU, None where there is none."""
    if keras.backend.backend() == "jax":
        import jax

        gpus = [device for device in jax.devices() if device.platform == "gpu"]
        if not gpus:
            return None
        major, minor = gpus[0].compute_capability.split(".")
        return int(major), int(minor)
    import tensorflow as tf

    found = tf.config.list_physical_devices("GPU")
    if not found:
        return None
    capability = tf.config.experimental.get_device_details(found[0]).get("compute_capability", (0, 0))
    return int(capability[0]), int(capability[1])


def processor_has_amx(root: Path = Path("/")) -> bool:
    """Whether the processor multiplies matrices of bfloat16, as Linux tells; others do so by way of float32, slower."""
    try:
        return "amx_bf16" in (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return False


def device_name() -> str:
    """What trains, in words for the report."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return f"{jax.devices()[0].device_kind} (jax)"
    import tensorflow as tf

    found = tf.config.list_physical_devices("GPU")
    if not found:
        return f"CPU ({backend})"
    name = tf.config.experimental.get_device_details(found[0]).get("device_name", "GPU")
    return f"{len(found)} x {name} ({backend})" if len(found) > 1 else f"{name} ({backend})"
