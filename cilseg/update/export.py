"""Export a version to ONNX, check that it answers like the trained model, and attach it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING, Any

from cilseg.bundle import write_file_atomically
from cilseg.config import configs_directory
from cilseg.errors import InputError, MissingDependencyError
from cilseg.models.inference import InferenceGraph
from cilseg.registry import Attachment, Registry, Version
from cilseg.update.backend_parity import check_backends, parity_images
from cilseg.update.bundle import model_of
from cilseg.update.calibration import GateImages
from cilseg.update.precision import CalibrationRequest, LowerPrecision, Pictures, float_model_of
from cilseg_serve.preprocessing import prepare

if TYPE_CHECKING:
    from cilseg_export.limits import ParityLimits, Precision
    from cilseg_export.parity_report import ParityReport

MODEL_FILE = "model.onnx"
COMPAT_FILE = "model.compat.onnx"
PARITY_FILE = "parity.json"
DEFAULT_LIMITS = "default"


@dataclass(frozen=True)
class ExportResult:
    """The attached model and the summary of its parity report; ``compat`` is the second graph, where asked for."""

    version: Version
    attachment: Attachment
    parity: dict[str, object]
    compat: Attachment | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what ``cilseg export --json`` prints."""
        payload = {"version": self.version.ref, "model": str(self.attachment.path), "parity": self.parity}
        payload |= {k: self.attachment.metadata[k] for k in ("float16", "int8") if k in self.attachment.metadata}
        if self.compat is not None:
            payload["compat"] = str(self.compat.path)
        return payload

    def in_words(self) -> list[str]:
        """Return what was compared and what came out, a line each."""
        parity: dict[str, Any] = self.parity
        lines = [
            f"{self.version.ref}: {parity['pixels']} pixels of {parity['images']} images at {parity['sizes']} sizes "
            f"compared with the trained model, {parity['differing']} differ ({parity['ties']} ties)."
        ]
        if accuracy := parity.get("accuracy"):
            lines.append(
                f"{self.attachment.file_name} on {accuracy['images']} annotated images: mIoU "
                f"{accuracy['miou_drop']:.2f} points lower, at most {accuracy['worst_class_drop']:.2f} in a class "
                f"({accuracy['worst_class']})."
            )
        if int8 := self.attachment.metadata.get("int8"):
            kept = int8["kept_in_float"]
            lines.append(
                f"{len(kept) + int8['classifiers_in_float']} of {int8['layers']} layers stay float"
                f"{': ' + ', '.join(kept) + ' and the classifiers' if kept else ' (the classifiers)'}; "
                f"{int8['speedup']['factor']:.2f} times as fast as float32 here."
            )
        if self.compat is not None:
            lines.append(f"For other readers: {self.compat.path}")
        return lines


