"""Configuration: pydantic models of the YAML presets, overrides on the command line, all faults at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from cilseg.errors import FaultCollector, InputError, NotFoundError, did_you_mean
from cilseg.evaluate.policy import GatePolicy

_PACKAGED = Path(__file__).parent / "configs"
_CHECKOUT = Path(__file__).parent.parent / "configs"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(_Section):
    """The network of a base model; later steps inherit it."""

    backbone: str = "mobilenetv2_100"
    output_stride: int = 16
    head_channels: int = Field(default=256, ge=4)
    head_dilations: tuple[Annotated[int, Field(ge=1)], ...] = (6, 12, 18)
    classifier: Literal["linear", "cosine"] = "linear"
    """``cosine``: scores are scaled cosines, trained with soft-max cross-entropy; what ``pifs`` starts from."""
    weights: str = "none"
    """``none``, ``hub``, or a ``.safetensors`` file in timm's parameter names."""
    input_mean: tuple[float, float, float] | None = None
    """On the 0-255 scale; default: what timm records for the backbone."""
    input_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    short_side_px: int | None = Field(default=None, ge=16, le=8192)
    """Resize images so that the shorter side has this length; default: leave them."""


class OptimiserConfig(_Section):
    """SGD with Nesterov momentum, a learning rate per part of the network, and the loop around it."""

    epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=24, ge=1)
    crop_px: int = Field(default=512, ge=32)
    lr_body: float = Field(default=0.01, ge=0)
    lr_head: float = Field(default=0.01, ge=0)
    lr_classifier: float = Field(default=0.01, ge=0)
    """Classifiers of earlier steps (of the only step in base training)."""
    lr_new_classifier: float = Field(default=0.01, ge=0)
    lr_localizer: float = Field(default=0.01, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0)
    schedule: Literal["poly", "warmup"] = "poly"
    power: float = Field(default=0.9, ge=0)
    clip_norm: float | None = Field(default=10.0, gt=0)
    """Gradients are scaled down to this global norm; ``null`` switches clipping off."""
    frozen_stages: int = Field(default=-1, ge=-1)
    """-1: nothing; 0: the stem; k: the stem and k stages (no gradient, norm statistics kept)."""
    freeze_norm: bool = False
    crop_scale: tuple[PositiveFloat, PositiveFloat] = (0.5, 2.0)
    """Area of the random crop relative to the image; draws larger than the image are drawn again."""
    color_jitter: float = Field(default=0.0, ge=0, le=1)


class TrainConfig(_Section):
    """Base training (``cilseg train``)."""

    optimiser: OptimiserConfig = OptimiserConfig()
    memory: int = Field(default=0, ge=0)
    """Images to store with the version, masks included, for later steps to train on again (``--memory``)."""


OptionsT = TypeVar("OptionsT", bound=BaseModel)


class UpdateConfig(_Section):
    """An incremental step (``cilseg update``).

    Beside these keys it may hold one section per method, ``update.tags`` for example; the method's file says what
    stands in it (``Method.options_type``), and :func:`load_config` checks it on request.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    method: str = "tags"
    optimiser: OptimiserConfig = OptimiserConfig(epochs=40, lr_body=0.001, schedule="warmup")

    def options(self, name: str, kind: type[OptionsT]) -> OptionsT:
        """Return the section of method ``name``; what it leaves out has its default.

        Raises:
            InputError: unknown keys or wrong values, all of them.
        """
        faults = FaultCollector(f"Options of method {name!r}")
        section = (self.model_extra or {}).get(name, {})
        try:
            return kind.model_validate(section)
        except ValidationError as exc:
            for error in exc.errors():
                faults.add(_describe(error, kind, f"update.{name}"))
        faults.raise_if_any("docs/configuration.md lists every key.")
        raise AssertionError("unreachable")


class RuntimeConfig(_Section):
    """Where and how a run executes; none of it changes what is learned on the CPU in float32."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    devices: int = Field(default=1, ge=1)
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    workers: int = Field(default=0, ge=0)
    """Processes that decode and crop images; 0: the training process does it."""
    checkpoint_every_s: float = Field(default=60.0, ge=0)
    """Seconds between checkpoints inside an epoch; one is written at the end of each epoch in any case."""


