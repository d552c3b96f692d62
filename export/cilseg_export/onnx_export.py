"""One ONNX file, weights inside, that obeys the graph contract (input ``image``, outputs ``mask`` and on request
``confidence`` and ``logits``), written by torch's dynamo exporter.

Opset and IR version are pinned, so that the same torch writes the same bytes and older runtimes can read them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cilseg.bundle import Manifest, hash_file, write_file_atomically
from cilseg.errors import ArtifactError, MissingDependencyError
from cilseg_export.audit import ENGINES, Engine, refuse_unsupported
from cilseg_export.metadata import GraphMetadata
from cilseg_export.torch_session import SegmentationGraph, check_ready

OPSET = 18
"""What torch's operator library is written in: exported without a version conversion, read by every current runtime."""
IR_VERSION = 10
"""Read by onnxruntime from 1.18 and by onnx from 1.16 on."""
IMAGE_DIMS = ("batch", "height", "width", 3)
OUTPUT_DIMS = {
    "mask": ("batch", "height", "width"),
    "confidence": ("batch", "height", "width"),
    "logits": ("batch", None, "stride_height", "stride_width"),
}
"""Names of the axes of each output; ``None`` stands for the number of classes."""
_EXAMPLE_HW = (97, 131)  # no multiple of any output stride, so that nothing is specialised to one
_MAX_BYTES = 2_000_000_000  # of one protobuf message


