"""Export a version to ONNX, check that it answers like the trained model, and attach it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cilseg.bundle import write_file_atomically
from cilseg.data.source import Source
from cilseg.errors import FaultCollector, InputError, MissingDependencyError
from cilseg.models.inference import InferenceGraph
from cilseg.registry import Attachment, Registry, Version
from cilseg.update.backend_parity import check_backends
from cilseg.update.bundle import model_of
from cilseg.update.gate_set import open_gate_set
from cilseg_serve.images import read_image
from cilseg_serve.preprocessing import prepare

MODEL_FILE = "model.onnx"
PARITY_FILE = "parity.json"
N_IMAGES = 6


@dataclass(frozen=True)
class ExportResult:
    """The attached model and the summary of its parity report."""

    version: Version
    attachment: Attachment
    parity: dict[str, object]


def export_version(
    registry: Registry,
    ref: str | None,
    *,
    outputs: Sequence[str] = ("mask",),
    images: Sequence[Path] = (),
    copy_to: Path | None = None,
    keep_failed: Path | None = None,
) -> ExportResult:
    """Export ``ref`` as ``model.onnx`` and attach it, if its answers equal the trained model's.

    Args:
        outputs: some of mask, confidence, logits.
        images: images for the parity check instead of the first ones of the gate set.
        copy_to: a file that gets a copy of the model.
        keep_failed: where ``parity.json`` and the worst picture go when the check fails; default
            ``parity-NAME-NUMBER`` in the current directory.

    Raises:
        ParityError: the exported model answers differently; nothing is attached.
        InputError: no images to check with, images that cannot be read (all of them are named), or no folder for
            the copy.
        ArtifactError: files of the version are damaged.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    try:
        from cilseg_export.onnx_export import export_onnx
        from cilseg_export.parity import check_parity
    except ImportError as exc:
        raise MissingDependencyError(f"Export needs {exc.name}: pip install 'cilseg[train,export,cpu]'.") from exc
    if copy_to is not None and (copy_to.is_dir() or not copy_to.parent.is_dir()):
        raise InputError(f"{copy_to} cannot be written: it needs to be a file in an existing folder. Nothing was done.")
    version = registry.resolve(ref)
    manifest = version.manifest
    graph = InferenceGraph(model_of(version), manifest.preprocessing, outputs=outputs).eval()
    names, pictures = _images(version, images)
    prepared = [prepare(picture, manifest.preprocessing) for picture in pictures]
    with tempfile.TemporaryDirectory(prefix="cilseg-export-") as temporary:
        path = Path(temporary) / MODEL_FILE
        record = export_onnx(graph, path, manifest=manifest, version_digest=version.digest)
        failed = keep_failed or Path(f"parity-{version.name}-{version.number}")
        report = check_parity(graph, path, prepared, out_dir=Path(temporary) / "parity", ids=names)
        if not report.passed:
            failed.mkdir(parents=True, exist_ok=True)
            report = check_parity(graph, path, prepared, out_dir=failed, ids=names)
        report.raise_if_failed()
        parity = report.summary()
        written = registry.attach(version, PARITY_FILE, report.json_path, kind="parity")
        registry.attach(version, report.worst_path.name, report.worst_path, kind="parity picture")
        attachment = registry.attach(
            version,
            MODEL_FILE,
            path,
            kind="onnx",
            metadata={
                "parity": {**parity, "report_sha256": written.sha256},
                "backends": check_backends(graph, path, prepared, ids=names),
                "export": record.to_json(),
            },
        )
        if copy_to is not None:
            write_file_atomically(copy_to, path.read_bytes())
    return ExportResult(version, attachment, parity)


def _images(version: Version, files: Sequence[Path]) -> tuple[list[str], list[npt.NDArray[np.uint8]]]:
    if files:
        pictures, faults = [], FaultCollector("Images of the check")
        for file in files:
            try:
                pictures.append(read_image(file))
            except InputError as exc:
                faults.add(str(exc))
        faults.raise_if_any("Give images that can be read with --images, or none to take those of the gate set.")
        return [f.name for f in files], pictures
    gate_set = version.manifest.gate_set
    if gate_set is None:
        raise InputError(
            f"{version.ref} records no gate set, so there are no images to check the export with. Give some: "
            "--images a.jpg --images b.jpg"
        )
    source: Source = open_gate_set(gate_set)
    rows = np.linspace(0, len(source) - 1, min(N_IMAGES, len(source))).round().astype(int).tolist()
    return [source.ids[i] for i in rows], [source.image(i) for i in rows]
