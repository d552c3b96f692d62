"""The model registry: immutable versions, aliases that move in one transaction, and the folder that holds the files.

Importing this package loads neither torch nor SQLAlchemy; the database layer is imported when a registry is used.
"""

from cilseg.registry.records import AliasEvent, Attachment, Version
from cilseg.registry.registry import Registry

__all__ = ["AliasEvent", "Attachment", "Registry", "Version"]
