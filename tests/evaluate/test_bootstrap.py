"""The paired bootstrap: estimates, bounds, classes without truth, and its arithmetic against slow references."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from cilseg.errors import InputError
from cilseg.evaluate.bootstrap import paired_bootstrap, rarest_class, resample_weights
from cilseg.evaluate.student import effective_degrees, student_t_quantile

Counts = npt.NDArray[np.int64]


def stacks(n_images: int, *, seed: int = 0, n_classes: int = 4) -> tuple[Counts, Counts]:
    """Random confusion matrices of a parent and a slightly different candidate, with equal truth."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 500, (n_images, n_classes)) * (rng.random((n_images, n_classes)) < 0.6)
    parent = np.stack([[rng.multinomial(t, _row(c, 0.8, n_classes)) for c, t in enumerate(row)] for row in truth])
    candidate = np.stack([[rng.multinomial(t, _row(c, 0.75, n_classes)) for c, t in enumerate(row)] for row in truth])
    return parent.astype(np.int64), candidate.astype(np.int64)


def _row(own: int, share: float, n_classes: int) -> list[float]:
    return [share if c == own else (1 - share) / (n_classes - 1) for c in range(n_classes)]


def iou(confusion: npt.NDArray[np.float64] | Counts) -> npt.NDArray[np.float64]:
    hits = np.diag(confusion)
    return np.asarray(hits / (confusion.sum(0) + confusion.sum(1) - hits))


def test_estimates_are_dataset_level_iou_differences() -> None:
    parent, candidate = stacks(30)
    drawn = paired_bootstrap(parent, candidate, mean_of=[1, 3], resamples=200)
    expected = iou(candidate.sum(0)) - iou(parent.sum(0))
    np.testing.assert_allclose(drawn.delta[:-1], expected, atol=1e-12)
    np.testing.assert_allclose(drawn.delta[-1], expected[[1, 3]].mean(), atol=1e-12)
    assert drawn.images_with_class[1] == np.count_nonzero(parent[:, 1].sum(axis=1))


def test_replicates_equal_resampling_images_one_by_one() -> None:
    parent, candidate = stacks(12)
    drawn = paired_bootstrap(parent, candidate, mean_of=[1, 2], resamples=100, seed=5)
    strata = rarest_class(parent.sum(axis=2) > 0)
    weights = resample_weights(strata, resamples=100, generator=np.random.default_rng(5))
    for replicate, weight in zip(drawn.replicates, weights, strict=True):
        before, after = np.tensordot(weight, parent, 1), np.tensordot(weight, candidate, 1)
        expected = iou(after) - iou(before)
        np.testing.assert_allclose(replicate[:-1], expected, atol=1e-6)
        np.testing.assert_allclose(replicate[-1], expected[[1, 2]].mean(), atol=1e-6)


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    parent, candidate = stacks(20)
    whole = paired_bootstrap(parent, candidate, mean_of=[1], resamples=500, seed=3)
    monkeypatch.setattr("cilseg.evaluate.bootstrap._CHUNK_BYTES", 20 * 8 * 7)
    pieces = paired_bootstrap(parent, candidate, mean_of=[1], resamples=500, seed=3)
    np.testing.assert_array_equal(whole.replicates, pieces.replicates)


def test_seed_decides() -> None:
    parent, candidate = stacks(20)
    first, again, other = (
        paired_bootstrap(parent, candidate, mean_of=[1], resamples=300, seed=s).lower(0.05) for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_weights_keep_mean_and_variance_in_strata_of_any_size() -> None:
    """Rao and Wu: a stratum of n weighs n in expectation, and a stratum's total varies as a sample of n would."""
    strata = np.repeat([0, 1, 2], [1, 2, 40])
    weights = resample_weights(strata, resamples=20_000, generator=np.random.default_rng(0))
    assert np.all(weights[:, 0] == 1)
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.05)
    values = np.random.default_rng(1).normal(size=40)
    totals = weights[:, 3:] @ values
    assert totals.var() == pytest.approx(40 * values.var(ddof=1), rel=0.05)
    assert (weights[:, 1:3] @ [1.0, -1.0]).var() == pytest.approx(2 * np.var([1.0, -1.0], ddof=1), rel=0.05)


def test_strata_are_the_rarest_class_shown() -> None:
    present = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 1], [1, 1, 0], [0, 0, 0]], dtype=bool)
    assert rarest_class(present).tolist() == [1, 2, 2, 1, -1]


def test_every_class_is_in_every_resample() -> None:
    """Class 3 has no stratum of its own: each of its images also shows the rarer class 1 or 2."""
    parent, candidate = (np.zeros((40, 4, 4), dtype=np.int64) for _ in range(2))
    for stack in (parent, candidate):
        stack[:, 0, 0] = 100
        stack[:6, 1, 1], stack[6:12, 2, 2], stack[[0, *range(6, 12)], 3, 3] = 9, 9, 9
    candidate[::2, 3, 3] -= 4
    candidate[::2, 3, 0] += 4
    candidate = np.maximum(candidate, 0)
    drawn = paired_bootstrap(parent, candidate, mean_of=[1, 2, 3], resamples=5000)
    assert not np.isnan(drawn.replicates[:, :4]).any()


