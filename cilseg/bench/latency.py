"""How fast a version answers on this machine: runtimes x precisions x sizes x batches, with its accuracy beside.

Every row is timed end to end, from the decoded image to the mask at the image's size. The rows take turns call by call,
so that a disturbance meets all of them; a runtime's threads may still spin after its call, so a short pause follows
each. torch eager in channels_last is the row that the others are compared with.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cilseg.data.source import Source
from cilseg.errors import CilsegError, InputError, NotFoundError
from cilseg.registry import Registry, Version
from cilseg_serve.backends.base import BACKENDS, OPENVINO, TENSORRT, Backend
from cilseg_serve.backends.engine_file import SUFFIX
from cilseg_serve.backends.opening import check_backend, open_session
from cilseg_serve.backends.openvino_runtime import FIXED_AFTER
from cilseg_serve.model_file import verified_backends
from cilseg_serve.preprocessing import restore_mask

Array = npt.NDArray[np.uint8]
TORCH = "torch-eager"
WARM_UP = 3
WARM_UP_OF = {OPENVINO: FIXED_AFTER + WARM_UP}
"""Of runtimes that get faster only after more calls."""
PAUSE_S = 0.003
_DETAIL = "torch channels_last"


@dataclass(frozen=True)
class LatencyRequest:
    """What to measure.

    Attributes:
        backends: runtimes, ``torch-eager`` among them; empty: all that start here.
        sizes: ``(height, width)`` at which the network sees the images.
        batches: images per call.
        repeats: timed calls of every row.
        threads: threads of every runtime.
        images: annotated gate images that the mIoU is measured on; 0: none.
        memory: also start each row once in a process of its own, to read its peak memory.
    """

    sizes: tuple[tuple[int, int], ...] = ((512, 512),)
    batches: tuple[int, ...] = (1,)
    backends: tuple[str, ...] = ()
    repeats: int = 50
    threads: int = 1
    images: int = 50
    memory: bool = True

    def check(self) -> None:
        """Raise if something cannot be measured.

        Raises:
            InputError: an unknown backend, or numbers below 1.
        """
        for name in self.backends:
            if name != TORCH:
                check_backend(name)
        numbers = (*self.batches, self.repeats, self.threads, *(n for size in self.sizes for n in size))
        if min(numbers) < 1 or self.images < 0 or not self.sizes or not self.batches:
            raise InputError(f"Sizes, batches, repeats and threads are 1 or more, images 0 or more; got {self}.")


@dataclass(frozen=True)
class LatencyRow:
    """One runtime with one file at one size and batch. Times are per call, in milliseconds."""

    backend: str
    precision: str
    file_name: str
    height: int
    width: int
    batch: int
    p10_ms: float
    median_ms: float
    p90_ms: float
    images_per_s: float
    over_torch: float | None
    """Median over that of torch eager channels_last at the same size and batch; smaller is faster."""
    peak_mib: float | None
    miou: float | None
    """On the gate images, at the network's own size."""
    counts: bool
    """Whether this file passed its parity check on this runtime; only then may it be compared."""
    detail: str
    """Version and arithmetic of the runtime."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Candidate:
    """Something that answers batches ``(N, H, W, 3)`` with masks ``(N, H, W)``."""

    backend: str
    precision: str
    file_name: str
    answer: Callable[[Array], Array]
    counts: bool
    detail: str
    path: Path | None


def measure_version(
    registry: Registry, ref: str | None, request: LatencyRequest, *, say: Callable[[str], None] = lambda _: None
) -> tuple[Version, list[LatencyRow]]:
    """Measure every exported file of a version on every runtime that was asked for.

    Raises:
        InputError: see :meth:`LatencyRequest.check`; or no gate set to take pictures from.
        NotFoundError: the version was not exported, or none of the runtimes starts.
    """
    from cilseg.update.gate_set import open_gate_set

    request.check()
    version = registry.resolve(ref)
    gate_set = version.manifest.gate_set
    if gate_set is None:
        raise InputError(f"{version.ref} records no gate set, so there are no pictures to measure with.")
    source = open_gate_set(gate_set)
    candidates = list(candidates_of(registry, version, request, say=say))
    if not any(c.path for c in candidates):
        raise NotFoundError(f"Nothing to measure: no exported file of {version.ref} starts on any runtime here.")
    scores = {id(c): _miou(c, version, source, request.images) for c in candidates} if request.images else {}
    rows: list[LatencyRow] = []
    for size_hw in request.sizes:
        for batch in request.batches:
            say(f"{size_hw[1]} x {size_hw[0]}, batch {batch}")
            images = _pictures(source, size_hw, batch)
            for candidate, row in time_candidates(candidates, images, repeats=request.repeats):
                peak = _peak_mib(candidate, version, size_hw, batch, request.threads) if request.memory else None
                rows.append(replace(row, peak_mib=peak, miou=scores.get(id(candidate))))
    return version, rows


def candidates_of(
    registry: Registry, version: Version, request: LatencyRequest, *, say: Callable[[str], None]
) -> Iterator[Candidate]:
    """Yield torch eager and every exported file on every runtime that takes it; say what is passed over and why."""
    wanted = request.backends or (TORCH, *BACKENDS)
    if TORCH in wanted:
        yield torch_candidate(version, threads=request.threads)
    for name, attachment in sorted(registry.attachments(version).items()):
        is_engine = name.endswith(SUFFIX)
        if not is_engine and attachment.kind != "onnx":  # "onnx compat" is for other readers
            continue
        path = registry.attachment(version, name).path
        for backend in BACKENDS:
            if backend not in wanted or (backend == TENSORRT) != is_engine:
                continue
            try:
                session = open_session(path, backend=backend, threads=None if is_engine else request.threads)
            except CilsegError as exc:
                say(f"{name} on {backend}: passed over, {exc}")
                continue
            verified = verified_backends(attachment.metadata)
            info = session.describe()
            yield Candidate(
                backend=backend,
                precision=info.precision,
                file_name=name,
                answer=_masks_of(session),
                counts=backend in verified or (is_engine and bool(verified)),
                detail=f"{info.version}, {info.arithmetic}",
                path=path,
            )


def _masks_of(session: Backend) -> Callable[[Array], Array]:
    return lambda batch: session.run(batch, ["mask"])["mask"]


def torch_candidate(version: Version, *, threads: int) -> Candidate:
    """Return the trained network itself, run by torch eager with channels_last weights."""
    from cilseg.update.bundle import model_of

    return torch_graph_candidate(model_of(version), version.manifest.preprocessing, threads=threads)


def torch_graph_candidate(model: Any, preprocessing: Any, *, threads: int) -> Candidate:
    """Return a model run by torch eager with channels_last weights (and activations, which follow)."""
    import torch

    from cilseg.models.inference import InferenceGraph

    torch.set_num_threads(threads)
    graph = InferenceGraph(model, preprocessing).eval()
    graph.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def answer(batch: Array) -> Array:
        with torch.inference_mode():
            masks: Array = graph(torch.from_numpy(batch))[0].numpy()
        return masks

    return Candidate(TORCH, "float32", "checkpoint", answer, True, f"{_DETAIL} {torch.__version__}", None)


def time_candidates(
    candidates: Sequence[Candidate], images: Sequence[Array], *, repeats: int
) -> list[tuple[Candidate, LatencyRow]]:
    """Time every candidate on the same batch of decoded images ``(H, W, 3)``, taking turns; failures are left out."""
    height, width = images[0].shape[:2]
    times: dict[int, list[float]] = {}
    alive = list(candidates)
    batch = np.stack(images)
    for candidate in alive:
        for _ in range(WARM_UP_OF.get(candidate.backend, WARM_UP) - WARM_UP):
            with suppress(CilsegError):
                candidate.answer(batch)
    rng = np.random.default_rng(0)
    for turn in range(WARM_UP + repeats):
        # In another order every time: who always follows a large one finds his caches empty.
        for candidate in (alive[k] for k in rng.permutation(len(alive))):
            if id(candidate) in times and times[id(candidate)] is _FAILED:
                continue
            time.sleep(PAUSE_S)
            started = time.perf_counter()
            try:
                end_to_end(candidate, images)
            except CilsegError:
                times[id(candidate)] = _FAILED
                continue
            if turn >= WARM_UP:
                times.setdefault(id(candidate), []).append(1000 * (time.perf_counter() - started))
    measured = [(c, times[id(c)]) for c in alive if times.get(id(c), _FAILED) is not _FAILED]
    base = next((statistics.median(t) for c, t in measured if c.backend == TORCH), None)
    return [(c, _row(c, t, base, (height, width), len(images))) for c, t in measured]


_FAILED: list[float] = []


def end_to_end(candidate: Candidate, images: Sequence[Array]) -> list[Array]:
    """Answer decoded images with masks at their own size: what a caller waits for."""
    masks = candidate.answer(np.stack(images))
    return [restore_mask(mask, *image.shape[:2]) for mask, image in zip(masks, images, strict=True)]


def _row(
    candidate: Candidate, times_ms: Sequence[float], base_ms: float | None, size_hw: tuple[int, int], batch: int
) -> LatencyRow:
    p10, median, p90 = np.quantile(times_ms, [0.1, 0.5, 0.9])
    return LatencyRow(
        backend=candidate.backend,
        precision=candidate.precision,
        file_name=candidate.file_name,
        height=size_hw[0],
        width=size_hw[1],
        batch=batch,
        p10_ms=round(float(p10), 3),
        median_ms=round(float(median), 3),
        p90_ms=round(float(p90), 3),
        images_per_s=round(1000 * batch / float(median), 2),
        over_torch=None if base_ms is None else round(float(median) / base_ms, 4),
        peak_mib=None,
        miou=None,
        counts=candidate.counts,
        detail=candidate.detail,
    )


def _pictures(source: Source, size_hw: tuple[int, int], batch: int) -> list[Array]:
    """Return real pictures of the gate set, resized to the wanted size."""
    height, width = size_hw
    pictures = [Image.fromarray(source.image(i % len(source))) for i in range(batch)]
    return [np.array(p.resize((width, height), Image.Resampling.BILINEAR)) for p in pictures]


def _miou(candidate: Candidate, version: Version, source: Source, n_images: int) -> float | None:
    """Return the mIoU in points on gate images, background included; None if the runtime refuses one of their sizes."""
    from cilseg.evaluate.run import evaluate_source

    gate_set = version.manifest.gate_set
    assert gate_set is not None
    rows = sorted(set(np.linspace(0, len(source) - 1, min(n_images, len(source))).round().astype(int).tolist()))
    try:
        evaluation = evaluate_source(
            lambda image: candidate.answer(image[None])[0],
            source.subset([source.ids[i] for i in rows]),
            version.manifest.class_set,
            annotated=gate_set.classes,
            preprocessing=version.manifest.preprocessing,
        )
    except CilsegError:
        return None
    return round(100 * evaluation.scores.mean_iou, 3)


def _peak_mib(
    candidate: Candidate, version: Version, size_hw: tuple[int, int], batch: int, threads: int
) -> float | None:
    """Return the peak memory of a process that only loads this row and warms it up."""
    job = {
        "path": None if candidate.path is None else str(candidate.path),
        "backend": candidate.backend,
        "version": str(version.path),
        "shape": [batch, *size_hw],
        "threads": threads,
        "calls": WARM_UP_OF.get(candidate.backend, WARM_UP),
    }
    command = [sys.executable, "-Pm", "cilseg.bench.latency_memory", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        return round(float(done.stdout.split()[-1]), 1) if done.returncode == 0 else None
    except (IndexError, ValueError):
        return None
