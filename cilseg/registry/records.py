"""What the registry hands out: versions, attachments and alias events, all immutable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cilseg.bundle import Manifest
from cilseg.errors import ArtifactError

if TYPE_CHECKING:
    from cilseg.registry.store import Store


@dataclass(frozen=True)
class Version:
    """One registered model, kept in ``store``; ``digest`` is that of its manifest.

    ``created_at`` is when it was registered (ISO 8601, UTC); ``aliases`` are those that pointed here when it was read.
    """

    name: str
    number: int
    digest: str
    created_at: str
    aliases: tuple[str, ...] = ()
    store: Store = field(kw_only=True, repr=False, compare=False)

    @property
    def ref(self) -> str:
        """``name:number``, the reference that never means another version."""
        return f"{self.name}:{self.number}"

    @cached_property
    def path(self) -> Path:
        """The directory with the version's files; from a remote store they are copied there first, and verified.

        Raises:
            ArtifactError: files are missing or changed in a remote store.
            StoreError: it cannot be reached.
        """
        return self.store.local(self.digest)

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest, read from the store on first use and compared with ``digest``.

        Raises:
            ArtifactError: it is missing, unreadable, or not the one that was registered.
        """
        manifest = self.store.manifest(self.digest)
        if manifest.digest != self.digest:
            raise ArtifactError(
                f"{self.ref}: {self.store.place_of(self.digest)}/manifest.json was changed after registration (digest "
                f"{manifest.digest[:19]}..., registered {self.digest[:19]}...). Register the original bundle again."
            )
        return manifest


@dataclass(frozen=True)
class Attachment:
    """A file made for a version after registration: an exported model, a gate report, a parity report."""

    file_name: str
    path: Path
    kind: str
    sha256: str
    metadata: Mapping[str, Any]
    version_digest: str


@dataclass(frozen=True)
class AliasEvent:
    """One move of an alias. ``when`` is ISO 8601 in UTC; ``from_number`` is ``None`` for the first move.

    ``sequence`` counts all events of the registry without gaps. ``moved`` is false in the answer to a promotion that
    found the alias already there: the event is then the earlier one that set it, and nothing was written.
    """

    name: str
    alias: str
    from_number: int | None
    to_number: int
    who: str
    when: str
    why: str
    action: str
    forced: bool
    gate_report: str | None
    class_change: bool = False
    sequence: int = 0
    moved: bool = True
