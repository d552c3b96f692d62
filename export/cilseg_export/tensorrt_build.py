"""From an ONNX file to a TensorRT engine: one strongly typed build for TensorRT 10.x and 11.x.

Strongly typed means that the precision of every layer is the file's own; there are no precision flags and no
calibrators (TensorRT 11 removed both). Written against the names in the real bindings of both majors; not run by us on
a GPU yet (docs/tensorrt.md).
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from cilseg.bundle import Preprocessing, hash_file, write_file_atomically
from cilseg.errors import ArtifactError, FaultCollector, InputError
from cilseg_export.metadata import read_metadata
from cilseg_export.tensorrt_graph import for_tensorrt
from cilseg_serve.backends.base import INPUT
from cilseg_serve.backends.cudart import open_device
from cilseg_serve.backends.engine_file import EngineRecord, Profile, Shape, read_engine, write_engine
from cilseg_serve.backends.tensorrt_runtime import import_tensorrt

Hardware = Literal["NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"]
_MAJORS = (10, 11)
_DEFAULT_SIDE_PX = 512
_SMALLEST_PX = 32

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuiltEngine:
    """An engine on disk; ``reused`` if it was there already, ``seconds`` what the build took."""

    path: Path
    record: EngineRecord
    reused: bool
    seconds: float


def default_profile(preprocessing: Preprocessing) -> Profile:
    """Return a profile tuned for one image of the network's size (4:3), up to four of twice that size."""
    side = preprocessing.short_side_px or _DEFAULT_SIDE_PX
    small = min(_SMALLEST_PX, side)
    return Profile(
        name="default", min=(1, small, small), opt=(1, side, round(side * 4 / 3)), max=(4, 2 * side, 2 * side)
    )


def parse_profile(text: str) -> Profile:
    """Read ``NAME=MIN,OPT,MAX``, each batch x height x width: ``wide=1x128x256,1x512x1024,8x512x2048``.

    Raises:
        InputError: another form, or sizes that do not grow.
    """
    name, _, sizes = text.partition("=")
    try:
        shapes = [tuple(int(n) for n in size.split("x")) for size in sizes.split(",")]
        if len(shapes) != 3 or any(len(s) != 3 for s in shapes):
            raise ValueError("three sizes of three numbers are needed")
        low, best, high = ((s[0], s[1], s[2]) for s in shapes)
        return Profile(name=name, min=low, opt=best, max=high)
    except ValueError as exc:
        reason = "; ".join(str(e["msg"]) for e in exc.errors()) if isinstance(exc, ValidationError) else str(exc)
        raise InputError(
            f"{text!r} is no profile: {reason}. Write NAME=MIN,OPT,MAX, each batch x height x width, for example "
            "wide=1x128x256,1x512x1024,8x512x2048."
        ) from exc