def export_version(
    registry: Registry,
    ref: str | None,
    *,
    outputs: Sequence[str] = ("mask",),
    images: Sequence[Path] = (),
    copy_to: Path | None = None,
    keep_failed: Path | None = None,
    precision: Precision = "float32",
    calibration: CalibrationRequest | None = None,
    limits: str | Path = DEFAULT_LIMITS,
    compat_px: int | None = None,
) -> ExportResult:
    """Export ``ref`` in one precision and attach it, if its answers are those of the trained model within the limits.

    A lower precision is made from the attached ``model.onnx``, which is exported first where there is none.

    Args:
        outputs: some of mask, confidence, logits.
        images: images for the parity check instead of the first ones of the gate set.
        copy_to: a file that gets a copy of the model.
        keep_failed: where the report, the worst picture and ``reproduce.py`` go when the check fails; default
            ``parity-NAME-NUMBER`` in the current directory.
        precision: float32, float16 or int8.
        calibration: how int8 is calibrated; default with images of the gate set.
        limits: name of the parity limits (a file in ``configs/parity``), or a YAML file.
        compat_px: also write ``model.compat.onnx`` for other readers, with a square input of this side in pixels.

    Raises:
        ParityError: the exported model answers differently; nothing is attached.
        InputError: no images to check or calibrate with, images that cannot be read (all of them are named), a class
            that no calibration image shows, limits that cannot be read, or no folder for the copy.
        ArtifactError: files of the version are damaged, or its ``model.onnx`` was changed or made from another version.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    try:
        import cilseg_export.onnx_export
        import cilseg_export.parity  # noqa: F401
        from cilseg_export.limits import load_limits
    except ImportError as exc:
        raise MissingDependencyError(f"Export needs {exc.name}: pip install 'cilseg[train,export,cpu]'.") from exc
    if copy_to is not None and (copy_to.is_dir() or not copy_to.parent.is_dir()):
        raise InputError(f"{copy_to} cannot be written: it needs to be a file in an existing folder. Nothing was done.")
    allowed = load_limits(limits, configs=configs_directory())
    version = registry.resolve(ref)
    failed = keep_failed or Path(f"parity-{version.name}-{version.number}")
    pictures = _pictures(version, images)
    if precision == "float32":
        result = _export_float(registry, version, outputs, pictures, failed, allowed["float32"], compat_px)
    else:
        float_model = float_model_of(registry, version)
        if float_model is None:
            result = _export_float(registry, version, outputs, pictures, failed, allowed["float32"], compat_px)
            float_model = result.attachment
        elif compat_px is not None:
            raise InputError(
                "The compat graph is made from the float32 one: cilseg export --compat, without --precision."
            )
        if not set(outputs) <= set(float_model.metadata["export"]["outputs"]):
            raise InputError(
                f"{version.ref} was exported with {', '.join(float_model.metadata['export']['outputs'])}; a lower "
                f"precision has the outputs of {MODEL_FILE}. Export that with {', '.join(outputs)} first."
            )
        work = LowerPrecision(registry, version, float_model, allowed[precision], pictures)
        with tempfile.TemporaryDirectory(prefix="cilseg-export-") as temporary:
            folder = Path(temporary)
            if precision == "float16":
                path, report, record = work.float16(folder)
            else:
                path, report, record = work.int8(folder, calibration or CalibrationRequest())
            _refuse(report, path, failed)
            attachment = work.attach(path, report, record)
        parity = {k: v for k, v in attachment.metadata["parity"].items() if k != "report_sha256"}
        result = ExportResult(version, attachment, parity)
    if copy_to is not None:
        write_file_atomically(copy_to, result.attachment.path.read_bytes())
    return result


def _export_float(
    registry: Registry,
    version: Version,
    outputs: Sequence[str],
    pictures: Callable[[GateImages | None], Pictures],
    failed: Path,
    limits: ParityLimits,
    compat_px: int | None,
) -> ExportResult:
    from cilseg_export.onnx_export import export_onnx
    from cilseg_export.parity import check_parity

    manifest = version.manifest
    graph = InferenceGraph(model_of(version), manifest.preprocessing, outputs=outputs).eval()
    names, prepared = pictures(None)
    with tempfile.TemporaryDirectory(prefix="cilseg-export-") as temporary:
        path = Path(temporary) / MODEL_FILE
        record = export_onnx(graph, path, manifest=manifest, version_digest=version.digest)
        report = check_parity(graph, path, prepared, out_dir=Path(temporary) / "parity", ids=names, limits=limits)
        _refuse(report, path, failed)
        compat = None
        if compat_px is not None:
            compat = _export_compat(
                registry, version, graph, (names, prepared), Path(temporary), failed, limits, compat_px
            )
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
                "backends": check_backends(graph, path, prepared, ids=names, limits=limits),
                "export": record.to_json(),
            },
        )
    return ExportResult(version, attachment, parity, compat)


def _export_compat(
    registry: Registry,
    version: Version,
    graph: InferenceGraph,
    pictures: Pictures,
    folder: Path,
    failed: Path,
    limits: ParityLimits,
    side_px: int,
) -> Attachment:
    from cilseg_export.compat import CompatRuntime, export_compat
    from cilseg_export.parity import check_parity

    path = folder / COMPAT_FILE
    record = export_compat(graph, path, manifest=version.manifest, version_digest=version.digest, side_px=side_px)
    report = check_parity(
        graph,
        path,
        pictures[1],
        out_dir=folder / "compat",
        ids=pictures[0],
        limits=limits,
        runtime=CompatRuntime(path),
        batches=(1,),
        sizes=lambda *_: ((side_px, side_px),),
        label="compat",
    )
    _refuse(report, path, failed)
    written = registry.attach(version, report.json_path.name, report.json_path, kind="parity")
    return registry.attach(
        version,
        COMPAT_FILE,
        path,
        kind="onnx compat",
        metadata={"parity": {**report.summary(), "report_sha256": written.sha256}, "export": record.to_json()},
    )


def _refuse(report: ParityReport, artifact: Path, folder: Path) -> None:
    """Keep the report of a failed check, with all that it takes to reproduce it, in ``folder``, and raise."""
    if report.passed:
        return

    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(report.out_dir.iterdir()):
        if file.is_file():
            copyfile(file, folder / file.name)
    if not (folder / artifact.name).is_file():
        copyfile(artifact, folder / artifact.name)
    replace(report, out_dir=folder).raise_if_failed()


def _pictures(version: Version, files: Sequence[Path]) -> Callable[[GateImages | None], Pictures]:
    """Return what reads the images of the parity check: those of ``files``, else some of the given gate images."""

    def read(gate: GateImages | None) -> Pictures:
        names, pictures = parity_images(version, files, source=gate.source if gate else None)
        return names, [prepare(picture, version.manifest.preprocessing) for picture in pictures]

    return read