def test_identical_models_have_bounds_at_zero() -> None:
    parent, _ = stacks(25)
    drawn = paired_bootstrap(parent, parent, mean_of=[1, 2, 3], resamples=500)
    np.testing.assert_array_equal(drawn.lower(0.05), 0)
    np.testing.assert_array_equal(drawn.upper(0.05), 0)


def test_bounds_widen_with_confidence_and_enclose_the_estimate() -> None:
    parent, candidate = stacks(40)
    drawn = paired_bootstrap(parent, candidate, mean_of=[1, 2, 3], resamples=3000)
    assert np.all(drawn.lower(0.01) < drawn.lower(0.05))
    assert np.all(drawn.lower(0.05) < drawn.delta)
    assert np.all(drawn.delta < drawn.upper(0.05))
    assert np.all(drawn.upper(0.05) < drawn.upper(0.01))


def test_class_without_truth_is_nan_and_leaves_the_mean() -> None:
    parent, candidate = stacks(30)
    parent[:, 2] = candidate[:, 2] = 0
    drawn = paired_bootstrap(parent, candidate, mean_of=[1, 2], resamples=300)
    assert np.isnan([drawn.delta[2], drawn.lower(0.05)[2], drawn.upper(0.05)[2]]).all()
    assert drawn.delta[-1] == pytest.approx(drawn.delta[1])
    assert drawn.lower(0.05)[-1] == pytest.approx(drawn.lower(0.05)[1], abs=1e-6)


def test_rare_class_is_in_every_resample_and_has_bounds() -> None:
    parent, candidate = stacks(20)
    parent[:, 1] = candidate[:, 1] = 0
    parent[:2, 1, 1], candidate[0, 1, 1], candidate[1, 1, 0] = 9, 9, 9
    drawn = paired_bootstrap(parent, candidate, mean_of=[1], resamples=2000)
    assert not np.isnan(drawn.replicates[:, 1]).any()
    assert np.isfinite(drawn.lower(0.05)[1])


def test_bound_is_never_bolder_than_estimate_and_standard_error() -> None:
    parent, candidate = stacks(60)
    drawn = paired_bootstrap(parent, candidate, mean_of=[1, 2, 3], resamples=2000)
    t = np.array([student_t_quantile(0.95, int(d)) for d in drawn.degrees])
    assert np.all(drawn.lower(0.05) <= drawn.delta - t * drawn.standard_error + 1e-9)
    assert np.all(drawn.upper(0.05) >= drawn.delta + t * drawn.standard_error - 1e-9)


def test_standard_error_is_that_of_the_jackknife() -> None:
    parent, candidate = stacks(80)
    drawn = paired_bootstrap(parent, candidate, mean_of=[1, 2], resamples=100)
    left_out = [
        iou(np.delete(candidate, i, axis=0).sum(0)) - iou(np.delete(parent, i, axis=0).sum(0)) for i in range(80)
    ]
    jackknife = np.sqrt(79 / 80 * ((left_out - np.mean(left_out, axis=0)) ** 2).sum(axis=0))
    np.testing.assert_allclose(drawn.standard_error[1:-1], jackknife[1:], rtol=0.05)


def test_heavy_tails_leave_few_degrees_of_freedom() -> None:
    normal = stats.norm.ppf((np.arange(100) + 0.5) / 100)
    assert 85 <= effective_degrees(normal, at_most=99) <= 99
    one_large = np.append(np.full(99, 0.1), 10.0)
    assert effective_degrees(one_large, at_most=99) == 2
    assert effective_degrees(np.zeros(5), at_most=4) == 4


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 30, 31, 200])
@pytest.mark.parametrize("probability", [0.0005, 0.05, 0.5, 0.95])
def test_student_t_quantile(degrees: int, probability: float) -> None:
    expected = float(stats.t.ppf(probability, degrees))
    assert student_t_quantile(probability, degrees) == pytest.approx(expected, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize(
    ("parent", "candidate", "resamples", "text"),
    [
        ((3, 2, 2), (4, 2, 2), 100, "Score both on one gate set"),
        ((3, 2, 2), (3, 3, 3), 100, "in one class set"),
        ((0, 2, 2), (0, 2, 2), 100, "holds no image"),
        ((3, 2, 2), (3, 2, 2), 50, "at least 100 resamples, got 50"),
    ],
)
def test_refusals(parent: tuple[int, ...], candidate: tuple[int, ...], resamples: int, text: str) -> None:
    with pytest.raises(InputError, match=text):
        paired_bootstrap(
            np.ones(parent, dtype=np.int64), np.ones(candidate, dtype=np.int64), mean_of=[1], resamples=resamples
        )
