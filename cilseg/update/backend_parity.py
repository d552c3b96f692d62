"""The parity check on every further runtime that works here, so that serving may choose one of them."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cilseg.errors import CilsegError, MissingDependencyError
from cilseg.models.inference import InferenceGraph
from cilseg_serve.backends.base import ONNXRUNTIME_CUDA, OPENVINO

FURTHER = (OPENVINO, ONNXRUNTIME_CUDA)
"""Runtimes of ONNX files beside onnxruntime on the CPU, where the export itself is checked."""

_log = logging.getLogger(__name__)


def check_backends(
    graph: InferenceGraph, model: Path, images: Sequence[npt.NDArray[np.uint8]], *, ids: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return backend -> summary of its parity check, for those that are installed and start here.

    A backend whose answers differ is recorded as failed and warned of; serving does not take it by itself.
    """
    from cilseg_export.parity import check_parity
    from cilseg_export.runtime import BackendRuntime
    from cilseg_serve.backends.opening import open_session

    verdicts: dict[str, dict[str, Any]] = {}
    for backend in FURTHER:
        try:
            session = open_session(model, backend=backend)
        except MissingDependencyError:
            continue
        except CilsegError as exc:
            _log.info("%s was not compared on %s: %s", model.name, backend, exc)
            continue
        with tempfile.TemporaryDirectory(prefix="cilseg-parity-") as folder:
            report = check_parity(graph, model, images, out_dir=Path(folder), ids=ids, runtime=BackendRuntime(session))
        verdicts[backend] = report.summary()
        if not report.passed:
            _log.warning(
                "%s answers differently from the trained model on %s: %s. It will not be chosen for this model.",
                model.name,
                backend,
                "; ".join(report.worst.problems),
            )
    return verdicts
