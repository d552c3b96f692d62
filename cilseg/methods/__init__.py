"""Methods: one file per row of the results table, each a small class over ``cilseg.losses``.

A new method is one file here and its class in the list below.
"""

from __future__ import annotations

from cilseg.errors import InputError, did_you_mean
from cilseg.methods.base import Memory, Method, Options, Replay, Stage, StepContext, StepInputs, Supervision
from cilseg.methods.cam import Cam
from cilseg.methods.eps import Eps
from cilseg.methods.finetune import FineTune, Joint
from cilseg.methods.lwf import Ilt, Lwf, LwfMc
from cilseg.methods.mib import Mib
from cilseg.methods.pifs import Pifs
from cilseg.methods.plop import Plop
from cilseg.methods.points import MibPoints, MibScribbles
from cilseg.methods.recall import Recall
from cilseg.methods.sdr import Sdr
from cilseg.methods.seam import Seam
from cilseg.methods.ss import Ss
from cilseg.methods.supervised import Supervised
from cilseg.methods.tags import Exclusive, Tags
from cilseg.methods.wilson import Wilson

_ROWS: tuple[type[Method], ...] = (
    *(Joint, FineTune, Lwf, LwfMc, Ilt, Mib, Plop, Sdr, Recall, Exclusive),  # masks
    Pifs,  # few masks
    *(MibPoints, MibScribbles),  # points, scribbles
    *(Cam, Seam, Ss, Eps, Wilson, Tags),  # image tags
)
METHODS: dict[str, type[Method]] = {method.name: method for method in _ROWS}

__all__ = [
    "METHODS",
    "Memory",
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
