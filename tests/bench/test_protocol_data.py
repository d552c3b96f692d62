"""Splits, labels of training and truth, and what is judged, on hand-made data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_protocol import CLASSES, tree, write_protocol

from cilseg.bench.cells import scores_of, training_set
from cilseg.bench.config import BASE, load_protocol
from cilseg.bench.data import ProtocolData, classes_in, judged_view, label_table, located, training_table, truth_table
from cilseg.bench.plan import Cell, planned, training_rows
from cilseg.bench.settings import SETTINGS, Settings
from cilseg.classes import ClassSet
from cilseg.data.source import Source, open_source
from cilseg.errors import InputError, NotFoundError

NAMES = ("a", "b", "c")
LABELS = {0: "background", 1: "a", 2: "b", 3: "c", 4: "elsewhere"}
TAGS = tuple(frozenset(t) for t in ("a", "ab", "b", "bc", "c", "abc", "", "ac"))


def hand_made(tmp_path: Path, *, step_sizes=(1, 1, 1), withheld=(), keep_empty=False, settings=None) -> ProtocolData:
    content = tree(tmp_path, classes=list(NAMES), step_sizes=list(step_sizes), settings=settings or "cilseg")
    content["data"] = {
        "sources": {"tiny": {"root": str(tmp_path), "keep_empty": keep_empty}},
        "withheld": len(withheld),
    }
    config = load_protocol(write_protocol(tmp_path / "p.yaml", content))
    ids = tuple(f"i{n}" for n in range(len(TAGS)))
    paths = tuple(Path(f"{name}.png") for name in ids)
    source = Source(tmp_path, "train", "folder", ids, paths, paths, LABELS)
    steps = len(step_sizes)
    return ProtocolData(config, (source,) * steps, {"tiny": source}, (TAGS,) * steps, frozenset(withheld))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("overlap", [(0, 1, 5, 7), (1, 2, 3, 5), (3, 4, 5, 7)]),
        ("disjoint", [(0,), (1, 2), (3, 4, 5, 7)]),
        ("partitioned", [(0, 1, 5, 7), (2, 3), (4,)]),
    ],
)
def test_rules(tmp_path: Path, rule, expected) -> None:
    data = hand_made(tmp_path)
    assert [data.rows(rule, step) for step in range(3)] == expected


def test_partitioned_puts_every_image_in_exactly_one_step(tmp_path: Path) -> None:
    data = hand_made(tmp_path)
    rows = [row for step in range(3) for row in data.rows("partitioned", step)]
    assert sorted(rows) == [i for i, tags in enumerate(TAGS) if tags]


def test_images_without_a_class_join_the_base_where_asked(tmp_path: Path) -> None:
    assert hand_made(tmp_path, keep_empty=True).rows("disjoint", 0) == (0, 6)


def test_withheld_images_leave_the_base_and_come_back_as_negatives(tmp_path: Path) -> None:
    data = hand_made(tmp_path, withheld=("i0", "i1"))
    assert training_rows(data, Cell("overlap", 0, BASE, 0)) == (5, 7)
    assert training_rows(data, Cell("overlap", 0, "tags", 2)) == (0, 1, 3, 4, 5, 7)
    assert training_rows(data, Cell("overlap", 0, "ft", 1)) == (1, 2, 3, 5)


def test_joint_sees_every_step_so_far_without_the_withheld(tmp_path: Path) -> None:
    data = hand_made(tmp_path, withheld=("i0",))
    config = data.config.model_copy(update={"methods": {"joint": data.config.methods["ft"]}})
    data = ProtocolData(config, data.train, data.judges, data.tags, data.withheld)
    assert training_rows(data, Cell("disjoint", 0, "joint", 1)) == (1, 2)
    assert training_rows(data, Cell("overlap", 0, "joint", 1)) == (1, 2, 3, 5, 7)


def test_rows_of_masks_get_the_withheld_images_too_when_they_ask(tmp_path: Path) -> None:
    data = hand_made(tmp_path, withheld=("i0",))
    row = data.config.methods["ft"].model_copy(update={"negatives": True})
    asked = ProtocolData(
        data.config.model_copy(update={"methods": {"ft": row}}), data.train, data.judges, data.tags, data.withheld
    )
    cell = Cell("overlap", 0, "ft", 1)
    assert set(training_rows(asked, cell)) == {0, *training_rows(data, cell)} != set(training_rows(data, cell))


def test_a_row_may_ask_for_images_without_the_steps_classes(tmp_path: Path) -> None:
    data = hand_made(tmp_path, withheld=("i0",))
    cell = Cell("overlap", 0, "ft", 1)
    own = set(training_rows(data, cell))

    def rows(absent: int) -> set[int]:
        row = data.config.methods["ft"].model_copy(update={"absent": absent})
        config = data.config.model_copy(update={"methods": {"ft": row}})
        return set(training_rows(ProtocolData(config, data.train, data.judges, data.tags, data.withheld), cell))

    assert rows(0) == own
    assert len(rows(2) - own) == 2
    new = set(data.config.protocol("overlap").step_classes(1))
    every = rows(100)
    assert every == own | {i for i, found in enumerate(data.tags[1]) if not found & new}
    assert any(data.tags[1][i] & set(data.config.classes) for i in every - own)


def test_a_method_may_not_see_masks(opened) -> None:
    from cilseg.models.build import new_model

    data = opened().data
    optimiser = data.config.update_config("tags").optimiser
    model = new_model(data.config.model, data.classes_until(0), seed=0)
    tagged = training_set(data, Cell("overlap", 0, "tags", 1), optimiser, model=model, seed=0)
    assert tagged.read_mask is None
    assert tagged.tags is not None
    assert set(np.unique(tagged.tags)) == {0, 1}
    masked = training_set(data, Cell("overlap", 0, "ft", 1), optimiser, model=model, seed=0)
    assert masked.tags is None
    assert masked.read_mask is not None
    values = set().union(*(np.unique(masked.read_mask(i)).tolist() for i in range(masked.size)))
    assert values == {0, 3}  # the new class alone; old ones are background


# mask values 0-4 and void, in a protocol a | b | c, at step 1 (own b, old a, future c; "elsewhere" is in no step)
@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("cilseg", [0, 0, 2, 0, 0, 255]),
        ("mib", [0, 0, 2, 0, 0, 0]),
        ("sdr", [0, 0, 2, 0, 0, 0]),
        ("plop", [0, 0, 2, 0, 0, 255]),
        ("wilson", [0, 0, 2, 0, 0, 0]),
        ("recall", [0, 0, 2, 0, 0, 0]),
        ("pifs", [0, 1, 2, 255, 0, 255]),
    ],
)
def test_training_labels_of_each_code_base(tmp_path: Path, preset: str, expected: list[int]) -> None:
    data = hand_made(tmp_path)
    table = training_table(data, 1, settings=Settings(**SETTINGS[preset]), class_set=data.classes_until(1))
    assert table[[0, 1, 2, 3, 4, 255]].tolist() == expected


def test_old_classes_may_be_void(tmp_path: Path) -> None:
    data = hand_made(tmp_path)
    settings = Settings(train_old="void")
    table = training_table(data, 1, settings=settings, class_set=data.classes_until(1))
    assert table[[0, 1, 2, 3, 255]].tolist() == [0, 255, 2, 0, 255]
    joint = training_table(data, 1, settings=settings, class_set=data.classes_until(1), joint=True)
    assert joint[[0, 1, 2, 3, 255]].tolist() == [0, 1, 2, 0, 255]


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("cilseg", [0, 1, 2, 3, 0, 255]),
        ("mib", [0, 1, 2, 255, 0, 255]),
        ("plop", [0, 1, 2, 0, 0, 255]),
        ("wilson", [0, 1, 2, 0, 0, 255]),
        ("recall", [0, 1, 2, 3, 0, 255]),
        ("pifs", [0, 1, 2, 255, 0, 255]),
    ],
)
def test_truth_of_each_code_base(tmp_path: Path, preset: str, expected: list[int]) -> None:
    data = hand_made(tmp_path, settings=preset)
    assert truth_table(data, "tiny", 1)[[0, 1, 2, 3, 4, 255]].tolist() == expected


def test_another_spelling_of_a_class_is_refused() -> None:
    with pytest.raises(InputError, match="Use one spelling"):
        label_table({0: "background", 1: "Cow"}, ClassSet.base(["cow"]), labelled=["cow"])


@pytest.mark.parametrize(("hw", "size"), [((375, 500), (512, 682)), ((500, 333), (768, 512)), ((512, 512), (512, 512))])
def test_judged_view_has_the_sizes_of_torchvision(hw, size) -> None:
    image, truth = np.zeros((*hw, 3), np.uint8), np.zeros(hw, np.uint8)
    resized = judged_view(image, truth, Settings(eval_short_side_px=512))
    assert resized[0].shape == (*size, 3)
    assert resized[1].shape == size
    cropped = judged_view(image, truth, Settings(eval_short_side_px=512, eval_crop_px=512))
    assert cropped[0].shape == (512, 512, 3)
    assert cropped[1].shape == (512, 512)


def test_the_crop_is_central_and_labels_stay_labels() -> None:
    truth = np.zeros((16, 32), np.uint8)
    truth[:, 8:24] = 7
    image = np.repeat(truth[..., None], 3, axis=2)
    seen, labels = judged_view(image, truth, Settings(eval_short_side_px=16, eval_crop_px=16))
    assert (labels == 7).all()
    assert (seen == 7).all()
    _, larger = judged_view(image, truth, Settings(eval_short_side_px=32))
    assert set(np.unique(larger)) == {0, 7}


def test_scores_count_unseen_truth_as_errors_and_group_the_classes() -> None:
    classes = ClassSet.base(["a"]).extend(["b"], step=1).extend(["c"], step=2)
    total = np.diag([60, 20, 10, 0])
    total[3, 1] = 20  # pixels of c, which step 1 has not seen, called a
    scores = scores_of(total, classes, 1)
    assert scores["iou"] == {"background": 100.0, "a": 50.0, "b": 100.0}
    assert scores["A"] == {"old": 50.0, "new": 100.0, "all": 75.0}
    assert scores["B"] == {"old": 75.0, "new": 100.0, "all": pytest.approx(83.333)}
    assert scores["C"] == {"old": 50.0, "new": 100.0, "all": pytest.approx(83.333)}
    assert scores_of(total, classes, 0)["C"]["new"] is None


@pytest.mark.parametrize(
    ("absent", "a", "b"), [("left_out", None, None), ("zero_if_predicted", 0.0, None), ("zero", 0.0, 0.0)]
)
def test_classes_without_truth(absent: str, a: float | None, b: float | None) -> None:
    total = np.array([[9, 1, 0], [0, 0, 0], [0, 0, 0]])
    scores = scores_of(total, ClassSet.base(["a", "b"]), 0, absent=absent)
    assert (scores["iou"]["a"], scores["iou"]["b"]) == (a, b)


def test_classes_are_read_once(scenes: Path, tmp_path: Path) -> None:
    found = classes_in(open_source(scenes, split="train"), tmp_path)
    assert found == open_source(scenes, split="train").tags()
    (cache,) = tmp_path.glob("classes-*.json")
    cache.write_text(cache.read_text().replace(CLASSES[0], "cached"))
    assert any("cached" in names for names in classes_in(open_source(scenes, split="train"), tmp_path))


def test_a_base_is_shared_by_all_rows_of_a_rule_and_seed(tmp_path: Path) -> None:
    content = tree(tmp_path, rules=["overlap", "disjoint"], seeds=[4, 5])
    content["methods"]["ft"]["seeds"] = {"overlap": [4]}
    cells = planned(load_protocol(write_protocol(tmp_path / "p.yaml", content)))
    assert [c.id for c in cells if c.row == BASE] == [
        f"{rule}/seed{seed}/base/step0" for rule in ("overlap", "disjoint") for seed in (4, 5)
    ]
    assert [c.id for c in cells if c.row == "ft"] == ["overlap/seed4/ft/step1"]
    assert all(c.parent in cells[: cells.index(c)] for c in cells if c.row != BASE)


def test_missing_folders_are_told_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CILSEG_REAL_DATA", raising=False)
    config = load_protocol("coco-to-voc")
    with pytest.raises(NotFoundError) as caught:
        located(config, tmp_path, data=[f"voc={tmp_path / 'nowhere'}", "vok=x"], withheld="absent.txt")
    text = str(caught.value)
    assert "source 'coco': no folder coco" in text
    assert str(tmp_path / "nowhere") in text
    assert "no source is called 'vok'" in text
    assert "no file absent.txt" in text


def test_the_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "voc_animals").mkdir()
    monkeypatch.setenv("CILSEG_REAL_DATA", str(tmp_path))
    config = located(load_protocol("voc-animals-4-2"), tmp_path / "work")
    assert config.data.sources["voc_animals"].root == str(tmp_path / "voc_animals")
    assert Path(str(config.data.withheld)).name == "negatives.txt"


def test_withheld_ids_must_be_in_the_list(opened, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("train_00001\nnobody\n")
    with pytest.raises(InputError, match="id 'nobody' is not in the list"):
        opened((f"data.withheld={tmp_path / 'ids.txt'}",))


def test_an_unknown_class_is_named(opened) -> None:
    with pytest.raises(InputError, match=f"unknown class 'startfish'. Did you mean '{CLASSES[0]}'"):
        opened(classes=["startfish", *CLASSES[1:]])


def test_sizes_that_differ_are_told_with_both_numbers(opened, scenes: Path) -> None:
    source = {"root": str(scenes), "train_images": 10582, "val_images": 6}
    with pytest.raises(InputError) as caught:
        opened(data={"sources": {"tiny": source}, "withheld": 3, "sizes": {"overlap": [9568, 2145]}})
    text = str(caught.value)
    assert "3 faults" in text
    assert "list 'train' of source 'tiny' has 24 images, the published one 10582" in text
    assert "the published split has 9568" in text
    assert "the published split has 2145" in text
