"""Running models over annotated images: mapping, what is left out, flips, worst images, faults."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from cilseg.bundle import Preprocessing
from cilseg.classes import ClassSet
from cilseg.data.source import Source, open_source
from cilseg.errors import ArtifactError, InputError
from cilseg.evaluate.regions import RegionFlips
from cilseg.evaluate.run import JudgedModel, Predict, PredictSure, compare_models, evaluate_source
from cilseg_serve.images import write_mask

Array = npt.NDArray[np.uint8]
LABELS = ("background", "cow", "sofa", "cat")
PARENT = ClassSet.base(["cat"])
CANDIDATE = PARENT.extend(["cow"], step=1)


def constant(value: int) -> Predict:
    return lambda image: np.full(image.shape[:2], value, dtype=np.uint8)


def from_red(table: dict[int, int]) -> Predict:
    """A model that reads the mask value out of the red channel and answers ``table[value]``."""
    lut = np.array([table.get(v, 0) for v in range(256)], dtype=np.uint8)
    return lambda image: lut[image[..., 0]]


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Four images; the red channel of each repeats its mask (values: 1 cow, 2 sofa, 3 cat, 255 void)."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "labels.txt").write_text("\n".join(LABELS) + "\n")
    palette = np.zeros((4, 3), dtype=np.uint8)
    for index, (height, width) in enumerate([(6, 8), (7, 5), (10, 10), (4, 9)]):
        mask = np.zeros((height, width), dtype=np.uint8)
        mask[0], mask[1], mask[2, : index + 1], mask[3] = 1, 2, 3, 255
        image = np.stack([mask, np.full_like(mask, 90), np.full_like(mask, index)], axis=-1)
        Image.fromarray(image).save(tmp_path / "images" / f"i{index}.png")
        write_mask(tmp_path / "masks" / f"i{index}.png", mask, palette)
    (tmp_path / "val.txt").write_text("\n".join(f"i{i}" for i in range(4)) + "\n")
    return open_source(tmp_path, split="val")


def test_perfect_model_scores_by_class_name(source: Source) -> None:
    done: list[tuple[int, int]] = []
    result = evaluate_source(
        from_red({1: 2, 3: 1}),
        source,
        CANDIDATE,
        annotated=["cow", "sofa", "cat"],
        on_progress=lambda i, n: done.append((i, n)),
    )
    assert result.ids == ("i0", "i1", "i2", "i3")
    assert result.confusions.shape == (4, 3, 3)
    assert result.confusions.dtype == np.int64
    # sofa is not in the class set and counts as background; void is out
    assert [np.diag(c).tolist() for c in result.confusions[:2]] == [
        [6 * 8 - 8 - 1 - 8, 1, 8],
        [7 * 5 - 5 - 2 - 5, 2, 5],
    ]
    assert result.confusion.sum() == np.trace(result.confusion)
    np.testing.assert_allclose(result.scores.class_iou, 1)
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_class_that_nobody_annotated_is_left_out_on_background_only(source: Source) -> None:
    counted = evaluate_source(constant(2), source, CANDIDATE, annotated=["cow", "cat"]).confusion
    left_out = evaluate_source(constant(2), source, CANDIDATE, annotated=["cat"]).confusion
    assert counted[0, 2] > 0
    assert left_out[0].sum() == 0
    np.testing.assert_array_equal(left_out[1:], counted[1:])


def test_images_are_scored_at_their_own_size(source: Source) -> None:
    seen: list[tuple[int, ...]] = []

    def predict(image: Array) -> Array:
        seen.append(image.shape)
        return np.zeros(image.shape[:2], dtype=np.uint8)

    preprocessing = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), short_side_px=16)
    result = evaluate_source(predict, source, CANDIDATE, annotated=["cow", "cat"], preprocessing=preprocessing)
    assert all(min(shape[:2]) == 16 for shape in seen)
    assert result.confusion.sum() == 6 * 8 + 7 * 5 + 10 * 10 + 4 * 9 - (8 + 5 + 10 + 9)


def test_comparison_equals_two_evaluations(source: Source) -> None:
    annotated = ["cow", "sofa", "cat"]
    before, after = from_red({3: 1, 1: 1}), from_red({1: 2})
    both = compare_models(
        JudgedModel(before, PARENT), JudgedModel(after, CANDIDATE), source, annotated=annotated, keep_worst=2
    )
    np.testing.assert_array_equal(
        both.candidate.confusions, evaluate_source(after, source, CANDIDATE, annotated=annotated).confusions
    )
    # the cow's pixels that the parent calls cat are errors of the parent, in the candidate's class set
    assert both.parent.confusion[2].tolist() == [0, 8 + 5 + 10 + 9, 0]
    assert both.negative_flips.tolist() == [1, 2, 3, 4]
    assert both.positive_flips.tolist() == [8, 5, 10, 9]
    assert both.scored_pixels.tolist() == [40, 30, 90, 27]
    assert both.flips == {"negative": 10, "positive": 32, "pixels": 187}


def test_worst_images_are_the_largest_losses_on_old_classes(source: Source) -> None:
    both = compare_models(
        JudgedModel(from_red({3: 1}), PARENT),
        JudgedModel(from_red({1: 2}), CANDIDATE),
        source,
        annotated=["cow", "cat"],
        keep_worst=2,
    )
    assert [w.id for w in both.worst] == ["i3", "i1"]
    assert [w.lost_share for w in both.worst] == [4 / 36, 2 / 35]
    worst = both.worst[0]
    assert worst.image.shape == (4, 9, 3)
    assert (worst.truth == 1).sum() == (worst.before == 1).sum() == 4
    assert (worst.after == 1).sum() == 0


def test_worst_images_are_kept_small(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "labels.txt").write_text("background\ncat\n")
    (tmp_path / "val.txt").write_text("big\n")
    mask = np.ones((1500, 900), dtype=np.uint8)
    Image.fromarray(np.zeros((1500, 900, 3), dtype=np.uint8)).save(tmp_path / "images" / "big.png")
    write_mask(tmp_path / "masks" / "big.png", mask, np.zeros((2, 3), dtype=np.uint8))
    source = open_source(tmp_path, split="val")
    both = compare_models(
        JudgedModel(constant(1), PARENT), JudgedModel(constant(0), CANDIDATE), source, annotated=["cat"]
    )
    assert both.worst[0].image.shape == (640, 384, 3)
    assert both.worst[0].after.shape == (640, 384)


def test_nothing_lost_keeps_no_image(source: Source) -> None:
    model = from_red({3: 1})
    both = compare_models(JudgedModel(model, PARENT), JudgedModel(model, CANDIDATE), source, annotated=["cow", "cat"])
    assert both.worst == ()
    assert both.negative_flips.sum() == 0


def test_parent_ids_are_mapped_by_name(source: Source) -> None:
    other_order = ClassSet.base(["cow", "cat"])
    both = compare_models(
        JudgedModel(from_red({1: 1, 3: 2}), other_order),
        JudgedModel(from_red({1: 2, 3: 1}), CANDIDATE),
        source,
        annotated=["cow", "cat"],
    )
    np.testing.assert_array_equal(both.parent.confusions, both.candidate.confusions)


def test_parent_with_classes_that_the_candidate_lacks_is_refused(source: Source) -> None:
    with pytest.raises(InputError, match="lacks the parent's classes horse"):
        compare_models(
            JudgedModel(constant(0), ClassSet.base(["cat", "horse"])),
            JudgedModel(constant(0), CANDIDATE),
            source,
            annotated=["cat"],
        )


def test_unknown_annotated_class_is_refused(source: Source) -> None:
    with pytest.raises(InputError, match=r"'catt' is no class of its masks. Did you mean 'cat'"):
        evaluate_source(constant(0), source, CANDIDATE, annotated=["catt"])


def test_answers_that_do_not_fit_are_refused(source: Source) -> None:
    with pytest.raises(ArtifactError, match="answered with id 3, its class set ends at 2"):
        evaluate_source(constant(3), source, CANDIDATE, annotated=["cat"])
    with pytest.raises(ArtifactError, match="a mask is uint8 of the image's height and width"):
        evaluate_source(lambda image: image[:2, :2, 0], source, CANDIDATE, annotated=["cat"])


def test_every_damaged_file_is_named_at_once(source: Source) -> None:
    for name in ("i1", "i3"):
        path = source.root / "images" / f"{name}.png"
        path.write_bytes(path.read_bytes()[:40])
    calls: list[int] = []

    def predict(image: Array) -> Array:
        calls.append(1)
        return np.zeros(image.shape[:2], dtype=np.uint8)

    with pytest.raises(InputError, match="2 faults") as caught:
        evaluate_source(predict, source, CANDIDATE, annotated=["cat"])
    assert "i1.png" in str(caught.value)
    assert "i3.png" in str(caught.value)
    assert len(calls) == 1


def test_comparison_counts_objects_and_calibration(source: Source) -> None:
    """Cats are rows of 1 to 4 pixels here, too small to be objects; a large one in the last image is not."""
    big = np.zeros((10, 10), dtype=np.uint8)
    big[2:8, 2:8] = 3
    Image.fromarray(np.stack([big, big, big], axis=-1)).save(source.root / "images" / "i2.png")
    write_mask(source.root / "masks" / "i2.png", big, np.zeros((4, 3), dtype=np.uint8))

    def sure(predict: Predict, confidence: float) -> PredictSure:
        return lambda image: (predict(image), np.full(image.shape[:2], confidence, dtype=np.float32))

    before, after = from_red({3: 1}), from_red({1: 2})
    both = compare_models(
        JudgedModel(before, PARENT, predict_sure=sure(before, 0.9)),
        JudgedModel(after, CANDIDATE, predict_sure=sure(after, 0.6)),
        source.subset(["i2"]),
        annotated=["cow", "cat"],
    )
    assert both.regions == RegionFlips(negative=1, positive=0, regions=1)
    assert both.calibration_error == pytest.approx((10.0, 4.0), abs=1e-4)  # right on 100 % and on 64 % of the pixels
    plain = compare_models(JudgedModel(before, PARENT), JudgedModel(after, CANDIDATE), source, annotated=["cow", "cat"])
    assert plain.calibration_error is None


def test_a_sure_answer_is_checked_like_any_other(source: Source) -> None:
    bad = JudgedModel(
        constant(0), CANDIDATE, predict_sure=lambda i: (np.full(i.shape[:2], 9, np.uint8), np.ones(i.shape[:2], "f4"))
    )
    with pytest.raises(ArtifactError, match="answered with id 9"):
        compare_models(JudgedModel(constant(0), PARENT), bad, source, annotated=["cat"])
