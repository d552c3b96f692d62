"""The stand-in network, exported once for all tests of this folder."""

from __future__ import annotations

import pytest
from export_stand_in import Exported, export_stand_in


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The stand-in, exported with every output."""
    return export_stand_in(tmp_path_factory.mktemp("export_all"), "logits", "mask", "confidence")


@pytest.fixture(scope="session")
def exported_mask(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The same stand-in, exported with its mask alone."""
    return export_stand_in(tmp_path_factory.mktemp("export_mask"), "mask")
