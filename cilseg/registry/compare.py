"""``cilseg diff``: how two versions differ in classes, configuration, data, code and metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cilseg.errors import ArtifactError
from cilseg.registry.records import Version
from cilseg.registry.registry import Registry

EVALUATION = "evaluation"


def difference(registry: Registry, ref_a: str, ref_b: str) -> dict[str, Any]:
    """Return what differs between two versions.

    Keys: ``a``, ``b`` (references); ``classes`` (``added``, ``removed``, ``renamed`` by id, each with its step);
    ``fields``, ``config``, ``data`` and ``environment`` (name -> ``[a, b]``, only what differs, nested names joined by
    dots); ``metrics`` (name -> ``[a, b, b - a]``, per class as ``iou.NAME``; ``None`` where a version has none).

    Raises:
        NotFoundError: no such version.
        ArtifactError: a manifest is damaged.
    """
    a, b = registry.resolve(ref_a), registry.resolve(ref_b)
    one, two = a.manifest, b.manifest
    fields = ("method", "seed", "parent", "created_at", "architecture", "preprocessing", "gate_set")
    plain_one, plain_two = one.model_dump(mode="json"), two.model_dump(mode="json")
    return {
        "a": a.ref,
        "b": b.ref,
        "same_weights": one.files.get("checkpoint.safetensors") == two.files.get("checkpoint.safetensors"),
        "classes": _classes(a, b),
        "fields": _changed({k: plain_one[k] for k in fields}, {k: plain_two[k] for k in fields}),
        "config": _changed(one.config, two.config),
        "data": _changed(one.data, two.data),
        "environment": _changed(one.environment, two.environment),
        "metrics": _metrics(_scores(a), _scores(b)),
    }


def _classes(a: Version, b: Version) -> dict[str, list[dict[str, Any]]]:
    one, two = a.manifest.class_set.entries, b.manifest.class_set.entries
    rows = [{"id": i, "name": e.name, "step": e.step} for i, e in enumerate(two)][len(one) :]
    gone = [{"id": i, "name": e.name, "step": e.step} for i, e in enumerate(one)][len(two) :]
    renamed = [
        {"id": i, "name": [x.name, y.name], "step": [x.step, y.step]}
        for i, (x, y) in enumerate(zip(one, two, strict=False))
        if (x.name, x.step) != (y.name, y.step)
    ]
    return {"added": rows, "removed": gone, "renamed": renamed}


def _scores(version: Version) -> dict[str, float]:
    """Return the figures of the version's evaluation, flat: ``all``, ``iou.cow``, ..."""
    found: dict[str, float] = {}
    for name, attachment in version.store.attachments(version).items():
        if attachment.kind != EVALUATION:
            continue
        try:
            content = json.loads(version.store.attachment(version, name).path.read_bytes())
        except ValueError as error:
            raise ArtifactError(
                f"{attachment.path} is no JSON. Make it again: cilseg validate {version.ref}"
            ) from error
        found |= {k: v for k, v in _flat(content).items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    return found


def _metrics(one: Mapping[str, float], two: Mapping[str, float]) -> dict[str, list[float | None]]:
    names = list(dict.fromkeys([*one, *two]))
    return {
        name: [one.get(name), two.get(name), round(two[name] - one[name], 4) if name in one and name in two else None]
        for name in names
    }


def _changed(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, list[Any]]:
    flat_one, flat_two = _flat(one), _flat(two)
    names = dict.fromkeys([*flat_one, *flat_two])
    return {
        name: [flat_one.get(name), flat_two.get(name)]
        for name in names
        if (name in flat_one, flat_one.get(name)) != (name in flat_two, flat_two.get(name))
    }


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping) and item:
            flat |= _flat(item, f"{name}.")
        else:
            flat[name] = item
    return flat
