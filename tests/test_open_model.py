import numpy as np
import pytest
import tiny_tflite

from deploy.backend import CPU_BACKENDS
from deploy.errors import BackendError, InputError
from deploy.interpreter import Model
from deploy.open_model import open_model

BODY, _ = tiny_tflite.yolo()


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_cpu_backends_open_in_the_interpreter(backend: str) -> None:
    model = open_model(BODY, backend, 2)
    assert isinstance(model, Model) and (model.backend, model.threads) == (backend, 2)
    picture = np.random.default_rng(0).random(model.inputs[0].shape).astype(np.float32)
    for name, array in Model(BODY, backend, 2).run({"image": picture}).items():
        np.testing.assert_array_equal(model.run({"image": picture})[name], array)


def test_a_backend_that_is_not_to_be_had_is_an_error() -> None:
    for backend, words in (("npu", "npu needs a chip"), ("abacus", "a backend is one of"), ("delegate:", "a delegate")):
        with pytest.raises(BackendError, match=words):
            open_model(BODY, backend)


def test_damaged_content_is_refused_before_a_gpu_is_looked_for() -> None:
    for content in (b"", BODY[:-200]):
        with pytest.raises(InputError):
            open_model(content, "gpu")
    with pytest.raises(InputError, match="threads"):
        open_model(BODY, "gpu", 0)