def cache_folder() -> Path:
    """Return where timing caches are kept: ``$XDG_CACHE_HOME/cilseg/tensorrt``, else below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cilseg" / "tensorrt"


def plan_engine(
    onnx_path: Path, profile: Profile, *, version_compatible: bool = False, hardware: Hardware = "NONE"
) -> EngineRecord:
    """Return the record that an engine of this file, for this machine, would have; its key tells whether one exists.

    Raises:
        MissingDependencyError: TensorRT or CUDA's runtime is not installed.
        CilsegError: no GPU.
        ArtifactError: no file of ours, or a TensorRT that is neither 10.x nor 11.x.
        InputError: hardware compatibility that this TensorRT does not know.
    """
    import onnx

    metadata = read_metadata(onnx_path)
    trt = import_tensorrt()
    version = str(trt.__version__)
    if int(version.split(".")[0]) not in _MAJORS:
        raise ArtifactError(
            f"TensorRT {version} is installed; engines are built with 10.x and 11.x. Install one: pip install "
            "'cilseg[tensorrt]'"
        )
    if not hasattr(trt.HardwareCompatibilityLevel, hardware):
        raise InputError(f"TensorRT {version} has no hardware compatibility {hardware}. Leave it out, or update it.")
    device = open_device()
    props = {p.key: p.value for p in onnx.load(onnx_path, load_external_data=False).metadata_props}
    return EngineRecord(
        onnx_sha256=hash_file(onnx_path),
        tensorrt=version,
        compute_capability=device.compute_capability,
        gpu=device.name,
        precision=metadata.precision,
        profile=profile,
        version_compatible=version_compatible,
        hardware=hardware,
        metadata=props,
    )


def build_engine(
    onnx_path: Path,
    folder: Path,
    *,
    profile: Profile,
    version_compatible: bool = False,
    hardware: Hardware = "NONE",
    timing_cache: Path | None = None,
) -> BuiltEngine:
    """Build the engine of ``onnx_path`` for this machine into ``folder``, or find it there.

    Args:
        onnx_path: what ``cilseg export`` wrote, in any precision.
        folder: gets the engine and its sidecar.
        profile: sizes that the engine accepts.
        version_compatible: later TensorRT releases of the same major version may run it (a little slower).
        hardware: other GPUs may run it (slower); ``NONE`` ties it to this compute capability.
        timing_cache: file of measured kernel times, read and written; default one per TensorRT version and compute
            capability in :func:`cache_folder`.

    Raises:
        as :func:`plan_engine`; InputError also for INT8 that TensorRT does not run; ArtifactError also for operators
        that its parser refuses (all are named) and for a build that fails. Nothing is written then.
    """
    record = plan_engine(onnx_path, profile, version_compatible=version_compatible, hardware=hardware)
    path = folder / record.file_name
    if path.is_file():
        try:
            if read_engine(path)[1] == record:
                return BuiltEngine(path, record, reused=True, seconds=0.0)
        except ArtifactError as exc:
            _log.warning("%s is built again: %s", path.name, exc)
    started = time.perf_counter()
    cache = timing_cache or cache_folder() / f"trt{record.tensorrt}-sm{record.compute_capability}.timing"
    data = _build(onnx_path, record, cache)
    folder.mkdir(parents=True, exist_ok=True)
    return BuiltEngine(
        write_engine(folder, data, record), record, reused=False, seconds=round(time.perf_counter() - started, 2)
    )


def _build(onnx_path: Path, record: EngineRecord, timing_cache: Path) -> bytes:
    import onnx

    trt = import_tensorrt()
    model = for_tensorrt(onnx.load(onnx_path), name=str(onnx_path))
    logger = _logger(trt)
    builder = trt.Builder(logger)
    # The flag is what makes TensorRT 10 strongly typed; 11 always is, and ignores it.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        faults = FaultCollector(f"{onnx_path}: TensorRT {record.tensorrt} cannot read the graph")
        for index in range(parser.num_errors):
            error = parser.get_error(index)
            faults.add(f"operator {error.node_operator()} (node {error.node()}, {error.node_name()}): {error.desc()}")
        faults.raise_if_any("Use another backbone, or onnxruntime or OpenVINO.", error=ArtifactError)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and not float32
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if record.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, record.hardware)
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT, *(_image_shape(s) for s in (record.profile.min, record.profile.opt, record.profile.max)))
    config.add_optimization_profile(profile)
    _use_timing_cache(config, timing_cache)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ArtifactError(
            f"TensorRT {record.tensorrt} could not build {onnx_path} with profile {record.profile}: "
            f"{'; '.join(logger.errors) or 'it gave no reason'}. Free GPU memory, or take a smaller --trt-profile."
        )
    _keep_timing_cache(config, timing_cache)
    return bytes(engine)


def _image_shape(shape: Shape) -> tuple[int, int, int, int]:
    return (*shape, 3)


def _use_timing_cache(config: Any, path: Path) -> None:
    """Give the builder the kernel times of earlier builds; a cache of another machine or version starts anew."""
    data = path.read_bytes() if path.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(data), ignore_mismatch=False):
        _log.warning("Timing cache %s is of another TensorRT or GPU; it starts anew.", path)
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _keep_timing_cache(config: Any, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file_atomically(path, bytes(config.get_timing_cache().serialize()))
    except OSError as exc:  # the engine is worth more than the time it saves next time
        _log.warning("Timing cache %s was not kept: %s", path, exc)


def _logger(trt: Any) -> Any:
    """Return a TensorRT logger that passes on to ours and keeps the errors."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # the class exists only where TensorRT does
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(msg)
            _log.debug("TensorRT: %s", msg)

    return Logger()
