"""``/infer`` of the Open Inference Protocol v2 over HTTP, with the binary tensor extension: bodies in and out.

Order of checks and the layout of the bytes: Triton's ``extension_binary_data``. A body is the JSON part, as long as
``Inference-Header-Content-Length`` says, then the tensors back to back.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from cilseg.errors import did_you_mean
from cilseg_serve.server.errors import BadRequestError, TooLargeError, UnsupportedError
from cilseg_serve.server.tensors import DATATYPES, join_bytes, shape_of, split_bytes, uint8_from_json

HEADER_LENGTH = "Inference-Header-Content-Length"
IMAGE, ENCODED = "image", "encoded_image"
OUTPUTS = ("mask", "confidence", "encoded_mask")
Array = npt.NDArray[np.uint8]
Picture: TypeAlias = Array | bytes
"""An ``(H, W, 3)`` uint8 RGB array, or an encoded image file."""
OutputName = Literal["mask", "confidence", "encoded_mask"]
_MAX_ID = 1024


@dataclass(frozen=True)
class WantedOutput:
    """One output to answer with, as binary or as JSON."""

    name: str
    binary: bool


@dataclass(frozen=True)
class InferRequest:
    """A checked request. ``outputs`` is None where the client left the choice to the server."""

    id: str | None
    pictures: tuple[Picture, ...]
    outputs: tuple[WantedOutput, ...] | None
    binary_by_default: bool
    timeout_s: float | None


@dataclass(frozen=True)
class Tensor:
    """An output: its name, data type, shape, and an array or the elements of a BYTES tensor."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: npt.NDArray[Any] | Sequence[bytes]


def header_length(text: str | None, total: int) -> int | None:
    """Return the length of the JSON part, None where the whole body is JSON.

    Raises:
        BadRequestError: no number, or not within the body.
    """
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 12 or int(text) > total:
        raise BadRequestError(
            f"{HEADER_LENGTH} is the length of the JSON part in bytes, from 0 to the {total} of the body, got "
            f"{text[:40]!r}."
        )
    return int(text)


def decompress(body: bytes, encoding: str | None, *, limit: int) -> bytes:
    """Return ``body`` without its ``Content-Encoding``.

    Raises:
        UnsupportedError: another encoding than gzip and deflate.
        TooLargeError: over ``limit`` bytes when unpacked.
        BadRequestError: damaged.
    """
    name = (encoding or "identity").strip().lower()
    if name == "identity":
        return body
    if name not in ("gzip", "deflate"):
        raise UnsupportedError(f"Content-Encoding {name[:40]!r} is not read; use gzip, deflate or none.")
    unpacker = zlib.decompressobj(31 if name == "gzip" else 15)
    try:
        data = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise BadRequestError(f"The body is not valid {name} ({error}).") from None
    if len(data) > limit:
        raise TooLargeError(f"The body unpacks to more than {limit:,} bytes. Send smaller images or fewer at a time.")
    if not unpacker.eof or unpacker.unused_data:
        raise BadRequestError(f"The {name} body is cut short or followed by other bytes.")
    return data


def parse_infer(body: bytes, json_length: int | None, *, json_limit: int) -> InferRequest:
    """Read the body of an ``/infer`` request.

    Raises:
        BadRequestError: it does not follow the protocol; the message says where.
        TooLargeError: the JSON part is over ``json_limit`` bytes.
    """
    if json_length == 0:
        if not body:
            raise BadRequestError("The body is empty; in raw mode it is one encoded image.")
        return InferRequest(None, (body,), None, True, None)
    length = len(body) if json_length is None else json_length
    if length > json_limit:
        raise TooLargeError(
            f"The JSON part has {length:,} bytes, at most {json_limit:,} are read. Send images as binary tensors."
        )
    document = _object(body[:length])
    parameters = _parameters(document, "the request")
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise BadRequestError(
            f"inputs is a list with one tensor: {IMAGE} (UINT8, [N, H, W, 3]) or {ENCODED} (BYTES, [N])."
        )
    pictures = _pictures(inputs[0], memoryview(body)[length:])
    request_id = document.get("id")
    if request_id is not None and (not isinstance(request_id, str) or len(request_id) > _MAX_ID):
        raise BadRequestError(f"id is a text of at most {_MAX_ID} characters.")
    binary = _flag(parameters, "binary_data_output")
    return InferRequest(
        request_id or None,
        pictures,
        None if document.get("outputs") is None else _outputs(document["outputs"], binary=binary),
        binary,
        _timeout(parameters.get("timeout")),
    )


