"""Training and scoring one cell of a protocol."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from cilseg.bench.annotator import points_from_mask, prior_from_mask, scribbles_from_mask
from cilseg.bench.config import BASE
from cilseg.bench.data import ProtocolData, judged_view, training_table, truth_table
from cilseg.bench.plan import Cell, identity, training_rows
from cilseg.bundle import hash_file, write_file_atomically
from cilseg.classes import ClassSet
from cilseg.config import ModelConfig, OptimiserConfig, UpdateConfig
from cilseg.data.annotations import POINT_RADIUS_PX, paint_points
from cilseg.data.image_folders import matching_files, open_image_folders, read_saliency_of
from cilseg.data.labels import map_mask
from cilseg.data.protocol import tag_columns
from cilseg.data.source import Source
from cilseg.errors import ArtifactError
from cilseg.evaluate.confusion import confusion_matrix
from cilseg.evaluate.scoring import Scores, grouped
from cilseg.methods import Memory, Replay, StepInputs, method_class
from cilseg.methods.base import BUILTIN
from cilseg.models.build import new_model
from cilseg.models.inference import InferenceGraph
from cilseg.models.segmenter import SegmentationModel
from cilseg.train.dataset import ImageReader, TrainingSet
from cilseg.train.engine import LOG_FILE, OnTick
from cilseg.train.environment import environment
from cilseg.train.memory import choose_memory
from cilseg.train.steps import (
    KEEP,
    masked_set,
    read_prepared,
    run_id_of,
    tagged_files,
    train_base,
    train_increment,
)
from cilseg_serve.preprocessing import network_size_hw, restore_mask

SCHEMA = "cilseg.protocol-cell/1"
CELL, REQUEST, WEIGHTS, OUTPUT = "cell.json", "request.json", "weights.safetensors", "output.log"


def training_set(
    data: ProtocolData, cell: Cell, optimiser: OptimiserConfig, *, model: SegmentationModel, seed: int
) -> TrainingSet:
    """Return what a cell trains on; the one place that knows what each kind of supervision gets to see.

    Masks hold the labels that the protocol's settings leave; tags are the classes seen so far in the whole mask, and
    the method gets no mask at all.

    Raises:
        InputError: see :func:`training_rows`.
    """
    config, step = data.config, cell.step
    classes = data.classes_until(step)
    source = data.train[step]
    rows = training_rows(data, cell)
    subset = source.subset([source.ids[i] for i in rows])
    name = BASE if cell.row == BASE else config.method_of(cell.row)
    supervision = "masks" if cell.row == BASE else method_class(name).supervision
    if supervision in ("tags", "points", "scribbles"):
        tags = tag_columns([data.tags[step][i] for i in rows], classes.foreground).astype(np.int8)
        annotate = _ANNOTATORS.get(supervision)
        return tagged_files(
            subset.image_paths,
            tags,
            optimiser,
            seed=seed,
            preprocessing=model.preprocessing,
            annotations=partial(annotate, subset, classes, step) if annotate else None,
        )
    sees_old = cell.row != BASE and method_class(name).sees_old_masks
    table = training_table(data, step, settings=config.settings, class_set=classes, joint=sees_old)
    result = masked_set(
        subset, classes, optimiser, visible=classes.foreground, seed=seed, preprocessing=model.preprocessing
    )
    result.read_mask = partial(_read_labels, subset, table, model.preprocessing.short_side_px)
    return result


# A function of the module: worker processes that are spawned get it as a pickle.
def _read_labels(
    source: Source, table: npt.NDArray[np.uint8], short_side_px: int | None, index: int
) -> npt.NDArray[np.uint8]:
    mask: npt.NDArray[np.uint8] = table[source.mask(index)]
    return restore_mask(mask, *network_size_hw(mask.shape[0], mask.shape[1], short_side_px))


def _points(source: Source, classes: ClassSet, step: int, index: int) -> npt.NDArray[np.uint8]:
    """Return the partial mask of one simulated point per new object."""
    mask = map_mask(source.mask(index), source.label_names, classes, visible=classes.foreground)
    new = [i for i, entry in enumerate(classes.entries) if entry.step == step]
    points = points_from_mask(mask, new)
    return paint_points(points, height=mask.shape[0], width=mask.shape[1], radius=POINT_RADIUS_PX)


def _scribbles(source: Source, classes: ClassSet, step: int, index: int) -> npt.NDArray[np.uint8]:
    """Return the partial mask of simulated strokes over new objects and background."""
    mask = map_mask(source.mask(index), source.label_names, classes, visible=classes.foreground, others="void")
    return scribbles_from_mask(mask, [i for i, entry in enumerate(classes.entries) if entry.step == step])


def _prior(source: Source, classes: ClassSet, step: int, kind: str, index: int) -> npt.NDArray[np.uint8]:
    """Return the prior of one image that knows where objects are, of all classes together or of each new one."""
    mask = map_mask(source.mask(index), source.label_names, classes, visible=classes.foreground)
    new = [i for i, entry in enumerate(classes.entries) if entry.step == step]
    return prior_from_mask(mask, [range(1, len(classes))] if kind == "objects" else [[i] for i in new])


_ANNOTATORS = {"points": _points, "scribbles": _scribbles}


def step_inputs(data: ProtocolData, cell: Cell, *, parent: Path, model: SegmentationModel) -> StepInputs:
    """Return what a row gets beside its training images.

    Raises:
        InputError: a folder of the row lacks something.
    """
    row, step = data.config.methods[cell.row], cell.step
    old = data.classes_until(step - 1)
    replay = None
    if row.replay == "withheld":
        source = data.train[step]
        # An image stands for every old class that it shows, as one that a search for each of them would find.
        found = [
            (source.image_paths[i], old.id_of(name))
            for i in data.withheld_rows(step)
            for name in sorted(data.tags[step][i] & set(old.foreground))
        ]
        files, ids = [file for file, _ in found], [class_id for _, class_id in found]
        replay = Replay(partial(read_prepared, files, model.preprocessing), np.array(ids, dtype=np.int64))
    elif row.replay is not None:
        folders = open_image_folders(row.replay, classes=old.foreground)
        ids = [old.id_of(name) for name in folders.names]
        replay = Replay(partial(read_prepared, folders.files, model.preprocessing), np.array(ids, dtype=np.int64))
    saliency: Any = row.saliency
    if saliency not in (None, BUILTIN):
        source = data.train[step]
        files = [source.image_paths[i] for i in training_rows(data, cell)]
        maps = matching_files(Path(saliency), files, what="saliency map")
        saliency = partial(read_saliency_of, maps, files, model.preprocessing.short_side_px)
    prior = None
    if row.prior:
        subset = data.train[step].subset([data.train[step].ids[i] for i in training_rows(data, cell)])
        prior = partial(_prior, subset, data.classes_until(step), step, row.prior)
    memory = None
    if row.memory is not None:
        base = Cell(cell.rule, cell.seed, BASE, 0)
        known = data.classes_until(0)
        stored = training_set(data, base, OptimiserConfig(), model=model, seed=0)
        assert stored.read_mask is not None
        chosen = choose_memory(model, stored, budget=row.memory, n_channels=len(known))
        memory = Memory(
            len(chosen),
            partial(_read_chosen, stored.read_image, tuple(chosen)),
            partial(_read_chosen, stored.read_mask, tuple(chosen)),
            len(known),
        )
    return StepInputs(
        replay=replay,
        saliency=saliency,
        prior=prior,
        memory=memory,
        class_names=data.classes_until(step).names,
        kept=parent / KEEP,
    )


def _read_chosen(reader: ImageReader, rows: tuple[int, ...], index: int) -> npt.NDArray[np.uint8]:
    return reader(rows[index])


def run_cell(
    data: ProtocolData,
    cell: Cell,
    folder: Path,
    *,
    parent: Path | None,
    recorded: dict[str, Any] | None = None,
    on_tick: OnTick | None = None,
) -> dict[str, Any]:
    """Train a cell, or go on where it stopped, score it, and write ``cell.json`` and its weights into ``folder``.

    Args:
        data: the opened protocol.
        cell: which one.
        folder: of the cell.
        parent: folder of the cell that it starts from; None for a base.
        recorded: the identity that the cell began with, when that is not :func:`identity` now.
        on_tick: called after each iteration.

    Raises:
        InputError: unknown method, supervision that the data cannot give.
        ArtifactError: the parent's weights are missing or damaged.
        TrainingError: the loss is not finite.
    """
    config = data.config
    what = recorded or identity(data, cell, parent_weights=hash_file(parent / WEIGHTS) if parent else None)
    run_id = run_id_of(**what)
    update: UpdateConfig | None = None
    iterations = 0
    if cell.row == BASE:
        model = new_model(config.model, data.classes_until(0), seed=cell.seed)
        for number, optimiser in enumerate(config.base, start=1):
            examples = training_set(data, cell, optimiser, model=model, seed=1000 * cell.seed + 100 * (number - 1))
            model = train_base(
                model,
                examples,
                optimiser,
                runtime=config.runtime,
                seed=1000 * cell.seed,
                run_dir=folder / f"cycle{number}",
                run_id=f"{run_id}-{number}",
                resume=True,
                on_tick=on_tick,
            )
            iterations += examples.iterations(optimiser.batch_size) * optimiser.epochs
    else:
        assert parent is not None
        update = config.update_config(cell.row)
        seed = 1000 * cell.seed + cell.step
        old = _parent_model(data, cell, folder, parent=parent, run_id=run_id, on_tick=on_tick)
        examples = training_set(data, cell, update.optimiser, model=old, seed=seed)
        model = train_increment(
            old,
            examples,
            update,
            n_new=config.step_sizes[cell.step],
            runtime=config.runtime,
            seed=seed,
            run_dir=folder / "training",
            run_id=run_id,
            resume=True,
            on_tick=on_tick,
            inputs=step_inputs(data, cell, parent=parent, model=old),
        )
        iterations = examples.iterations(update.optimiser.batch_size) * update.optimiser.epochs
    _move_kept(folder)
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    write_file_atomically(folder / WEIGHTS, save(tensors))
    payload = {
        "schema": SCHEMA,
        "protocol": config.name,
        **asdict(cell),
        "method": BASE if update is None else update.method,
        "supervision": "masks" if update is None else method_class(update.method).supervision,
        "scores": {name: score(data, cell.step, name, model) for name in data.judges},
        "train_s": round(_trained_s(folder), 1),
        "images": examples.size,
        "iterations": iterations,
        "config": {
            "model": config.model.model_dump(mode="json") | {"weights": Path(config.model.weights).name},
            **(
                {"base": [c.model_dump(mode="json") for c in config.base]}
                if update is None
                else {"update": update.model_dump(mode="json")}
            ),
            "settings": config.settings.model_dump(mode="json"),
        },
        "weights_sha256": hash_file(folder / WEIGHTS),
        "versions": environment(),
        "identity": what,
    }
    write_file_atomically(folder / CELL, (json.dumps(payload, indent=1, allow_nan=False) + "\n").encode())
    for state in folder.rglob("resume.safetensors"):
        state.unlink()
    return payload


def _move_kept(folder: Path) -> None:
    """Move what the (last) training left for later steps to ``folder / KEEP``."""
    found = sorted(folder.glob(f"*/{KEEP}"))  # base1 ..., cycle1 ..., training
    if found:
        shutil.rmtree(folder / KEEP, ignore_errors=True)
        found[-1].rename(folder / KEEP)


def _parent_model(
    data: ProtocolData, cell: Cell, folder: Path, *, parent: Path, run_id: str, on_tick: OnTick | None
) -> SegmentationModel:
    """Return the model that a row's step starts from; in its first step turned into the network that the row needs."""
    config = data.config
    own = config.methods[cell.row].base
    bare = config.model.model_copy(update={"weights": "none"})
    changed = ModelConfig.model_validate({**bare.model_dump(), **own.model}) if own else bare
    seen = data.classes_until(cell.step - 1)
    if own is None or cell.step > 1:
        return _load(parent / WEIGHTS, new_model(changed, seen, seed=0))
    shared = _load(parent / WEIGHTS, new_model(bare, seen, seed=0)).state_dict()
    model = new_model(changed, seen, seed=cell.seed)
    mine = model.state_dict()
    # The classifier of another kind starts anew: its weights would fit, its scores would not.
    kept = {
        k: v for k, v in shared.items() if k in mine and v.shape == mine[k].shape and not k.startswith("classifier.")
    }
    model.load_state_dict(kept, strict=False)
    for number, optimiser in enumerate(own.cycles, start=1):
        base = Cell(cell.rule, cell.seed, BASE, 0)
        seed = 1000 * cell.seed + 500 + number
        model = train_base(
            model,
            training_set(data, base, optimiser, model=model, seed=seed),
            optimiser,
            runtime=config.runtime,
            seed=seed,
            run_dir=folder / f"base{number}",
            run_id=f"{run_id}-base{number}",
            resume=True,
            on_tick=on_tick,
        )
    return model


