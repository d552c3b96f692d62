"""Protocol files: data, classes and steps, settings, model, base recipe, methods, seeds; checked whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cilseg.bench.settings import Settings
from cilseg.config import (
    ModelConfig,
    OptimiserConfig,
    RuntimeConfig,
    UpdateConfig,
    check_options,
    configs_directory,
)
from cilseg.data.protocol import IncrementalProtocol, Rule
from cilseg.errors import FaultCollector, InputError, NotFoundError, did_you_mean

BASE = "base"
"""Name of the cells of the base step; no method entry may have it."""
PUBLISHED = "published"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ScenesConfig(_Section):
    """Scenes to generate into the work folder (``cilseg scenes``)."""

    train: int = Field(ge=1)
    val: int = Field(ge=1)
    size_px: int = 128
    seed: int = 0


class SourceConfig(_Section):
    """One annotated data set."""

    root: str | None = None
    """Folder; a relative one is looked for under ``CILSEG_REAL_DATA``, then here. ``--data`` overrides it."""
    scenes: ScenesConfig | None = None
    """Generate the data instead."""
    layout: Literal["auto", "voc", "folder"] = "auto"
    labels: Literal["voc"] | dict[int, str] | str | None = None
    """Names of the mask values: ``voc``, a file, or a mapping; default: what the folder says."""
    train: str | None = "train"
    """List of the training images; null: the source only judges."""
    val: str | None = "val"
    """List of the images that judge; null: the source only trains."""
    steps: tuple[int, ...] | None = None
    """Steps that train on it; null: all."""
    keep_empty: bool = False
    """Images without any class of any step join the base step."""
    train_images: int | None = None
    val_images: int | None = None
    """Published lengths of the lists, compared where given."""


class DataConfig(_Section):
    """Where images come from; the first source with a ``val`` list gives the scores of the table."""

    sources: dict[str, SourceConfig] = Field(min_length=1)
    withheld: str | int | None = None
    """Images kept out of base training in every row, the absent-tagged images of rows with ``negatives``: a file of
    ids, or a number (the first so many training images that show base classes alone)."""
    sizes: dict[Rule, tuple[int, ...]] = {}
    """Published images per step, compared where given."""


Seeds = tuple[int, ...] | dict[Rule, tuple[int, ...]]
"""Seeds, or seeds per rule."""


class RowBase(_Section):
    """How a row turns the shared base into the network that its method needs, before its first step."""

    model: dict[str, Any]
    """What differs from the protocol's model (``classifier: cosine``); parts that fit keep the weights of the base."""
    cycles: tuple[OptimiserConfig, ...] = Field(min_length=1)
    """Further training on the images of the base step."""


class MethodEntry(_Section):
    """One row of the table."""

    method: str | None = None
    """Name of the method; default: the name of the entry."""
    label: str | None = None
    supervision: str | None = None
    """Heading that the row stands under; default: what the method learns from."""
    optimiser: dict[str, Any] = {}
    """What differs from ``step``."""
    options: dict[str, Any] = {}
    """Sections of ``update`` such as ``wilson: {alpha: 0.9}``."""
    negatives: bool = False
    """Give the withheld images too: tagged absent, or with masks in which nothing new shows."""
    absent: int = Field(default=0, ge=0)
    """Give as many images of the list that show none of the step's classes, in the same way; classes of later steps may
    show in them, as in the field."""
    shots: int | None = Field(default=None, ge=1)
    """Annotated images per new class, for few-shot methods."""
    memory: int | None = Field(default=None, ge=1)
    """Images of the base step, with their masks, that the row may train on again."""
    replay: Literal["withheld"] | str | None = None
    """Images that stand in for the old classes: the withheld ones, each found for the old classes that it shows, or a
    folder with one folder per class."""
    base: RowBase | None = None
    saliency: str | None = None
    """``builtin``, or a folder with one grey picture per training image."""
    prior: Literal["objects", "classes"] | None = None
    """Give ``tags`` the true masks, a little wider, as priors: of all classes so far in one, or of each new class."""
    seeds: Seeds | None = None
    """Default: the protocol's. An empty list for a rule leaves the rule out."""


