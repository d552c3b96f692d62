"""Leases: what running servers hold, so that ``cilseg gc`` leaves it alone.

A lease is the file ``leases/<id>.json`` in the store: process, host, the digests of the versions it serves, and when it
expires. A server renews it well before that and removes it when it stops; after a crash it runs out by itself.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

from cilseg.registry.killpoints import operation
from cilseg.registry.records import Version

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from cilseg.registry.registry import Registry
    from cilseg.registry.store import Store

LEASE_SCHEMA = "cilseg.lease/1"
DEFAULT_S = 600.0
_CLOCK_SKEW_S = 300.0


@dataclass
class Lease:
    """Versions that this process serves. Renew it more often than it expires; leaving a ``with`` block releases it.

    Example:
        >>> with hold(registry, [version]) as lease:  # doctest: +SKIP
        ...     lease.renew()                         # every few minutes
        ...     lease.renew([other])                  # after a hot swap
    """

    registry: Registry
    versions: Sequence[Version]
    expires_after_s: float = DEFAULT_S
    purpose: str = "serve"
    lease_id: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")

    def renew(self, versions: Sequence[Version] | None = None) -> None:
        """Hold the versions (other ones, where given) for another while.

        Raises:
            NotFoundError: gc removed one of them before it was held; nothing is held then that was not before.
        """
        from cilseg.registry import lookup

        wanted = self.versions if versions is None else versions
        data = json.dumps(
            {
                "schema": LEASE_SCHEMA,
                "id": self.lease_id,
                "purpose": self.purpose,
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "expires_at": (datetime.now(UTC) + timedelta(seconds=self.expires_after_s)).isoformat(),
                "digests": [version.digest for version in wanted],
                "refs": [version.ref for version in wanted],
            },
            indent=1,
        ).encode()

        def work(connection: Connection) -> None:
            # Under the write lock, which gc holds while it decides: it sees the lease, or we see what it removed.
            for version in wanted:
                lookup.require_digest(connection, version)
            self.registry.store.write_lease(self.lease_id, data)

        with operation("lease"):
            self.registry.database.write(work)
        self.versions = wanted

    def release(self) -> None:
        """Hold nothing any more."""
        with operation("lease"):
            self.registry.store.remove_lease(self.lease_id)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def hold(
    registry: Registry, versions: Sequence[Version], *, expires_after_s: float = DEFAULT_S, purpose: str = "serve"
) -> Lease:
    """Hold ``versions`` against ``cilseg gc`` and return the lease.

    Raises:
        NotFoundError: gc removed one of them already.
    """
    lease = Lease(registry, tuple(versions), expires_after_s, purpose)
    lease.renew()
    return lease


def held_digests(store: Store) -> dict[str, str]:
    """Return the digests that leases hold, with who holds them; an unreadable lease is a reason to stop, not to pass.

    Raises:
        ValueError: a lease cannot be read.
    """
    found: dict[str, str] = {}
    for lease_id, lease in _read(store).items():
        if not _expired(lease):
            holder = f"{lease.get('purpose', 'serve')} {lease.get('host')}:{lease.get('pid')} ({lease_id})"
            found.update(dict.fromkeys(lease["digests"], holder))
    return found


def expired_leases(store: Store) -> list[str]:
    """Return the ids of leases that ran out."""
    return [lease_id for lease_id, lease in _read(store).items() if _expired(lease)]


def _read(store: Store) -> dict[str, dict[str, Any]]:
    leases = {}
    for lease_id, data in store.read_leases().items():
        try:
            lease = json.loads(data)
            datetime.fromisoformat(lease["expires_at"])
            list(lease["digests"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"lease {lease_id!r} cannot be read ({error})") from error
        leases[lease_id] = lease
    return leases


def _expired(lease: dict[str, Any]) -> bool:
    end = datetime.fromisoformat(lease["expires_at"])
    return bool(datetime.now(UTC) > end + timedelta(seconds=_CLOCK_SKEW_S))
