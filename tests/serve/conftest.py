"""Fixtures of the runtime's tests: a bundle with an exported model, and an image that it can tell apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cilseg.bundle import write_manifest
from tests.serve.tiny_model import CLASSES, make_manifest, make_onnx, write_attachment

BundleMaker = Callable[..., Path]


@pytest.fixture
def make_bundle(tmp_path: Path) -> BundleMaker:
    """Return a function that writes a bundle with an exported model and gives its folder."""

    def build(
        *,
        name: str = "bundle",
        short_side_px: int | None = None,
        metadata: dict[str, Any] | None = None,
        **model: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "checkpoint.safetensors").write_bytes(b"no weights: the runtime never reads them")
        (folder / "labels.txt").write_text("\n".join(CLASSES.names))
        manifest = write_manifest(folder, make_manifest(short_side_px))
        parity = {"parity": {"passed": True}} if metadata is None else metadata
        write_attachment(folder, manifest.digest, make_onnx(**model), parity)
        return folder

    return build


@pytest.fixture
def color_image() -> npt.NDArray[np.uint8]:
    """An image ``(24, 30, 3)`` with a dark rim and three coloured stripes."""
    image = np.zeros((24, 30, 3), dtype=np.uint8)
    image[4:20, 3:11] = (200, 20, 10)
    image[4:20, 11:19] = (10, 210, 30)
    image[4:20, 19:27] = (5, 15, 220)
    return image
