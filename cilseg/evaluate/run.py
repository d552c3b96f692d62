"""Running models over annotated images: per-image confusion matrices, flips, and the images that got worst."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
from PIL import Image

from cilseg.bundle import Preprocessing
from cilseg.classes import BACKGROUND, VOID_ID, ClassSet
from cilseg.data.source import Source, map_mask
from cilseg.errors import ArtifactError, FaultCollector, InputError, did_you_mean
from cilseg.evaluate.calibration import Calibration, calibration_of
from cilseg.evaluate.confusion import confusion_matrix
from cilseg.evaluate.regions import RegionFlips, region_flips
from cilseg.evaluate.scoring import Scores
from cilseg_serve.preprocessing import prepare, restore_mask

Array = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]
Predict = Callable[[Array], Array]
"""``(H, W, 3)`` uint8 RGB -> ``(H, W)`` uint8 ids."""
PredictSure = Callable[[Array], tuple[Array, npt.NDArray[np.float32]]]
"""``(H, W, 3)`` uint8 RGB -> ``(H, W)`` uint8 ids and ``(H, W)`` float32 soft-max probabilities of the winner."""
Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""

_KEEP_SIDE_PX = 640


@dataclass(frozen=True)
class JudgedModel:
    """A model to score: how it answers, in which classes, and what its images go through first.

    Without ``preprocessing`` the model is given the images at their own size.
    """

    predict: Predict
    class_set: ClassSet
    preprocessing: Preprocessing | None = None
    predict_sure: PredictSure | None = None
    """Answers with confidence too, which is what calibration is measured from."""

    def answer_sure(self, image: Array) -> tuple[Array, npt.NDArray[np.float32] | None]:
        """Return :meth:`answer` and the ``(H, W)`` soft-max probability of the answer, None where it is not known.

        Raises:
            ArtifactError: as :meth:`answer`.
        """
        if self.predict_sure is None or self.preprocessing is not None:
            return self.answer(image), None
        mask, confidence = self.predict_sure(image)
        return self._checked(mask, image), confidence

    def answer(self, image: Array) -> Array:
        """Return the ``(H, W)`` mask of an ``(H, W, 3)`` image, at the size of the image.

        Raises:
            ArtifactError: the model answers with another size, another type, or ids outside its class set.
        """
        seen = image if self.preprocessing is None else prepare(image, self.preprocessing)
        return restore_mask(self._checked(self.predict(seen), seen), image.shape[0], image.shape[1])

    def _checked(self, answer: Array, seen: Array) -> Array:
        mask = np.asarray(answer)
        if mask.shape != seen.shape[:2] or mask.dtype != np.uint8:
            raise ArtifactError(
                f"The model answered an image of {seen.shape[0]}x{seen.shape[1]} pixels with {mask.dtype} of shape "
                f"{mask.shape}; a mask is uint8 of the image's height and width. Export or load the model again."
            )
        if mask.size and int(mask.max()) >= len(self.class_set):
            raise ArtifactError(
                f"The model answered with id {int(mask.max())}, its class set ends at {len(self.class_set) - 1} "
                f"({self.class_set.names[-1]}). The weights and the class set do not belong together."
            )
        return mask


@dataclass(frozen=True)
class Evaluation:
    """Per-image confusion matrices of one model.

    Attributes:
        class_set: the classes of rows and columns.
        ids: the images, in order.
        confusions: (N, C, C) int64 pixel counts ``[truth, prediction]``.
    """

    class_set: ClassSet
    ids: tuple[str, ...]
    confusions: Counts

    @property
    def confusion(self) -> Counts:
        """(C, C) confusion matrix of the whole set."""
        total: Counts = self.confusions.sum(axis=0)
        return total

    @property
    def scores(self) -> Scores:
        """Scores of :attr:`confusion`; ``scores.reported(class_set)`` groups them into old, new and all."""
        return Scores(self.confusion)


@dataclass(frozen=True)
class WorstImage:
    """An image on which the candidate lost pixels of old classes, shrunk for a report.

    Masks are in the candidate's class ids; ``lost_share`` is the net loss of correct pixels of old classes over all
    pixels of the image.
    """

    id: str
    lost_share: float
    image: Array
    truth: Array
    before: Array
    after: Array


@dataclass(frozen=True)
class Comparison:
    """Two models on the same images, both scored in the candidate's class set.

    Attributes:
        parent, candidate: their evaluations.
        negative_flips: (N,) pixels that the parent had right and the candidate has wrong.
        positive_flips: (N,) the opposite.
        scored_pixels: (N,) pixels that count.
        regions: objects of old classes found before and lost now, and the opposite.
        calibration: pixels by confidence of parent and candidate; None where one of them does not state any.
        worst: the images that lost most on old classes, worst first.
    """

    parent: Evaluation
    candidate: Evaluation
    negative_flips: Counts
    positive_flips: Counts
    scored_pixels: Counts
    worst: tuple[WorstImage, ...]
    regions: RegionFlips | None = None
    calibration: tuple[Calibration, Calibration] | None = None

    @property
    def calibration_error(self) -> tuple[float, float] | None:
        """Expected calibration error in points, before and after."""
        if self.calibration is None:
            return None
        before, after = (100 * c.error for c in self.calibration)
        return before, after

    @property
    def flips(self) -> dict[str, int]:
        """Totals over the set: ``negative``, ``positive`` and the scored ``pixels``."""
        return {
            "negative": int(self.negative_flips.sum()),
            "positive": int(self.positive_flips.sum()),
            "pixels": int(self.scored_pixels.sum()),
        }


def evaluate_source(
    predict: Predict,
    source: Source,
    class_set: ClassSet,
    *,
    annotated: Collection[str],
    preprocessing: Preprocessing | None = None,
    on_progress: Progress | None = None,
    n_workers: int = 2,
) -> Evaluation:
    """Score a model on every image of ``source``, each at its own size.

    Classes of the source that ``class_set`` lacks count as background. A class of ``class_set`` outside ``annotated``
    is ignored where the mask says background: pixels that the model gives to it there are left out.

    Args:
        predict: the model; see :data:`Predict`. Always called from the calling thread.
        source: images and masks.
        class_set: the classes of the model.
        annotated: the foreground classes that the masks were drawn for.
        preprocessing: resizing around the model; None gives it the image as it is.
        on_progress: called after every image.
        n_workers: threads that read images and masks ahead.

    Raises:
        InputError: unreadable images or masks (all of them named), or annotated classes that the source lacks.
        ArtifactError: the model's answers do not fit the image or the class set.
    """
    model = JudgedModel(predict, class_set, preprocessing)
    hidden = _hidden_ids(source, class_set, annotated)
    confusions = np.zeros((len(source), len(class_set), len(class_set)), dtype=np.int64)
    for index, image, truth in _read_ahead(source, class_set, on_progress, n_workers=n_workers):
        prediction = model.answer(image)
        truth = _leave_out(truth, prediction, hidden)
        confusions[index] = confusion_matrix(truth, prediction, n_classes=len(class_set))
    return Evaluation(class_set, source.ids, confusions)


def compare_models(
    parent: JudgedModel,
    candidate: JudgedModel,
    source: Source,
    *,
    annotated: Collection[str],
    keep_worst: int = 10,
    on_progress: Progress | None = None,
    n_workers: int = 2,
) -> Comparison:
    """Score parent and candidate on the same images, each read once.

    Truth holds all classes of the candidate for both models, so naming a new class's pixel otherwise is an error of the
    parent too. Memory holds the confusion matrices, a few images read ahead, and ``keep_worst`` shrunk images.

    Raises:
        InputError: as :func:`evaluate_source`, or the parent has classes that the candidate lacks.
        ArtifactError: as :func:`evaluate_source`.
    """
    classes = candidate.class_set
    to_candidate = _id_table(parent.class_set, classes)
    old = sorted(classes.id_of(name) for name in parent.class_set.foreground)
    hidden = _hidden_ids(source, classes, annotated)
    confusions = np.zeros((2, len(source), len(classes), len(classes)), dtype=np.int64)
    negative, positive, scored = np.zeros((3, len(source)), dtype=np.int64)
    regions = RegionFlips(0, 0, 0)
    calibrations = [Calibration.empty(), Calibration.empty()]
    worst: list[tuple[float, int, WorstImage]] = []
    for index, image, truth in _read_ahead(source, classes, on_progress, n_workers=n_workers):
        answer, sure_before = parent.answer_sure(image)
        before: Array = to_candidate[answer]
        after, sure_after = candidate.answer_sure(image)
        truths = [_leave_out(truth, prediction, hidden) for prediction in (before, after)]
        for row, (seen, prediction) in enumerate(zip(truths, (before, after), strict=True)):
            confusions[row, index] = confusion_matrix(seen, prediction, n_classes=len(classes))
        for row, (prediction, sure) in enumerate(((before, sure_before), (after, sure_after))):
            if sure is not None:
                calibrations[row] += calibration_of(truths[row], prediction, sure)
        regions += region_flips(truth, before, after, classes=old)
        counted = (truths[0] != VOID_ID) & (truths[1] != VOID_ID)
        was_right, is_right = before == truth, after == truth
        negative[index] = np.count_nonzero(counted & was_right & ~is_right)
        positive[index] = np.count_nonzero(counted & ~was_right & is_right)
        scored[index] = np.count_nonzero(counted)

        right = np.diagonal(confusions[:, index], axis1=1, axis2=2)[:, old].sum(axis=1)
        lost_share = float(right[0] - right[1]) / max(1, truth.size)
        if lost_share > 0 and keep_worst > 0 and (len(worst) < keep_worst or lost_share > worst[0][0]):
            kept = WorstImage(source.ids[index], lost_share, *_shrink(image, truth, before, after))
            push = heapq.heappush if len(worst) < keep_worst else heapq.heapreplace
            push(worst, (lost_share, -index, kept))
    return Comparison(
        parent=Evaluation(classes, source.ids, confusions[0]),
        candidate=Evaluation(classes, source.ids, confusions[1]),
        negative_flips=negative,
        positive_flips=positive,
        scored_pixels=scored,
        regions=regions,
        calibration=(calibrations[0], calibrations[1]) if all(c.pixels.any() for c in calibrations) else None,
        worst=tuple(item for _, _, item in sorted(worst, key=lambda entry: entry[:2], reverse=True)),
    )


def _hidden_ids(source: Source, class_set: ClassSet, annotated: Collection[str]) -> npt.NDArray[np.bool_]:
    """Return a (256,) table of the foreground ids that the masks were not drawn for."""
    known = set(source.label_names.values())
    faults = FaultCollector(f"Annotated classes of {source.root}")
    for name in sorted(set(annotated) - known):
        faults.add(f"{name!r} is no class of its masks.{did_you_mean(name, known)}")
    faults.raise_if_any(f"Its masks hold: {', '.join(source.label_names.values())}.")
    hidden = np.zeros(256, dtype=np.bool_)
    hidden[[class_set.id_of(name) for name in class_set.foreground if name not in annotated]] = True
    return hidden


def _id_table(parent: ClassSet, candidate: ClassSet) -> Array:
    """Return a (256,) table from the parent's ids to the candidate's."""
    missing = [name for name in parent.names if name not in candidate]
    if missing:
        raise InputError(
            f"The candidate lacks the parent's classes {', '.join(missing)}, so the two cannot be compared. "
            "Give a parent from the candidate's own lineage (cilseg show CANDIDATE names it)."
        )
    table = np.full(256, VOID_ID, dtype=np.uint8)
    table[: len(parent)] = [candidate.id_of(name) for name in parent.names]
    return table


def _leave_out(truth: Array, prediction: Array, hidden: npt.NDArray[np.bool_]) -> Array:
    """Return ``truth`` with void where it says background and the prediction is a class nobody annotated."""
    if not hidden.any():
        return truth
    return np.where((truth == 0) & hidden[prediction], np.uint8(VOID_ID), truth)


def _read_ahead(
    source: Source, class_set: ClassSet, on_progress: Progress | None, *, n_workers: int
) -> Iterator[tuple[int, Array, Array]]:
    """Yield (index, image, truth in ids of ``class_set``); after a fault only go on reading, then raise all faults."""
    visible = [n for n in class_set.foreground if n in set(source.label_names.values()) - {BACKGROUND}]

    def read(index: int) -> tuple[Array, Array]:
        truth = map_mask(source.mask(index), source.label_names, class_set, visible=visible)
        return source.image(index), truth

    faults = FaultCollector(f"Annotated images of {source.root} ({source.split})")
    pool = ThreadPoolExecutor(max_workers=max(1, n_workers), thread_name_prefix="read-ahead")
    indices = iter(range(len(source)))
    try:
        waiting: deque[tuple[int, Future[tuple[Array, Array]]]] = deque(
            (i, pool.submit(read, i)) for i in islice(indices, 2 * max(1, n_workers))
        )
        while waiting:
            index, future = waiting.popleft()
            try:
                image, truth = future.result()
            except InputError as fault:
                faults.add(str(fault))
            else:
                if not faults:
                    yield index, image, truth
            if on_progress is not None:
                on_progress(index + 1, len(source))
            waiting.extend((i, pool.submit(read, i)) for i in islice(indices, 1))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    faults.raise_if_any("Replace these files, or take them out of the split.")


def _shrink(image: Array, *masks: Array) -> tuple[Array, ...]:
    """Return image and masks with the longer side at most 640 px; masks by nearest pixel."""
    height, width = image.shape[:2]
    scale = min(1.0, _KEEP_SIDE_PX / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size == (width, height):
        return image, *masks
    small = np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    return small, *(np.array(Image.fromarray(m).resize(size, Image.Resampling.NEAREST)) for m in masks)
