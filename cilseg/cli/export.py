"""``cilseg export``: ONNX with checked answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from cilseg.cli.common import (
    JsonFlag,
    QuietFlag,
    RegistryOption,
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


def command(
    ref: Annotated[
        str | None, typer.Argument(metavar="REF", help="Version to export; default: the served one.")
    ] = None,
    confidence: Annotated[bool, typer.Option("--confidence", help="Add the soft-max of the winning class.")] = False,
    logits: Annotated[bool, typer.Option("--logits", help="Add the logits at output stride.")] = False,
    images: Annotated[
        list[Path] | None, typer.Option("--images", metavar="FILE", help="Images for the check. Repeatable.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Also copy model.onnx there.")
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

    outputs = ("mask", *(["confidence"] if confidence else []), *(["logits"] if logits else []))
    console = stderr_console(quiet=quiet)
    with console.status("exporting and comparing"):
        result = export_version(open_registry(registry), ref, outputs=outputs, images=images or (), copy_to=output)
    if json_:
        print_json({"version": result.version.ref, "model": str(result.attachment.path), "parity": result.parity})
        return
    typer.echo(output or result.attachment.path)
    parity = result.parity
    console.print(
        f"{result.version.ref}: {parity['pixels']} pixels of {parity['images']} images at {parity['sizes']} sizes "
        f"compared with the trained model, {parity['differing']} differ ({parity['ties']} ties)."
    )
    hint = registry_hint(registry)
    console.print(f"Next: cilseg predict IMAGES -o OUT --model {result.version.ref}{hint}")
