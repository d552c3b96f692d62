"""Build a TensorRT engine of a version, compare it with the trained model, attach it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cilseg.bundle import hash_file
from cilseg.errors import CilsegError, MissingDependencyError, NotFoundError
from cilseg.models.inference import InferenceGraph
from cilseg.registry import Attachment, Registry, Version
from cilseg.update.backend_parity import parity_images
from cilseg.update.bundle import model_of
from cilseg.update.export import MODEL_FILE, export_version
from cilseg_serve.preprocessing import prepare

KIND = "tensorrt"
Hardware = Literal["NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"]


@dataclass(frozen=True)
class Step:
    """One line of the self-check."""

    what: str
    passed: bool
    detail: str
    ran: bool = True
    """False where a step that it needs had failed."""


@dataclass(frozen=True)
class EngineResult:
    """The attached engine; ``steps`` are the lines of the self-check, where one was asked for."""

    version: Version
    attachment: Attachment | None
    parity: dict[str, Any]
    reused: bool
    steps: tuple[Step, ...] = ()

    @property
    def passed(self) -> bool:
        return self.attachment is not None and all(step.passed for step in self.steps)


def export_engine(
    registry: Registry,
    ref: str | None,
    *,
    profile: str | None = None,
    version_compatible: bool = False,
    hardware: Hardware = "NONE",
    images: Sequence[Path] = (),
    file_name: str = MODEL_FILE,
    keep_failed: Path | None = None,
) -> EngineResult:
    """Build an engine of the version's ONNX file (exported first if need be) for this machine and attach it.

    An attached engine with the same key is taken as it is.

    Args:
        profile: ``NAME=MIN,OPT,MAX`` (``cilseg_export.tensorrt_build.parse_profile``); default one that follows the
            network's image size.
        version_compatible: later TensorRT releases of the same major version may run it.
        hardware: TensorRT's hardware compatibility level.
        images: images for the parity check instead of those of the gate set.
        file_name: the ONNX attachment to build from.
        keep_failed: where the parity report goes when the check fails.

    Raises:
        MissingDependencyError: TensorRT or CUDA is not installed.
        CilsegError: no GPU.
        ArtifactError: the engine cannot be built.
        ParityError: its answers differ; nothing is attached.
    """
    from cilseg_export.parity import check_parity
    from cilseg_export.runtime import BackendRuntime
    from cilseg_export.tensorrt_build import build_engine, default_profile, parse_profile, plan_engine
    from cilseg_serve.backends.cudart import open_device
    from cilseg_serve.backends.opening import open_session
    from cilseg_serve.backends.tensorrt_runtime import import_tensorrt

    import_tensorrt()  # refuse before anything takes time
    open_device()
    version = registry.resolve(ref)
    preprocessing = version.manifest.preprocessing
    wanted = default_profile(preprocessing) if profile is None else parse_profile(profile)
    onnx = _onnx(registry, version, file_name, images)
    plan = plan_engine(onnx.path, wanted, version_compatible=version_compatible, hardware=hardware)
    existing = registry.attachments(version).get(plan.file_name)
    if existing is not None and (existing.metadata.get("engine") or {}).get("key") == plan.key:
        checked = registry.attachment(version, plan.file_name)
        return EngineResult(version, checked, dict(checked.metadata["parity"]), reused=True)
    graph = InferenceGraph(model_of(version), preprocessing).eval()
    names, pictures = parity_images(version, images)
    prepared = [prepare(picture, preprocessing) for picture in pictures]
    with tempfile.TemporaryDirectory(prefix="cilseg-engine-") as temporary:
        built = build_engine(
            onnx.path, Path(temporary), profile=wanted, version_compatible=version_compatible, hardware=hardware
        )
        session = open_session(built.path, name=f"{version.ref} {built.path.name}")
        failed = keep_failed or Path(f"parity-{version.name}-{version.number}-tensorrt")
        report = check_parity(
            graph,
            onnx.path,
            prepared,
            out_dir=Path(temporary) / "parity",
            ids=names,
            runtime=BackendRuntime(session),
            batches=sorted({1, wanted.opt[0], wanted.max[0]}),
        )
        if not report.passed:
            failed.mkdir(parents=True, exist_ok=True)
            for path in (report.json_path, report.worst_path):
                (failed / path.name).write_bytes(path.read_bytes())
        report.raise_if_failed()
        parity = {**report.summary(), "report_sha256": hash_file(report.json_path)}
        metadata = {"engine": built.record.model_dump(mode="json", by_alias=True), "parity": parity}
        registry.attach(version, f"parity-{built.path.stem}.json", report.json_path, kind="parity")
        attachment = registry.attach(version, built.path.name, built.path, kind=KIND, metadata=metadata)
    return EngineResult(version, attachment, parity, reused=False)


def verify_engine(
    registry: Registry, ref: str | None, *, profile: str | None = None, images: Sequence[Path] = ()
) -> EngineResult:
    """Check everything about TensorRT on this machine with one version, step by step, and never stop at the first.

    Builds and attaches the engine like :func:`export_engine`. Every step ends with pass or fail; a step that needs an
    earlier one which failed does not run, and counts as failed.
    """
    from cilseg_serve.backends.cudart import open_device
    from cilseg_serve.backends.engine_file import read_engine
    from cilseg_serve.backends.opening import open_session
    from cilseg_serve.backends.tensorrt_runtime import import_tensorrt

    steps: list[Step] = []
    state: dict[str, Any] = {}

    def step(what: str, work: Callable[[], str], *needs: str) -> None:
        missing = [s.what for s in steps if s.what in needs and not s.passed]
        if missing:
            steps.append(Step(what, False, f"not run, it needs: {', '.join(missing)}", ran=False))
            return
        try:
            steps.append(Step(what, True, work()))
        except CilsegError as exc:
            steps.append(Step(what, False, str(exc)))
        except Exception as exc:  # whatever goes wrong is what the check is there to show
            steps.append(Step(what, False, f"{type(exc).__name__}: {exc}"))

    def build() -> str:
        result = state["result"] = export_engine(registry, ref, profile=profile, images=images)
        assert result.attachment is not None
        return f"{result.attachment.file_name} ({'attached before' if result.reused else 'built'})"

    def sidecar() -> str:
        path = state["result"].attachment.path
        data, state["record"] = read_engine(path)
        return f"{len(data):,} bytes, key {state['record'].key}"

    def run(which: str) -> str:
        shape: tuple[int, int, int] = getattr(state["record"].profile, which)
        session = state.setdefault("session", open_session(state["result"].attachment.path))
        images_ = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        first, second = session.run(images_)["mask"], session.run(images_)["mask"]
        if first.shape != shape or (first != second).any():
            raise CilsegError(f"masks {first.shape}, {int((first != second).sum())} pixels differ between two calls")
        return f"batch of {shape[0]}, {shape[2]} x {shape[1]} px, twice the same answer"

    def captured() -> str:
        arithmetic = str(state["session"].describe().arithmetic)
        if "no CUDA graphs" in arithmetic:
            raise CilsegError(arithmetic)
        return arithmetic

    def parity() -> str:
        verdict = state["result"].parity
        if not verdict.get("passed"):
            raise CilsegError(str(verdict))
        return f"{verdict['pixels']:,} pixels, {verdict['differing']} differ outside ties"

    imports, gpu, built, belongs = (
        "TensorRT imports",
        "GPU answers",
        "engine is built, compared and attached",
        "sidecar belongs to the engine",
    )
    step(imports, lambda: str(import_tensorrt().__version__))
    step(gpu, lambda: open_device().name)
    step(built, build, imports, gpu)
    step(belongs, sidecar, built)
    step("answers equal the trained model's", parity, built)
    for which in ("min", "opt", "max"):
        step(f"runs at the profile's {which}", partial(run, which), belongs)
    step("calls are CUDA graphs", captured, "runs at the profile's max")
    step("the same engine is not built twice", lambda: _reuse(registry, ref, profile, images), built)
    done: EngineResult | None = state.get("result")
    return EngineResult(
        registry.resolve(ref),
        done.attachment if done else None,
        done.parity if done else {},
        reused=bool(done and done.reused),
        steps=tuple(steps),
    )


def _reuse(registry: Registry, ref: str | None, profile: str | None, images: Sequence[Path]) -> str:
    again = export_engine(registry, ref, profile=profile, images=images)
    if not again.reused:
        raise CilsegError("it was built again")
    return "found by its key"


def _onnx(registry: Registry, version: Version, file_name: str, images: Sequence[Path]) -> Attachment:
    try:
        return registry.attachment(version, file_name)
    except NotFoundError:
        if file_name != MODEL_FILE:
            raise
    try:
        return export_version(registry, version.ref, images=images).attachment
    except ImportError as exc:
        raise MissingDependencyError(f"Export needs {exc.name}: pip install 'cilseg[train,export,cpu]'.") from exc
