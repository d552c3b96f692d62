"""From a configuration to a new model, and between models and bundle directories."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cilseg.bundle import CHECKPOINT, Architecture, Manifest, Preprocessing, read_manifest
from cilseg.classes import ClassSet
from cilseg.config import ModelConfig
from cilseg.errors import ArtifactError, InputError
from cilseg.models.backbone import load_weights, normalisation_of
from cilseg.models.segmenter import SegmentationModel


def new_model(config: ModelConfig, class_set: ClassSet, *, seed: int) -> SegmentationModel:
    """Build the network of a base step; random parts are drawn from ``seed``.

    Raises:
        InputError: unknown backbone or stride, or only one of ``input_mean`` and ``input_std`` given.
        NotFoundError, ArtifactError: weights missing or damaged.
    """
    if (config.input_mean is None) != (config.input_std is None):
        raise InputError("Give both model.input_mean and model.input_std, or neither.")
    mean, std = normalisation_of(config.backbone)
    preprocessing = Preprocessing(
        mean=config.input_mean or mean, std=config.input_std or std, short_side_px=config.short_side_px
    )
    architecture = Architecture(
        backbone=config.backbone,
        output_stride=config.output_stride,
        head_channels=config.head_channels,
        head_dilations=config.head_dilations,
        classes_per_step=class_set.sizes,
        classifier=config.classifier,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SegmentationModel(architecture, preprocessing)
        load_weights(model.backbone, config.weights)
    return model


def save_weights(model: SegmentationModel, directory: Path) -> None:
    """Write ``checkpoint.safetensors`` of a bundle directory."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, directory / CHECKPOINT)


def load_model(directory: Path, manifest: Manifest | None = None) -> SegmentationModel:
    """Build the model of a bundle directory in evaluation mode.

    Raises:
        NotFoundError: no manifest there.
        ArtifactError: the checkpoint is missing, truncated, or of another architecture.
    """
    manifest = manifest or read_manifest(directory)
    model = SegmentationModel(manifest.architecture, manifest.preprocessing)
    path = directory / CHECKPOINT
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as exc:
        raise ArtifactError(
            f"Checkpoint {path} cannot be loaded: {str(exc).splitlines()[0]}. The file is damaged or belongs to "
            "another architecture; copy the version again or retrain it."
        ) from exc
    return model.eval()
