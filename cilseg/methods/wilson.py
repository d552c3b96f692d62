"""WILSON: new classes from image tags (Cermelli et al., CVPR 2022; released code, spec sections A2 to A4)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from cilseg.config import OptimiserConfig
from cilseg.errors import InputError
from cilseg.losses.pseudo_labels import mask_by_tags
from cilseg.losses.wilson import wilson_losses
from cilseg.methods.base import Method, Options, StepContext, _group
from cilseg.models.head import Localizer
from cilseg.train.dataset import Batch


class WilsonLossWeights(Options):
    """Factors of WILSON's five losses, all 1 in the paper; ``loc: 0`` is the row without the old model's prior."""

    cls: float = Field(default=1.0, ge=0)
    loc: float = Field(default=1.0, ge=0)
    enc: float = Field(default=1.0, ge=0)
    seg: float = Field(default=1.0, ge=0)
    sss: float = Field(default=1.0, ge=0)


class WilsonOptions(Options):
    """WILSON (CVPR 2022). Defaults are the released code; each option that departs from it says what it changes."""

    alpha: float = Field(default=0.5, ge=0, le=1)
    """Weight of the one-hot part of the soft pseudo-labels."""
    warm_up_epochs: int = Field(default=5, ge=0)
    """Epochs in which only classification, localizer prior and encoder distillation are active."""
    background_mix: float | None = Field(default=None, ge=0, le=1)
    """None: background target is min(old, pseudo); k: (1-k) old + k pseudo."""
    use_old_tags: bool = True
    """Use tags of old classes where the tag list states them (paper, table 5)."""
    ngwp_epsilon: float = Field(default=1.0, gt=0)
    """Added to the weight sum of nGWP; the paper calls it a small constant, the code has 1."""
    encoder_sum: bool = False
    """Sum the encoder distillation over channels (paper, eq. A4) instead of averaging (code)."""
    localizer_only_warm_up: bool = False
    """Train only the localizer in the warm-up, as the paper says; the code trains the backbone too."""
    renormalise: bool = False
    """Renormalise the pseudo-labels after masking by tags."""
    pamr: bool = True
    """Refine the localizer's own pseudo-labels by PAMR."""
    suppress_claimed: bool = False
    """Lower the targets of old classes where a new class is claimed; not in the paper (docs/methods.md)."""
    prior: Literal["learned", "fixed", "none"] = "learned"
    """What the localizer's old channels are (table 4): learned from the old model's scores, these scores themselves, or
    a constant zero (our reading of "constant for old classes")."""
    prior_scores: Literal["sigmoid", "softmax"] = "sigmoid"
    """Scores that the learned prior copies (table 4)."""
    loss_weights: WilsonLossWeights = WilsonLossWeights()


class Wilson(Method):
    """A localizer trained on tags supervises the new channels; the old model supervises the old ones."""

    name = "wilson"
    supervision = "tags"
    idea = "localizer from tags + soft pseudo-labels + the old model's scores"
    paper = "Cermelli et al., CVPR 2022"
    options_type = WilsonOptions
    options: WilsonOptions
    refines = True

    def __init__(self, context: StepContext) -> None:
        super().__init__(context)
        if self.options.prior != "learned" and self.model.n_classes == self.n_old:
            raise InputError(
                f"With update.wilson.prior={self.options.prior} the localizer has maps of new classes alone, and this "
                "step brings none. Use prior=learned, or tag a new class."
            )
        n_maps = self.model.n_classes - (0 if self.options.prior == "learned" else self.n_old)
        self.localizer = Localizer(self.model.backbone.channels, n_classes=n_maps)

    @property
    def warm_up_epochs(self) -> int:
        return self.options.warm_up_epochs

    def parameter_groups(self, cfg: OptimiserConfig) -> list[dict[str, Any]]:
        return [*super().parameter_groups(cfg), _group(self.localizer.parameters(), cfg.lr_localizer)]

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        opt = self.options
        warm_up = epoch < opt.warm_up_epochs
        body, old_body = self.two_bodies(batch)
        if warm_up and opt.localizer_only_warm_up:
            body = body.detach()
        with torch.no_grad():
            old_logits = self.old_model.classify(old_body)
            self.localizer.eval()
            loc_eval = self._maps(body.detach(), old_logits)
            self.localizer.train()
        losses = wilson_losses(
            loc_eval=loc_eval,
            loc_raw=self._maps(body, old_logits),
            seg_logits=self.model.classify(body),
            old_logits=old_logits,
            body=body,
            old_body=old_body,
            tags=self._tags(batch["tags"]),
            n_old=self.n_old,
            image=batch["image"].float() / self.model.std,
            alpha=opt.alpha,
            background_mix=opt.background_mix,
            suppress_claimed=opt.suppress_claimed,
            warm_up=warm_up,
            n_tag_columns=self.model.n_classes - 1 if opt.use_old_tags else None,
            encoder_reduction="channel_sum" if opt.encoder_sum else "mean",
            pamr_iterations=10 if opt.pamr else 0,
            renormalise=opt.renormalise,
            ngwp_epsilon=opt.ngwp_epsilon,
            prior_scores=opt.prior_scores,
        )
        return {key: getattr(opt.loss_weights, key) * value for key, value in losses.items()}

    @torch.no_grad()
    def class_scores(self, image: Tensor, tags: Tensor, *, localizer_share: float) -> Tensor:
        """Return what both heads say of images (B, 3, H, W) on 0-255 given their tags, (B, C, h, w), sum 1 per pixel.

        Args:
            tags: (B, n_fg) 1 present, 0 absent, -1 unknown; unknown old classes may be there, unknown new ones not.
            localizer_share: weight of the localizer's soft-max; the rest is that of the segmentation head's sigmoids.
        """
        body = self.model.backbone(self.model.normalise(image))
        known = tags.clone()
        known[:, : self.n_old - 1] = torch.where(known[:, : self.n_old - 1] == 0, 0.0, 1.0)
        old_logits = self.old_model.classify(self.old_model.backbone(self.model.normalise(image)))
        maps = mask_by_tags(self._maps(body, old_logits).float().softmax(dim=1), known)
        head = mask_by_tags(self.model.classify(body).float().sigmoid(), known)
        maps, head = (m / m.sum(dim=1, keepdim=True).clamp(min=1e-6) for m in (maps, head))
        return localizer_share * maps + (1.0 - localizer_share) * head

    def _maps(self, body: Tensor, old_logits: Tensor) -> Tensor:
        """Return the localizer's maps (B, C, h, w), old channels as the option ``prior`` says."""
        maps: Tensor = self.localizer(body)
        if self.options.prior == "learned":
            return maps
        old = old_logits if self.options.prior == "fixed" else torch.zeros_like(old_logits)
        return torch.cat([old.to(maps.dtype), maps], dim=1)

    def _tags(self, states: Tensor) -> Tensor:
        """Return tag states ``(B, n_fg)`` as floats; without ``use_old_tags`` the old columns are unknown."""
        tags = states.float()
        if not self.options.use_old_tags:
            tags[:, : self.n_old - 1] = -1
        return tags
