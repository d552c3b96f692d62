"""What the parity check needs of a runtime: onnxruntime on the CPU, and every backend of the serving side."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cilseg.errors import ArtifactError, MissingDependencyError, NotFoundError
from cilseg_serve.backends.base import Backend


class Runtime(Protocol):
    """Something that executes a graph of the graph contract."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs: some of ``mask``, ``confidence``, ``logits``."""
        ...

    @property
    def description(self) -> dict[str, str]:
        """What ran, for reports: ``runtime``, ``version``, ``device``, ``precision``."""
        ...

    def run(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """Answer ``(N, H, W, 3)`` uint8 RGB: output name -> array (shapes as in the graph contract)."""
        ...


class OnnxRuntime:
    """Runs an ONNX file with onnxruntime on the CPU, in the file's own precision.

    Args:
        path: the ``.onnx`` file.
        threads: threads within one operator; 0 leaves the choice to onnxruntime.

    Raises:
        NotFoundError: no such file.
        ArtifactError: onnxruntime cannot load it.
        MissingDependencyError: onnxruntime is not installed.
    """

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        try:
            import onnxruntime
        except ImportError as exc:
            raise MissingDependencyError(
                f"onnxruntime is needed to run {path.name}: {exc}. Install it with: pip install 'cilseg[cpu]'"
            ) from exc
        if not path.is_file():
            raise NotFoundError(f"{path} does not exist. Export the model first: cilseg export")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # onnxruntime raises a dozen unrelated classes here
            raise ArtifactError(
                f"onnxruntime {onnxruntime.__version__} cannot load {path}: {exc}. Export it again, or update "
                "onnxruntime."
            ) from exc
        self._version = str(onnxruntime.__version__)

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(output.name for output in self._session.get_outputs())

    @property
    def description(self) -> dict[str, str]:
        device = ",".join(name.removesuffix("ExecutionProvider") for name in self._session.get_providers())
        return {"runtime": "onnxruntime", "version": self._version, "device": device, "precision": "as in the file"}

    def run(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """Answer ``(N, H, W, 3)`` uint8 RGB.

        Raises:
            ArtifactError: onnxruntime fails on this input.
        """
        names = self.outputs
        try:
            answers = self._session.run(list(names), {"image": np.ascontiguousarray(images)})
        except Exception as exc:  # as above
            raise ArtifactError(f"onnxruntime failed on images of shape {images.shape}: {exc}") from exc
        return dict(zip(names, answers, strict=True))


class BackendRuntime:
    """Any backend of the serving side (``cilseg_serve.backends``) as a runtime of the parity check."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @property
    def outputs(self) -> tuple[str, ...]:
        return self._backend.outputs

    @property
    def description(self) -> dict[str, str]:
        info = self._backend.describe()
        return {
            "runtime": info.backend,
            "version": info.version,
            "device": info.device,
            "precision": f"{info.precision} ({info.arithmetic})",
        }

    def run(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """Answer ``(N, H, W, 3)`` uint8 RGB.

        Raises:
            CilsegError: the backend fails on this input.
        """
        return self._backend.run(images)


def open_model(model: Any, *, optimise: bool = True, threads: int = 0) -> Any:
    """Return an ``onnxruntime.InferenceSession`` on the CPU for a graph in memory, for measuring inside this package.

    Args:
        model: the ``onnx.ModelProto``.
        optimise: False keeps every node as it stands.
        threads: threads within one operator; 0 leaves the choice to onnxruntime.

    Raises:
        ArtifactError: onnxruntime cannot load it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # onnxruntime raises a dozen unrelated classes here
        raise ArtifactError(f"onnxruntime {onnxruntime.__version__} cannot load the graph: {exc}") from exc
