"""How far an artifact of each precision may be from the trained network, from a YAML file that can be reviewed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cilseg.errors import FaultCollector, InputError, NotFoundError, did_you_mean

Precision = Literal["float32", "float16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
FOLDER = "parity"
"""Subfolder of the presets that holds the limits."""


class ParityLimits(BaseModel):
    """What one precision is allowed; the defaults are those of float32. Shares are 0 to 1, points 0 to 100."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tie_margin: float = Field(default=1e-3, ge=0)
    """A pixel is a tie when its two best logits differ by less than this share of the image's logit range."""
    max_tied: float = Field(default=1e-3, ge=0)
    """Share of an image's pixels that may be ties with another label."""
    max_differing: float = Field(default=0.0, ge=0)
    """Share of an image's pixels that may have another label outside ties."""
    min_agreement: float = Field(default=1.0, ge=0, le=1)
    """Share of equal labels over all comparisons, ties left out."""
    max_logit_error: float = Field(default=1e-3, ge=0)
    """Largest error of a logit, as share of the image's logit range (checked when the artifact returns logits)."""
    max_confidence_error: float = Field(default=1e-3, ge=0)
    """Largest error of a confidence, absolute (checked when the artifact returns confidences)."""
    max_miou_drop: float | None = Field(default=None, ge=0)
    """Points of mIoU on the annotated images that may be lost; None: not asked for."""
    max_class_drop: float | None = Field(default=None, ge=0)
    """Points of IoU that any class may lose there; None: not asked for."""
    min_speedup: float | None = Field(default=None, gt=0)
    """How many times as fast as float32 the file should be on this machine; falling short is a warning."""

    @property
    def asks_for_masks(self) -> bool:
        return self.max_miou_drop is not None or self.max_class_drop is not None

    @classmethod
    def checked(cls, section: Any, where: str, faults: FaultCollector) -> Self | None:
        """Return the limits in ``section``; faults go to ``faults``, told by their key under ``where``."""
        try:
            return cls.model_validate(section)
        except ValidationError as exc:
            for error in exc.errors():
                key = ".".join(str(part) for part in error["loc"])
                if error["type"] == "extra_forbidden":
                    faults.add(f"unknown key {where}.{key}.{did_you_mean(key, cls.model_fields)}")
                else:
                    faults.add(f"{where}.{key}: {error['msg']} (got {error['input']!r})")
            return None


def limit_names(configs: Path) -> list[str]:
    """Return the names of the limits that come with the package."""
    return sorted(p.stem for p in (configs / FOLDER).glob("*.yaml"))


def load_limits(limits: str | Path, *, configs: Path) -> dict[Precision, ParityLimits]:
    """Return the limits of that name (a file in ``configs/parity``) or of a YAML file, for every precision.

    Args:
        limits: a name such as ``default``, or a path with a suffix.
        configs: folder of the presets (``cilseg.config.configs_directory()``).

    Raises:
        NotFoundError: no such limits or file.
        InputError: not YAML, a precision missing, unknown keys or wrong values; all of them at once.
    """
    path, known = Path(limits), limit_names(configs)
    if not path.suffix:
        path = configs / FOLDER / f"{limits}.yaml"
        if not path.is_file():
            raise NotFoundError(
                f"Unknown parity limits {str(limits)!r}.{did_you_mean(str(limits), known)} Limits: "
                f"{', '.join(known)}; or give a YAML file."
            )
    if not path.is_file():
        raise NotFoundError(f"Parity limits {path} do not exist. Correct the path, or name one of: {', '.join(known)}.")
    try:
        tree: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as exc:
        raise InputError(f"Parity limits {path} are not readable YAML: {exc}") from exc
    faults = FaultCollector(f"Parity limits {path}")
    sections = tree if isinstance(tree, dict) else {}
    found: dict[Precision, ParityLimits] = {}
    for name in sections:
        if name not in PRECISIONS:
            faults.add(f"unknown precision {name!r}.{did_you_mean(str(name), PRECISIONS)}")
    for precision in PRECISIONS:
        if precision not in sections:
            faults.add(f"no section {precision}")
        elif (checked := ParityLimits.checked(sections[precision], precision, faults)) is not None:
            found[precision] = checked
    faults.raise_if_any(f"A file has one section for each of {', '.join(PRECISIONS)} (docs/export.md).")
    return found
