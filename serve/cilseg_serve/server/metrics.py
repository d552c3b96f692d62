"""Prometheus metrics, in base units, with few label values; ``/metrics`` shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from cilseg import __version__
from cilseg_serve.segmentation import Segmentation

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_MODEL = ("model", "version")
PIXEL_STEP = 4
"""Every 4th pixel in both directions is counted."""


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        into: Any = {"registry": self.registry}
        self.requests = Counter("cilseg_request", "Requests answered.", ("route", "method", "code"), **into)
        self.request_seconds = Histogram(
            "cilseg_request_duration_seconds", "From the first byte to the last.", ("route",), buckets=_SECONDS, **into
        )
        self.in_flight = Gauge("cilseg_request_in_flight", "Requests being answered.", **into)
        self.queue_seconds = Histogram(
            "cilseg_queue_duration_seconds", "How long images waited for a run.", _MODEL, buckets=_SECONDS, **into
        )
        self.run_seconds = Histogram(
            "cilseg_run_duration_seconds", "Duration of runs of the network.", _MODEL, buckets=_SECONDS, **into
        )
        self.batch_size = Histogram(
            "cilseg_batch_size", "Images that shared a run.", _MODEL, buckets=(1, 2, 4, 8, 16, 32), **into
        )
        self.images = Counter("cilseg_image", "Images segmented.", _MODEL, **into)
        self.queue_length = Gauge("cilseg_queue_length", "Images waiting.", _MODEL, **into)
        self.pixels = Counter(
            "cilseg_class_pixel",
            "Pixels answered with a class, counted on every 4th row and column; the ratio of two rates is a share.",
            (*_MODEL, "class"),
            **into,
        )
        self.share = Gauge(
            "cilseg_class_pixel_ratio",
            "Share of a class in the last images (moving average).",
            (*_MODEL, "class"),
            **into,
        )
        self.confidence = Histogram(
            "cilseg_confidence",
            "Mean confidence of images (of a sample, where no client asks for it).",
            _MODEL,
            buckets=tuple(i / 20 for i in range(1, 21)),
            **into,
        )
        self.model_info = Gauge(
            "cilseg_model_info",
            "Versions in memory; default says which answers.",
            (*_MODEL, "digest", "default"),
            **into,
        )
        self.swaps = Counter("cilseg_model_swap", "How often another version took over.", ("model",), **into)
        self.follow_failed = Gauge(
            "cilseg_model_follow_failed",
            "1 where the version that the alias points to is not served.",
            ("model",),
            **into,
        )
        self.updates = Gauge("cilseg_update_count", "Updates by state.", ("state",), **into)
        self.drift = Gauge(
            "cilseg_drift_ratio",
            "Distance from the gate set when /v1/drift was last asked: PSI of class_mix, else Kolmogorov-Smirnov.",
            (*_MODEL, "signal"),
            **into,
        )
        info = Gauge("cilseg_server_info", "The server.", ("cilseg",), **into)
        info.labels(__version__).set(1)
        self._shares: dict[tuple[str, str], npt.NDArray[np.float64]] = {}

    def observe_masks(self, model: str, version: str, results: Sequence[Segmentation]) -> npt.NDArray[np.int64]:
        """Count the pixels of each class; return the counts, ``(len(results), classes)``."""
        names = results[0].class_names
        counts = np.stack(
            [
                np.bincount(r.mask[::PIXEL_STEP, ::PIXEL_STEP].ravel(), minlength=len(names))[: len(names)]
                for r in results
            ]
        )
        key = (model, version)
        mean = (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).mean(axis=0)
        before = self._shares.get(key, mean)
        shares = self._shares[key] = before + 0.05 * (mean - before)
        for name, count, share in zip(names, counts.sum(axis=0), shares, strict=True):
            if count:
                self.pixels.labels(model, version, name).inc(int(count))
            self.share.labels(model, version, name).set(float(share))
        for result in results:
            if result.confidence is not None:
                self.confidence.labels(model, version).observe(float(result.confidence.mean()))
        return counts

    def forget(self, model: str, version: str) -> None:
        """Drop the gauges of a version that was unloaded; counters stay."""
        self._shares.pop((model, version), None)
        for gauge, names in (
            (self.share, (*_MODEL, "class")),
            (self.drift, (*_MODEL, "signal")),
            (self.queue_length, _MODEL),
        ):
            for sample in [s for family in gauge.collect() for s in family.samples]:
                if (sample.labels["model"], sample.labels["version"]) == (model, version):
                    gauge.remove(*(sample.labels[name] for name in names))

    def text(self) -> bytes:
        """Return what ``/metrics`` answers."""
        return generate_latest(self.registry)
