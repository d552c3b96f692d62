"""Drift of what a served version sees: a window of the last images, compared with its gate set now and then."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from cilseg.errors import CilsegError
from cilseg.registry import Registry, Version
from cilseg_serve.drift import Observations, compare, gather, observe
from cilseg_serve.drift_reference import load_reference
from cilseg_serve.segmentation import Segmentation

WINDOW = 500
_PER_S = 10.0
"""Images a second that are looked at; more would cost the runs too much."""
_FRESH_S = 5.0


class DriftWatch:
    """The window of one version. ``see`` is called in threads."""

    def __init__(self, registry: Registry, version: Version) -> None:
        self._registry, self._version = registry, version
        self._seen: deque[Observations] = deque(maxlen=WINDOW)
        self._lock = threading.Lock()
        self._next = 0.0
        self._reference: Observations | None = None
        self._looked = False
        self._report: tuple[float, dict[str, Any]] | None = None

    def see(self, images: Sequence[npt.NDArray[np.uint8]], results: Sequence[Segmentation]) -> None:
        """Look at the first of these images, at most ten times a second."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + 1 / _PER_S
        seen = observe(images[0], results[0])
        with self._lock:
            self._seen.append(seen)

    def report(self) -> dict[str, Any]:
        """Compare the window with the reference; the answer is kept for some seconds."""
        if self._report is not None and time.monotonic() - self._report[0] < _FRESH_S:
            return self._report[1]
        with self._lock:
            seen = list(self._seen)
        found = self._compare(seen)
        self._report = (time.monotonic(), found)
        return found

    def _compare(self, seen: list[Observations]) -> dict[str, Any]:
        head: dict[str, Any] = {
            "model": self._version.name,
            "version": str(self._version.number),
            "window": WINDOW,
            "images": len(seen),
        }
        try:
            if not self._looked:
                self._reference, self._looked = load_reference(self._registry, self._version), True
        except CilsegError as error:
            return {**head, "status": "no_reference", "sentence": str(error), "signals": []}
        if self._reference is None:
            sentence = f"{self._version.ref} has no reference. Make one: cilseg drift {self._version.ref}"
            return {**head, "status": "no_reference", "sentence": sentence, "signals": []}
        if not seen:
            return {**head, "status": "too_few", "sentence": "No image was seen yet.", "signals": []}
        report = compare(self._reference, gather(seen))
        return {
            **head,
            "status": report.status,
            "reference_images": report.reference_images,
            "sentence": report.sentence(),
            "signals": [asdict(s) for s in report.signals],
        }
