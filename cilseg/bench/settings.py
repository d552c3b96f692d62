"""What a protocol does with void, with classes that a step does not teach, and with the judged images.

The published code bases differ in all of it; a preset per code base reproduces each. What they share and this module
does not repeat: a step is chosen by the whole mask of an image, and the confusion matrix is one for the whole set.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cilseg.errors import did_you_mean


class Settings(BaseModel):
    """Settings of a protocol; the defaults are the preset ``cilseg``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train_void: Literal["void", "background"] = "void"
    """Void pixels of training masks: ignored, or background."""
    train_old: Literal["background", "void", "labelled"] = "background"
    """Classes of earlier steps in the masks of a step; ``labelled``: they keep their label. Joint always has them."""
    train_future: Literal["background", "void"] = "background"
    """Classes of later steps in the masks of a step."""
    test_unseen: Literal["background", "void", "error"] = "error"
    """Classes of later steps in the truth; ``error``: truth holds every class, whatever is answered there is wrong."""
    eval_short_side_px: int | None = Field(default=None, ge=16)
    """Resize judged images and masks (nearest) to this shorter side; None: their own size."""
    eval_crop_px: int | None = Field(default=None, ge=16)
    """Judge only the central square of this side; None: the whole image."""
    test_images: Literal["all", "seen"] = "all"
    """Judge every image of the list, or those with at least one class seen so far."""
    absent_class: Literal["left_out", "zero_if_predicted", "zero"] = "left_out"
    """A class that the truth lacks: no score; 0 when it was predicted (RECALL); always 0 (PIFS)."""

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, given: Any) -> Any:
        """Accept the name of a preset, or ``{preset: NAME, ...}`` with changes."""
        if isinstance(given, str):
            given = {"preset": given}
        if not isinstance(given, Mapping) or "preset" not in given:
            return given
        name = given["preset"]
        if name not in SETTINGS:
            raise ValueError(
                f"unknown preset {name!r}.{did_you_mean(str(name), SETTINGS)} Presets: {', '.join(SETTINGS)}"
            )
        return {**SETTINGS[name], **{k: v for k, v in given.items() if k != "preset"}}

    @model_validator(mode="after")
    def _crop_fits(self) -> Settings:
        if self.eval_crop_px and (self.eval_short_side_px is None or self.eval_crop_px > self.eval_short_side_px):
            raise ValueError("eval_crop_px needs an eval_short_side_px at least as large")
        return self


_RESIZED = {"eval_short_side_px": 512, "eval_crop_px": 512}
_MIB = {"train_void": "background", "test_unseen": "void", "test_images": "seen", **_RESIZED}

SETTINGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "cilseg": {},
        "mib": _MIB,
        "sdr": _MIB,
        "plop": {"test_unseen": "background", "test_images": "seen", **_RESIZED},
        "wilson": {"train_void": "background", "test_unseen": "background", **_RESIZED},
        # whole images at their own size; void of the new images is background before the old model fills it in
        "recall": {"train_void": "background", "absent_class": "zero_if_predicted"},
        # a shot keeps the labels of old classes and hides those of later ones
        "pifs": {"train_old": "labelled", "train_future": "void", "test_unseen": "void", "absent_class": "zero"},
    }
)
"""Preset name -> what differs from the defaults. Sources: the released code of each method."""
