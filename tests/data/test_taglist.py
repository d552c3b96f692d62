import dataclasses
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cilseg.classes import ClassSet
from cilseg.data.source import open_source
from cilseg.data.taglist import (
    NewClass,
    Point,
    TaggedImage,
    TagList,
    check_trainable,
    load_tag_list,
    tags_from_source,
    write_tag_list,
)
from cilseg.errors import InputError, NotFoundError

PARENT = ClassSet.base(["cat", "person"])
IMAGES = ("a.jpg", "b.jpg", "c.jpg", "sub/d.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("tags")
    (root / "images" / "sub").mkdir(parents=True)
    for name in IMAGES:
        (root / "images" / name).write_bytes(b"not opened when tags are read")
    (root / "images" / "a_scribble.png").write_bytes(b"x")
    (root / "images" / "empty.jpg").touch()
    (root / "outside.jpg").write_bytes(b"x")
    return root


@pytest.fixture
def load(folder):
    def load(document, **options):
        path = folder / "tags.json"
        text = document if isinstance(document, str | bytes) else json.dumps(document)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_tag_list(path, class_set=PARENT, **options)

    return load


@pytest.fixture
def refuse(load):
    def refuse(document, **options):
        with pytest.raises(InputError) as caught:
            load(document, **options)
        return str(caught.value)

    return refuse


def normal(**changes):
    document = {
        "schema": "cilseg.tags/1",
        "image_root": "images",
        "classes": [{"name": "cow"}, {"name": "sheep", "color": "#88aa22"}],
        "images": [
            {"file": "a.jpg", "present": ["cow"]},
            {"file": "b.jpg", "present": ["sheep", "person"], "absent": ["cow"]},
            {"file_name": "c.jpg", "present": [], "absent": ["cat"]},
        ],
        "untagged": "absent",
    }
    return {key: value for key, value in (document | changes).items() if value is not None}


def test_normal_form(load, folder):
    tags = load(normal())
    assert tags.new_classes == (NewClass("cow"), NewClass("sheep", "#88aa22"))
    assert [i.file for i in tags.images] == [folder / "images" / n for n in ("a.jpg", "b.jpg", "c.jpg")]
    assert tags.images[1] == TaggedImage(folder / "images/b.jpg", frozenset({"sheep", "person"}), frozenset({"cow"}))
    after = tags.extended(PARENT)
    assert after.names == ("background", "cat", "person", "cow", "sheep")
    assert after.entries[4].color == "#88aa22"
    assert after.sizes == (3, 2)
    states = tags.states(after)
    assert states.dtype == np.int8
    np.testing.assert_array_equal(states, [[-1, -1, 1, 0], [-1, 1, 0, 1], [0, -1, 0, 0]])
    check_trainable(tags)


def test_untagged_speaks_only_of_the_new_classes(load):
    unknown = load(normal(untagged="unknown"))
    expected = [[-1, -1, 1, -1], [-1, 1, 0, 1], [0, -1, -1, -1]]
    np.testing.assert_array_equal(unknown.states(unknown.extended(PARENT)), expected)
    overridden = load(normal(), untagged="unknown")
    assert (overridden.untagged, load(normal(untagged=None)).untagged) == ("unknown", "absent")
    np.testing.assert_array_equal(overridden.states(overridden.extended(PARENT)), expected)


def test_short_form(load, folder):
    tags = load({"a.jpg": ["cow"], "b.jpg": ["person", "sheep"], "sub/d.png": []}, image_root=folder / "images")
    assert tags.new_names == ("cow", "sheep")
    assert tags.images[2].file == folder / "images" / "sub" / "d.png"
    np.testing.assert_array_equal(tags.states(tags.extended(PARENT)), [[-1, -1, 1, 0], [-1, 1, 0, 1], [-1, -1, 0, 0]])


def test_the_hash_is_of_the_file(load):
    one, other = load(normal()), load(normal(untagged="unknown"))
    assert len(one.sha256) == 64
    assert one.sha256 != other.sha256
    assert load(normal()).sha256 == one.sha256


def test_names_are_normalised(load):
    decomposed = {"file": "a.jpg", "present": [" cafe\u0301 "]}
    tags = load(normal(classes=[{"name": "caf\u00e9 "}], images=[decomposed]))
    assert tags.new_names == ("caf\u00e9",)
    assert tags.images[0].present == {"caf\u00e9"}


def test_byte_order_mark_is_fine(load):
    assert len(load(b"\xef\xbb\xbf" + json.dumps(normal()).encode())) == 3


def test_points_scribbles_and_priors_are_kept(load, folder):
    entry = {
        "file": "a.jpg",
        "points": [[3, 4.5, "cow"], [0, 0, "background"]],
        "scribble": "a_scribble.png",
        "prior": "a_scribble.png",
    }
    image = load(normal(images=[entry])).images[0]
    assert image.points == (Point(3.0, 4.5, "cow"), Point(0.0, 0.0, "background"))
    assert image.scribble == image.prior == folder / "images" / "a_scribble.png"
    assert image.present == {"cow"}


def test_refinement_without_new_classes(load):
    tags = load({"image_root": "images", "images": [{"file": "a.jpg", "present": ["cat"]}]})
    assert tags.new_classes == ()
    assert tags.extended(PARENT) is PARENT
    np.testing.assert_array_equal(tags.states(PARENT), [[1, -1]])
    check_trainable(tags)
    with pytest.raises(InputError, match="no image names any class"):
        check_trainable(load({"image_root": "images", "images": [{"file": "a.jpg"}]}))


def test_absolute_path_below_the_root_is_fine(load, folder):
    tags = load(normal(images=[{"file": str(folder / "images" / "a.jpg"), "present": ["cow"]}]))
    assert tags.images[0].file == folder / "images" / "a.jpg"


def test_every_fault_is_reported_at_once(refuse, folder):
    text = refuse(
        normal(
            schema="cilseg.tags/9",
            clases=[],
            classes=[{"name": "cow", "color": "red"}, {"name": "Cat"}, {"name": "person"}, {"name": "cow"}, 7],
            images=[
                {"file": "a.jpg", "present": ["cow"], "absent": ["cow"]},
                {"file": "a.jpg", "present": ["Cow"]},
                {"file": "gone.jpg", "presnt": ["cow"]},
                {"file": "../outside.jpg"},
                {"file": str(folder / "outside.jpg")},
                {"file": "empty.jpg", "present": ["persn", "tree"]},
                {"file": "b.jpg", "present": "cow", "points": [[1, 2], [-1, 0, "cow"]]},
                {"file": "notes.txt", "present": [3, ""]},
                {"file": "c.jpg", "file_name": "b.jpg"},
                {"present": ["background"]},
                "c.jpg",
            ],
            untagged="abscent",
        )
    )
    for part in (
        "schema is 'cilseg.tags/9'",
        "the list: unknown field 'clases'. Did you mean 'classes'?",
        "classes[0]: colour 'red' of 'cow' is not of the form",
        "classes[1]: class 'Cat' exists as 'cat'",
        "classes[2]: class 'person' is in the parent already; leave it out of 'classes'",
        "classes[3]: class 'cow' is listed twice",
        'classes[4] has to be {"name": "..."}, got 7',
        "images[0]: class 'cow' is both present and absent",
        "image 'a.jpg' is listed 2 times",
        "images[1].present: class 'Cow' exists as 'cow'",
        "images[2]: file 'gone.jpg' does not exist",
        "images[2]: unknown field 'presnt'. Did you mean 'present'?",
        "images[3]: '../outside.jpg' leads out of the image root",
        "outside.jpg' leads out of the image root",
        "images[5]: file 'empty.jpg' is empty",
        "images[5].present: class 'persn' is neither under 'classes' nor in the parent model. Did you mean 'person'?",
        "images[5].present: class 'tree' is neither",
        'images[6].present has to be a list: write ["cow"]',
        "images[6].points[0] has to be [x, y, class]",
        "images[6].points[1] has to be [x, y, class]",
        "images[7]: 'notes.txt' does not end like an image",
        "images[7].present: a class is named by a string, got 3",
        "images[7].present: class name '' is empty",
        "images[8] 'file' and 'file_name' differ",
        "images[9] has no 'file'",
        "images[9].present: class name 'background' means 'no class'",
        'images[10] has to be {"file": "...", "present": [...]}, got \'c.jpg\'',
        "untagged is 'abscent', it has to be 'absent' or 'unknown'. Did you mean 'absent'?",
    ):
        assert part in text, part
    assert text.count("images[4]") == 1
    assert "28 faults" in text


def test_a_fault_that_repeats_is_told_once(refuse):
    images = [{"file": name, "present": ["Cow"], "note": ""} for name in IMAGES]
    text = refuse(normal(images=images))
    assert "2 faults" in text
    assert "images[0].present and 3 more: class 'Cow' exists as 'cow'" in text
    assert "images[0] and 3 more: unknown field 'note'" in text


@pytest.mark.parametrize("name", ["Dining Table", "dining_table", "diningtable", "dining-table"])
def test_other_spellings_of_a_class_are_refused(folder, name):
    path = folder / "spelling.json"
    path.write_text(json.dumps({"a.jpg": [name], "b.jpg": []}))
    with pytest.raises(InputError, match="exists as 'dining table'"):
        load_tag_list(path, class_set=ClassSet.base(["dining table"]), image_root=folder / "images")


def test_numbered_classes_are_no_spellings_of_each_other(load, folder):
    tags = load({"a.jpg": ["zone 1-1", "zone 11"], "b.jpg": []}, image_root=folder / "images")
    assert tags.new_names == ("zone 1-1", "zone 11")


def test_short_form_faults(refuse, folder):
    text = refuse(
        '{"a.jpg": [], "b.jpg": ["cow"], "a.jpg": [], "sub/d.png": ["COW"], "c.jpg": {}}', image_root=folder / "images"
    )
    for part in (
        "image 'a.jpg' is listed twice",
        "class 'COW' exists as 'cow'",
        "image 'c.jpg'.present has to be a list [...]",
    ):
        assert part in text


def test_field_given_twice(refuse):
    text = refuse('{"image_root": "images", "images": [{"file": "a.jpg", "file": "b.jpg"}], "images": []}')
    assert "the list: field 'images' is given twice" in text


@pytest.mark.parametrize("document", [{}, {"images": []}, {"classes": [{"name": "cow"}]}])
def test_empty_list(refuse, document):
    assert 'no images in it. A tag list is {"classes"' in refuse(document)


def test_not_json(refuse, folder):
    text = refuse('{"images":\n [1, 2 3]}')
    assert "is not JSON: Expecting ',' delimiter at line 2, column 8" in text
    assert "is empty" in refuse("")
    assert "is not UTF-8 text" in refuse(b'{"a.jpg": ["\xff"]}')
    assert "instead of an object" in refuse([{"file": "a.jpg"}])
    assert "no sensible JSON" in refuse("[" * 100_000)
    with pytest.raises(NotFoundError, match=r"none.json does not exist"):
        load_tag_list(folder / "none.json", class_set=PARENT)
    with pytest.raises(InputError, match="cannot be read"):
        load_tag_list(folder, class_set=PARENT)


def test_bad_image_root_and_untagged(refuse):
    assert "no folder; correct image_root, or give --image-root" in refuse(normal(image_root="pictures"))
    assert "image_root has to be the path of a folder" in refuse(normal(image_root=3))
    assert "it has to be 'absent' or 'unknown'" in refuse(normal(), untagged="perhaps")


def test_class_names_that_break_files_are_refused(refuse):
    text = refuse('{"image_root": "images", "classes": ["a\\nb", "\\ud800"], "images": [{"file": "a.jpg"}]}')
    assert text.count("holds control characters") == 2
    text.encode()


def test_too_many_classes(refuse):
    assert "more than 255, the limit" in refuse(normal(classes=[f"c{i}" for i in range(253)]))


def test_untrainable_lists_are_refused_with_advice(load):
    only_present = load(normal(images=[{"file": n, "present": ["cow", "sheep"]} for n in IMAGES[:3]]))
    with pytest.raises(InputError) as caught:
        check_trainable(only_present)
    text = str(caught.value)
    assert "2 faults" in text
    assert "new class 'cow' has no image tagged absent (3 present, 0 unknown)" in text
    assert 'add about 3 images without it, with "absent": ["cow"]' in text
    assert "--untagged" not in text

    no_sheep = load(normal(images=[{"file": "a.jpg", "present": ["cow"]}, {"file": "b.jpg"}]), untagged="unknown")
    with pytest.raises(InputError) as caught:
        check_trainable(no_sheep)
    text = str(caught.value)
    assert "new class 'sheep' has no image tagged present" in text
    assert "new class 'sheep' has no image tagged absent" in text
    assert "new class 'cow' has no image tagged absent (1 present, 1 unknown)" in text
    assert "--untagged absent" in text


def test_summary(load):
    tags = load(
        normal(classes=["cow", "persons"], images=[*normal()["images"][:1], {"file": "b.jpg", "absent": ["cat"]}])
    )
    for classes in (PARENT, tags.extended(PARENT)):
        rows = {row.name: row for row in tags.summary(classes)}
        assert list(rows) == ["cow", "persons", "cat", "person"]
        cow, persons, cat, person = rows.values()
        assert (cow.is_new, cow.present, cow.absent, cow.unknown, cow.advice) == (True, 1, 1, 0, "")
        assert (persons.present, persons.absent) == (0, 2)
        assert "no image tagged present" in persons.advice
        assert "Did you mean 'person'?" in persons.advice
        assert (cat.is_new, cat.present, cat.absent, cat.unknown, cat.advice) == (False, 0, 1, 1, "")
        assert person.unknown == 2
        assert "no tags" in person.advice


def test_negatives_are_absent_for_every_new_class_and_join_once(load, folder):
    images = folder / "images"
    tags = load(normal(images=[{"file": "a.jpg", "present": ["cow"]}, {"file": "b.jpg", "present": ["sheep"]}]))
    assert (tags.n_negatives, tags.wanted_negatives()) == (0, 1)
    more = tags.with_negatives([images / "c.jpg", images / "sub" / "d.png"])
    assert [more.state(more.images[-1], name) for name in more.new_names] == [0, 0]
    assert (len(more), more.n_negatives, more.wanted_negatives()) == (4, 2, 0)
    assert len(more.with_negatives([images / "c.jpg"])) == 4


def test_an_image_cannot_show_a_class_and_lack_it(load, folder):
    tags = load(normal(images=[{"file": "a.jpg", "present": ["cow"]}, {"file": "b.jpg", "present": ["sheep"]}]))
    with pytest.raises(InputError, match=r"2 faults(.|\n)*a\.jpg is tagged cow(.|\n)*b\.jpg is tagged sheep"):
        tags.with_negatives([folder / "images" / "a.jpg", folder / "images" / "b.jpg"])


def test_states_want_the_extended_class_set(load):
    with pytest.raises(InputError, match="Unknown class 'cow'"):
        load(normal()).states(PARENT)


def test_write_and_read_back(load, tmp_path):
    tags = load(normal())
    written = write_tag_list(tmp_path / "list.json", tags)
    again = load_tag_list(tmp_path / "list.json", class_set=PARENT)
    assert again == written
    assert dataclasses.replace(again, path=tags.path, sha256=tags.sha256) == tags
    with pytest.raises(InputError, match="is not below the image root"):
        write_tag_list(tmp_path / "other.json", tags, image_root=tmp_path)
    assert not (tmp_path / "other.json").exists()


def test_tags_from_source(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for name, value in (("a", 1), ("b", 2), ("c", 3)):
        Image.new("RGB", (4, 3)).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(np.full((3, 4), value, dtype=np.uint8)).save(tmp_path / "masks" / f"{name}.png")
    (tmp_path / "train.txt").write_text("a\nb\nc\n")
    (tmp_path / "labels.txt").write_text("background\ncat\ncow\ntree\n")
    source = open_source(tmp_path, split="train")
    plain = tags_from_source(source, [0, 1], new_classes=["cow"])
    assert [(i.present, i.absent) for i in plain.images] == [(frozenset(), frozenset()), ({"cow"}, frozenset())]
    full = write_tag_list(
        tmp_path / "tags.json", tags_from_source(source, range(3), new_classes=["cow"], old_classes=["cat"])
    )
    assert load_tag_list(full.path, class_set=PARENT) == full
    np.testing.assert_array_equal(full.states(full.extended(PARENT)), [[1, -1, 0], [0, -1, 1], [0, -1, 0]])
    with pytest.raises(InputError, match=r"no class 'caw'\. Did you mean"):
        tags_from_source(source, [0], new_classes=["caw"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(IMAGES),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ("schema", "image_root", "classes", "images", "untagged", "file", "file_name", "present", "absent", "points")
SHAPED = st.recursive(
    JSON | st.sampled_from(["cow", "cat", "images", "absent", "#88aa22"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*FIELDS, *IMAGES, "name", "color", "scribble", "prior"]), inner, max_size=5)
    ),
    max_leaves=25,
)
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(document=st.dictionaries(st.sampled_from(FIELDS[:5]), SHAPED) | SHAPED)
def test_any_json_is_read_or_refused_in_words(document, folder):
    path = folder / "any.json"
    path.write_text(json.dumps(document))
    try:
        tags = load_tag_list(path, class_set=PARENT)
    except InputError as exc:
        str(exc).encode()
    else:
        assert len(tags) > 0


@QUICK
@given(data=st.binary(max_size=40))
def test_any_bytes_are_read_or_refused_in_words(data, folder):
    path = folder / "any.json"
    path.write_bytes(data)
    with pytest.raises(InputError):
        load_tag_list(path, class_set=PARENT)


CLASS_NAMES = st.sampled_from(["cow", "sheep", "cat", "person"])


@st.composite
def tag_lists(draw, root):
    images = []
    for name in draw(st.lists(st.sampled_from(IMAGES), min_size=1, unique=True)):
        present = draw(st.frozensets(CLASS_NAMES))
        points = draw(st.lists(st.builds(Point, st.floats(0, 1e6), st.floats(0, 1e6), CLASS_NAMES), max_size=2))
        present |= {p.name for p in points}
        absent = draw(st.frozensets(CLASS_NAMES)) - present
        scribble = draw(st.sampled_from([None, root / "images" / "a_scribble.png"]))
        images.append(TaggedImage(root / "images" / name, present, absent, tuple(points), scribble))
    new = (NewClass("cow", draw(st.sampled_from([None, "#010203"]))), NewClass("sheep"))
    return TagList(root, new, tuple(images), draw(st.sampled_from(["absent", "unknown"])), "")


@settings(QUICK, max_examples=50)
@given(data=st.data())
def test_round_trip(data, folder):
    tags = data.draw(tag_lists(folder))
    written = write_tag_list(folder / "round.json", tags)
    assert load_tag_list(folder / "round.json", class_set=PARENT) == written
    states = written.states(written.extended(PARENT))
    assert [[written.state(i, n) for n in ("cat", "person", "cow", "sheep")] for i in written.images] == states.tolist()
