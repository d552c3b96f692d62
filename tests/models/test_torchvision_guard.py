"""The guard repairs the one known failure of torchvision and lets every other error pass."""

from __future__ import annotations

import runpy
import sys
import textwrap

import pytest
import torch

import cilseg.models.torchvision_guard as guard


@pytest.fixture
def fake_torchvision(tmp_path, monkeypatch):
    """Put a torchvision of one's own in front of the real one for one test."""

    def install(source: str) -> None:
        for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
            monkeypatch.delitem(sys.modules, name)
        (tmp_path / "torchvision").mkdir()
        (tmp_path / "torchvision" / "__init__.py").write_text(textwrap.dedent(source))
        monkeypatch.syspath_prepend(tmp_path)

    yield install
    sys.modules.pop("torchvision", None)  # monkeypatch puts the real one back


def test_torchvision_can_be_imported_here():
    import torchvision

    assert torchvision.__version__
    assert isinstance(guard.REPAIRED, bool)


def test_the_known_failure_is_repaired(fake_torchvision, monkeypatch):
    defined: list[str] = []

    class Library:
        def __init__(self, namespace: str, kind: str) -> None:
            assert (namespace, kind) == ("torchvision", "FRAGMENT")

        def define(self, schema: str) -> None:
            defined.append(schema)

    monkeypatch.setattr(torch.library, "Library", Library)
    monkeypatch.setattr(torch, "_guard_test_imports", [], raising=False)
    fake_torchvision(
        """
        import torch
        torch._guard_test_imports.append(1)
        if len(torch._guard_test_imports) == 1:
            raise RuntimeError("operator torchvision::nms does not exist")
        """
    )
    assert runpy.run_path(guard.__file__)["REPAIRED"] is True
    assert [schema.split("(")[0] for schema in defined] == ["nms", "qnms"]
    assert "torchvision" in sys.modules


@pytest.mark.parametrize(("error", "text"), [(RuntimeError, "out of memory"), (OSError, "libjpeg.so is missing")])
def test_other_errors_pass(fake_torchvision, error, text):
    fake_torchvision(f"raise {error.__name__}({text!r})")
    with pytest.raises(error, match=text):
        runpy.run_path(guard.__file__)


def test_a_healthy_torchvision_is_left_alone(fake_torchvision, monkeypatch):
    monkeypatch.setattr(torch.library, "Library", None)  # any use would fail
    fake_torchvision("")
    assert runpy.run_path(guard.__file__)["REPAIRED"] is False


def test_no_torchvision_at_all(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert runpy.run_path(guard.__file__)["REPAIRED"] is False
