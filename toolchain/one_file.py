"""The way without a recipe: one trained detector to one verified and packaged .tflite."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deploy.contract import Client
from deploy.errors import InputError
from toolchain import child_process, graph_file
from toolchain.cache import digest
from toolchain.graph import Graph

if TYPE_CHECKING:
    from toolchain.quantize import Int8


@dataclasses.dataclass(frozen=True)
class Origin:
    """The files of a trained detector: darknet's three, or a Keras file and its head."""

    model: Path
    weights: Path | None = None
    names: Path | None = None
    head: Path | None = None
    #: None: letterbox, or what the head's file says.
    resize: Literal["letterbox", "stretch"] | None = None
    allow_lambda: bool = False

    @property
    def files(self) -> dict[str, Path]:
        key = "keras" if self.head is not None else "cfg"
        found = {key: self.model, "weights": self.weights, "names": self.names, "head": self.head}
        return {name: path for name, path in found.items() if path is not None}


def read_origin(origin: Origin, *, seed: int = 0) -> Graph:
    """The detector as a graph. A darknet cfg without weights gets random ones of that seed."""
    if origin.head is not None:
        from toolchain.head import attach_head, read_head

        head = read_head(origin.head)
        graph = attach_head(read_keras_apart(origin.model, origin.allow_lambda, head.input.size), head)
        if origin.resize is None or graph.input is None:
            return graph
        return dataclasses.replace(graph, input=dataclasses.replace(graph.input, resize=origin.resize))
    from toolchain.darknet_reader import read_darknet

    return read_darknet(origin.model, origin.weights, origin.names, resize=origin.resize or "letterbox", seed=seed)


def read_keras_apart(path: Path, allow_lambda: bool, input_size: tuple[int, int] | None = None) -> Graph:
    """The network of a .keras or .h5 file, read in a process of its own: the file may come from strangers, and
    TensorFlow loads with a lot to say. input_size is (height, width), for a model that leaves them open."""
    with child_process.folder() as place:
        arguments = {
            "path": str(path.absolute()),
            "allow_lambda": allow_lambda,
            "input_size": input_size,
            "result": str(place / "graph.zip"),
        }
        child_process.run("toolchain.one_file:save_keras", arguments, place, step=f"reading of {path}")
        return graph_file.load(place / "graph.zip")


def save_keras(path: str, allow_lambda: bool, input_size: Sequence[int] | None, result: str) -> None:
    """Runs in a child; input_size is (height, width), a list since it came as JSON."""
    from toolchain.keras_reader import read_keras

    size = None if input_size is None else (input_size[0], input_size[1])
    graph_file.save(read_keras(Path(path), allow_lambda=allow_lambda, input_size=size), Path(result))


