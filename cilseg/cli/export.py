"""``cilseg export``: ONNX with checked answers."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from cilseg.cli.common import (
    JsonFlag,
    QuietFlag,
    RegistryOption,
    log_to_stderr,
    open_registry,
    print_json,
    registry_hint,
    stderr_console,
)


class EngineOptions(NamedTuple):
    """What was asked of TensorRT."""

    build: bool
    verify: bool
    profile: str | None
    version_compatible: bool
    hardware: str


class TritonOptions(NamedTuple):
    """What was asked of Triton."""

    folder: Path | None
    backend: str
    gpu: bool
    instances: int
    max_batch: int


class PrecisionName(StrEnum):
    """Values of ``--precision``."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class MethodName(StrEnum):
    """Values of ``--calibration-method``."""

    MINMAX = "minmax"
    ENTROPY = "entropy"
    PERCENTILE = "percentile"


def command(
    ref: Annotated[
        str | None, typer.Argument(metavar="REF", help="Version to export; default: the served one.")
    ] = None,
    precision: Annotated[
        PrecisionName, typer.Option("--precision", help="Lower ones are made from model.onnx and attached beside it.")
    ] = PrecisionName.FP32,
    confidence: Annotated[bool, typer.Option("--confidence", help="Add the soft-max of the winning class.")] = False,
    logits: Annotated[bool, typer.Option("--logits", help="Add the logits at output stride.")] = False,
    compat: Annotated[
        bool, typer.Option("--compat", help="Also write model.compat.onnx for other readers (float32 NCHW, scores).")
    ] = False,
    compat_size: Annotated[int, typer.Option("--compat-size", metavar="PX", help="Side of its square input.")] = 512,
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", metavar="TAGS|DIR", help="Images for int8; default: some of the gate set."),
    ] = None,
    calibration_method: Annotated[
        MethodName, typer.Option("--calibration-method", help="How ranges of int8 are chosen.")
    ] = MethodName.MINMAX,
    calibration_images: Annotated[
        int, typer.Option("--calibration-images", min=1, help="How many images calibrate int8.")
    ] = 32,
    symmetric: Annotated[
        bool, typer.Option("--symmetric", help="int8 without zero points, as TensorRT wants it.")
    ] = False,
    limits: Annotated[
        str, typer.Option("--limits", metavar="NAME|FILE", help="Parity limits (configs/parity), or a YAML file.")
    ] = "default",
    images: Annotated[
        list[Path] | None, typer.Option("--images", metavar="FILE", help="Images for the check. Repeatable.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Also copy the model there.")
    ] = None,
    trt: Annotated[bool, typer.Option("--trt", help="Build a TensorRT engine for this machine's GPU.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="With --trt: check every step, print pass or fail for each.")
    ] = False,
    trt_profile: Annotated[
        str | None,
        typer.Option("--trt-profile", metavar="NAME=MIN,OPT,MAX", help="Sizes of the engine, batch x height x width."),
    ] = None,
    trt_version_compatible: Annotated[
        bool, typer.Option("--trt-version-compatible", help="Later releases of the same TensorRT major may run it.")
    ] = False,
    trt_hardware: Annotated[
        str, typer.Option("--trt-hardware", help="Other GPUs: none, ampere-plus, same-compute-capability.")
    ] = "none",
    triton: Annotated[
        Path | None, typer.Option("--triton", metavar="DIR", help="Write a Triton model repository there.")
    ] = None,
    triton_backend: Annotated[
        str, typer.Option("--triton-backend", help="onnxruntime, tensorrt, openvino, python.")
    ] = "onnxruntime",
    triton_gpu: Annotated[bool, typer.Option("--triton-gpu", help="Run the ONNX model on a GPU.")] = False,
    triton_instances: Annotated[int, typer.Option("--triton-instances", min=1, help="Copies side by side.")] = 1,
    triton_max_batch: Annotated[int, typer.Option("--triton-max-batch", min=1, help="Largest batch.")] = 8,
    registry: RegistryOption = None,
    json_: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Export a version to ONNX, check its answers against the trained model on real images, attach it.

    Exit code 4 when the answers differ; the worst image is then saved and nothing is attached. With --trt or --triton
    the ONNX model of the version is taken, and exported first where there is none.

    Examples:

      cilseg export animals:2

      cilseg export --confidence -o animals.onnx

      cilseg export animals:2 --trt --verify

      cilseg export animals:2 --triton /models --triton-backend onnxruntime

      cilseg export animals:2 --precision int8 --calibration tags.json
    """
    if trt or verify or triton is not None:
        from cilseg.cli.export_targets import to_targets

        to_targets(
            ref,
            engine=EngineOptions(trt, verify, trt_profile, trt_version_compatible, trt_hardware),
            triton=TritonOptions(triton, triton_backend, triton_gpu, triton_instances, triton_max_batch),
            images=images or (),
            registry=registry,
            json_=json_,
            quiet=quiet,
        )
        return
    from cilseg.update import export_version
    from cilseg.update.precision import CalibrationRequest

    outputs = ("mask", *(["confidence"] if confidence else []), *(["logits"] if logits else []))
    console = stderr_console(quiet=quiet)
    log_to_stderr(quiet=quiet)
    with console.status("exporting and comparing"):
        result = export_version(
            open_registry(registry),
            ref,
            outputs=outputs,
            images=images or (),
            copy_to=output,
            precision={"fp32": "float32", "fp16": "float16", "int8": "int8"}[precision],  # type: ignore[arg-type]
            calibration=CalibrationRequest(calibration, calibration_method.value, calibration_images, symmetric),
            limits=limits,
            compat_px=compat_size if compat else None,
        )
    if json_:
        print_json(result.to_json())
        return
    typer.echo(output or result.attachment.path)
    for line in result.in_words():
        console.print(line)
    hint = registry_hint(registry)
    console.print(f"Next: cilseg predict IMAGES -o OUT --model {result.version.ref}{hint}")
