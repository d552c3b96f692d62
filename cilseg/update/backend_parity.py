"""The parity check on every further runtime that works here, so that serving may choose one of them."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cilseg.data.source import Source
from cilseg.errors import CilsegError, FaultCollector, InputError, MissingDependencyError
from cilseg.models.inference import InferenceGraph
from cilseg.registry import Version
from cilseg.update.gate_set import open_gate_set
from cilseg_serve.backends.base import ONNXRUNTIME_CUDA, OPENVINO, Backend
from cilseg_serve.images import read_image

if TYPE_CHECKING:
    from cilseg_export.accuracy import Accuracy, Answer
    from cilseg_export.limits import ParityLimits

FURTHER = (OPENVINO, ONNXRUNTIME_CUDA)
"""Runtimes of ONNX files beside onnxruntime on the CPU, where the export itself is checked."""

N_IMAGES = 6

_log = logging.getLogger(__name__)


def further_sessions(model: Path) -> Iterator[tuple[str, Backend]]:
    """Yield every further backend that is installed and starts here, with the opened model."""
    from cilseg_serve.backends.opening import open_session

    for backend in FURTHER:
        try:
            session = open_session(model, backend=backend)
        except MissingDependencyError:
            continue
        except CilsegError as exc:
            _log.info("%s was not compared on %s: %s", model.name, backend, exc)
            continue
        yield backend, session


def check_backends(
    graph: InferenceGraph,
    model: Path,
    images: Sequence[npt.NDArray[np.uint8]],
    *,
    ids: Sequence[str],
    limits: ParityLimits | None = None,
    accuracy: Callable[[Answer], Accuracy | None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return backend -> summary of its parity check, for those that are installed and start here.

    A backend whose answers differ is recorded as failed and warned of; serving does not take it by itself. ``limits``
    are those of the parity check, ``accuracy`` measures the cost in IoU where they ask for it.
    """
    from cilseg_export.parity import check_parity
    from cilseg_export.runtime import BackendRuntime

    verdicts: dict[str, dict[str, Any]] = {}
    for backend, session in further_sessions(model):
        with tempfile.TemporaryDirectory(prefix="cilseg-parity-") as folder:
            report = check_parity(
                graph,
                model,
                images,
                out_dir=Path(folder),
                ids=ids,
                limits=limits,
                runtime=BackendRuntime(session),
                accuracy=accuracy(session.run) if accuracy else None,
            )
        verdicts[backend] = report.summary()
        if not report.passed:
            _log.warning(
                "%s answers differently from the trained model on %s: %s. It will not be chosen for this model.",
                model.name,
                backend,
                "; ".join([*report.problems, *report.worst.problems]),
            )
    return verdicts


def parity_images(
    version: Version, files: Sequence[Path], *, source: Source | None = None
) -> tuple[list[str], list[npt.NDArray[np.uint8]]]:
    """Return names and pictures for a parity check: those of ``files``, or some of ``source``.

    ``source`` is the version's gate set where it is not given.

    Raises:
        InputError: files that cannot be read (all are named), or no gate set.
    """
    if files:
        pictures, faults = [], FaultCollector("Images of the check")
        for file in files:
            try:
                pictures.append(read_image(file))
            except InputError as exc:
                faults.add(str(exc))
        faults.raise_if_any("Give images that can be read with --images, or none to take those of the gate set.")
        return [f.name for f in files], pictures
    if source is None:
        if version.manifest.gate_set is None:
            raise InputError(
                f"{version.ref} records no gate set, so there are no images to check it with. Give some: "
                "--images a.jpg --images b.jpg"
            )
        source = open_gate_set(version.manifest.gate_set)
    rows = np.linspace(0, len(source) - 1, min(N_IMAGES, len(source))).round().astype(int).tolist()
    return [source.ids[i] for i in rows], [source.image(i) for i in rows]
