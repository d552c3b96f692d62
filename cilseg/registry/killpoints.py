"""Named places at which a test may kill the process: before every write, fsync, rename, upload and commit.

A point is named ``operation.step``, for example ``register.rename``: the operation is set by the verb that runs
(:func:`operation`), the step by the primitive that is about to act. ``CILSEG_KILL_POINT=register.rename`` kills the
process (SIGKILL) at the first such point, ``register.rename:3`` at the third. Without the variable nothing happens.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

VARIABLE = "CILSEG_KILL_POINT"
_operation: ContextVar[str] = ContextVar("cilseg_registry_operation", default="registry")
_passed: Counter[str] = Counter()
listener: Callable[[str], None] | None = None
"""Called with the name of every point passed; set by tests that list the points."""


@contextmanager
def operation(name: str) -> Iterator[None]:
    """Name the operation whose points follow; the outermost name counts."""
    if _operation.get() != "registry":
        yield
        return
    token = _operation.set(name)
    try:
        yield
    finally:
        _operation.reset(token)


def point(step: str) -> None:
    """Mark a place where the process may die; called before the act that ``step`` names."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None and listener is None:
        return
    name = f"{_operation.get()}.{step}"
    if listener is not None:
        listener(name)
    if wanted is not None:
        target, _, nth = wanted.partition(":")
        if name != target:
            return
        _passed[name] += 1
        if _passed[name] == int(nth or 1):
            os.kill(os.getpid(), signal.SIGKILL)
