"""The parity check: does an exported file give the answers of the network it was made from, on real images?

Every image is asked at three sizes (its own, an odd one, one that is no multiple of 16), alone and within a batch of
three. The reference is always torch in float32 on one image at a time, so a batch that leaks between its images shows.

Tie rule: a pixel is a tie when its two best logits differ by less than 1e-3 of the image's logit range; there rounding
decides. Outside ties every label must agree; ties that turn out differently may be 0.1 % of the image's pixels
(:class:`ParityLimits`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cilseg.bundle import hash_file
from cilseg.errors import ArtifactError, CilsegError, InputError
from cilseg_export.comparison import Comparison, ParityCase, ParityLimits, compare
from cilseg_export.metadata import GraphMetadata, read_metadata
from cilseg_export.parity_report import ParityReport
from cilseg_export.runtime import OnnxRuntime, Runtime
from cilseg_export.torch_session import Reference, SegmentationGraph, TorchSession

BATCH = 3


@dataclass(frozen=True, eq=False)
class _Sample:
    """An image and its name in the report."""

    name: str
    image: npt.NDArray[np.uint8]


def parity_sizes(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """Return three ``(h, w)`` for an image: its own size, a smaller one with odd sides, one no multiple of 16.

    Example:
        >>> parity_sizes(240, 320)
        ((240, 320), (145, 193), (198, 262))
    """
    odd = tuple(max(17, round(0.6 * side)) | 1 for side in (height, width))
    uneven = tuple((max(32, round(0.8 * side)) // 16) * 16 + 6 for side in (height, width))
    return (height, width), (odd[0], odd[1]), (uneven[0], uneven[1])


def check_parity(
    reference: SegmentationGraph,
    onnx_path: Path,
    images: Sequence[npt.NDArray[np.uint8]],
    *,
    out_dir: Path,
    limits: ParityLimits | None = None,
    ids: Sequence[str] | None = None,
    runtime: Runtime | None = None,
) -> ParityReport:
    """Compare ``onnx_path`` with the torch graph it was exported from; write ``parity.json`` and the worst image.

    Does not raise when answers differ: call ``raise_if_failed()`` on the report.

    Args:
        reference: the graph in evaluation mode, float32; its own outputs do not matter.
        onnx_path: what ``export_onnx`` wrote.
        images: real images ``(H, W, 3)`` uint8 RGB as the network sees them (after ``prepare``); at least one.
        out_dir: gets ``parity.json`` and ``parity_worst.png``; made if missing.
        limits: what is allowed; the defaults are those of float32.
        ids: names of the images for the report; default their positions.
        runtime: what executes the file; default onnxruntime on the CPU.

    Raises:
        InputError: no images, images that are not uint8 RGB, or a reference that is not ready.
        ArtifactError: the file cannot be loaded, is not ours, or has another number of classes than the reference.
        NotFoundError: no such file.
    """
    names = [str(i) for i in range(len(images))] if ids is None else list(ids)
    _check_images(images, names)
    limits = limits or ParityLimits()
    metadata = read_metadata(onnx_path)
    session = TorchSession(reference)
    _check_classes(session, metadata, onnx_path)
    runtime = runtime or OnnxRuntime(onnx_path)
    cases: list[ParityCase] = []
    worst: Comparison | None = None
    for group, batch in _groups(images, names):
        for comparison in _compare_group(group, batch, session, runtime, limits):
            cases.append(comparison.case)
            if worst is None or comparison.case.badness > worst.case.badness:
                worst = comparison
    assert worst is not None
    report = ParityReport(
        artifact=onnx_path.name,
        artifact_sha256=hash_file(onnx_path),
        version=metadata.version,
        runtime=runtime.description,
        limits=limits,
        cases=tuple(cases),
        out_dir=out_dir,
    )
    report.write(worst, metadata.class_set.palette)
    return report


def _check_images(images: Sequence[npt.NDArray[np.uint8]], names: Sequence[str]) -> None:
    if not images:
        raise InputError("A parity check needs at least one image, got none. Give some of the gate set's images.")
    if len(names) != len(images):
        raise InputError(f"Got {len(images)} images but {len(names)} ids for them.")
    for name, image in zip(names, images, strict=True):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise InputError(
                f"Image {name}: expected (H, W, 3) uint8, got {image.shape} {image.dtype}. Use read_image()."
            )


def _check_classes(session: TorchSession, metadata: GraphMetadata, onnx_path: Path) -> None:
    n_reference, n_file = session.n_classes, len(metadata.class_set)
    if n_reference != n_file:
        raise ArtifactError(
            f"{onnx_path} has {n_file} classes ({', '.join(metadata.class_set.names)}), the network to compare it "
            f"with has {n_reference}. It belongs to another version ({metadata.version[:19]}...); export this version."
        )


def _groups(
    images: Sequence[npt.NDArray[np.uint8]], names: Sequence[str]
) -> Iterator[tuple[list[_Sample], list[_Sample]]]:
    """Yield up to three images and the batch of three made of them, filled up with mirrored copies where too few."""
    samples = [_Sample(name, image) for name, image in zip(names, images, strict=True)]
    for start in range(0, len(samples), BATCH):
        group = samples[start : start + BATCH]
        flips = [
            _Sample(f"{s.name} ({word})", image)
            for s in group
            for word, image in (("mirrored", s.image[:, ::-1]), ("upside down", s.image[::-1]))
        ]
        yield group, (group + flips)[:BATCH]


def _compare_group(
    group: list[_Sample], batch: list[_Sample], session: TorchSession, runtime: Runtime, limits: ParityLimits
) -> Iterator[Comparison]:
    """Compare each image of a group alone at its three sizes, and the batch at the three sizes of the first."""
    references: dict[tuple[_Sample, tuple[int, int]], Reference] = {}

    def run(samples: Sequence[_Sample], size_hw: tuple[int, int]) -> Iterator[Comparison]:
        resized = [_resize(s.image, size_hw) for s in samples]
        for sample, image in zip(samples, resized, strict=True):
            if (sample, size_hw) not in references:
                references[sample, size_hw] = session.answer(image)
        answers, failure = _run(runtime, np.stack(resized))
        for position, (sample, image) in enumerate(zip(samples, resized, strict=True)):
            given = {name: array[position] for name, array in answers.items() if len(array) == len(samples)}
            yield compare(
                image,
                references[sample, size_hw],
                given=given,
                name=sample.name,
                batch=len(samples),
                limits=limits,
                failure=failure,
            )

    for sample in group:
        for size_hw in parity_sizes(*sample.image.shape[:2]):
            yield from run([sample], size_hw)
    for size_hw in parity_sizes(*group[0].image.shape[:2]):
        yield from run(batch, size_hw)


def _resize(image: npt.NDArray[np.uint8], size_hw: tuple[int, int]) -> npt.NDArray[np.uint8]:
    if image.shape[:2] == size_hw:
        return image
    return np.array(Image.fromarray(np.ascontiguousarray(image)).resize(size_hw[::-1], Image.Resampling.BILINEAR))


def _run(runtime: Runtime, images: npt.NDArray[np.uint8]) -> tuple[dict[str, npt.NDArray[np.generic]], str | None]:
    """Run a batch; an artifact that fails on it is a finding, not the end of the check."""
    try:
        return dict(runtime.run(images)), None
    except CilsegError as exc:
        return {}, str(exc)
