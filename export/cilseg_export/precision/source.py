"""The float32 file that a file of lower precision is made from, and the last steps of making one."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cilseg.bundle import hash_file
from cilseg.errors import ArtifactError, MissingDependencyError
from cilseg_export.folding import fold_batch_norms
from cilseg_export.graph import Anatomy, anatomy
from cilseg_export.limits import Precision
from cilseg_export.metadata import GraphMetadata, read_metadata
from cilseg_export.onnx_export import IR_VERSION, ExportRecord, write_graph


@dataclass(frozen=True, eq=False)
class FloatGraph:
    """A float32 graph, its norms folded into its layers, ready to be converted."""

    model: Any
    """``onnx.ModelProto``; copy it before changing it."""
    parts: Anatomy
    metadata: GraphMetadata
    sha256: str
    """Of the file."""


def read_float_graph(path: Path) -> FloatGraph:
    """Read a float32 file that ``export_onnx`` wrote.

    Raises:
        NotFoundError: no such file.
        ArtifactError: damaged, not ours, not float32, or without a mask.
    """
    import onnx

    metadata = read_metadata(path)
    if metadata.precision != "float32":
        raise ArtifactError(
            f"{path.name} has precision {metadata.precision}; a lower precision is made from the float32 file. "
            "Export that first: cilseg export"
        )
    model = fold_batch_norms(onnx.load(path))
    return FloatGraph(model, anatomy(model), metadata, hash_file(path))


def write_converted(
    model: Any, source: FloatGraph, path: Path, *, precision: Precision, started: float | None = None
) -> ExportRecord:
    """Give a converted graph the metadata of its source, clean up after the converter, check and write it atomically.

    Raises:
        ArtifactError: the converted graph is not valid or breaks the graph contract.
        OSError: no room; ``path`` is as it was.
    """
    import onnx

    metadata = source.metadata.model_copy(update={"precision": precision, "derived_from": source.sha256})
    _in_order(model)
    model.ir_version = IR_VERSION
    used = {node.domain for node in model.graph.node} | {""}
    imports = [o for o in model.opset_import if o.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(sorted(imports, key=lambda o: o.domain))
    del model.graph.value_info[:]  # converters leave types behind that are no longer true
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    model.ClearField("metadata_props")
    onnx.helper.set_model_props(model, metadata.to_props())
    started = time.perf_counter() if started is None else started
    return write_graph(model, metadata, path, n_classes=len(metadata.class_set), started=started)


def require_onnxruntime() -> None:
    """Check that the converters are installed.

    Raises:
        MissingDependencyError: they are not.
    """
    try:
        import onnxruntime  # noqa: F401
        import sympy  # noqa: F401  the quantiser imports it; torch brings it along
    except ImportError as exc:
        raise MissingDependencyError(
            f"Lower precision needs {exc.name}, not installed here. Install with: pip install 'cilseg[export,cpu]'"
        ) from exc


def _in_order(model: Any) -> None:
    """Sort the nodes so that each stands after those it reads; converters append theirs at the end."""
    nodes = list(model.graph.node)
    known = {i.name for i in model.graph.input} | {t.name for t in model.graph.initializer} | {""}
    ordered: list[Any] = []
    while nodes:
        ready = [n for n in nodes if set(n.input) <= known]
        assert ready, "the converted graph has a cycle"
        taken = {id(n) for n in ready}
        ordered += ready
        known |= {name for n in ready for name in n.output}
        nodes = [n for n in nodes if id(n) not in taken]
    del model.graph.node[:]
    model.graph.node.extend(ordered)
