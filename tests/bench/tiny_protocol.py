"""A protocol small enough for tests: three classes of generated scenes, a network of a few thousand weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cilseg.data.scenes import SCENE_CLASSES, generate_scenes

CLASSES = list(SCENE_CLASSES[:3])


def make_scenes(root: Path) -> Path:
    """24 training and 6 judged scenes of 64 px."""
    return generate_scenes(root, train=24, val=6, size_px=64, seed=3, classes=CLASSES)


def tree(root: Path, **changes: Any) -> dict[str, Any]:
    """The protocol as YAML would give it: two classes from masks, then one from masks or tags."""
    rates = dict.fromkeys(("lr_body", "lr_head", "lr_classifier"), 0.05)
    small = {"epochs": 1, "batch_size": 4, "crop_px": 64}
    return {
        "title": "Tiny",
        "data": {"sources": {"tiny": {"root": str(root)}}, "withheld": 3},
        "classes": CLASSES,
        "step_sizes": [2, 1],
        "rules": ["overlap"],
        "seeds": [0],
        "model": {"backbone": "test_resnet", "output_stride": 8, "head_channels": 16, "head_dilations": [1, 2]},
        "base": [{**small, **rates}],
        "step": {**small, **rates},
        "methods": {
            "ft": {"label": "FT"},
            "tags": {
                "method": "wilson",
                "label": "WILSON",
                "negatives": True,
                "options": {"wilson": {"warm_up_epochs": 1, "use_old_tags": False}},
            },
        },
        "runtime": {"device": "cpu", "precision": "32-true"},
        **changes,
    }


def write_protocol(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