class Config(_Section):
    """One complete, runnable choice: what a file in ``configs/`` holds."""

    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    update: UpdateConfig = UpdateConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    gate: GatePolicy = GatePolicy()
    """What the gate asks of a candidate; ``--policy`` replaces it (docs/gate.md)."""
    seed: int = 0


def configs_directory() -> Path:
    """Return the folder of the presets: inside the installed package, or the checkout's ``configs/``."""
    return _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT


def preset_names() -> list[str]:
    return sorted(p.stem for p in configs_directory().glob("*.yaml"))


def load_config(
    preset: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    base: dict[str, Any] | None = None,
    check_methods: bool = False,
) -> Config:
    """Return the configuration of ``preset`` (a name in ``configs/`` or a YAML file) with ``a.b=value`` overrides.

    Args:
        base: a resolved configuration to start from (the parent version's) when no preset is given.
        check_methods: check the sections of methods too, which loads torch; else a method checks its own when it is
            built.

    Raises:
        NotFoundError: no such preset or file.
        InputError: YAML that does not parse, unknown keys, wrong values, malformed overrides; all of them at once.
    """
    tree: dict[str, Any] = dict(base or {})
    if preset is not None:
        tree = _read(preset)
    faults = FaultCollector(f"Configuration {preset or ''}".strip())
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign or not key:
            faults.add(f"override {text!r} is not of the form section.key=value")
            continue
        try:
            _set(tree, key.split("."), yaml.safe_load(value))
        except yaml.YAMLError as exc:
            faults.add(f"override {text!r} holds no readable YAML value ({str(exc).splitlines()[0]})")
    try:
        config = Config.model_validate(tree)
    except ValidationError as exc:
        for error in exc.errors():
            faults.add(_describe(error, Config))
    if check_methods and isinstance(update := tree.get("update"), dict):
        for key in update.keys() - UpdateConfig.model_fields.keys():
            check_options(key, update[key], faults)
    faults.raise_if_any("Run `cilseg train --help` for the presets; docs/configuration.md lists every key.")
    return config


def check_options(name: str, section: Any, faults: FaultCollector, *, prefix: str = "update") -> None:
    """Check the section of method ``name``, called ``PREFIX.NAME`` in faults."""
    from cilseg.methods import METHODS  # loads torch

    if name not in METHODS:
        hint = did_you_mean(str(name), [*UpdateConfig.model_fields, *METHODS])
        faults.add(f"unknown key {prefix}.{name}.{hint}")
        return
    kind = METHODS[name].options_type
    try:
        kind.model_validate(section)
    except ValidationError as exc:
        for error in exc.errors():
            faults.add(_describe(error, kind, f"{prefix}.{name}"))


def _read(preset: str | Path) -> dict[str, Any]:
    path = Path(preset)
    if not path.suffix:
        path = configs_directory() / f"{preset}.yaml"
        if not path.is_file():
            hint = did_you_mean(str(preset), preset_names())
            raise NotFoundError(
                f"Unknown preset {preset!r}.{hint} Presets: {', '.join(preset_names())}; or give a YAML file."
            )
    if not path.is_file():
        raise NotFoundError(
            f"Configuration file {path} does not exist. Correct it, or name a preset: {', '.join(preset_names())}."
        )
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise InputError(f"Configuration file {path} is not readable YAML: {exc}") from exc
    if not isinstance(tree, dict):
        raise InputError(
            f"Configuration file {path} must hold sections (model, train, update ...), got {type(tree).__name__}."
        )
    return tree


def _set(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        child = tree.get(key)
        tree[key] = dict(child) if isinstance(child, dict) else {}
        tree = tree[key]
    tree[keys[-1]] = value


def _describe(error: Any, root: type[BaseModel], prefix: str = "") -> str:
    where = ".".join([*([prefix] if prefix else []), *(str(part) for part in error["loc"])])
    if error["type"] == "extra_forbidden":
        model: Any = root
        for part in error["loc"][:-1]:
            model = model.model_fields[part].annotation
        return f"unknown key {where}.{did_you_mean(str(error['loc'][-1]), model.model_fields)}"
    return f"{where}: {error['msg']} (got {error['input']!r})"
