"""timm backbones behind one small adapter: last feature map at a chosen output stride, freezable from the bottom."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

import cilseg.models.torchvision_guard  # noqa: F401  must come before timm
from cilseg.errors import ArtifactError, InputError, NotFoundError, did_you_mean
from cilseg.models.dilated import use_subgrid_convolutions

import timm  # isort: skip  (after the guard)

_LOGGER = logging.getLogger(__name__)
OUTPUT_STRIDES = (4, 8, 16, 32)
_STAGE_NAME = re.compile(r"(layer|stages?_?|blocks?_?|s)\d")


class Backbone(nn.Module):
    """A timm network without its classifier.

    ``forward`` maps normalised images ``(B, 3, H, W)`` to the body features ``(B, channels, H/s, W/s)`` with
    ``s = output_stride``. The network is seen as a sequence of parts (stem, then stages): ``prefix`` runs the first
    ``frozen_parts`` of them, ``suffix`` the rest, so that two models with the same frozen prefix can share it.

    Args:
        name: timm model name, for example ``mobilenetv2_100``.
        output_stride: 4, 8, 16 or 32, as far as the network supports it.

    Raises:
        InputError: unknown name, or a network that has no feature maps at this stride.
    """

    def __init__(self, name: str, *, output_stride: int = 16) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise InputError(
                f"Unknown backbone {name!r}.{did_you_mean(name, timm.list_models())} See timm.list_models()."
            )
        if output_stride not in OUTPUT_STRIDES:
            raise InputError(f"output_stride must be one of {OUTPUT_STRIDES}, got {output_stride}.")
        try:
            self.net: nn.Module = timm.create_model(
                name, features_only=True, output_stride=output_stride, pretrained=False
            )
        except (NotImplementedError, RuntimeError, AssertionError, TypeError) as exc:
            raise InputError(
                f"Backbone {name!r} gives no feature maps at output stride {output_stride}: {exc}. "
                "Choose a convolutional network such as resnet18 or mobilenetv2_100, or another stride."
            ) from exc
        info: Any = self.net.feature_info
        if info.reduction()[-1] != output_stride:
            raise InputError(
                f"Backbone {name!r} ends at stride {info.reduction()[-1]}, not {output_stride}; choose that stride."
            )
        self.name = name
        self.output_stride = output_stride
        self.channels: int = info.channels()[-1]
        self.level_channels: tuple[int, ...] = tuple(info.channels())  # of stage_features
        self.level_strides: tuple[int, ...] = tuple(info.reduction())
        self.frozen_parts = 0
        use_subgrid_convolutions(self.net)

    def parts(self) -> list[nn.Module]:
        """The network as a sequence of modules, or an empty list where it is no sequence."""
        return [module for _, module in self._named_parts()]

    def _named_parts(self) -> list[tuple[str, nn.Module]]:
        net: Any = self.net
        if hasattr(net, "conv_stem") and hasattr(net, "blocks"):  # EfficientNet, MobileNet families
            stages = [(f"stages_{i}", block) for i, block in enumerate(net.blocks)]
            return [("stem", nn.Sequential(net.conv_stem, net.bn1)), *stages]
        if type(self.net).__name__ == "FeatureListNet":  # ResNet and most others
            return list(self.net.named_children())
        return []

    def _level_parts(self) -> list[int]:
        """Indices into ``parts`` of the feature levels that timm lists; empty where the network is no sequence."""
        names = [name for name, _ in self._named_parts()]
        info: Any = self.net.feature_info
        levels = info.get_dicts() if names else []
        return [d["stage"] if "stage" in d else names.index(d["module"].replace(".", "_")) for d in levels]

    def freeze(self, stages: int) -> None:
        """Freeze the stem and the first ``stages`` stages: no gradient, norm layers keep their statistics.

        ``-1`` freezes nothing, ``0`` the stem alone.

        Raises:
            InputError: the network is no plain sequence, or has fewer stages.
        """
        for parameter in self.parameters():
            parameter.requires_grad_(True)
        self.frozen_parts = 0
        if stages < 0:
            return
        named = self._named_parts()
        starts = [i for i, (name, _) in enumerate(named) if _STAGE_NAME.match(name)]
        if stages > len(starts) or not starts:
            raise InputError(f"Backbone {self.name!r} has {len(starts)} stages that can be frozen, got {stages}.")
        self.frozen_parts = [*starts, len(named)][stages]
        for _, part in named[: self.frozen_parts]:
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        if self.frozen_parts:
            for part in self.parts()[: self.frozen_parts]:
                part.eval()
        return self

    def prefix(self, x: Tensor) -> Tensor:
        """Run the frozen parts without gradient; the identity when nothing is frozen."""
        with torch.no_grad():
            for part in self.parts()[: self.frozen_parts]:
                x = part(x)
        return x

    def suffix(self, x: Tensor) -> Tensor:
        """Run what ``prefix`` left."""
        if not self.frozen_parts:
            features: list[Tensor] = self.net(x)
            return features[-1]
        for part in self.parts()[self.frozen_parts :]:
            x = part(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.suffix(self.prefix(x))

    def stage_features(self, x: Tensor) -> list[Tensor]:
        """Map normalised images ``(B, 3, H, W)`` to the features of every level; the last are the body features.

        Level i has ``level_channels[i]`` channels at stride ``level_strides[i]`` (where dilation replaces a stride, two
        levels share one). Frozen parts run without gradient.
        """
        levels = self._level_parts()
        if not levels:
            return list(self.net(x))
        features = []
        for index, part in enumerate(self.parts()):
            with torch.set_grad_enabled(torch.is_grad_enabled() and index >= self.frozen_parts):
                x = part(x)
            if index in levels:
                features.append(x)
        return features

    def pod_taps(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Map normalised images ``(B, 3, H, W)`` to what pooled distillation compares, and the body features.

        One tap per level whose stage is not frozen: the residual sum before the last activation where the stage ends
        in one (ResNet), else the stage's output (MobileNet's linear bottleneck). Source: PLOP, CVPR 2021, section 3.2.

        Raises:
            InputError: the network is no plain sequence.
        """
        levels = self._level_parts()
        if not levels:
            raise InputError(
                f"Backbone {self.name!r} is no sequence of stages, so that they cannot be compared one by one; choose "
                "a network such as resnet18 or mobilenetv2_100."
            )
        taps = []
        x = self.prefix(x)
        for index, (name, part) in enumerate(self._named_parts()):
            if index < self.frozen_parts:
                continue
            if index in levels and _STAGE_NAME.match(name):
                tap, x = _run_and_tap(part, x)
                taps.append(tap)
            else:
                x = part(x)
        return taps, x