class ProtocolConfig(_Section):
    """What a file in ``configs/protocols`` holds."""

    name: str
    title: str = ""
    data: DataConfig
    classes: tuple[str, ...]
    """Foreground classes in learning order."""
    step_sizes: tuple[int, ...]
    rules: tuple[Rule, ...] = ("overlap",)
    seeds: Seeds = (0,)
    settings: Settings = Settings()
    model: ModelConfig = ModelConfig()
    base: tuple[OptimiserConfig, ...] = (OptimiserConfig(),)
    """Cycles of base training, one after the other."""
    step: dict[str, Any] = {}
    """Optimiser of the later steps, for every method."""
    methods: dict[str, MethodEntry]
    runtime: RuntimeConfig = RuntimeConfig()

    def protocol(self, rule: Rule) -> IncrementalProtocol:
        return IncrementalProtocol(self.classes, self.step_sizes, rule)

    def method_of(self, entry: str) -> str:
        return self.methods[entry].method or entry

    def seeds_of(self, entry: str, rule: Rule) -> tuple[int, ...]:
        """Return the seeds of a row under ``rule``; none where it is not run."""
        own = self.methods[entry].seeds
        seeds = self.seeds if own is None else own
        return tuple(seeds.get(rule, ())) if isinstance(seeds, dict) else seeds

    def update_config(self, entry: str) -> UpdateConfig:
        """Return the settings of an incremental step of the row ``entry``.

        Raises:
            pydantic.ValidationError: unknown keys, wrong values.
        """
        row = self.methods[entry]
        tree = {**row.options, "method": self.method_of(entry), "optimiser": {**self.step, **row.optimiser}}
        return UpdateConfig.model_validate(tree)


def protocols_directory() -> Path:
    return configs_directory() / "protocols"


def protocol_names() -> list[str]:
    return sorted(p.stem for p in protocols_directory().glob("*.yaml") if p.stem != PUBLISHED)


def load_protocol(preset: str | Path, overrides: Sequence[str] = ()) -> ProtocolConfig:
    """Return the protocol ``preset`` (a name in ``configs/protocols`` or a YAML file) with ``a.b=value`` overrides.

    Raises:
        NotFoundError: no such preset or file.
        InputError: YAML that does not parse; unknown keys, wrong values, malformed overrides, all of them at once.
    """
    path = _find(preset)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise InputError(f"Protocol file {path} is not readable YAML: {exc}") from exc
    if not isinstance(tree, dict):
        raise InputError(f"Protocol file {path} must hold sections (data, classes ...), got {type(tree).__name__}.")
    if isinstance(tree.get("settings"), str):  # so that an override changes one setting of a preset
        tree["settings"] = {"preset": tree["settings"]}
    faults = FaultCollector(f"Protocol {preset}")
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign or not key:
            faults.add(f"override {text!r} is not of the form section.key=value")
            continue
        try:
            _set(tree, key.split("."), yaml.safe_load(value))
        except yaml.YAMLError as exc:
            faults.add(f"override {text!r} holds no readable YAML value ({str(exc).splitlines()[0]})")
        except (LookupError, ValueError):
            faults.add(f"override {text!r} names no item of a list that is there")
    tree.setdefault("name", path.stem)
    config = None
    try:
        config = ProtocolConfig.model_validate(tree)
    except ValidationError as exc:
        for error in exc.errors():
            faults.add(_describe(error, ProtocolConfig))
    if config is not None:
        _check(config, faults)
    faults.raise_if_any("docs/protocols.md lists every key.")
    assert config is not None
    return config


def _find(preset: str | Path) -> Path:
    path = Path(preset)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise NotFoundError(f"Protocol file {path} does not exist. Correct it, or name one of: {_names()}.")
    path = protocols_directory() / f"{preset}.yaml"
    if str(preset) not in protocol_names():
        hint = did_you_mean(str(preset), protocol_names())
        raise NotFoundError(f"Unknown protocol {str(preset)!r}.{hint} Protocols: {_names()}; or give a YAML file.")
    return path


def _names() -> str:
    return ", ".join(protocol_names())


def _set(tree: Any, keys: list[str], value: Any) -> None:
    """Set a value in nested mappings and lists (a list's items are named by their number)."""
    for key in keys[:-1]:
        if isinstance(tree, list):
            tree = tree[int(key)]
        else:
            if not isinstance(tree.get(key), dict | list):
                tree[key] = {}
            tree = tree[key]
    if isinstance(tree, list):
        tree[int(keys[-1])] = value
    else:
        tree[keys[-1]] = value


