"""The product's one story: base or tags -> train -> evaluate -> gate -> register -> export."""

from cilseg.update.base import BaseRequest, train_version
from cilseg.update.export import ExportResult, export_version
from cilseg.update.judge import Judgement, validate_version
from cilseg.update.material import UpdateRequest
from cilseg.update.step import UpdateResult, update_version

__all__ = [
    "BaseRequest",
    "ExportResult",
    "Judgement",
    "UpdateRequest",
    "UpdateResult",
    "export_version",
    "train_version",
    "update_version",
    "validate_version",
]
