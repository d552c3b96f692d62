"""Read ``metadata_props`` of an ONNX file without the onnx package: the serving side does not need it otherwise.

Only field 14 (``metadata_props``) of ``ModelProto`` and the two strings of each entry are read; everything else is
skipped by its length.
"""

from __future__ import annotations

from collections.abc import Iterator

from cilseg.errors import ArtifactError

_METADATA_PROPS = 14
_LENGTH_DELIMITED = 2
_FIXED_BYTES = {1: 8, 5: 4}


def metadata_props(model: bytes) -> dict[str, str]:
    """Return the key/value texts of an ONNX model.

    Raises:
        ArtifactError: the bytes are no protobuf message.
    """
    found: dict[str, str] = {}
    try:
        view = memoryview(model)
        for field, value in _fields(view):
            if field == _METADATA_PROPS and isinstance(value, memoryview):
                entry = {f: bytes(v).decode() for f, v in _fields(value) if isinstance(v, memoryview)}
                found[entry.get(1, "")] = entry.get(2, "")
    except (IndexError, ValueError) as exc:
        raise ArtifactError(f"These {len(model)} bytes are no ONNX model ({exc}). Export it again.") from exc
    return found


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Yield field number and content of a protobuf message: bytes, or a number."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            number, at = _varint(data, at)
            yield tag >> 3, number
            continue
        if kind == _LENGTH_DELIMITED:
            size, at = _varint(data, at)
        elif kind in _FIXED_BYTES:
            size = _FIXED_BYTES[kind]
        else:
            raise ValueError(f"wire type {kind}")
        if at + size > len(data):
            raise ValueError("cut short")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("number too long")
