"""The parity check: does an exported file give the answers of the network it was made from, on real images?

Every image is asked at three sizes (its own, an odd one, one that is no multiple of 16), alone and within a batch of
three; the first ones also in the largest batch. The reference is always torch in float32 on one image at a time, so a
batch that leaks between its images shows.

Tie rule: a pixel is a tie when its two best logits differ by less than 1e-3 of the image's logit range; there rounding
decides. In float32 every label must agree outside ties, and ties that turn out differently may be 0.1 % of the image's
pixels; lower precisions have limits of their own (:mod:`cilseg_export.limits`), on IoU too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cilseg.bundle import hash_file
from cilseg.errors import ArtifactError, CilsegError, InputError
from cilseg_export.accuracy import Accuracy
from cilseg_export.comparison import Comparison, ParityCase, compare
from cilseg_export.limits import ParityLimits
from cilseg_export.metadata import GraphMetadata, read_metadata
from cilseg_export.parity_report import ParityReport
from cilseg_export.reproduction import write_reproduction
from cilseg_export.runtime import OnnxRuntime, Runtime
from cilseg_export.torch_session import Reference, SegmentationGraph, TorchSession

BATCHES = (1, 3, 8)
"""Smallest, usual and largest number of images in one call."""
Sizes = Callable[[int, int], tuple[tuple[int, int], ...]]
"""Height and width of an image -> the ``(h, w)`` at which it is asked."""


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
    artifact: Path | None = None,
    batches: Sequence[int] = BATCHES,
    sizes: Sizes = parity_sizes,
    accuracy: Accuracy | None = None,
    label: str = "",
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
        artifact: the file that ``runtime`` executes, where it was made from ``onnx_path`` (an engine); default that.
        batches: sizes of the batches; every image is asked in each but the largest, which is tried once (a batch of
            one is always asked).
        sizes: the sizes of an image; default :func:`parity_sizes`.
        accuracy: what the artifact costs in IoU (:func:`cilseg_export.accuracy.accuracy_of`), for limits that ask.
        label: part of the names of the written files, such as ``fp16``.

    Raises:
        InputError: no images, images that are not uint8 RGB, or a reference that is not ready.
        ArtifactError: the file cannot be loaded, is not ours, or has another number of classes than the reference.
        NotFoundError: no such file.
    """
    names = [str(i) for i in range(len(images))] if ids is None else list(ids)
    _check_images(images, names)
    limits = limits or ParityLimits()
    artifact = artifact or onnx_path
    metadata = read_metadata(onnx_path)
    session = TorchSession(reference)
    _check_classes(session, metadata, onnx_path)
    runtime = runtime or OnnxRuntime(onnx_path)
    cases: list[ParityCase] = []
    worst: Comparison | None = None
    for group, others in _groups(images, names, batches=batches):
        for comparison in _compare_group(group, others, session, runtime, limits=limits, sizes=sizes):
            cases.append(comparison.case)
            if worst is None or comparison.case.badness > worst.case.badness:
                worst = comparison
    assert worst is not None
    report = ParityReport(
        artifact=artifact.name,
        artifact_sha256=hash_file(artifact),
        version=metadata.version,
        runtime=runtime.description,
        limits=limits,
        cases=tuple(cases),
        out_dir=out_dir,
        precision=metadata.precision,
        accuracy=accuracy,
        label=label,
    )
    report.write(worst, metadata.class_set.palette)
    if not report.passed:
        write_reproduction(report, worst, onnx_path)
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
    images: Sequence[npt.NDArray[np.uint8]], names: Sequence[str], *, batches: Sequence[int]
) -> Iterator[tuple[list[_Sample], list[list[_Sample]]]]:
    """Yield the images in groups, each with the larger batches made of it; the largest with the first group alone."""
    samples = [_Sample(name, image) for name, image in zip(names, images, strict=True)]
    usual, largest = [n for n in sorted(set(batches))[:-1] if n > 1], max(batches)
    step = max([*usual, 1])
    for start in range(0, len(samples), step):
        group = samples[start : start + step]
        others = [_filled(group, n) for n in usual]
        if start == 0 and largest > 1:
            others.append(_filled(samples, largest))
        yield group, others


def _filled(samples: Sequence[_Sample], n: int) -> list[_Sample]:
    """Return ``n`` samples: the first ones, then mirrored copies, then copies upside down, then all of them again."""
    flips = [
        *samples,
        *(_Sample(f"{s.name} (mirrored)", s.image[:, ::-1]) for s in samples),
        *(_Sample(f"{s.name} (upside down)", s.image[::-1]) for s in samples),
    ]
    return [flips[i % len(flips)] for i in range(n)]


def _compare_group(
    group: list[_Sample],
    others: list[list[_Sample]],
    session: TorchSession,
    runtime: Runtime,
    *,
    limits: ParityLimits,
    sizes: Sizes,
) -> Iterator[Comparison]:
    """Compare each image of a group alone at its sizes, and the larger batches at the sizes of their first."""
    references: dict[tuple[_Sample, tuple[int, int]], Reference] = {}

    def run(samples: Sequence[_Sample], size_hw: tuple[int, int]) -> Iterator[Comparison]:
        resized = [_resize(s.image, size_hw) for s in samples]
        for sample, image in zip(samples, resized, strict=True):
            if (sample, size_hw) not in references:
                references[sample, size_hw] = session.answer(image)
        stacked = np.stack(resized)
        answers, failure = _run(runtime, stacked)
        for position, sample in enumerate(samples):
            given = {name: array[position] for name, array in answers.items() if len(array) == len(samples)}
            yield compare(
                stacked,
                references[sample, size_hw],
                given=given,
                name=sample.name,
                limits=limits,
                position=position,
                failure=failure,
            )

    for sample in group:
        for size_hw in sizes(*sample.image.shape[:2]):
            yield from run([sample], size_hw)
    for batch in others:
        for size_hw in sizes(*batch[0].image.shape[:2]):
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
