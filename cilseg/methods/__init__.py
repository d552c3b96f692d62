"""Methods: one file per row of the results table, each a small class over ``cilseg.losses``.

A new method is one file here and its class in the list below.
"""

from __future__ import annotations

from cilseg.errors import InputError, did_you_mean
from cilseg.methods.base import Method, Options, Replay, Stage, StepContext, StepInputs, Supervision
from cilseg.methods.finetune import FineTune, Joint
from cilseg.methods.supervised import Supervised
from cilseg.methods.wilson import Wilson

METHODS: dict[str, type[Method]] = {m.name: m for m in (Joint, FineTune, Wilson)}

__all__ = [
    "METHODS",
    "Method",
    "Options",
    "Replay",
    "Stage",
    "StepContext",
    "StepInputs",
    "Supervised",
    "Supervision",
    "method_class",
]


def method_class(name: str) -> type[Method]:
    """Return the method called ``name``.

    Raises:
        InputError: there is no such method; the message lists them.
    """
    if name not in METHODS:
        raise InputError(f"Unknown method {name!r}.{did_you_mean(name, METHODS)} Methods: {', '.join(METHODS)}.")
    return METHODS[name]
