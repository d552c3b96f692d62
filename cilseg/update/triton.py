"""Write an exported version into a Triton model repository."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cilseg.errors import ArtifactError, InputError, MissingDependencyError, ParityError
from cilseg.registry import Attachment, Registry, Version
from cilseg_serve.model_file import MODEL_FILE

_DEFAULT_SIDE_PX = 512
_ENGINE_KIND = "tensorrt"


@dataclass(frozen=True)
class TritonResult:
    """The model's folder in the repository, and the versions that lie there."""

    version: Version
    folder: Path
    versions: tuple[int, ...]


def export_triton(
    registry: Registry,
    ref: str | None,
    repository: Path,
    *,
    backend: str = "onnxruntime",
    gpu: bool = False,
    instances: int = 1,
    max_batch: int = 8,
    threads: int | None = None,
    file_name: str = MODEL_FILE,
) -> TritonResult:
    """Write ``ref`` into ``repository`` and make it the version that Triton serves.

    Args:
        backend: Triton's backend: onnxruntime, tensorrt, openvino or python.
        gpu: run the ONNX model on a GPU (engines always do).
        instances: copies of the model that answer side by side.
        max_batch: largest batch that Triton may form.
        threads: of one call (onnxruntime, python).
        file_name: attachment to take, for example a lower precision's.

    Raises:
        InputError: unknown backend, or numbers below 1.
        NotFoundError: the version was not exported.
        ParityError: the parity check is missing or failed.
        ArtifactError: damaged files, or no TensorRT engine.
        MissingDependencyError: a package is missing.
    """
    try:
        from cilseg_export.triton_config import TENSORRT, TritonModel, check_triton_backend
        from cilseg_export.triton_repository import write_triton_model
    except ImportError as exc:
        raise MissingDependencyError(f"Export needs {exc.name}: pip install 'cilseg[export,cpu]'.") from exc
    check_triton_backend(backend)
    low = {"instances": instances, "max_batch": max_batch, "threads": 1 if threads is None else threads}
    if any(n < 1 for n in low.values()):
        raise InputError(f"Numbers of a Triton model are 1 or more, got {low}.")
    version = registry.resolve(ref)
    engines: dict[str, Path] = {}
    onnx: Path | None = None
    if backend == TENSORRT:
        found = _engines(registry, version)
        engines = {record["compute_capability"]: attachment.path for attachment, record in found}
        attachments = [attachment for attachment, _ in found]
        max_batch = min([max_batch, *(int(record["profile"]["max"][0]) for _, record in found)])
        warm_up = tuple(found[0][1]["profile"]["opt"][1:]) if found else (0, 0)
    else:
        model = registry.attachment(version, file_name)
        onnx, attachments = model.path, [model]
        side = version.manifest.preprocessing.short_side_px or _DEFAULT_SIDE_PX
        warm_up = (side, round(side * 4 / 3))
    for attachment in attachments:
        _check_parity(version, attachment)
    if not attachments:
        raise ArtifactError(f"{version.ref} has no TensorRT engine. Build one first: cilseg export {version.ref} --trt")
    folder = write_triton_model(
        repository,
        TritonModel(
            name=version.name,
            served=version.number,
            backend=backend,
            outputs=_outputs(onnx or attachments[0].path, attachments[0]),
            n_classes=len(version.manifest.class_set),
            warm_up_hw=(int(warm_up[0]), int(warm_up[1])),
            labels_file="",
            max_batch=max_batch,
            gpu=gpu,
            instances=instances,
            threads=threads,
            parameters={"cilseg.version": version.digest, "cilseg.ref": version.ref},
        ),
        class_set=version.manifest.class_set,
        onnx=onnx,
        engines=engines,
    )
    numbers = sorted(int(p.name) for p in folder.iterdir() if p.is_dir() and p.name.isdigit())
    return TritonResult(version, folder, tuple(numbers))


def _engines(registry: Registry, version: Version) -> list[tuple[Attachment, dict[str, Any]]]:
    """Return the version's engines with their records, the latest one per compute capability, checked."""
    found: dict[str, tuple[Attachment, dict[str, Any]]] = {}
    for name, attachment in sorted(registry.attachments(version).items()):
        record = attachment.metadata.get("engine")
        if attachment.kind == _ENGINE_KIND and record is not None:
            found[record["compute_capability"]] = (registry.attachment(version, name), record)
    return list(found.values())


def _outputs(path: Path, attachment: Attachment) -> tuple[str, ...]:
    """Return the outputs that the model was exported with."""
    import json

    from cilseg_serve.backends.base import EMBEDDED_MANIFEST
    from cilseg_serve.backends.onnx_metadata import metadata_props

    engine = attachment.metadata.get("engine")
    props = engine["metadata"] if engine else metadata_props(path.read_bytes())
    try:
        return tuple(json.loads(props[EMBEDDED_MANIFEST])["outputs"])
    except (KeyError, ValueError, TypeError) as exc:
        raise ArtifactError(f"{attachment.file_name} does not name its outputs ({exc!r}). Export it again.") from exc


def _check_parity(version: Version, attachment: Attachment) -> None:
    parity = attachment.metadata.get("parity")
    if not (isinstance(parity, dict) and parity.get("passed") is True):
        raise ParityError(
            f"{version.ref}: {attachment.file_name} has no passed parity check, so it may answer differently from the "
            f"trained model. Run: cilseg export {version.ref}."
        )
