"""The one file: a normal .tflite with a zip archive behind it that holds slimdet.json and labels.txt.

A flatbuffer is read from its front and a zip archive from its end, so LiteRT sees a plain .tflite and any zip reader
sees the two members. slimdet.json states the format's version, the contract, and the length and SHA-256 of the
flatbuffer: a file that was cut or altered is refused. The same input gives the same bytes.

A file by another maker is read where nothing has to be guessed: TFLite_Detection_PostProcess at its end, and a label
file in the archive behind it (which is how TensorFlow's own tools pack it).
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy import contract_json, interpreter
from deploy.contract import FORMAT, Contract, Input, PostprocessHead
from deploy.errors import ContractError, InputError

_METADATA = "slimdet.json"
_LABELS = "labels.txt"
#: Zip's earliest: the bytes must not depend on the day.
_DATE = (1980, 1, 1, 0, 0, 0)
#: A flatbuffer's offsets end here.
_MOST_BYTES = 2**31 - 1
_MOST_METADATA = 4 * 2**20
#: All that zipfile is known to raise on an archive that is damaged or made to harm.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,
    RuntimeError,
    ValueError,
    EOFError,
    OSError,
)
_CUSTOM_OPERATION = "TFLite_Detection_PostProcess"


def write(tflite: bytes, contract: Contract) -> bytes:
    """The file's bytes: the .tflite with the contract behind it, in place of an earlier one.

    Raises ContractError for a contract that could not be read back, or an archive by another maker behind the .tflite.
    """
    fields = contract_json.to_json(contract)
    contract_json.from_json(fields)
    body = _without_metadata(tflite)
    metadata = {
        "format": FORMAT,
        "body_bytes": len(body),
        "body_sha256": hashlib.sha256(body).hexdigest(),
        "contract": fields,
    }
    text = (json.dumps(metadata, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()
    if len(text) > _MOST_METADATA:
        raise ContractError(
            f"the metadata has at most {_MOST_METADATA} bytes, not {len(text)}; shorten what lineage and measured tell"
        )
    file = io.BytesIO(body)
    # Appending to what is no archive, zipfile counts offsets from the file's first byte: no reader sees a wrong prefix.
    with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
        for name, content in ((_METADATA, text), (_LABELS, _label_file(contract.labels))):
            member = zipfile.ZipInfo(name, _DATE)
            member.create_system = 3  # Unix, on every system
            member.external_attr = 0o100644 << 16
            archive.writestr(member, content)
    return file.getvalue()


def read(path: Path | str) -> tuple[bytes, Contract]:
    """The flatbuffer and its contract.

    Raises InputError for a file that is missing, damaged or no .tflite, ContractError where its metadata is missing,
    contradicts it, or is of another version.
    """
    path = Path(path)
    content = _read_bytes(path)
    archive = _archive(content)
    if archive is not None and _METADATA in archive.namelist():
        return _read_ours(path, content, archive)
    # Ours, but with no archive that can be read: its last bytes are missing or changed.
    if archive is None and _METADATA.encode() in content:
        raise InputError(f"{path} is cut short or damaged: its metadata has no readable end; copy or build it anew")
    return content, _foreign_contract(path, content, archive)


def _read_bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise InputError(f"a model is a .tflite file, but {path} is a folder; name the file inside")
        with open(path, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    if len(content) > _MOST_BYTES:
        raise InputError(f"a .tflite has less than 2 GiB, but {path} has more; give another file")
    if content[4:8] != b"TFL3":
        size = len(content)
        raise InputError(f"a .tflite has TFL3 at bytes 4 to 8, but {path} ({size} bytes) has not; give a .tflite")
    return content


def _archive(content: bytes) -> zipfile.ZipFile | None:
    """The archive at the end, None where there is none. Its members lie inside content, in whatever state."""
    try:
        return zipfile.ZipFile(io.BytesIO(content))
    except _ZIP_ERRORS:
        return None


def _without_metadata(tflite: bytes) -> bytes:
    archive = _archive(tflite)
    if archive is None:
        return tflite
    if _METADATA not in archive.namelist():
        names = ", ".join(archive.namelist())
        raise ContractError(f"metadata goes behind a plain .tflite, but this one has {names} there; give it without")
    return tflite[: min(member.header_offset for member in archive.infolist())]


def _read_ours(path: Path, content: bytes, archive: zipfile.ZipFile) -> tuple[bytes, Contract]:
    metadata = _parse(path, _member(path, archive, _METADATA))
    if metadata.get("format") != FORMAT:
        raise ContractError(
            f"this version reads metadata of format {FORMAT}, but {path} has {metadata.get('format')!r}; "
            "use the version of slimdet that wrote it, or build it anew"
        )
    if set(metadata) != {"format", "body_bytes", "body_sha256", "contract"}:
        raise ContractError(f"{path} has unknown or missing metadata ({', '.join(sorted(metadata))}); build it anew")
    body = content[: min(member.header_offset for member in archive.infolist())]
    if metadata["body_bytes"] != len(body) or metadata["body_sha256"] != hashlib.sha256(body).hexdigest():
        raise ContractError(
            f"{path} was altered or damaged: its model is not the one its metadata tells of; copy or build it anew"
        )
    contract = contract_json.from_json(metadata["contract"])
    if _member(path, archive, _LABELS) != _label_file(contract.labels):
        raise ContractError(f"{path}: {_LABELS} and {_METADATA} name different classes; build it anew")
    return body, contract


def _label_file(labels: Sequence[str]) -> bytes:
    return "".join(f"{label}\n" for label in labels).encode()


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    """A member's content. What it claims and what it holds are both bounded, so no archive can fill the memory."""
    try:
        member = archive.getinfo(name)
        if member.file_size > _MOST_METADATA:
            size = member.file_size
            raise ContractError(f"{path}: {name} has at most {_MOST_METADATA} bytes, not {size}; build it anew")
        with archive.open(member) as file:
            return file.read(_MOST_METADATA)
    except KeyError as error:
        raise ContractError(f"{path}: its metadata has no {name}; build it anew") from error
    except _ZIP_ERRORS as error:
        raise ContractError(f"{path}: {name} is damaged ({error}); copy or build it anew") from error


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            raise ValueError("a key stands twice")
        return fields

    def no_constant(name: str) -> None:
        raise ValueError(f"{name} is no number")

    try:
        value = json.loads(text.decode(), object_pairs_hook=once, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise ContractError(f"{path}: {_METADATA} is no JSON ({error}); copy or build it anew") from error
    if not isinstance(value, dict):
        raise ContractError(f"{path}: {_METADATA} is an object, not {type(value).__name__}; copy or build it anew")
    return value


def _foreign_contract(path: Path, content: bytes, archive: zipfile.ZipFile | None) -> Contract:
    """The contract of a file that ends in TFLite_Detection_PostProcess and carries its labels."""
    try:
        model = interpreter.Model(content, "cpu-builtin")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    nodes = model.outputs_of(_CUSTOM_OPERATION)
    names = [tensor.name for tensor in model.outputs]
    if len(model.inputs) != 1 or len(nodes) != 1 or sorted(nodes[0]) != sorted(names) or len(names) != 4:
        shown = ", ".join(f"{tensor.name} {tensor.dtype} {tensor.shape}" for tensor in model.outputs)
        raise ContractError(
            f"{path} has no slimdet metadata, and its outputs ({shown}) are not the four of {_CUSTOM_OPERATION}, so "
            "what they mean is unknown; convert the original model with slimdet"
        )
    tensor = model.inputs[0]
    if tensor.dtype != "uint8" or tensor.scale <= 0 or len(tensor.shape) != 4:
        raise ContractError(
            f"{path} has no slimdet metadata, and its input ({tensor.dtype} {tensor.shape}) does not tell how pixels "
            "enter, as a quantized uint8 one does; convert the original model with slimdet"
        )
    # Its pixels enter as they are: u = value / scale + zero point.
    mean, std = float(tensor.zero_point), 1 / tensor.scale
    boxes, classes, scores, count = nodes[0]
    return Contract(
        name=path.stem,
        labels=_foreign_labels(path, archive),
        input=Input(tensor.name, tensor.shape[1], tensor.shape[2], "stretch", "RGB", (mean,) * 3, (std,) * 3),
        head=PostprocessHead(boxes, classes, scores, count),
        precision="int8",
        tensors=(*model.inputs, *model.outputs),
    )


def _foreign_labels(path: Path, archive: zipfile.ZipFile | None) -> tuple[str, ...]:
    names = [name for name in archive.namelist() if name.endswith(".txt")] if archive is not None else []
    if archive is None or len(names) != 1:
        found = f"it has {', '.join(names)}" if names else "it has none"
        raise ContractError(
            f"{path} has no slimdet metadata, so its archive must hold one label file, but {found}; "
            "add one (zip FILE.tflite labelmap.txt) with a class name a line"
        )
    try:
        lines = _member(path, archive, names[0]).decode().splitlines()
    except UnicodeDecodeError as error:
        raise ContractError(f"{path}: {names[0]} is not UTF-8; give one class name a line") from error
    # The operation counts classes without the background, which some label files name in their first line. Gaps in
    # COCO's numbering stand as ??? too, and stay: they are class indices that never come.
    labels = [line.strip() for line in lines]
    if labels and labels[0] in ("???", "background"):
        del labels[0]
    if not labels:
        raise ContractError(f"{path}: {names[0]} names no class; give one class name a line")
    return tuple(label or "???" for label in labels)
