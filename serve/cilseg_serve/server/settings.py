"""How a server is set up: every limit has a default that is safe on a small machine."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from cilseg_serve.server.access import Token

MIB = 2**20
CPU_BATCH_PIXELS = 300_000
"""On a CPU a run of four 512 x 512 images takes as long as four runs; only small images gain by sharing one."""
GPU_BATCH_PIXELS = 4_000_000
CPU_WORKERS = 4
"""On a CPU further runs use the cores while others are in a part that only one core can do."""


@dataclass(frozen=True)
class Limits:
    """What a request may ask for. Sizes in bytes, times in seconds."""

    body_bytes: int = 64 * MIB
    upload_bytes: int = 2048 * MIB
    """Body of ``POST /v1/updates``, whose images go to disk."""
    json_bytes: int = 16 * MIB
    buffered_bytes: int = 512 * MIB
    """All request bodies that are held at one time."""
    image_pixels: int = 50_000_000
    network_pixels: int = 8_000_000
    """Pixels of one image as the network sees it; activations take several hundred bytes for each."""
    decoded_pixels: int = 150_000_000
    """Pixels of all images that are decoded and not answered yet."""
    header_bytes: int = 32 * 1024
    header_s: float = 10.0
    body_idle_s: float = 10.0
    """Longest pause between two pieces of a body."""
    body_s: float = 120.0
    upload_s: float = 1800.0
    timeout_s: float = 30.0
    """Deadline of a request that names none."""
    max_timeout_s: float = 300.0
    connections: int = 1000


@dataclass(frozen=True)
class Batching:
    """How requests share runs of the network."""

    max_batch: int = 8
    batch_pixels: int | None = None
    """Pixels, as the network sees them, that share a run. None: :data:`CPU_BATCH_PIXELS` or
    :data:`GPU_BATCH_PIXELS`."""
    delay_s: float = 0.0
    """How long a run waits for company while a worker is free. 0: what queued up meanwhile runs together."""
    max_queue: int = 64
    """Images that may wait, per version; more are answered 429."""
    workers: int | None = None
    """Runs at one time, per version. None: :data:`CPU_WORKERS` on a CPU, 1 on a GPU."""


@dataclass(frozen=True)
class ServerSettings:
    """Everything that ``cilseg serve`` was asked for."""

    refs: tuple[str, ...] = ()
    registry: str | Path | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    tokens: tuple[Token, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    backend: str = "auto"
    precision: str = "fp32"
    threads: int | None = None
    allow_unverified: bool = False
    class_change: bool = False
    limits: Limits = field(default_factory=Limits)
    batching: Batching = field(default_factory=Batching)
    poll_s: float = 1.0
    """How often the registry is asked where the aliases point."""
    lease_s: float = 600.0
    drain_s: float = 30.0
    """How long requests in flight may take after SIGTERM."""
    drain_grace_s: float = 0.5
    """How long the listener stays open after SIGTERM, so that load balancers see that it is not ready."""
    state_dir: Path | None = None
    """Tag lists and updates; default: ``serve`` in the registry's folder."""
    image_roots: tuple[tuple[str, Path], ...] = ()
    """Name and folder of the images that may be looked at, tagged and learned from."""
    watch_dir: Path | None = None
    update_command: tuple[str, ...] = (sys.executable, "-Pm", "cilseg.cli.main", "update")
    max_loaded: int = 8
    """Versions in memory at one time."""