def _describe(error: Any, model: Any) -> str:
    """Return one fault of a ValidationError in words, with the closest known key."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown key {where}.{did_you_mean(str(error['loc'][-1]), _fields_at(model, error['loc'][:-1]))}"
    return f"{where}: {error['msg'].removeprefix('Value error, ')} (got {error['input']!r})"


def _fields_at(model: Any, loc: Sequence[Any]) -> list[str]:
    """Return the keys that exist at ``loc``, as far as the models say."""
    parts = list(loc)
    while parts:
        name = str(parts.pop(0))
        if name not in model.model_fields:
            return []
        annotation = model.model_fields[name].annotation
        if not _is_section(annotation):  # a mapping or a list of sections: the next part is its key
            annotation = next((a for a in getattr(annotation, "__args__", ()) if _is_section(a)), None)
            parts = parts[1:]
        if annotation is None:
            return []
        model = annotation
    return list(model.model_fields)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _uses_priors(method: str) -> bool:
    from cilseg.methods import METHODS  # loads torch

    return method not in METHODS or METHODS[method].uses_priors  # an unknown method is refused elsewhere


def _check(config: ProtocolConfig, faults: FaultCollector) -> None:
    """Add what single fields cannot tell."""
    sources: Mapping[str, SourceConfig] = config.data.sources
    try:
        config.protocol("overlap")
    except InputError as exc:
        faults.add(str(exc).replace("\n", "\n    "))
    else:
        for step in range(len(config.step_sizes)):
            named = [n for n, s in sources.items() if s.train and (s.steps is None or step in s.steps)]
            if len(named) != 1:
                faults.add(f"data.sources: step {step} needs one source to train on, got {', '.join(named) or 'none'}")
    for name, source in sources.items():
        if (source.root is None) == (source.scenes is None):
            faults.add(f"data.sources.{name}: give either root or scenes")
    if not any(s.val for s in sources.values()):
        faults.add("data.sources: no source has a val list, so nothing judges")
    for rule, sizes in config.data.sizes.items():
        if len(sizes) != len(config.step_sizes):
            faults.add(f"data.sizes.{rule}: {len(sizes)} numbers for {len(config.step_sizes)} steps")
    for key in ("rules", "seeds", "base", "methods"):
        if not getattr(config, key):
            faults.add(f"{key}: name at least one")
    for entry, row in config.methods.items():
        if entry == BASE or not entry.replace("-", "").replace("_", "").isalnum():
            faults.add(f"methods: {entry!r} is no name for a row; use letters, digits, - and _, and not {BASE!r}")
        if row.negatives and config.data.withheld is None:
            faults.add(f"methods.{entry}: negatives need data.withheld")
        if isinstance(row.seeds, dict):
            for rule in sorted(set(row.seeds) - set(config.rules)):
                faults.add(f"methods.{entry}.seeds: {rule!r} is not among the protocol's rules {list(config.rules)}")
        if row.prior and not _uses_priors(config.method_of(entry)):
            faults.add(f"methods.{entry}: {config.method_of(entry)} takes no prior beside its images; tags does")
        for name, section in row.options.items():
            check_options(name, section, faults, prefix=f"methods.{entry}.options")
        try:
            config.update_config(entry)
        except ValidationError as exc:
            for error in exc.errors():
                place = "step" if error["loc"][0] == "optimiser" and error["loc"][-1] not in row.optimiser else ""
                loc = error["loc"][1:] if error["loc"][0] == "optimiser" else ("options", *error["loc"])
                prefix = place or f"methods.{entry}" + (".optimiser" if error["loc"][0] == "optimiser" else "")
                hint = ""
                if error["type"] == "extra_forbidden":
                    hint = did_you_mean(str(error["loc"][-1]), _fields_at(UpdateConfig, error["loc"][:-1]))
                    fault = f"unknown key {prefix}.{'.'.join(map(str, loc))}.{hint}"
                else:
                    fault = f"{prefix}.{'.'.join(map(str, loc))}: {error['msg']} (got {error['input']!r})"
                if fault not in list(faults):
                    faults.add(fault)
