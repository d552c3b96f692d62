"""How versions are named: ``name:3``, ``name@alias``, ``name``, ``sha256:abcd``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cilseg.errors import InputError

FORMS = "name:3, name@alias, name, or sha256:<at least 4 hex digits>"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_NUMBER = re.compile(r"0*[1-9][0-9]{0,8}")
_DIGEST = re.compile(r"[0-9a-f]{4,64}")
_RESERVED = frozenset({"sha256"})


@dataclass(frozen=True)
class Reference:
    """A parsed reference. ``name`` is ``None`` where it is left to the one model of the registry."""

    name: str | None = None
    number: int | None = None
    alias: str | None = None
    digest_prefix: str | None = None


def check_name(name: str, *, what: str = "Model name") -> str:
    """Return ``name`` if it may name a model or an alias.

    Raises:
        InputError: it does not match ``[a-z0-9][a-z0-9._-]{0,63}``, or is reserved.
    """
    if not _NAME.fullmatch(name) or name in _RESERVED:
        reason = "is reserved" if name in _RESERVED else "is not allowed"
        raise InputError(
            f"{what} {name!r} {reason}. Use 1 to 64 of a-z, 0-9, '.', '_' and '-', starting with a letter or digit, "
            "for example 'street-cam'."
        )
    return name


def parse_reference(text: str) -> Reference:
    """Read a reference; ``@alias`` and ``:3`` alone mean the one model of the registry.

    Raises:
        InputError: it has none of the known forms.
    """
    ref = text.strip()
    if ref.startswith("sha256:"):
        prefix = ref.removeprefix("sha256:").lower()
        if not _DIGEST.fullmatch(prefix):
            raise InputError(f"Reference {text!r}: a digest is 4 to 64 hex digits after 'sha256:'.")
        return Reference(digest_prefix=prefix)
    name, at, alias = ref.partition("@")
    if at:
        return Reference(name=_optional_name(name), alias=check_name(alias, what=f"Reference {text!r}: alias"))
    name, colon, number = ref.partition(":")
    if colon:
        if not _NUMBER.fullmatch(number):
            raise InputError(f"Reference {text!r}: {number!r} is no version number. Known forms: {FORMS}.")
        return Reference(name=_optional_name(name), number=int(number))
    if not ref:
        raise InputError(f"An empty reference names no version. Known forms: {FORMS}.")
    return Reference(name=check_name(ref))


def _optional_name(name: str) -> str | None:
    return check_name(name) if name else None
