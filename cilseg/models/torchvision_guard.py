"""Import this module before timm (or anything else that imports torchvision).

A CUDA-built torchvision beside a CPU-only torch dies at import with ``RuntimeError: operator torchvision::nms does not
exist`` and takes timm down with it. Declaring the two missing operator schemas lets torchvision's Python part work;
its compiled operators stay unavailable, and nothing here needs them. Any other error passes through untouched.
"""

from __future__ import annotations

import logging
import sys

import torch

_LOGGER = logging.getLogger(__name__)
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None  # kept alive: the schemas vanish with the object


def _guard() -> bool:
    """Make ``import torchvision`` work if it fails for the known reason; return whether the repair was needed."""
    global _library
    try:
        import torchvision
    except ModuleNotFoundError:
        return False
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
            del sys.modules[name]
        _library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for schema in _SCHEMAS:
            _library.define(schema)  # type: ignore[no-untyped-call]
        import torchvision  # noqa: F401

        _LOGGER.info("torchvision was built for another torch; its compiled operators are switched off")
        return True
    return False


REPAIRED: bool = _guard()
"""True when the installed torchvision does not fit the installed torch (shown by ``cilseg doctor``)."""
