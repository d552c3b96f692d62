"""Where a registry is: a folder with its database inside, or a shared database by URL and a store for the files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cilseg.errors import InputError

DEFAULT_FOLDER = "cilseg-registry"
VARIABLE = "CILSEG_REGISTRY"
STORE_VARIABLE = "CILSEG_STORE"
_DATABASES = ("postgresql", "postgres", "postgresql+psycopg")
_FORMS = "a folder, or postgresql://USER@HOST/DATABASE"


@dataclass(frozen=True)
class Address:
    """A registry's address. Exactly one of ``folder`` and ``database_url`` is set.

    ``store`` is the folder or URL of the artifacts where it was given; else the database says, or it is ``folder``.
    """

    folder: Path | None
    database_url: str | None
    store: str | None

    @property
    def url(self) -> str:
        """What to give as ``--registry`` to get here again, without the password."""
        return str(self.folder) if self.folder is not None else without_password(self.database_url or "")


def parse_address(url: str | Path | None, *, store: str | Path | None = None) -> Address:
    """Read ``url`` (default: ``CILSEG_REGISTRY``, then ``./cilseg-registry``) and ``store``.

    ``CILSEG_STORE``, the default of ``store``, is heeded for database URLs only, so that it cannot split a registry in
    a folder.

    Raises:
        InputError: no known form, or a file where a folder is expected.
    """
    where = url if url is not None else os.environ.get(VARIABLE) or DEFAULT_FOLDER
    if isinstance(where, str) and "://" in where:
        scheme = where.partition("://")[0]
        if scheme in _DATABASES:
            rest = where.partition("://")[2]
            chosen = store if store is not None else os.environ.get(STORE_VARIABLE)
            return Address(None, f"postgresql+psycopg://{rest}", str(chosen) if chosen else None)
        hint = (
            f" {scheme}:// can hold the files of a registry: cilseg migrate --store {where} --registry ..."
            if scheme in ("s3", "s3a", "gs", "gcs", "az", "abfs", "file")
            else ""
        )
        raise InputError(f"Registry {without_password(where)!r}: give {_FORMS}.{hint}")
    root = Path(where).expanduser()
    if root.exists() and not root.is_dir():
        raise InputError(f"Registry {root} is a file. Give {_FORMS}, with --registry or {VARIABLE}.")
    return Address(root.absolute(), None, str(store) if store is not None else None)


def without_password(url: str) -> str:
    """Return ``url`` as it may be printed: a password becomes ``***``, the driver's name is left out."""
    scheme, mark, rest = url.partition("://")
    if not mark:
        return url
    login, at, tail = rest.rpartition("@")
    user, colon, _ = login.partition(":")
    return f"{scheme.partition('+')[0]}://{user}{':***' if colon else ''}{at}{tail}"
