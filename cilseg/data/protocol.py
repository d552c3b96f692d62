"""Incremental protocols: which classes come in which step, which images a step sees, and what their labels say.

The rules are those of the overlap and disjoint scenarios of MiB (Cermelli et al., CVPR 2020) as WILSON (Cermelli et
al., CVPR 2022) uses them. ``K_t`` below are the classes of step ``t``; background belongs to no step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from cilseg.classes import BACKGROUND, VOID_ID, normalise_name
from cilseg.errors import FaultCollector, InputError, did_you_mean

Rule = Literal["overlap", "disjoint", "partitioned"]
Mode = Literal["train", "train_nomask", "val", "test"]
"""``train``: labels of the current step alone; ``train_nomask``: of all seen classes; ``val``, ``test``: the same, and
void stays void."""


@dataclass(frozen=True)
class IncrementalProtocol:
    """Foreground classes in learning order, cut into steps.

    Attributes:
        class_order: foreground class names in the order in which they are learned.
        step_sizes: number of classes per step; the base step is step 0.
        rule: ``overlap``: step ``t`` sees the images with at least one class of ``K_t``. ``disjoint``: of these, the
            ones without any class of a later step. ``partitioned``: every image belongs to exactly one step, the first
            one of which it shows a class; images with classes of several steps train the earliest of them.

    Raises:
        InputError: names empty, repeated or not normalised, sizes that do not add up, an unknown rule; every fault in
            one message.
    """

    class_order: tuple[str, ...]
    step_sizes: tuple[int, ...]
    rule: Rule = "overlap"

    def __post_init__(self) -> None:
        faults = FaultCollector("Incremental protocol")
        for name in self.class_order:
            if not name or name != normalise_name(name):
                faults.add(f"class {name!r} is empty, has blanks around it, or is not Unicode NFC")
        if any(n.casefold() == BACKGROUND for n in self.class_order):
            faults.add(f"{BACKGROUND!r} is in the class order; it belongs to every step and is left out")
        spellings: dict[str, list[str]] = {}
        for name in self.class_order:
            spellings.setdefault(name.casefold(), []).append(name)
        for names in spellings.values():
            if len(names) > 1:
                faults.add(f"class {names[0]!r} is there {len(names)} times ({', '.join(map(repr, names))})")
        if any(size < 1 for size in self.step_sizes):
            faults.add(f"every step brings at least one class, got the sizes {list(self.step_sizes)}")
        if sum(self.step_sizes) != len(self.class_order):
            faults.add(
                f"the step sizes {list(self.step_sizes)} add up to {sum(self.step_sizes)}, "
                f"but there are {len(self.class_order)} classes"
            )
        if not self.class_order:
            faults.add("no classes")
        if self.rule not in get_args(Rule):
            faults.add(f"unknown rule {self.rule!r}.{did_you_mean(str(self.rule), get_args(Rule))}")
        rules = ", ".join(get_args(Rule))
        faults.raise_if_any(f"Name every foreground class once, give sizes that add up, and one rule of {rules}.")

    @property
    def n_steps(self) -> int:
        return len(self.step_sizes)

    def step_classes(self, step: int) -> tuple[str, ...]:
        """Return ``K_step``, in learning order.

        Raises:
            InputError: there is no such step.
        """
        start, stop = _step_range(self.step_sizes, step)
        return self.class_order[start:stop]

    def seen_classes(self, step: int) -> tuple[str, ...]:
        """Return the foreground classes of steps 0 to ``step``, in learning order.

        Raises:
            InputError: there is no such step.
        """
        return self.class_order[: _step_range(self.step_sizes, step)[1]]

    def check_known(self, known: Collection[str]) -> None:
        """Check that a data source has every class of the protocol.

        Raises:
            InputError: classes that ``known`` lacks, all of them, each with the closest known name.
        """
        faults = FaultCollector("Class order of the protocol")
        for name in self.class_order:
            if name not in known:
                faults.add(f"unknown class {name!r}.{did_you_mean(name, known)}")
        faults.raise_if_any(f"The data has: {', '.join(sorted(set(known) - {BACKGROUND})) or 'no classes'}.")

    def split(self, tags: Sequence[frozenset[str]]) -> tuple[tuple[int, ...], ...]:
        """Return the image indices of every step, ascending.

        Args:
            tags: per image the foreground classes in it; classes outside the protocol do not matter.

        Returns:
            One tuple of positions in ``tags`` per step. With ``overlap`` an image may be in several steps, with
            ``disjoint`` and ``partitioned`` in one at most.
        """
        steps: list[tuple[int, ...]] = []
        for step in range(self.n_steps):
            wanted = frozenset(self.step_classes(step))
            later = frozenset(self.class_order) - frozenset(self.seen_classes(step))
            barred = {
                "overlap": frozenset[str](),
                "disjoint": later,
                "partitioned": frozenset(self.seen_classes(step - 1)) if step else frozenset[str](),
            }[self.rule]
            steps.append(tuple(i for i, found in enumerate(tags) if wanted & found and not barred & found))
        return tuple(steps)


def step_sizes_of(task: str, *, n_classes: int) -> tuple[int, ...]:
    """Return the step sizes of a task in the field's notation: ``15-5`` is 15 classes, then 5 at a time to the end.

    Raises:
        InputError: not of that form, or the classes do not divide into such steps.
    """
    first, dash, rest = task.partition("-")
    if not (dash and first.isdecimal() and rest.isdecimal() and int(first) and int(rest)):
        raise InputError(f"Task {task!r} is not of the form BASE-INCREMENT with two numbers, such as 15-5.")
    base, increment = int(first), int(rest)
    remaining = n_classes - base
    if remaining < 0 or remaining % increment:
        raise InputError(
            f"Task {task}: {n_classes} classes do not divide into {base}, then {increment} at a time. "
            "Choose other numbers or give the step sizes one by one."
        )
    return (base, *[increment] * (remaining // increment))


def tag_columns(tags: Sequence[Collection[str]], class_order: Sequence[str]) -> npt.NDArray[np.float64]:
    """Return ``(N, len(class_order))`` of 0 and 1: row = image, column = class; other classes are left out.

    Raises:
        InputError: a class twice in ``class_order``.
    """
    twice = [name for name, count in Counter(class_order).items() if count > 1]
    if twice:
        raise InputError(f"Classes {twice} are twice in the class order. Name every class once.")
    return np.array([[name in found for name in class_order] for found in tags], dtype=np.float64).reshape(
        len(tags), len(class_order)
    )


def select_tags(
    tags: npt.NDArray[np.float64], class_ids: Sequence[int], *, step_sizes: Sequence[int], step: int, mode: Mode
) -> npt.NDArray[np.float64]:
    """Return the tags that a sample of ``step`` shows, in learning order.

    In ``train`` mode the columns of old classes are zero (which means "not told", not "absent"); otherwise they are
    kept. Source: ``LabelSelection`` of the released WILSON code.

    Args:
        tags: ``(N, M)`` of 0 and 1, column = class id - 1.
        class_ids: foreground ids in learning order.
        step_sizes: classes per step, background not counted.
        step: the current step.
        mode: see :data:`Mode`.

    Returns:
        ``(N, seen)`` float64.

    Raises:
        InputError: no such step or mode, or ids outside the columns.
    """
    start, stop = _step_range(step_sizes, step)
    _check_mode(mode)
    outside = [i for i in class_ids if not 1 <= i <= tags.shape[1]]
    if outside:
        raise InputError(f"Class ids {outside} are outside 1-{tags.shape[1]}, the columns of the tags.")
    columns = [i - 1 for i in class_ids[:stop]]
    selected = tags[:, columns].astype(np.float64)
    if mode == "train":
        selected[:, :start] = 0.0
    return selected


def map_labels(
    labels: npt.NDArray[np.uint8],
    class_ids: Sequence[int],
    *,
    step_sizes: Sequence[int],
    step: int,
    mode: Mode,
    others: Literal["background", "void"] = "background",
    void_as_background: bool | None = None,
) -> npt.NDArray[np.uint8]:
    """Return the mask that a sample of ``step`` shows, as channels (0 background, then learning order).

    ``train`` shows the classes of the step alone, the other modes every class seen so far. The defaults are the target
    mapping of ``IncrementalSegmentationDataset`` in the released WILSON code. Other released code differs: MiB and SDR
    test with ``others="void"``, PLOP trains with ``void_as_background=False``.

    Args:
        labels: ``(H, W)`` uint8 ids of the data set, 255 void; any shape works.
        class_ids: foreground ids in learning order.
        step_sizes: classes per step, background not counted.
        step: the current step.
        mode: see :data:`Mode`.
        others: what becomes of classes that are not shown, 0 or 255.
        void_as_background: whether 255 becomes 0; None: in ``train`` and ``train_nomask``, not in ``val`` and ``test``.

    Returns:
        uint8 of the shape of ``labels``.

    Raises:
        InputError: no such step or mode, or ids outside 1-254.
    """
    start, stop = _step_range(step_sizes, step)
    _check_mode(mode)
    outside = [i for i in class_ids if not 1 <= i < VOID_ID]
    if outside:
        raise InputError(f"Class ids {outside} are outside 1-{VOID_ID - 1}; 0 is background and {VOID_ID} void.")
    table = np.full(256, VOID_ID if others == "void" else 0, dtype=np.uint8)
    table[0] = 0
    first = start if mode == "train" else 0
    for channel, class_id in enumerate(class_ids[first:stop], start=first + 1):
        table[class_id] = channel
    if void_as_background is None:
        void_as_background = mode not in ("val", "test")
    table[VOID_ID] = 0 if void_as_background else VOID_ID
    mapped: npt.NDArray[np.uint8] = table[labels]
    return mapped


def _step_range(step_sizes: Sequence[int], step: int) -> tuple[int, int]:
    """Return where the classes of ``step`` start and stop in the learning order."""
    if not 0 <= step < len(step_sizes):
        raise InputError(f"There is no step {step}; the protocol has {len(step_sizes)} steps, counted from 0.")
    ends = list(accumulate(step_sizes))
    return ends[step] - step_sizes[step], ends[step]


def _check_mode(mode: str) -> None:
    if mode not in get_args(Mode):
        raise InputError(f"Unknown mode {mode!r}.{did_you_mean(str(mode), get_args(Mode))} Use {get_args(Mode)}.")