@dataclass(frozen=True)
class ExportRecord:
    """What was written: goes into the attachment's metadata."""

    file_name: str
    sha256: str
    size_bytes: int
    version: str
    outputs: tuple[str, ...]
    n_classes: int
    opset: int
    ir_version: int
    precision: str
    exporter: str
    operators: dict[str, int]
    """Operator name -> how often it occurs."""
    audit: dict[str, str]
    """Engine -> whether its published operator list has everything (``cilseg_export.audit``)."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def export_onnx(
    graph: SegmentationGraph, path: Path, *, manifest: Manifest, version_digest: str, opset: int = OPSET
) -> ExportRecord:
    """Export ``graph`` with the outputs it has (``graph.outputs``) to ``path``, checked and atomically.

    Batch, height and width are dynamic. The file's metadata (``cilseg_export.metadata``) comes from ``manifest``.

    Args:
        graph: an ``nn.Module`` in evaluation mode, float32, such as ``InferenceGraph``.
        path: where the file goes; its folder must exist.
        manifest: of the version being exported.
        version_digest: that version's digest, ``sha256:...``.
        opset: ONNX opset; the default is what everything here is tested with.

    Raises:
        InputError: the graph is in training mode or not float32.
        ArtifactError: class counts of graph and manifest differ, the exporter fails, or its result breaks the contract.
        MissingDependencyError: onnx or onnxscript is not installed.
    """
    _require_packages()
    started = time.perf_counter()
    device = check_ready(graph)
    example = torch.zeros((2, *_EXAMPLE_HW, 3), dtype=torch.uint8, device=device)
    n_classes = count_classes(graph, manifest)
    proto = run_exporter(graph, example, opset, inputs=["image"], outputs=graph.outputs)
    exporter = f"torch {torch.__version__} dynamo"
    metadata = GraphMetadata.of_version(manifest, version_digest, outputs=graph.outputs, opset=opset, exporter=exporter)
    _finish(proto, metadata, n_classes=n_classes)
    return write_graph(proto, metadata, path, n_classes=n_classes, started=started)


def write_graph(
    proto: Any,
    metadata: GraphMetadata,
    path: Path,
    *,
    n_classes: int,
    started: float,
    contract: Mapping[str, Sequence[int | str]] | None = None,
) -> ExportRecord:
    """Check a finished graph of any precision and write it atomically.

    Args:
        proto: the ``onnx.ModelProto`` with its metadata.
        metadata: what that says.
        path: where the file goes.
        n_classes: channels of the logits.
        started: ``time.perf_counter()`` at the start of the work.
        contract: axes of inputs and outputs, all float32; default: the graph contract.

    Raises:
        ArtifactError: not valid ONNX, breaks the graph contract, or holds operators that TensorRT or OpenVINO lack.
        OSError: no room; ``path`` is as it was.
    """
    check_graph(proto, metadata, n_classes=n_classes, contract=contract)
    engines: tuple[Engine, ...] = ("openvino",) if metadata.precision == "int8" else ENGINES
    audited = refuse_unsupported(proto, engines=engines)
    data = proto.SerializeToString(deterministic=True)
    write_file_atomically(path, data)
    operators = [node.op_type for node in proto.graph.node]
    return ExportRecord(
        file_name=path.name,
        sha256=hash_file(path),
        size_bytes=len(data),
        version=metadata.version,
        outputs=metadata.outputs,
        n_classes=n_classes,
        opset=metadata.opset,
        ir_version=proto.ir_version,
        precision=metadata.precision,
        exporter=metadata.exporter,
        operators={name: operators.count(name) for name in sorted(set(operators))},
        audit=audited,
        seconds=round(time.perf_counter() - started, 2),
    )


def _require_packages() -> None:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"Export needs {' and '.join(missing)}, not installed here. Install with: pip install 'cilseg[export]'"
        )


def count_classes(graph: SegmentationGraph, manifest: Manifest) -> int:
    """Return the channels of the logits.

    Raises:
        ArtifactError: the manifest names another number of classes.
    """
    example = torch.zeros((1, *_EXAMPLE_HW, 3), dtype=torch.uint8, device=check_ready(graph))
    with torch.inference_mode():
        n_classes = graph.stride_logits(example).shape[1]
    names = manifest.class_set.names
    if n_classes != len(names):
        raise ArtifactError(
            f"The network has {n_classes} classes, the manifest names {len(names)} ({', '.join(names)}). Export a "
            "version with its own checkpoint; nothing was written."
        )
    return n_classes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the exporter's chatter (deprecations inside torch, torchvision not found); errors still raise."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def run_exporter(
    graph: object,
    example: torch.Tensor,
    opset: int,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic: bool = True,
) -> Any:
    """Return the ``onnx.ModelProto`` that torch makes of a module; ``dynamic``: batch, height and width (axes 0 to 2).

    Raises:
        ArtifactError: the exporter fails.
    """
    # Named dimensions would ask torch to prove every size relation of a padded network, which it cannot; DYNAMIC still
    # refuses an axis that the network fixes to one number. The axes get their names in _finish.
    axes = dict.fromkeys(range(3), torch.export.Dim.DYNAMIC)
    assert isinstance(graph, torch.nn.Module)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=(axes,) if dynamic else None,
                verbose=False,
            )
    except Exception as exc:  # the exporter wraps whatever the network, torch.export or onnxscript raised
        cause = exc.__cause__ or exc
        raise ArtifactError(
            f"torch {torch.__version__} cannot export this network to ONNX opset {opset}: "
            f"{type(cause).__name__}: {cause}\nUse another backbone, or change the operation named above; nothing was "
            "written."
        ) from exc
    assert program is not None
    return program.model_proto


def _finish(proto: Any, metadata: GraphMetadata, *, n_classes: int) -> None:
    """Name the axes of the graph contract and add our metadata, in place."""
    import onnx

    symbols = dict(zip((d.dim_param for d in proto.graph.input[0].type.tensor_type.shape.dim), IMAGE_DIMS, strict=True))
    for value in proto.graph.value_info:
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.dim_param = re.sub(r"\w+", lambda match: str(symbols.get(match[0], match[0])), dim.dim_param)
    name_axes(proto, {"image": IMAGE_DIMS, **_output_dims(metadata.outputs, n_classes)})
    onnx.helper.set_model_props(proto, metadata.to_props())


def name_axes(proto: Any, dims: Mapping[str, Sequence[int | str]]) -> None:
    """Pin the IR version, set the axes of inputs and outputs, drop source paths, traces and metadata, in place."""
    import onnx

    proto.ir_version = IR_VERSION
    parts = [proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer]
    for part in [*parts, *proto.graph.input, *proto.graph.output]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for value in [*proto.graph.input, *proto.graph.output]:
        element = value.type.tensor_type.elem_type
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, element, list(dims[value.name])))
    proto.ClearField("metadata_props")


def _output_dims(outputs: Sequence[str], n_classes: int) -> dict[str, tuple[int | str, ...]]:
    return {name: tuple(n_classes if dim is None else dim for dim in OUTPUT_DIMS[name]) for name in outputs}


def check_graph(
    proto: Any,
    metadata: GraphMetadata,
    *,
    n_classes: int,
    contract: Mapping[str, Sequence[int | str]] | None = None,
) -> None:
    """Check a finished model against ONNX itself (strict shape inference included) and against the graph contract.

    Raises:
        ArtifactError: it breaks either; nothing has been written yet.
    """
    import onnx

    size = proto.ByteSize()
    if size > _MAX_BYTES:
        raise ArtifactError(
            f"The model has {size:,} bytes, one ONNX file holds at most {_MAX_BYTES:,}. Use a smaller one."
        )
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as exc:
        raise ArtifactError(f"The exported graph is not valid ONNX: {exc}. Try another torch or onnx version.") from exc
    types = onnx.TensorProto
    wanted: dict[str, tuple[int, tuple[int | str, ...]]] = {"image": (types.UINT8, IMAGE_DIMS)}
    if contract is not None:
        wanted = {name: (types.FLOAT, tuple(dims)) for name, dims in contract.items()}
    else:
        for name, dims in _output_dims(metadata.outputs, n_classes).items():
            wanted[name] = (types.UINT8 if name == "mask" else types.FLOAT, dims)
    found = {}
    for value in [*proto.graph.input, *proto.graph.output]:
        tensor = value.type.tensor_type
        dims = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim)
        found[value.name] = (tensor.elem_type, dims)
    domains = sorted({node.domain for node in proto.graph.node} - {""})
    if found != wanted or domains or proto.opset_import[0].version != metadata.opset:
        raise ArtifactError(
            f"The exported graph breaks the graph contract: inputs and outputs {found}, expected {wanted}; foreign "
            f"operator domains {domains}; opset {proto.opset_import[0].version}, expected {metadata.opset}. "
            "Try another torch version."
        )
