"""What the gate asks for: a policy in a YAML file that can be reviewed, and which of two policies is the laxer one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cilseg.errors import FaultCollector, InputError, NotFoundError, did_you_mean

ANY_CLASS = "*"
"""Stands for every new class in the floors."""
FOLDER = "gate"
"""Subfolder of the presets that holds the policies."""


class GatePolicy(BaseModel):
    """What the gate asks for. Points are percentage points (0 to 100)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tolerance_points: float = Field(default=3.0, gt=0, le=100)
    """An old class may lose less IoU than this."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Error rate of a PROMOTE and of a REJECT."""
    correction: Literal["none", "bonferroni"] = "none"
    """Extra correction of the lower bounds over the old classes; see the top of ``cilseg.evaluate.gate``."""
    resamples: int = Field(default=10_000, ge=100)
    seed: int = 0
    min_images_per_class: int = Field(default=20, ge=2)
    """A class seen on fewer annotated images is undecided, whatever its interval says."""
    new_class_floors: dict[str, float] | None = None
    """New class (or ``*`` for each new class) -> IoU in points that its lower bound has to reach."""
    new_class_ap_floors: dict[str, float] | None = None
    """The same for image-level average precision, for new classes that no mask of the gate set was drawn for."""

    def floor_of(self, name: str) -> float | None:
        """Return the IoU floor of a new class in points."""
        floors = self.new_class_floors or {}
        return floors.get(name, floors.get(ANY_CLASS))

    def ap_floor_of(self, name: str) -> float | None:
        """Return the average-precision floor of a new class in points."""
        floors = self.new_class_ap_floors or {}
        return floors.get(name, floors.get(ANY_CLASS))


def policy_names(configs: Path) -> list[str]:
    """Return the names of the policies that come with the package."""
    return sorted(p.stem for p in (configs / FOLDER).glob("*.yaml"))


def load_policy(policy: str | Path, *, configs: Path) -> GatePolicy:
    """Return the policy of that name (a file in ``configs/gate``) or of a YAML file.

    Args:
        policy: a name such as ``strict``, or a path with a suffix.
        configs: folder of the presets (``cilseg.config.configs_directory()``).

    Raises:
        NotFoundError: no such policy or file.
        InputError: not YAML, unknown keys or wrong values; all of them at once.
    """
    path, known = Path(policy), policy_names(configs)
    if not path.suffix:
        path = configs / FOLDER / f"{policy}.yaml"
        if not path.is_file():
            raise NotFoundError(
                f"Unknown gate policy {str(policy)!r}.{did_you_mean(str(policy), known)} Policies: "
                f"{', '.join(known)}; or give a YAML file."
            )
    if not path.is_file():
        raise NotFoundError(f"Gate policy {path} does not exist. Correct it, or name one of: {', '.join(known)}.")
    try:
        tree: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as exc:
        raise InputError(f"Gate policy {path} is not readable YAML: {exc}") from exc
    if not isinstance(tree, dict):
        raise InputError(f"Gate policy {path} must hold keys such as tolerance_points, got {type(tree).__name__}.")
    try:
        return GatePolicy.model_validate(tree)
    except ValidationError as exc:
        faults = FaultCollector(f"Gate policy {path}")
        for error in exc.errors():
            where = ".".join(str(part) for part in error["loc"])
            if error["type"] == "extra_forbidden":
                faults.add(f"unknown key {where}.{did_you_mean(where, GatePolicy.model_fields)}")
            else:
                faults.add(f"{where}: {error['msg']} (got {error['input']!r})")
        faults.raise_if_any(f"A policy may hold: {', '.join(GatePolicy.model_fields)} (docs/gate.md).")
        raise
