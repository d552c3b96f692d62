"""What an exported ONNX file says about itself: ``metadata_props`` written and read.

``cilseg.manifest`` holds one JSON object (:class:`GraphMetadata`); ``names`` holds the class names as the Python
literal ``{0: 'background', ...}`` that many readers of ONNX models know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cilseg.bundle import Manifest, Preprocessing
from cilseg.classes import ClassSet
from cilseg.errors import ArtifactError, CilsegError, NotFoundError
from cilseg_export.limits import Precision

SCHEMA: Final = "cilseg.onnx/1"
MANIFEST_KEY = "cilseg.manifest"
NAMES_KEY = "names"


class GraphMetadata(BaseModel):
    """Classes with their colours, preprocessing, lineage and outputs of an exported graph."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    schema_: Literal["cilseg.onnx/1"] = Field(default=SCHEMA, alias="schema")
    version: str
    """Digest (``sha256:...``) of the version that was exported."""
    parent: str | None
    method: str
    created_at: str
    """When the version was made (not the file: exporting twice gives the same bytes)."""
    classes: list[dict[str, Any]]
    preprocessing: Preprocessing
    outputs: tuple[str, ...]
    precision: Precision = "float32"
    derived_from: str | None = None
    """Hash of the float32 file that a file of lower precision was made from."""
    opset: int
    exporter: str

    @classmethod
    def of_version(
        cls, manifest: Manifest, version_digest: str, *, outputs: tuple[str, ...], opset: int, exporter: str
    ) -> Self:
        """Return the metadata of a graph exported from the version with this manifest."""
        return cls(
            version=version_digest,
            parent=manifest.parent,
            method=manifest.method,
            created_at=manifest.created_at,
            classes=manifest.class_set.to_json(),
            preprocessing=manifest.preprocessing,
            outputs=outputs,
            opset=opset,
            exporter=exporter,
        )

    @property
    def class_set(self) -> ClassSet:
        return ClassSet.from_json(self.classes)

    def to_props(self) -> dict[str, str]:
        """Return the key/value strings for ``metadata_props``."""
        payload = self.model_dump(mode="json", by_alias=True)
        return {
            MANIFEST_KEY: json.dumps(payload, sort_keys=True, ensure_ascii=False),
            NAMES_KEY: repr(dict(enumerate(self.class_set.names))),
        }

    @classmethod
    def from_props(cls, props: Mapping[str, str], *, source: str) -> Self:
        """Read what :meth:`to_props` wrote; ``source`` stands in the messages.

        Raises:
            ArtifactError: no ``cilseg.manifest``, not JSON, another schema, or fields missing.
        """
        advice = "Export it again with: cilseg export"
        if MANIFEST_KEY not in props:
            raise ArtifactError(
                f"{source} was not exported by cilseg: metadata key {MANIFEST_KEY!r} is missing, "
                f"found {sorted(props) or 'none'}. {advice}"
            )
        try:
            metadata = cls.model_validate(json.loads(props[MANIFEST_KEY]))
            ClassSet.from_json(metadata.classes)
        except (ValidationError, ValueError, KeyError, TypeError, CilsegError) as exc:
            raise ArtifactError(
                f"{source}: metadata {MANIFEST_KEY!r} cannot be read: {exc}. It was edited by hand or written by "
                f"another version of cilseg. {advice}"
            ) from exc
        return metadata


def read_metadata(path: Path) -> GraphMetadata:
    """Read the metadata of an exported ONNX file.

    Raises:
        NotFoundError: no such file.
        ArtifactError: not an ONNX file, or not one of ours.
    """
    import onnx

    if not path.is_file():
        raise NotFoundError(f"{path} does not exist. Export the model first: cilseg export")
    try:
        model = onnx.load(path)
    except Exception as exc:  # protobuf has error classes of its own, one per implementation
        raise ArtifactError(
            f"{path} is not an ONNX file or is cut short ({path.stat().st_size} bytes): {exc}. Export it again."
        ) from exc
    return GraphMetadata.from_props({p.key: p.value for p in model.metadata_props}, source=str(path))
