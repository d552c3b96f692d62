from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cilseg.data.protocol import IncrementalProtocol, map_labels, select_tags, step_sizes_of, tag_columns
from cilseg.errors import InputError

TAGS = [frozenset(t) for t in (("cat",), ("cat", "cow"), ("cow",), ("sheep", "cow"), (), ("tree",), ("tree", "sheep"))]


def protocol(rule="overlap"):
    return IncrementalProtocol(("cat", "cow", "sheep"), (1, 1, 1), rule)


def test_overlap_takes_every_image_with_a_class_of_the_step():
    assert protocol().split(TAGS) == ((0, 1), (1, 2, 3), (3, 6))


def test_disjoint_leaves_out_images_with_later_classes():
    assert protocol("disjoint").split(TAGS) == ((0,), (1, 2), (3, 6))


def test_partitioned_puts_an_image_into_the_first_step_of_which_it_shows_a_class():
    assert protocol("partitioned").split(TAGS) == ((0, 1), (2, 3), (6,))


def test_step_and_seen_classes():
    p = IncrementalProtocol(("cat", "cow", "sheep", "dog"), (1, 2, 1), "overlap")
    assert [p.step_classes(t) for t in range(p.n_steps)] == [("cat",), ("cow", "sheep"), ("dog",)]
    assert p.seen_classes(1) == ("cat", "cow", "sheep")
    with pytest.raises(InputError, match="no step 3; the protocol has 3 steps"):
        p.step_classes(3)


def test_class_order_is_free():
    p = IncrementalProtocol(("sheep", "cat", "cow"), (2, 1), "disjoint")
    assert p.split(TAGS) == ((0, 6), (1, 2, 3))


def test_all_faults_are_reported_together():
    with pytest.raises(InputError) as caught:
        IncrementalProtocol(("cat", "Cat", " dog", "background"), (1, 0), "overlaps")  # type: ignore[arg-type]
    text = str(caught.value)
    assert "6 faults" in text
    for part in (
        "' dog' is empty, has blanks around it",
        "'background' is in the class order",
        "'cat' is there 2 times ('cat', 'Cat')",
        "at least one class, got the sizes [1, 0]",
        "add up to 1, but there are 4 classes",
        "Did you mean 'overlap'?",
    ):
        assert part in text


def test_unknown_classes_are_listed_with_a_suggestion():
    with pytest.raises(InputError) as caught:
        IncrementalProtocol(("cats", "cow", "unicorn"), (3,), "overlap").check_known(["background", "cat", "cow"])
    assert "'cats'. Did you mean 'cat'?" in str(caught.value)
    assert "unknown class 'unicorn'" in str(caught.value)
    assert "The data has: cat, cow." in str(caught.value)
    protocol().check_known(["cat", "cow", "sheep", "tree"])


def test_task_notation():
    assert step_sizes_of("15-5", n_classes=20) == (15, 5)
    assert step_sizes_of("10-2", n_classes=20) == (10, 2, 2, 2, 2, 2)
    assert step_sizes_of("20-1", n_classes=20) == (20,)
    with pytest.raises(InputError, match="do not divide"):
        step_sizes_of("15-4", n_classes=20)
    for task in ("15", "a-b", "15-0", "-5", "15-5-1"):
        with pytest.raises(InputError, match="not of the form"):
            step_sizes_of(task, n_classes=20)


def test_tag_columns():
    np.testing.assert_array_equal(tag_columns(TAGS[:2], ["cow", "cat"]), [[0, 1], [1, 1]])
    assert tag_columns([], ["cow"]).shape == (0, 1)
    with pytest.raises(InputError, match="twice"):
        tag_columns(TAGS, ["cow", "cow"])


def test_mapping_follows_the_learning_order():
    labels = np.array([[0, 1, 2, 3, 9, 255]], dtype=np.uint8)
    shown = {m: map_labels(labels, [3, 1, 2], step_sizes=[1, 1, 1], step=1, mode=m) for m in ("train", "val")}
    np.testing.assert_array_equal(shown["train"], [[0, 2, 0, 0, 0, 0]])
    np.testing.assert_array_equal(shown["val"], [[0, 2, 0, 1, 0, 255]])
    tags = np.array([[1.0, 0.0, 1.0]])
    np.testing.assert_array_equal(select_tags(tags, [3, 1, 2], step_sizes=[1, 1, 1], step=1, mode="train"), [[0, 1]])
    np.testing.assert_array_equal(select_tags(tags, [3, 1, 2], step_sizes=[1, 1, 1], step=1, mode="val"), [[1, 1]])


def test_mapping_refuses_what_it_cannot_do():
    labels = np.zeros((2, 2), dtype=np.uint8)
    with pytest.raises(InputError, match=r"Unknown mode 'trian'.*Did you mean 'train'"):
        map_labels(labels, [1], step_sizes=[1], step=0, mode="trian")
    with pytest.raises(InputError, match=r"\[0, 255\] are outside 1-254"):
        map_labels(labels, [0, 1, 255], step_sizes=[3], step=0, mode="train")
    with pytest.raises(InputError, match=r"\[4\] are outside 1-3"):
        select_tags(np.zeros((1, 3)), [4], step_sizes=[1], step=0, mode="train")


NAMES = [f"class{i}" for i in range(6)]
ORDERS = st.permutations(NAMES)
CUTS = st.sets(st.integers(1, len(NAMES) - 1))
IMAGES = st.lists(st.frozensets(st.sampled_from([*NAMES, "other"])), max_size=20)


@settings(max_examples=60, deadline=None)
@given(ORDERS, CUTS, IMAGES)
def test_splits_obey_the_rules(order, cuts, tags):
    edges = [0, *sorted(cuts), len(NAMES)]
    sizes = tuple(b - a for a, b in pairwise(edges))
    overlap = IncrementalProtocol(tuple(order), sizes, "overlap")
    disjoint = IncrementalProtocol(tuple(order), sizes, "disjoint")
    wide, narrow = overlap.split(tags), disjoint.split(tags)
    step_of = {name: t for t in range(overlap.n_steps) for name in overlap.step_classes(t)}
    for i, found in enumerate(tags):
        steps = {step_of[name] for name in found if name in step_of}
        assert {t for t, rows in enumerate(wide) if i in rows} == steps
        assert {t for t, rows in enumerate(narrow) if i in rows} == ({max(steps)} if steps else set())
    assert wide[-1] == narrow[-1]
    assert all(list(rows) == sorted(set(rows)) for rows in (*wide, *narrow))
