"""Lower precision of an exported version: convert its float32 file, judge the answers, attach what passes."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from cilseg.bundle import hash_file
from cilseg.errors import ArtifactError, InputError
from cilseg.models.inference import InferenceGraph
from cilseg.registry import Attachment, Registry, Version
from cilseg.update.backend_parity import check_backends, further_sessions
from cilseg.update.bundle import model_of
from cilseg.update.calibration import Candidates, GateImages, open_candidates, presence, read_prepared

if TYPE_CHECKING:
    from cilseg_export.accuracy import Accuracy, Answer
    from cilseg_export.limits import ParityLimits, Precision
    from cilseg_export.onnx_export import ExportRecord
    from cilseg_export.parity_report import ParityReport
    from cilseg_export.precision.calibration import Method

LABELS = {"float32": "", "float16": "fp16", "int8": "int8"}
"""Part of the file names of each precision."""
SENSITIVITY_FILE = "sensitivity.int8.json"
_LOGGER = logging.getLogger(__name__)
Pictures = tuple[list[str], list[npt.NDArray[np.uint8]]]


class Measure(Protocol):
    """What a file costs in IoU, run by onnxruntime or by what answers in its stead; None where no mask judges."""

    def __call__(self, path: Path, answer: Answer | None = None, /) -> Accuracy | None: ...


@dataclass(frozen=True)
class CalibrationRequest:
    """How INT8 is calibrated."""

    images: Path | None = None
    """A tag list, a folder of images, or None: the gate set."""
    method: Method = "minmax"
    n_images: int = 32
    symmetric: bool = False
    """Signed activations without zero points and float biases, as TensorRT wants them."""
    classes: tuple[str, ...] | None = None
    """Classes that have to be shown; None: every one of the model."""


def model_file(precision: Precision) -> str:
    """Return the attachment's name of a precision: ``model.onnx``, ``model.fp16.onnx``, ``model.int8.onnx``."""
    return f"model.{LABELS[precision]}.onnx" if LABELS[precision] else "model.onnx"


