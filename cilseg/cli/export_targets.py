"""``cilseg export --trt`` and ``--triton``: what is made from an exported model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from cilseg.cli.common import open_registry, print_json, print_table, stderr_console
from cilseg.cli.export import EngineOptions, TritonOptions
from cilseg.errors import InputError, ParityError, did_you_mean
from cilseg.registry import Registry
from cilseg.update.tensorrt import EngineResult, Hardware, export_engine, verify_engine
from cilseg.update.triton import export_triton

_HARDWARE: dict[str, Hardware] = {
    "none": "NONE",
    "ampere-plus": "AMPERE_PLUS",
    "same-compute-capability": "SAME_COMPUTE_CAPABILITY",
}


def to_targets(
    ref: str | None,
    *,
    engine: EngineOptions,
    triton: TritonOptions,
    images: Sequence[Path],
    registry: str | None,
    json_: bool,
    quiet: bool,
) -> None:
    """Build the engine, then write the Triton repository, as far as asked for; print what was made."""
    if engine.hardware not in _HARDWARE:
        hint = did_you_mean(engine.hardware, _HARDWARE)
        raise InputError(f"--trt-hardware {engine.hardware!r} is not known.{hint} Give one of: {', '.join(_HARDWARE)}.")
    if engine.verify and not engine.build:
        raise InputError("--verify checks what --trt builds. Give both: cilseg export REF --trt --verify")
    opened = open_registry(registry)
    console = stderr_console(quiet=quiet)
    answer: dict[str, Any] = {}
    if engine.build:
        with console.status("building and comparing the engine"):
            built = _engine(opened, ref, engine, images)
        answer["engine"] = _engine_json(built)
        if not json_:
            _print_engine(built)
        if not built.passed:
            if json_:
                print_json(answer)
            failed = [step.what for step in built.steps if step.ran and not step.passed]
            raise ParityError(f"The self-check failed: {', '.join(failed)}. See above for what each step said.")
    if triton.folder is not None:
        if triton.backend != "tensorrt":
            _exported(opened, ref, images)
        written = export_triton(
            opened,
            ref,
            triton.folder,
            backend=triton.backend,
            gpu=triton.gpu,
            instances=triton.instances,
            max_batch=triton.max_batch,
        )
        answer["triton"] = {
            "folder": str(written.folder),
            "served": written.version.number,
            "versions": list(written.versions),
        }
        if not json_:
            typer.echo(written.folder)
            console.print(
                f"Triton serves version {written.version.number} of {written.version.name} (there are "
                f"{', '.join(map(str, written.versions))}). Start it with: tritonserver "
                f"--model-repository={triton.folder}"
            )
    if json_:
        print_json(answer)


def _engine(registry: Registry, ref: str | None, options: EngineOptions, images: Sequence[Path]) -> EngineResult:
    if options.verify:
        return verify_engine(registry, ref, profile=options.profile, images=images)
    return export_engine(
        registry,
        ref,
        profile=options.profile,
        version_compatible=options.version_compatible,
        hardware=_HARDWARE[options.hardware],
        images=images,
    )


def _engine_json(result: EngineResult) -> dict[str, Any]:
    return {
        "version": result.version.ref,
        "engine": None if result.attachment is None else str(result.attachment.path),
        "reused": result.reused,
        "parity": result.parity,
        "steps": [{"step": s.what, "passed": s.passed, "detail": s.detail} for s in result.steps],
    }


def _print_engine(result: EngineResult) -> None:
    if result.steps:
        rows = [("pass" if s.passed else "FAIL", s.what, s.detail) for s in result.steps]
        print_table(["", "step", ""], rows, title=f"TensorRT self-check of {result.version.ref}")
    elif result.attachment is not None:
        typer.echo(result.attachment.path)


def _exported(registry: Registry, ref: str | None, images: Sequence[Path]) -> None:
    """Export the version to ONNX if that has not been done."""
    from cilseg.update.export import MODEL_FILE, export_version

    version = registry.resolve(ref)
    if MODEL_FILE not in registry.attachments(version):
        export_version(registry, version.ref, images=images)