def _run_and_tap(stage: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the input of the activation that ends ``stage`` (its output where none does), and its output."""
    block = stage
    while children := list(block.children()):
        if any(hasattr(block, name) for name in ("act2", "act3")):
            break
        block = children[-1]
    activation = getattr(block, "act3", None) or getattr(block, "act2", None)
    if not isinstance(activation, nn.Module):
        out = stage(x)
        return out, out
    passed: list[Tensor] = []

    def before(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        passed[:] = [inputs[0]]
        return (inputs[0].clone(),)  # an activation in place must not spoil the tap

    def after(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        passed.append(output)

    hooks = (activation.register_forward_pre_hook(before), activation.register_forward_hook(after))
    try:
        out = stage(x)
    finally:
        for hook in hooks:
            hook.remove()
    ends_in_it = len(passed) == 2 and passed[1] is out
    return (passed[0] if ends_in_it else out), out


def load_weights(backbone: Backbone, weights: str | None) -> str:
    """Load ``weights`` (``None``/``"none"``, ``"hub"``, or a ``.safetensors`` file in timm names) into ``backbone``.

    Returns:
        A description for the manifest: ``"none"``, ``"hub:<tag>"``, or ``"<file name>"``.

    Raises:
        NotFoundError: the file does not exist.
        ArtifactError: the file is damaged or does not fit the network.
        InputError: no hub weights for this network, or the hub cannot be reached.
    """
    if weights is None or weights == "none":
        return "none"
    if weights == "hub":
        if not timm.is_model_pretrained(backbone.name):
            raise InputError(
                f"The hub has no weights for {backbone.name!r}. Give a .safetensors file in timm names, or train from "
                "scratch with weights: none."
            )
        try:
            source = timm.create_model(backbone.name, pretrained=True)
        except Exception as exc:  # the hub client has no common base class
            raise InputError(
                f"Hub weights for {backbone.name!r} could not be loaded: {exc}. Download them once as .safetensors and "
                "pass that file, or train from scratch with weights: none."
            ) from exc
        _load_state(backbone, source.state_dict(), f"the hub weights of {backbone.name}")
        return f"hub:{source.pretrained_cfg.get('tag', '')}"
    path = Path(weights)
    if not path.is_file():
        raise NotFoundError(f"Weights file {path} does not exist. Give a .safetensors file, 'hub' or 'none'.")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as exc:
        raise ArtifactError(f"{path} is no readable .safetensors file ({exc}). Download or copy it again.") from exc
    _load_state(backbone, state, str(path))
    return path.name


def _load_state(backbone: Backbone, state: dict[str, Tensor], what: str) -> None:
    own = backbone.net.state_dict()
    # Cut into stages, some networks join the names of nested parts: stem_0 for stem.0.
    by_joined_name = {key.replace(".", "_"): value for key, value in state.items()}
    state = {key: by_joined_name[joined] for key in own if (joined := key.replace(".", "_")) in by_joined_name}
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    wrong = [key for key in own if key in state and state[key].shape != own[key].shape]
    if missing or wrong:
        raise ArtifactError(
            f"{what} does not fit backbone {backbone.name!r}: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(wrong)} of another shape {wrong[:3]}. Use the weights of this timm model."
        )
    backbone.net.load_state_dict(state, strict=False)


def normalisation_of(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return the input ``(mean, std)`` on the 0-255 scale that timm records for ``name``'s own weights."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    mean = config.mean if config else (0.485, 0.456, 0.406)
    std = config.std if config else (0.229, 0.224, 0.225)
    red, green, blue = (round(255 * v, 4) for v in mean)
    red_s, green_s, blue_s = (round(255 * v, 4) for v in std)
    return (red, green, blue), (red_s, green_s, blue_s)
