"""One picture in, boxes out: a .tflite with its contract, ready to run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deploy.contract import Contract, PostprocessHead
from deploy.decode import decode
from deploy.detections import Detections
from deploy.errors import InputError
from deploy.interpreter import check
from deploy.model_file import read
from deploy.nms import nms
from deploy.open_model import OpenModel, open_model
from deploy.preprocess import Placement, Preprocessor, to_source


class Detector:
    """A detector from a file. Not for several threads at once: it owns its buffers.

    `detect` does all; `preprocess`, `invoke` and `postprocess` are its three parts, to be timed or overlapped.

    Raises InputError for a missing or damaged file or a threshold out of range, ContractError where the metadata is
    missing or contradicts the tensors, BackendError where the backend is not to be had.
    """

    contract: Contract
    model: OpenModel

    def __init__(
        self,
        path: Path | str,
        backend: str = "cpu",
        threads: int = 1,
        conf: float = 0.25,
        iou: float = 0.45,
        limit: int = 300,
    ) -> None:
        """conf: least score, 0..1, inclusive. iou: of two boxes of a class that overlap by more, the better stays.
        limit: most detections of a picture."""
        for name, value in (("conf", conf), ("iou", iou)):
            if not 0 <= value <= 1:
                raise InputError(f"{name} is a number from 0 to 1, not {value}; give one, such as 0.25")
        if limit < 1:
            raise InputError(f"limit is at least 1 detection a picture, not {limit}; give one, such as 300")
        self.conf, self.iou, self.limit = conf, iou, limit
        content, self.contract = read(Path(path))
        self.model = open_model(content, backend, threads)
        check(self.model, self.contract)
        self.preprocess = self.preprocessor()

    def preprocessor(self) -> Preprocessor:
        """One more way in, with buffers of its own: it may work in a thread while the model runs."""
        return Preprocessor(self.contract.input, self.model.inputs[0])

    def detect(self, bgr: np.ndarray) -> Detections:
        """Detections in pixels of the picture, best first. bgr: uint8 (h, w, 3)."""
        tensor, placement = self.preprocess(bgr)
        return self.postprocess(self.invoke(tensor), placement)

    def invoke(self, tensor: np.ndarray) -> Mapping[str, np.ndarray]:
        """The raw outputs by name, valid until the next call. tensor: what `preprocess` returned."""
        return self.model.run({self.contract.input.name: tensor})

    def postprocess(self, outputs: Mapping[str, np.ndarray], placement: Placement, *, clip: bool = True) -> Detections:
        """Decodes, suppresses, and moves the boxes to pixels of the picture, best first. They are clipped to the
        picture, and what lies in the bars of a letterbox alone is left out; with clip=False all stay as they are."""
        found = decode(outputs, self.contract, self.conf)
        if isinstance(self.contract.head, PostprocessHead):
            found = found.take(np.argsort(-found.scores, kind="stable")[: self.limit])
        else:
            found = found.take(nms(found.boxes, found.scores, found.class_ids, self.iou, self.limit))
        boxes = to_source(found.boxes, placement, clip=clip)
        if not clip:
            return Detections(boxes, found.scores, found.class_ids)
        inside = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
        return Detections(boxes, found.scores, found.class_ids).take(inside)
