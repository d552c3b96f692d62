"""Tensors as the Open Inference Protocol v2 sends them: little-endian, row-major; BYTES with a length before each."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cilseg_serve.server.errors import BadRequestError

DATATYPES = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "FP32": 4,
    "FP64": 8,
    "BF16": 2,
    "BYTES": 0,
}
"""Data types of the protocol and bytes per element; those of BYTES vary."""
_DEPTH = 5


def split_bytes(blob: memoryview, count: int, *, name: str) -> list[bytes]:
    """Return the ``count`` elements of a binary BYTES tensor.

    Raises:
        BadRequestError: the lengths inside do not fit the tensor.
    """
    elements: list[bytes] = []
    at = 0
    while at < len(blob):
        if at + 4 > len(blob):
            raise BadRequestError(f"Input {name!r}: the binary data ends inside a length (byte {at} of {len(blob)}).")
        (size,) = struct.unpack_from("<I", blob, at)
        at += 4
        if at + size > len(blob):
            raise BadRequestError(
                f"Input {name!r}: element {len(elements)} says it has {size} bytes, {len(blob) - at} are left. Each "
                "element is its length as 4 bytes little-endian, then its bytes."
            )
        if len(elements) == count:
            raise BadRequestError(f"Input {name!r} holds more than the {count} element(s) of its shape.")
        elements.append(bytes(blob[at : at + size]))
        at += size
    if len(elements) != count:
        raise BadRequestError(f"Input {name!r} holds {len(elements)} element(s), its shape says {count}.")
    return elements


def join_bytes(elements: Sequence[bytes]) -> bytes:
    """Return ``elements`` as a binary BYTES tensor."""
    return b"".join(struct.pack("<I", len(e)) + e for e in elements)


def uint8_from_json(data: Any, shape: tuple[int, ...], *, name: str) -> npt.NDArray[np.uint8]:
    """Return the JSON ``data`` (flat or nested) of an UINT8 tensor.

    Raises:
        BadRequestError: not whole numbers from 0 to 255, or another count than the shape's.
    """
    if not isinstance(data, list):
        raise BadRequestError(f"Input {name!r}: data is a list of numbers, got {type(data).__name__}.")
    count = int(np.prod(shape, dtype=np.int64))
    try:
        values = np.array(data)
    except (ValueError, OverflowError, RecursionError):
        raise BadRequestError(f"Input {name!r}: data is ragged or holds numbers that are too large.") from None
    if values.size != count:
        raise BadRequestError(
            f"Input {name!r}: data holds {values.size} numbers, the shape {list(shape)} asks for {count}."
        )
    if values.dtype.kind not in "iu" or int(values.min()) < 0 or int(values.max()) > 255:
        raise BadRequestError(f"Input {name!r}: UINT8 data holds whole numbers from 0 to 255 only.")
    return values.astype(np.uint8).reshape(shape)


def shape_of(value: Any, *, name: str) -> tuple[int, ...]:
    """Return the ``shape`` of a tensor.

    Raises:
        BadRequestError: not a short list of whole numbers from 0 to 2**31.
    """
    fits = isinstance(value, list) and 0 < len(value) <= _DEPTH
    if not fits or any(type(n) is not int or not 0 <= n < 2**31 for n in value):
        raise BadRequestError(
            f"Input {name!r}: shape is a list of 1 to {_DEPTH} whole numbers, got {str(value)[:100]}."
        )
    return tuple(value)