@dataclass(frozen=True, eq=False)
class LowerPrecision:
    """Makes and judges the files of one version; ``float_model`` is its attached, checked float32 file."""

    registry: Registry
    version: Version
    float_model: Attachment
    limits: ParityLimits
    pictures: Callable[[GateImages | None], Pictures]
    """Names and images (as the network sees them) of the parity check, given the images that may judge."""

    def float16(self, out_dir: Path) -> tuple[Path, ParityReport, dict[str, Any]]:
        """Convert to float16; return the file, its report in ``out_dir`` and what goes into the record."""
        from cilseg_export.precision.half import convert_to_half

        gate = self._judges()
        names, images = self.pictures(gate)
        path = out_dir / model_file("float16")
        record, half = convert_to_half(self.float_model.path, path, images)
        measure = self._accuracy(gate)
        report = self._judge(path, (names, images), out_dir, measure)
        further = self._on_backends(path, (names, images), measure)
        return path, report, {"export": record.to_json(), "float16": half.to_json(), "backends": further}

    def int8(self, out_dir: Path, request: CalibrationRequest) -> tuple[Path, ParityReport, dict[str, Any]]:
        """Quantise, leaving the worst layers in float as far as the limits ask; return as :meth:`float16`."""
        from cilseg_export.precision.backoff import back_off
        from cilseg_export.precision.calibration import activation_ranges
        from cilseg_export.precision.sensitivity import layer_losses
        from cilseg_export.precision.source import read_float_graph, write_converted
        from cilseg_export.speed import measure_speedup

        gate = self._judges()
        chosen, tagged = self._calibration(gate, request)
        judges = gate.without(chosen) if gate else None
        if judges is not None and len(judges) == 0:
            raise InputError(
                "Every image of the gate set calibrates, none is left to judge. Calibrate with other images: "
                "--calibration tags.json or DIR."
            )
        calibration = [read_prepared(file, self.version) for file in chosen]
        source = read_float_graph(self.float_model.path)
        ranges = activation_ranges(source, calibration, method=request.method, symmetric=request.symmetric)
        losses = layer_losses(source, ranges, calibration, symmetric=request.symmetric)
        path, measure = out_dir / model_file("int8"), self._accuracy(judges)
        records: list[ExportRecord] = []

        def judge(model: Any) -> Sequence[str]:
            records.append(write_converted(model, source, path, precision="int8"))
            accuracy = measure(path)
            problems = accuracy.problems(self.limits) if accuracy else ()
            if accuracy and not problems:  # each runtime rounds in its own way
                for backend, session in further_sessions(path):
                    there = measure(path, session.run)
                    problems += tuple(f"{backend}: {p}" for p in there.problems(self.limits)) if there else ()
            _LOGGER.info("%s: %s", path.name, "; ".join(problems) or "within the limits of IoU")
            return problems

        found = back_off(source, ranges, losses, judge, symmetric=request.symmetric)
        records.append(write_converted(found.model, source, path, precision="int8"))
        names, images = self.pictures(judges)
        report = self._judge(path, (names, images), out_dir, measure)
        speed = measure_speedup(self.float_model.path, path, max(images, key=lambda image: image.size))
        if self.limits.min_speedup is not None and speed.factor < self.limits.min_speedup:
            _LOGGER.warning(
                "%s is %.2f times as fast as float32 here (%.1f instead of %.1f ms), asked for %.2f; %d of %d layers "
                "are in float.",
                *(path.name, speed.factor, speed.ms, speed.reference_ms, self.limits.min_speedup),
                *(len(found.kept) + found.n_classifiers, found.n_layers),
            )
        return (
            path,
            report,
            {
                "export": records[-1].to_json(),
                "backends": self._on_backends(path, (names, images), measure),
                "int8": {
                    **found.to_json(),
                    "method": request.method,
                    "symmetric": request.symmetric,
                    "calibration": {"from": tagged.what, "images": [file.name for file in chosen]},
                    "speedup": speed.to_json(),
                    "sensitivity": [loss.to_json() for loss in losses],
                },
            },
        )

    def attach(self, path: Path, report: ParityReport, record: dict[str, Any]) -> Attachment:
        """Attach a file that passed, its report, the picture of its worst image and the layers' sensitivity."""
        if "int8" in record:
            text = json.dumps({"schema": "cilseg.sensitivity/1", **record["int8"]}, indent=1, ensure_ascii=False) + "\n"
            self.registry.attach(self.version, SENSITIVITY_FILE, text.encode(), kind="sensitivity")
            record = {**record, "int8": {k: v for k, v in record["int8"].items() if k != "sensitivity"}}
        written = self.registry.attach(self.version, report.json_path.name, report.json_path, kind="parity")
        self.registry.attach(self.version, report.worst_path.name, report.worst_path, kind="parity picture")
        return self.registry.attach(
            self.version,
            path.name,
            path,
            kind="onnx",
            metadata={"parity": {**report.summary(), "report_sha256": written.sha256}, **record},
        )

    def _judges(self) -> GateImages | None:
        if not self.limits.asks_for_masks:
            return None
        gate = GateImages.of(self.version)
        if gate is None:
            raise InputError(
                f"{self.version.ref} records no gate set, so the cost in IoU cannot be measured. Give limits without "
                "max_miou_drop and max_class_drop (--limits FILE), or make the version again with a gate set."
            )
        return gate

    def _calibration(self, gate: GateImages | None, request: CalibrationRequest) -> tuple[list[Path], Candidates]:
        """Return the files that calibrate, every class among them, and where they come from."""
        from cilseg_export.precision.calibration import choose_images
        from cilseg_export.runtime import OnnxRuntime

        classes = self.version.manifest.class_set
        if request.images is not None:
            candidates = open_candidates(request.images, classes)
        elif (gate := gate or GateImages.of(self.version)) is not None:
            candidates = gate.candidates()
        else:
            raise InputError(
                f"{self.version.ref} records no gate set to calibrate with. Give --calibration tags.json or DIR."
            )
        runtime = OnnxRuntime(self.float_model.path)
        shown = presence(
            candidates,
            lambda image: runtime.run(image[None])["mask"][0],
            lambda index: read_prepared(candidates.files[index], self.version),
        )
        most = max(1, len(candidates.files) // 2) if candidates.from_gate_set else request.n_images
        wanted = [n for n in classes.foreground if request.classes is None or n in request.classes]
        shown = shown[:, [classes.id_of(name) - 1 for name in wanted]]
        rows = choose_images(shown, wanted, n_images=min(request.n_images, most))
        return [candidates.files[row] for row in rows], candidates

    def _accuracy(self, gate: GateImages | None) -> Measure:
        """Return what measures the cost in IoU of a file; the trained model is asked once."""
        from cilseg_export.accuracy import accuracy_of, confusion_of
        from cilseg_export.runtime import OnnxRuntime

        if gate is None:
            return lambda *_: None
        classes = self.version.manifest.class_set

        def confusion(answer: Answer) -> npt.NDArray[np.int64]:
            return confusion_of(answer, gate, n_classes=len(classes), hidden=gate.hidden)

        expected = confusion(_torch_answer(self.graph()))
        known: dict[str, Accuracy | None] = {}

        def measure(path: Path, answer: Answer | None = None, /) -> Accuracy | None:
            if answer is not None:
                return accuracy_of(expected, confusion(answer), class_set=classes, images=len(gate))
            if (digest := hash_file(path)) not in known:
                given = confusion(OnnxRuntime(path).run)
                known[digest] = accuracy_of(expected, given, class_set=classes, images=len(gate))
            return known[digest]

        return measure

    def graph(self) -> InferenceGraph:
        """Return the trained model with the outputs of the float32 file."""
        outputs = self.float_model.metadata["export"]["outputs"]
        return InferenceGraph(model_of(self.version), self.version.manifest.preprocessing, outputs=outputs).eval()

    def _on_backends(self, path: Path, pictures: Pictures, measure: Measure) -> dict[str, dict[str, Any]]:
        names, images = pictures
        return check_backends(
            self.graph(), path, images, ids=names, limits=self.limits, accuracy=lambda answer: measure(path, answer)
        )

    def _judge(
        self,
        path: Path,
        pictures: Pictures,
        out_dir: Path,
        measure: Measure,
    ) -> ParityReport:
        from cilseg_export.metadata import read_metadata
        from cilseg_export.parity import check_parity

        names, images = pictures
        return check_parity(
            self.graph(),
            path,
            images,
            out_dir=out_dir,
            limits=self.limits,
            ids=names,
            accuracy=measure(path),
            label=LABELS[read_metadata(path).precision],
        )


def float_model_of(registry: Registry, version: Version) -> Attachment | None:
    """Return the attached float32 file of a version, hash, lineage and parity compared; None where there is none.

    Raises:
        ArtifactError: it was changed, was made from another version, or did not pass its parity check.
    """
    from cilseg_export.metadata import read_metadata

    name = model_file("float32")
    if name not in registry.attachments(version):
        return None
    attachment = registry.attachment(version, name)
    made_for = read_metadata(attachment.path).version
    if made_for != version.digest:
        raise ArtifactError(
            f"{name} of {version.ref} says that it was exported from {made_for[:19]}..., this version is "
            f"{version.digest[:19]}.... Export it again: cilseg export {version.ref}"
        )
    if not attachment.metadata.get("parity", {}).get("passed"):
        raise ArtifactError(
            f"{name} of {version.ref} has no passed parity check on record. Export it again: cilseg export "
            f"{version.ref}"
        )
    return attachment


def _torch_answer(graph: InferenceGraph) -> Answer:
    from cilseg_export.torch_session import TorchSession

    session = TorchSession(graph)
    return lambda images: {"mask": np.stack([session.answer(image).mask for image in images])}
