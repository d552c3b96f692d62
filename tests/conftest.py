"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

Arrays = dict[str, npt.NDArray[Any]]


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Folder of the reference arrays: ``CILSEG_REFERENCE_DIR``, or the ones beside the tests."""
    return Path(os.environ.get("CILSEG_REFERENCE_DIR") or Path(__file__).parent / "reference")


@pytest.fixture(scope="session")
def reference(reference_dir: Path) -> Callable[[str], Arrays]:
    """Loader of reference arrays: ``reference("pamr")`` gives the arrays of pamr.npz by name."""

    def load(name: str) -> Arrays:
        with np.load(reference_dir / f"{name}.npz") as file:
            return {key: file[key] for key in file.files}

    return load
