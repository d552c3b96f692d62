"""The embedded runtime: load an exported model, answer with masks. No torch."""

from __future__ import annotations

import asyncio
import functools
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from cilseg.bundle import MANIFEST, Preprocessing, read_manifest
from cilseg.classes import ClassSet
from cilseg.errors import ArtifactError, InputError, NotFoundError
from cilseg_serve.backends.base import EMBEDDED_MANIFEST, Backend, BackendInfo
from cilseg_serve.backends.opening import check_backend, open_session
from cilseg_serve.images import ImageLike, as_rgb_array
from cilseg_serve.model_file import locate, read_for_backend
from cilseg_serve.preprocessing import prepare, restore_mask
from cilseg_serve.segmentation import Segmentation

if TYPE_CHECKING:
    from cilseg.registry import Registry

_T = TypeVar("_T")
MAX_RUN_PIXELS = 4_000_000
"""Images of one size share a run up to this many pixels; it bounds the memory that the activations take."""
MAX_WHOLE_PIXELS = 25_000_000
"""Largest image, at the network's size, that is run in one piece; beyond it activations take many gigabytes."""


class Segmenter:
    """An exported model, ready to segment images. Holds no state between calls; threads may share it.

    Args:
        source: a bundle or version directory, or a registry reference: ``"name:3"``, ``"name@alias"``, ``"name"``;
            ``None`` is the only model in the registry.
        registry: registry, or its folder or URL, in which references are looked up; ``None``: ``$CILSEG_REGISTRY``
            or ``./cilseg-registry``.
        threads: threads of one inference; ``None`` leaves the number to the runtime.
        allow_unverified: run a model whose parity check is missing or failed, with a warning.
        backend: runtime, one of ``backends.base.BACKENDS``; ``auto`` takes the fastest one here on which the model
            passed its parity check.
        precision: which exported file to run: ``fp32``, ``fp16`` or ``int8`` (``cilseg export --precision``).

    Attributes:
        class_set: classes of the model; position = id in masks.
        preprocessing: what happens between image and network.
        name: the reference or path it was loaded from.
        digest: ``sha256:...`` of the version's manifest, ``None`` for a bare ONNX file.

    Raises:
        NotFoundError: no such directory, reference or exported model.
        ArtifactError: hash, lineage or graph contract violated.
        ParityError: no passed parity check.
        MissingDependencyError: the runtime is not installed.

    Example:
        >>> segmenter = Segmenter("animals@production")        # doctest: +SKIP
        >>> segmenter.segment("cow.jpg").present               # doctest: +SKIP
        ('cow',)
    """

    class_set: ClassSet
    preprocessing: Preprocessing
    name: str
    digest: str | None
    _session: Backend

    def __init__(
        self,
        source: str | Path | None = None,
        *,
        registry: Registry | str | Path | None = None,
        threads: int | None = None,
        allow_unverified: bool = False,
        backend: str = "auto",
        precision: str = "fp32",
    ) -> None:
        check_backend(backend)
        directory, self.name, expected_digest = locate(source, registry)
        manifest = read_manifest(directory)
        self.digest = manifest.digest
        if expected_digest is not None and expected_digest != self.digest:
            raise ArtifactError(
                f"{directory / MANIFEST} has digest {self.digest[:19]}..., the registry recorded "
                f"{expected_digest[:19]}...: it was changed. Restore the store from its backup, or register again."
            )
        model, verified = read_for_backend(
            directory,
            self.name,
            backend=backend,
            digest=self.digest,
            precision=precision,
            allow_unverified=allow_unverified,
        )
        self.class_set = manifest.class_set
        self.preprocessing = manifest.preprocessing
        self._session = open_session(
            model,
            backend=backend,
            name=self.name,
            threads=threads,
            verified=verified,
            allow_unverified=allow_unverified,
        )

    @classmethod
    def from_onnx(
        cls,
        path: str | Path,
        *,
        class_set: ClassSet | None = None,
        preprocessing: Preprocessing | None = None,
        threads: int | None = None,
        backend: str = "auto",
    ) -> Segmenter:
        """Load a bare ONNX file (or TensorRT engine with its sidecar) of the graph contract; parity is not checked.

        Classes and preprocessing come from the file's own metadata (key ``cilseg.manifest``) unless given.

        Raises:
            NotFoundError: no such file.
            InputError: the file names no classes or preprocessing and none were given.
            ArtifactError: no ONNX model, or not of the graph contract.
            MissingDependencyError: the runtime is not installed.
        """
        file = Path(path)
        if not file.is_file():
            raise NotFoundError(f"{file}: no such ONNX file. Write one with: cilseg export REF")
        self = cls.__new__(cls)
        self.name, self.digest = str(file), None
        self._session = open_session(file, backend=backend, name=self.name, threads=threads)
        if class_set is None or preprocessing is None:
            embedded_classes, embedded_preprocessing = _embedded_manifest(self._session, file)
            class_set = class_set or embedded_classes
            preprocessing = preprocessing or embedded_preprocessing
        self.class_set, self.preprocessing = class_set, preprocessing
        return self

    @property
    def has_confidence(self) -> bool:
        """Whether the model was exported with its confidence output."""
        return "confidence" in self._session.outputs

    @property
    def has_logits(self) -> bool:
        """Whether it was exported with its logits, which :class:`~cilseg_serve.SlidingWindow` blends."""
        return "logits" in self._session.outputs

    @property
    def backend(self) -> BackendInfo:
        """What runs the model."""
        return self._session.describe()

    def __repr__(self) -> str:
        return f"Segmenter({self.name!r}, classes={list(self.class_set.names)}, backend={self.backend.backend!r})"

    def segment(self, image: ImageLike, *, confidence: bool = False) -> Segmentation:
        """Segment one image (path, Pillow image, or ``(H, W, 3)`` uint8 RGB array), mask at the image's own size.

        Raises:
            InputError: the image cannot be read or is too large for one piece, or ``confidence`` is asked of a model
                exported without it.
            CilsegError: the runtime failed, for example out of memory.
        """
        return self.segment_batch([image], confidence=confidence)[0]

    def segment_batch(self, images: Sequence[ImageLike], *, confidence: bool = False) -> list[Segmentation]:
        """Segment several images, in order; images of equal prepared size share one run.

        Raises:
            InputError: an image cannot be used (nothing is computed then), or see :meth:`segment`.
            CilsegError: the runtime failed.
        """
        if confidence and not self.has_confidence:
            raise InputError(
                f"{self.name} was exported without confidence. Export it again with: cilseg export REF --confidence"
            )
        arrays = [as_rgb_array(image) for image in images]
        prepared = [self._prepare(array) for array in arrays]
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, array in enumerate(prepared):
            by_size.setdefault((array.shape[0], array.shape[1]), []).append(index)
        results: dict[int, Segmentation] = {}
        for (height, width), members in by_size.items():
            per_run = max(1, MAX_RUN_PIXELS // (height * width))
            for start in range(0, len(members), per_run):
                run = members[start : start + per_run]
                batch = prepared[run[0]][None] if len(run) == 1 else np.stack([prepared[i] for i in run])
                masks, *rest = self.run_graph(batch, ("mask", "confidence") if confidence else ("mask",))
                for row, index in enumerate(run):
                    results[index] = self._result(masks[row], rest[0][row] if rest else None, arrays[index].shape)
        return [results[index] for index in range(len(arrays))]

    async def segment_async(self, image: ImageLike, *, confidence: bool = False) -> Segmentation:
        """Await :meth:`segment`, computed in one of the segmenter's own threads (as many as cores).

        Cancelling gives up the wait; what is already being computed runs to its end, what is queued is dropped.

        Raises:
            InputError, CilsegError: as :meth:`segment`.
        """
        return await self._in_thread(functools.partial(self.segment, image, confidence=confidence))

    async def segment_batch_async(self, images: Sequence[ImageLike], *, confidence: bool = False) -> list[Segmentation]:
        """Await :meth:`segment_batch`; see :meth:`segment_async`."""
        return await self._in_thread(functools.partial(self.segment_batch, images, confidence=confidence))

    def run_graph(self, batch: npt.NDArray[np.uint8], outputs: Sequence[str]) -> list[npt.NDArray[Any]]:
        """Run ``(N, h, w, 3)`` uint8 RGB through the graph as it is, without resizing, and return its ``outputs``.

        ``mask`` ``(N, h, w)`` uint8, ``confidence`` ``(N, h, w)`` and ``logits`` ``(N, C, h/s, w/s)`` float32, of those
        the model was exported with.

        Raises:
            ArtifactError: ids or shapes that the class set does not have.
            CilsegError: the runtime failed.
        """
        found = self._session.run(batch, outputs)
        answers = [found[name] for name in outputs]
        if "mask" in outputs:
            self._check_mask(answers[list(outputs).index("mask")], batch.shape[:3])
        return answers

    def _check_mask(self, masks: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
        if masks.shape != shape or int(masks.max()) >= len(self.class_set):
            raise ArtifactError(
                f"{self.name}: the model answered with masks {masks.shape}, largest id {int(masks.max())}; expected "
                f"{shape} and ids under {len(self.class_set)}. Export the model again."
            )

    def _prepare(self, array: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        prepared = prepare(array, self.preprocessing)
        height, width = prepared.shape[:2]
        if height * width > MAX_WHOLE_PIXELS:
            raise InputError(
                f"Image of {width} x {height} px is too large to run in one piece (at most {MAX_WHOLE_PIXELS:,} "
                "pixels). Shrink it, or tile it: SlidingWindow(segmenter), cilseg predict --tile 1024."
            )
        return prepared

    async def _in_thread(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    @functools.cached_property
    def _pool(self) -> ThreadPoolExecutor:
        """Threads of the async methods. They end with the segmenter; a second pool made in a race is dropped idle."""
        return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="cilseg-segment")

    def _result(
        self, mask: npt.NDArray[np.uint8], confidence: npt.NDArray[np.float32] | None, shape: tuple[int, ...]
    ) -> Segmentation:
        """Bring one mask ``(h, w)`` and its confidence back to the image's ``shape`` ``(H, W, 3)``."""
        return Segmentation(
            mask=restore_mask(mask, shape[0], shape[1]),
            class_names=self.class_set.names,
            palette=self.class_set.palette,
            confidence=None if confidence is None else restore_mask(confidence, shape[0], shape[1]),
        )


def _embedded_manifest(session: Backend, file: Path) -> tuple[ClassSet, Preprocessing]:
    text = session.metadata.get(EMBEDDED_MANIFEST)
    if text is None:
        raise InputError(f"{file} does not name its classes. Pass class_set= and preprocessing=.")
    try:
        payload = json.loads(text)
        return ClassSet.from_json(payload["classes"]), Preprocessing.model_validate(payload["preprocessing"])
    except (ValueError, KeyError, TypeError, ValidationError, InputError) as exc:
        raise ArtifactError(
            f"{file}: metadata {EMBEDDED_MANIFEST!r} cannot be read ({exc!r}). Export the model again."
        ) from exc