def write_infer(
    tensors: Sequence[Tensor], wanted: Sequence[WantedOutput], *, model: str, version: str, request_id: str | None
) -> tuple[bytes, int | None]:
    """Return the body of the answer, and the length of its JSON part where binary tensors follow."""
    blobs: list[bytes] = []
    outputs = []
    for tensor, want in zip(tensors, wanted, strict=True):
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if want.binary:
            blob = tensor.values.tobytes() if isinstance(tensor.values, np.ndarray) else join_bytes(tensor.values)
            entry["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        elif isinstance(tensor.values, np.ndarray):
            entry["data"] = tensor.values.ravel().tolist()
        else:
            raise BadRequestError(f"Output {tensor.name!r} is an image file; ask for it with binary_data true.")
        outputs.append(entry)
    document: dict[str, Any] = {"model_name": model, "model_version": version}
    if request_id is not None:
        document["id"] = request_id
    head = json.dumps({**document, "outputs": outputs}, separators=(",", ":")).encode()
    return b"".join((head, *blobs)), len(head) if any(blobs) else None


def _object(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise BadRequestError(
            f"The JSON part is not UTF-8. Where binary tensors follow it, {HEADER_LENGTH} gives its length."
        ) from None
    except RecursionError:
        raise BadRequestError("The JSON part is nested too deeply.") from None
    except ValueError as error:
        raise BadRequestError(
            f"The body is no JSON ({error}). Where binary tensors follow it, {HEADER_LENGTH} gives its length."
        ) from None
    if not isinstance(document, dict):
        raise BadRequestError(f"The body is a JSON object with inputs, got {type(document).__name__}.")
    return document


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _parameters(holder: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    found = holder.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise BadRequestError(f"The parameters of {what} are an object, got {type(found).__name__}.")
    return found


def _pictures(entry: Mapping[str, Any], blobs: memoryview) -> tuple[Picture, ...]:
    name, datatype = entry.get("name"), entry.get("datatype")
    if not isinstance(name, str) or name not in (IMAGE, ENCODED):
        raise BadRequestError(
            f"There is no input {str(name)[:100]!r}.{did_you_mean(str(name)[:100], (IMAGE, ENCODED))} Inputs: {IMAGE} "
            f"(UINT8, [N, H, W, 3]) or {ENCODED} (BYTES, [N])."
        )
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise BadRequestError(
            f"Input {name!r}: there is no datatype {str(datatype)[:40]!r}."
            f"{did_you_mean(str(datatype)[:40], DATATYPES)} Use UINT8 or BYTES."
        )
    shape = shape_of(entry.get("shape"), name=name)
    if datatype == "BYTES":
        if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1):
            raise BadRequestError(f"Input {name!r}: encoded images have shape [N], got {list(shape)}.")
    elif name == ENCODED or datatype != "UINT8":
        raise BadRequestError(
            f"Input {name!r} has datatype {datatype}, expected {'BYTES' if name == ENCODED else 'UINT8 (0 to 255)'}."
        )
    elif len(shape) != 4 or shape[3] != 3:
        hint = " It looks like NCHW: send N, H, W, 3." if len(shape) == 4 and shape[1] == 3 else ""
        raise BadRequestError(f"Input {name!r}: shape is [N, H, W, 3], got {list(shape)}.{hint}")
    if 0 in shape:
        raise BadRequestError(f"Input {name!r}: shape {list(shape)} has no pixels.")
    size = _binary_size(entry, name)
    if size is None:
        return _from_json(entry, datatype, shape, name, extra=len(blobs))
    if size > len(blobs):
        raise BadRequestError(
            f"Input {name!r} says binary_data_size {size}, the body holds {len(blobs)} bytes after its JSON part."
        )
    if size < len(blobs):
        raise BadRequestError(f"The body has {len(blobs) - size} bytes more than its tensors.")
    if datatype == "BYTES":
        return tuple(split_bytes(blobs, shape[0], name=name))
    expected = math.prod(shape)
    if size != expected:
        raise BadRequestError(
            f"Input {name!r}: shape {list(shape)} of UINT8 has {expected} bytes, binary_data_size is {size}."
        )
    return tuple(np.frombuffer(blobs, np.uint8).reshape(shape))


def _binary_size(entry: Mapping[str, Any], name: str) -> int | None:
    parameters = _parameters(entry, f"input {name!r}")
    if "shared_memory_region" in parameters:
        raise BadRequestError(f"Input {name!r}: shared memory is not supported; send the tensor in the body.")
    size = parameters.get("binary_data_size")
    if size is None:
        if "data" not in entry:
            raise BadRequestError(f"Input {name!r} has neither data nor the parameter binary_data_size.")
        return None
    if "data" in entry:
        raise BadRequestError(f"Input {name!r} has both data and binary_data_size; send one of them.")
    if type(size) is not int or size < 0:
        raise BadRequestError(f"Input {name!r}: binary_data_size is a whole number of bytes, got {str(size)[:40]!r}.")
    return size


def _from_json(
    entry: Mapping[str, Any], datatype: str, shape: tuple[int, ...], name: str, *, extra: int
) -> tuple[Picture, ...]:
    if extra:
        raise BadRequestError(f"The body has {extra} bytes after its JSON part, but no input with binary_data_size.")
    if datatype == "BYTES":
        raise BadRequestError(
            f"Input {name!r}: image files are not UTF-8 text, so they cannot be sent as JSON. Send them as a binary "
            "tensor (binary_data_size), or to /v1/segment."
        )
    return tuple(uint8_from_json(entry["data"], shape, name=name))


def _outputs(value: Any, *, binary: bool) -> tuple[WantedOutput, ...]:
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value) or len(value) > len(OUTPUTS):
        raise BadRequestError(f"outputs is a list of at most {len(OUTPUTS)} objects with a name: {', '.join(OUTPUTS)}.")
    wanted: list[WantedOutput] = []
    for entry in value:
        name = entry.get("name")
        if not isinstance(name, str) or name not in OUTPUTS:
            raise BadRequestError(
                f"There is no output {str(name)[:100]!r}.{did_you_mean(str(name)[:100], OUTPUTS)} "
                f"Outputs: {', '.join(OUTPUTS)}."
            )
        if any(w.name == name for w in wanted):
            raise BadRequestError(f"Output {name!r} is asked for twice.")
        parameters = _parameters(entry, f"output {name!r}")
        if "shared_memory_region" in parameters or parameters.get("classification"):
            raise BadRequestError(f"Output {name!r}: neither shared memory nor classification is supported.")
        wanted.append(WantedOutput(name, _flag(parameters, "binary_data", default=binary)))
    if not wanted:
        raise BadRequestError("outputs is empty; leave it out for all, or name some.")
    return tuple(wanted)


def _flag(parameters: Mapping[str, Any], key: str, *, default: bool = False) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise BadRequestError(f"Parameter {key!r} is true or false, got {str(value)[:40]!r}.")
    return value


def _timeout(value: Any) -> float | None:
    """Return ``timeout`` (microseconds, as Triton has it) in seconds."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise BadRequestError(
            f"Parameter 'timeout' is a whole number of microseconds above 0, got {str(value)[:40]!r}."
        )
    return min(value, 10**15) / 1e6
