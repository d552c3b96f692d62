"""Follow an alias: serve what it points to, and change models without losing a call when it moves."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from cilseg.errors import ConflictError, InputError
from cilseg_serve.images import ImageLike
from cilseg_serve.segmentation import Segmentation
from cilseg_serve.segmenter import Segmenter

if TYPE_CHECKING:
    from cilseg.registry import Registry, Version

_WARM_PX = 256
_log = logging.getLogger(__name__)


class WatchedSegmenter:
    """The model that an alias points to, as one object that stays; made by :func:`watch`.

    Calls go to :attr:`current`, which is replaced in one step: a call that has begun ends on the model it began with.
    The new model is loaded, checked and run once before it takes over; until then, and whenever that fails, the old one
    goes on and :attr:`error` says why. Threads may share it.
    """

    def __init__(
        self,
        reference: str | None,
        *,
        registry: Registry | str | Path | None,
        interval_s: float,
        class_change: bool,
        on_swap: Callable[[Segmenter, Segmenter], None] | None,
        options: dict[str, Any],
    ) -> None:
        from cilseg.registry import Registry
        from cilseg.registry.references import parse_reference

        if interval_s <= 0:
            raise InputError(f"interval_s is above 0, got {interval_s:g}.")
        parsed = parse_reference(reference) if reference is not None else None
        if parsed is not None and (parsed.number is not None or parsed.digest_prefix is not None):
            raise InputError(
                f"{reference} never moves. Watch an alias (name@production), or use Segmenter({reference!r})."
            )
        self._reference = reference
        self._registry = registry if isinstance(registry, Registry) else Registry.open(registry)
        self._interval_s = interval_s
        self._class_change = class_change
        self._on_swap = on_swap
        self._options = options
        self._seen_hw = (_WARM_PX, _WARM_PX)
        self._checking = threading.Lock()
        self.error: str | None = None
        """Why the version that the alias points to is not served; ``None``: it is."""
        version = self._registry.resolve(reference)
        self._version = version
        self.current = self._load(version)
        """The segmenter in use; keep it in a variable where several calls must see one model."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="cilseg-watch", daemon=True)
        self._thread.start()

    def segment(self, image: ImageLike, *, confidence: bool = False) -> Segmentation:
        """Segment one image with the current model; see :meth:`Segmenter.segment`."""
        return self._noted(self.current.segment(image, confidence=confidence))

    def segment_batch(self, images: Sequence[ImageLike], *, confidence: bool = False) -> list[Segmentation]:
        """Segment several images with one and the same model; see :meth:`Segmenter.segment_batch`."""
        return [self._noted(result) for result in self.current.segment_batch(images, confidence=confidence)]

    async def segment_async(self, image: ImageLike, *, confidence: bool = False) -> Segmentation:
        """Await :meth:`segment`; see :meth:`Segmenter.segment_async`."""
        return self._noted(await self.current.segment_async(image, confidence=confidence))

    def check(self) -> bool:
        """Look at the alias now; return whether another model took over.

        Raises:
            NotFoundError: the alias or its model is gone, or has no exported model.
            ConflictError: an id would get another name, and ``class_change`` is not set.
            CilsegError: the model cannot be loaded or run.
        """
        with self._checking:
            version = self._registry.resolve(self._reference)
            if version.digest == self._version.digest:
                self._version, self.error = version, None
                return False
            self._refuse_renamed(version)
            new = self._load(version)
            old, self.current = self.current, new
            self._version, self.error = version, None
        _log.info("%s: now serving %s instead of %s", self._reference or version.name, new.name, old.name)
        if self._on_swap is not None:
            self._on_swap(old, new)
        return True

    def close(self) -> None:
        """Stop following; the current model goes on answering."""
        self._stop.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> WatchedSegmenter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"WatchedSegmenter({self._reference!r}, current={self.current!r})"

    def _load(self, version: Version) -> Segmenter:
        """Load a version and run it once, on the size seen last, so that its first caller does not wait for that."""
        segmenter = Segmenter(version.ref, registry=self._registry, **self._options)
        segmenter.segment(np.zeros((*self._seen_hw, 3), dtype=np.uint8))
        return segmenter

    def _refuse_renamed(self, version: Version) -> None:
        from cilseg.registry.policy import renamed_ids

        renamed = renamed_ids(self.current.class_set, version.manifest.class_set)
        if renamed and not self._class_change:
            raise ConflictError(
                f"{version.ref} gives ids another name than {self.current.name}, which stays in use "
                f"({'; '.join(renamed)}): readers of its masks would mistake one class for another. Start again "
                "with the new classes, or watch with class_change=True."
            )

    def _noted(self, result: Segmentation) -> Segmentation:
        self._seen_hw = (result.mask.shape[0], result.mask.shape[1])
        return result

    def _follow(self) -> None:
        while not self._stop.wait(self._interval_s):
            try:
                self.check()
            except Exception as exc:  # whatever it is, the calls must go on; it is tried again
                message = str(exc) or repr(exc)
                if message != self.error:
                    _log.error("%s: %s stays in use: %s", self._reference or "watch", self.current.name, message)
                self.error = message


def watch(
    reference: str | None = None,
    *,
    registry: Registry | str | Path | None = None,
    interval_s: float = 1.0,
    class_change: bool = False,
    on_swap: Callable[[Segmenter, Segmenter], None] | None = None,
    **options: Any,
) -> WatchedSegmenter:
    """Load what an alias points to and follow it: when it moves, the new model takes over and no call is lost.

    While the models change, both are in memory.

    Args:
        reference: ``"name@alias"``, or ``"name"`` (production, else the newest version); ``None``: the only model.
        registry: as in :class:`~cilseg_serve.Segmenter`.
        interval_s: seconds between two looks at the alias.
        class_change: also take over a version that gives an id another name.
        on_swap: called with the old and the new segmenter after each change, in the watching thread.
        options: further arguments of :class:`~cilseg_serve.Segmenter`, such as ``threads``.

    Raises:
        InputError: the reference never moves, or ``interval_s`` is not above 0.
        CilsegError: as :class:`~cilseg_serve.Segmenter`, for the first model.

    Example:
        >>> with watch("animals@production") as segmenter:  # doctest: +SKIP
        ...     segmenter.segment("cow.jpg").present
        ('cow',)
    """
    return WatchedSegmenter(
        reference,
        registry=registry,
        interval_s=interval_s,
        class_change=class_change,
        on_swap=on_swap,
        options=options,
    )
