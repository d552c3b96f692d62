"""What may go wrong while a command runs, done on purpose inside its process (see ``command_server``).

A target is ``module:attribute``, with dots in the attribute for methods.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any


def kill_before(target: str, nth: str = "1") -> None:
    """kill -9 before the ``nth`` call of ``target``."""
    _strike(target, int(nth), signal.SIGKILL, before=True)


def kill_after(target: str, nth: str = "1") -> None:
    """kill -9 after the ``nth`` call of ``target``."""
    _strike(target, int(nth), signal.SIGKILL, before=False)


def interrupt_after(target: str, nth: str = "1") -> None:
    """Ctrl-C after the ``nth`` call of ``target``."""
    _strike(target, int(nth), signal.SIGINT, before=False)


def permute_classes_of_export() -> None:
    """Turn round the weights of the last convolution of every ONNX file that is written."""

    def spoil(original: Callable[..., Any], graph: object, path: Path, **options: Any) -> Any:
        import onnx
        from onnx import numpy_helper

        record = original(graph, path, **options)
        model = onnx.load(str(path))
        last = [node for node in model.graph.node if node.op_type == "Conv"][-1]
        (weights,) = [i for i in model.graph.initializer if i.name == last.input[1]]
        weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights)[::-1].copy(), weights.name))
        onnx.save(model, str(path))
        return record

    _wrap("cilseg_export.onnx_export:export_onnx", spoil)


def _strike(target: str, nth: int, number: signal.Signals, *, before: bool) -> None:
    calls = [0]

    def run(original: Callable[..., Any], *args: Any, **options: Any) -> Any:
        calls[0] += 1
        if before and calls[0] == nth:
            os.kill(os.getpid(), number)
        result = original(*args, **options)
        if not before and calls[0] == nth:
            os.kill(os.getpid(), number)
        return result

    _wrap(target, run)


def _wrap(target: str, wrapper: Callable[..., Any]) -> None:
    module, _, path = target.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **options: Any) -> Any:
        return wrapper(original, *args, **options)

    setattr(owner, name, wrapped)
