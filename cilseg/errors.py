"""The errors cilseg raises on purpose: one base class, an exit code and an HTTP status per subclass.

Every message says what was wrong, what was got and what to do next. Input files are checked whole:
:class:`FaultCollector` gathers all faults and raises them as one error.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator


class CilsegError(Exception):
    """Something failed in a way the user should read about. Exit code 1."""

    exit_code = 1
    http_status = 500


class InputError(CilsegError):
    """What the user gave is wrong: an argument, a file, a tag list, an image. Exit code 2."""

    exit_code = 2
    http_status = 422


class NotFoundError(InputError):
    """A name, version, alias or file that does not exist. Exit code 2."""

    http_status = 404


class NotExportedError(NotFoundError):
    """A version without an exported model of the kind that was asked for. Exit code 2."""


class ConflictError(CilsegError):
    """Somebody else changed the same thing meanwhile, or an immutable thing would change. Exit code 1."""

    http_status = 409


class TrainingError(CilsegError):
    """Training cannot go on, for example because a loss is not finite. Exit code 1."""


class MissingDependencyError(CilsegError):
    """An optional package is not installed; the message names the extra. Exit code 1."""

    http_status = 501


class StoreError(CilsegError):
    """A remote artifact store cannot be reached or does not answer as it should. Exit code 1."""

    http_status = 503


class GateError(CilsegError):
    """The gate rejected or held a candidate. Exit code 3."""

    exit_code = 3
    http_status = 409


class ParityError(CilsegError):
    """An exported artifact answers differently from the trained model. Exit code 4."""

    exit_code = 4


class ArtifactError(CilsegError):
    """A checkpoint, bundle or exported model is damaged or incompatible. Exit code 5."""

    exit_code = 5
    http_status = 422


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return ``' Did you mean X?'`` for the closest of ``known``, or an empty string.

    ``cutoff`` is the least similarity (0 to 1, ``difflib``) that counts as close.
    """
    by_fold = {k.casefold(): k for k in known}
    match = difflib.get_close_matches(name.casefold(), by_fold, n=1, cutoff=cutoff)
    return f" Did you mean {by_fold[match[0]]!r}?" if match else ""


class FaultCollector:
    """Collects the faults of one input and raises them together.

    Example:
        >>> faults = FaultCollector("tags.json")
        >>> faults.add("images[3]: file 'x.jpg' does not exist")
        >>> len(faults)
        1
    """

    def __init__(self, what: str, *, limit: int = 30) -> None:
        self._what = what
        self._limit = limit
        self._faults: list[str] = []

    def add(self, fault: str) -> None:
        self._faults.append(fault)

    def __len__(self) -> int:
        return len(self._faults)

    def __iter__(self) -> Iterator[str]:
        return iter(self._faults)

    def raise_if_any(self, advice: str = "", *, error: type[CilsegError] = InputError) -> None:
        """Raise ``error`` that lists every fault (the first ``limit`` in full).

        Raises:
            CilsegError: the given subclass, when at least one fault was added.
        """
        if not self._faults:
            return
        count = len(self._faults)
        head = f"{self._what}: {count} {'fault' if count == 1 else 'faults'}, nothing was written."
        lines = [f"  - {fault}" for fault in self._faults[: self._limit]]
        if count > self._limit:
            lines.append(f"  - ... and {count - self._limit} more")
        raise error("\n".join([head, *lines, *([advice] if advice else [])]))