def convert_file(
    origin: Origin, precision: str, output: Path, calibration: Path | None, *, clients: Sequence[Client] = (),
    int8: Int8 | None = None, started: Callable[[str], None],
    progress: Callable[[float, float], object] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Converts, verifies and writes output, atomically; an older output stays as it was until then.

    calibration is a folder of pictures, for int8's ranges and for the verification; without it, pictures are drawn.
    int8 says how an int8 file is made, and progress is told how far the search for int8_mixed is.
    clients: for whose programs a file of its own is written beside the output, M_CLIENT.tflite.
    Returns plain JSON: what was done, and `summary`, lines to read. Raises InputError when output is one of the
    inputs or cannot be written, and what reading, conversion and verification raise.
    """
    from toolchain.calibration import lineage_of
    from toolchain.convert import convert
    from toolchain.decoded_file import client_file, refuse_letterbox
    from toolchain.package import contract_of, package
    from toolchain.quantize import Int8, evenly_spaced, to_calibrate_and_measure
    from toolchain.reference import VERIFICATION_PICTURES
    from toolchain.stage_work import graph_facts
    from toolchain.stages import draw_pictures, pictures_in
    from toolchain.verify import to_json, verify

    others = [output.with_name(client_file(output.name, client)) for client in clients]
    for path in (output, *others):
        _refuse_to_overwrite(origin, path, calibration)
    started("load")
    inputs = {name: digest(path) for name, path in origin.files.items()}
    graph = read_origin(origin)
    facts = graph_facts(graph)
    assert graph.input is not None
    for client in clients:
        refuse_letterbox(graph.input, client)
    with tempfile.TemporaryDirectory(prefix="slimdet-") as folder:
        place = Path(folder)
        given = pictures_in(calibration) if calibration is not None else ()
        some = evenly_spaced(given, VERIFICATION_PICTURES)
        pictures = some or draw_pictures(place, VERIFICATION_PICTURES, max(64, *facts["input"]))
        started("convert")
        trust, float32, reference = origin.allow_lambda, place / "float32.tflite", place / "reference.npz"
        made = convert(graph, "float32", float32, pictures=pictures, reference=reference, allow_lambda=trust)
        tflite, notes = float32, made.notes
        if precision != "float32":
            started(f"quantize {precision}")
            tflite = place / "model.tflite"
            ranges, rest = to_calibrate_and_measure(given)
            made = convert(
                graph, precision, tflite, pictures=ranges, validation=rest, int8=int8 or Int8(), float_file=float32,
                allow_lambda=trust, progress=progress,
            )  # fmt: skip
            notes = tuple(dict.fromkeys((*made.notes, *notes)))
        started("verify")
        contract = contract_of(graph, tflite.read_bytes(), precision)
        verified = to_json(verify(graph, tflite.read_bytes(), contract, reference=reference))
        started("package")
        lineage: dict[str, Any] = {"recipe": None, "inputs": inputs}
        if precision.startswith("int8"):
            lineage |= lineage_of(dataclasses.asdict(made.calibration))
        package(tflite, graph, precision, output, lineage=lineage, measured={"verification": verified})
    done = {
        "path": str(output),
        "precision": precision,
        "bytes": output.stat().st_size,
        **{key: facts[key] for key in ("trainable", "non_trainable", "flops", "flops_unknown")},
        "verification": verified,
        "verified_on_drawn_pictures": not given,
        "calibration": dataclasses.asdict(made.calibration) if precision.startswith("int8") else None,
        "notes": list(notes),
        "clients": [_for_client(output, client, path, started) for client, path in zip(clients, others)],
    }
    return {**done, "summary": _summary(done)}


def _for_client(output: Path, client: Client, path: Path, started: Callable[[str], None]) -> dict[str, Any]:
    """Makes of the output the file that a client's programs open."""
    from toolchain.decoded_file import write_decoded

    started(f"decode {client}")
    told = write_decoded(output, client, path)
    return {"path": str(path), "for": client, "bytes": path.stat().st_size, "notes": list(told)}


def _summary(done: dict[str, Any]) -> list[str]:
    from toolchain.report import calibration_sentence, client_sentences, verification_sentence

    parameters = done["trainable"] + done["non_trainable"]
    lines = [
        f"{done['path']}: {done['precision']}, {done['bytes'] / 1e6:.2f} MB, {parameters:,} parameters, "
        f"{done['flops'] / 1e6:.2f} MFLOPs",
        verification_sentence(done),
    ]
    if done["calibration"]:
        lines.append(calibration_sentence(done))
    return [*lines, *_by_reason(done["notes"]), *client_sentences(done)]


def _by_reason(notes: Sequence[str]) -> list[str]:
    """Notes "layer: reason" in one line for each reason, however many layers a deep network has it for."""
    layers: dict[str, list[str]] = {}
    for note in notes:
        layer, _, reason = note.partition(": ")
        layers.setdefault(reason, []).append(layer)
    return [
        f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {reason}"
        for reason, names in layers.items()
    ]


def _refuse_to_overwrite(origin: Origin, output: Path, calibration: Path | None) -> None:
    for path in origin.files.values():
        if output.resolve() == path.resolve():
            raise InputError(f"a conversion never overwrites what it reads: -o is {path}; choose another name")
    if calibration is not None and output.resolve().parent == calibration.resolve() and output.exists():
        raise InputError(
            f"a conversion never overwrites what it reads: -o {output} lies among the pictures; choose another place"
        )
    if not output.absolute().parent.is_dir():
        raise InputError(f"cannot write {output}: the folder {output.absolute().parent} is missing; make it first")
