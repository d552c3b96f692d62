"""The two bounds of every table: plain fine-tuning and joint training."""

from __future__ import annotations

from cilseg.methods.supervised import Supervised


class FineTune(Supervised):
    """Train on the new images with masks of the new classes only; everything else there is background."""

    name = "ft"
    idea = "lower bound: masks of the new classes, nothing protects the old ones"
    paper = "baseline of Cermelli et al., CVPR 2020"


class Joint(Supervised):
    """Train on all images with masks of all classes; what continual learning gives up."""

    name = "joint"
    sees_old_masks = True
    idea = "upper bound: all images, masks of all classes, starting from the base model"
    paper = "baseline of Cermelli et al., CVPR 2020"