def _load(path: Path, model: SegmentationModel) -> SegmentationModel:
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as exc:
        raise ArtifactError(
            f"Weights {path} cannot be loaded: {str(exc).splitlines()[0]}. Delete that cell's folder and run again."
        ) from exc
    return model.eval()


def _trained_s(folder: Path) -> float:
    logs = [path.read_text(encoding="utf-8").splitlines() for path in folder.rglob(LOG_FILE)]
    return sum(float(json.loads(lines[-1])["elapsed_s"]) for lines in logs if lines)


def score(data: ProtocolData, step: int, judge: str, model: SegmentationModel) -> dict[str, Any]:
    """Return the scores of ``model`` after ``step`` on the images of ``judge``, in per cent.

    ``iou`` per class seen so far (None: not in the truth), ``A``, ``B`` and ``C`` the means of
    ``cilseg.evaluate.scoring``, ``confusion`` the counts ``[truth, prediction]`` over the classes of every step.
    """
    settings, source = data.config.settings, data.judges[judge]
    classes, n_seen = data.class_set, len(data.classes_until(step))
    table = truth_table(data, judge, step)
    seen = set(classes.names[1:n_seen])
    graph = InferenceGraph(model, model.preprocessing)
    total = np.zeros((len(classes), len(classes)), dtype=np.int64)
    judged = 0
    for index in range(len(source)):
        mask = source.mask(index)
        if settings.test_images == "seen" and not source.classes_in(index) & seen:
            continue
        image, truth = judged_view(source.image(index), table[mask], settings)
        total += confusion_matrix(truth, graph.predict(image), n_classes=len(classes))
        judged += 1
    return {**scores_of(total, classes, step, absent=settings.absent_class), "images": judged}


def scores_of(
    total: npt.NDArray[np.int64], classes: ClassSet, step: int, *, absent: str = "left_out"
) -> dict[str, Any]:
    """Return per-class IoU and the three conventions of a confusion matrix over the classes of every step."""
    n_seen = sum(1 for entry in classes.entries if entry.step <= step)
    scores = Scores(total)
    iou = scores.class_iou[:n_seen].copy()
    unknown = np.isnan(iou)
    if absent == "zero":
        iou[unknown] = 0.0
    elif absent == "zero_if_predicted":
        iou[unknown & (scores.predicted_pixels[:n_seen] > 0)] = 0.0
    old = [i for i in range(1, n_seen) if classes.entries[i].step == 0]
    new = [i for i in range(1, n_seen) if classes.entries[i].step > 0]
    means = grouped(iou, old=old, new=new)
    return {
        "iou": {name: _percent(value) for name, value in zip(classes.names, iou.tolist(), strict=False)},
        **{convention: {k: _percent(v) for k, v in groups.items()} for convention, groups in means.items()},
        "confusion": total.tolist(),
    }


def _percent(value: float) -> float | None:
    return None if np.isnan(value) else round(100.0 * float(value), 3)


def read_cell(folder: Path) -> dict[str, Any] | None:
    """Return ``cell.json`` of a finished cell, else None."""
    path = folder / CELL
    if not path.is_file():
        return None
    payload: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return payload
