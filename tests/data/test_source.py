import pickle

import numpy as np
import pytest
from PIL import Image

from cilseg.classes import ClassSet
from cilseg.data.labels import VOC_LABELS, map_mask, read_labels
from cilseg.data.source import open_source
from cilseg.errors import InputError, NotFoundError

LABELS = {0: "background", 1: "cat", 2: "cow", 7: "sheep"}


def write_image(path, *, size=(8, 6), color=(10, 20, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)


def write_mask(path, *, size=(8, 6), values=(1,)):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((size[1], size[0]), dtype=np.uint8)
    mask.flat[: len(values)] = values
    image = Image.fromarray(mask)
    image.putpalette([0] * 768)
    image.save(path)


@pytest.fixture
def folder(tmp_path):
    for name, values in (("a.jpg", (1, 255)), ("b.png", (2, 1)), ("sub/c.webp", (0,)), ("d.v2.jpg", (7,))):
        write_image(tmp_path / "images" / name)
        write_mask((tmp_path / "masks" / name).with_suffix(".png"), values=values)
    (tmp_path / "train.txt").write_text("a\nb\n\nsub/c\nd.v2\n")
    (tmp_path / "val.txt").write_text("b.png\n")
    (tmp_path / "labels.txt").write_text("background\ncat\ncow\n3\n4\n5\n6\nsheep\n")
    return tmp_path


@pytest.fixture
def voc(tmp_path):
    for name in ("x", "y", "z"):
        write_image(tmp_path / "JPEGImages" / f"{name}.jpg")
    write_mask(tmp_path / "SegmentationClass" / "x.png", values=(15,))
    for name in ("x", "y"):
        write_mask(tmp_path / "SegmentationClassAug" / f"{name}.png", values=(20, 255))
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("x\ny\n")
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "train_aug.txt").write_text(
        "/JPEGImages/x.jpg /SegmentationClass/x.png\n/JPEGImages/y.jpg /SegmentationClassAug/y.png\n"
    )
    return tmp_path


def refuse(*args, **kwargs):
    with pytest.raises(InputError) as caught:
        open_source(*args, **kwargs)
    return str(caught.value)


def test_folder_layout(folder):
    source = open_source(folder, split="train")
    assert (source.layout, len(source)) == ("folder", 4)
    assert source.ids == ("a", "b", "sub/c", "d.v2")
    assert source.label_names[7] == "sheep"
    image, mask = source.image(1), source.mask(1)
    assert (image.shape, mask.shape, mask.dtype) == ((6, 8, 3), (6, 8), np.uint8)
    np.testing.assert_array_equal(image[0, 0], [10, 20, 30])
    np.testing.assert_array_equal(mask[0, :3], [2, 1, 0])
    assert source.tags() == (frozenset({"cat"}), frozenset({"cat", "cow"}), frozenset(), frozenset({"sheep"}))
    assert open_source(folder, split="val").ids == ("b",)


def test_classes_are_remembered(folder):
    source = open_source(folder, split="train")
    assert source.classes_in(0) == {"cat"}
    (folder / "masks" / "a.png").unlink()
    assert source.classes_in(0) == {"cat"}
    with pytest.raises(NotFoundError):
        source.mask(0)


def test_voc_layout(voc):
    source = open_source(voc, split="train")
    assert source.layout == "voc"
    assert source.label_names == VOC_LABELS
    assert source.mask_paths[0] == voc / "SegmentationClassAug" / "x.png"
    assert source.tags() == (frozenset({"tvmonitor"}),) * 2
    pairs = open_source(voc, split="train_aug")
    assert pairs.ids == ("x", "y")
    assert pairs.classes_in(0) == {"person"}
    (voc / "SegmentationClassAug" / "x.png").unlink()
    assert open_source(voc, split="train").mask_paths[0] == voc / "SegmentationClass" / "x.png"


def test_label_names_from_every_place(folder, tmp_path):
    assert open_source(folder, split="val", label_names={1: "cat", 2: "cow"}).label_names[0] == "background"
    assert open_source(folder, split="val", label_names="voc").label_names[20] == "tvmonitor"
    other = tmp_path / "names.txt"
    other.write_text("\ufeffbackground\n cat \ncow\n", encoding="utf-8")
    assert open_source(folder, split="val", label_names=other).label_names == {0: "background", 1: "cat", 2: "cow"}
    (folder / "labels.txt").unlink()
    assert "no label names" in refuse(folder, split="val")
    assert "'voc'" in refuse(folder, split="val")


def test_bad_labels_files(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("cat\ncow\n\nCow\n")
    with pytest.raises(InputError) as caught:
        read_labels(path)
    text = str(caught.value)
    assert "3 faults" in text
    assert "value 2 has an empty name" in text
    assert "'Cow' names value 3 and value 1" in text
    assert "value 0 is called 'cat'" in text
    path.write_text("")
    with pytest.raises(InputError, match="no names at all"):
        read_labels(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_labels(tmp_path / "none.txt")


def test_every_fault_of_a_folder_is_reported_at_once(folder):
    (folder / "labels.txt").unlink()
    (folder / "masks" / "b.png").unlink()
    write_image(folder / "images" / "a.png")
    (folder / "train.txt").write_text("a\nb\nb\ngone\n")
    text = refuse(folder, split="train")
    assert "6 faults" in text
    for part in (
        "no label names",
        "id 'a' has 2 images: a.jpg, a.png",
        "id 'b' has no mask (masks/b.png)",
        "id 'b' is listed twice",
        "id 'gone' has no image",
        "id 'gone' has no mask",
    ):
        assert part in text


def test_list_file_faults(folder, voc):
    text = refuse(folder, split="trian", layout="folder")
    assert "no list file trian.txt" in text
    assert "Did you mean 'train'?" in text
    (folder / "train.txt").write_text("\n \n")
    assert "is empty; write one image id per line" in refuse(folder, split="train", layout="folder")
    (folder / "train.txt").write_bytes(b"\xff\xfe")
    assert "is not UTF-8" in refuse(folder, split="train", layout="folder")
    (voc / "bad.txt").write_text("/../x.jpg /SegmentationClass/x.png\n/JPEGImages/z.jpg /SegmentationClass/z.png\n")
    text = refuse(voc, split="bad", layout="voc")
    assert "id 'x' has no image (/../x.jpg)" in text
    assert "id 'z' has no mask (/SegmentationClass/z.png)" in text


def test_wrong_folders(tmp_path):
    with pytest.raises(NotFoundError, match="does not exist"):
        open_source(tmp_path / "none", split="train")
    (tmp_path / "pictures").mkdir()
    assert "neither images/ (folder layout) nor JPEGImages/ (VOC layout), but pictures" in refuse(tmp_path, split="t")
    assert "no images in" in _empty_images(tmp_path)
    assert "Unknown layout 'coco'" in refuse(tmp_path, split="t", layout="coco")


def _empty_images(root):
    (root / "images").mkdir()
    (root / "t.txt").write_text("a\n")
    return refuse(root, split="t", label_names=LABELS)


def test_masks_can_be_optional(folder):
    (folder / "masks" / "a.png").unlink()
    source = open_source(folder, split="train", require_masks=False)
    assert source.mask_paths[0] is None
    with pytest.raises(InputError, match=r"Image 'a' of .* has no mask"):
        source.mask(0)


def test_mask_of_another_size(folder):
    write_mask(folder / "masks" / "a.png", size=(9, 6))
    with pytest.raises(InputError, match=r"a\.png is 9x6 pixels, its image a\.jpg is 8x6"):
        open_source(folder, split="train").mask(0)


def test_mask_fits_the_upright_image(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image(folder / "images" / "a.jpg", exif=exif)
    write_mask(folder / "masks" / "a.png", size=(6, 8))
    source = open_source(folder, split="train")
    assert source.image(0).shape[:2] == source.mask(0).shape == (8, 6)


def test_unknown_mask_values(folder):
    write_mask(folder / "masks" / "a.png", values=(1, 9, 12, 255))
    source = open_source(folder, split="train")
    with pytest.raises(InputError, match=r"a\.png holds the values \[9, 12\], which no class has \(known: 0-7 and 255"):
        source.mask(0)
    with pytest.raises(InputError, match="which no class has"):
        source.classes_in(0)


def test_damaged_images(folder):
    source = open_source(folder, split="train")
    (folder / "images" / "a.jpg").write_bytes(b"")
    for read in (source.image, source.mask):
        with pytest.raises(InputError, match=r"a\.jpg"):
            read(0)


def test_subset(folder):
    source = open_source(folder, split="train")
    part = source.subset(["d.v2", "a"])
    assert part.ids == ("d.v2", "a")
    assert part.tags() == (frozenset({"sheep"}), frozenset({"cat"}))
    with pytest.raises(InputError) as caught:
        source.subset(["a", "a", "q"])
    assert "id 'a' is named 2 times" in str(caught.value)
    assert "id 'q' is not among its 4 images" in str(caught.value)


def test_fingerprint(folder):
    source = open_source(folder, split="train")
    before = source.fingerprint()
    assert before == open_source(folder, split="train").fingerprint()
    assert (before["images"], before["split"]) == (4, "train")
    assert (
        source.subset(["b", "a"]).fingerprint()["ids_sha256"] != source.subset(["a", "b"]).fingerprint()["ids_sha256"]
    )
    (folder / "masks" / "a.png").write_bytes(b"other")
    after = source.fingerprint()
    assert {key for key in before if before[key] != after[key]} == {"masks_sha256"}
    assert str(folder) not in str(before)


def test_source_travels_between_processes(folder):
    source = open_source(folder, split="train")
    again = pickle.loads(pickle.dumps(source))
    assert again == source
    np.testing.assert_array_equal(again.mask(1), source.mask(1))


MASK = np.array([[0, 1, 2, 7, 255]], dtype=np.uint8)
CLASSES = ClassSet.base(["sheep", "cat", "cow"])


@pytest.mark.parametrize(
    ("visible", "options", "expected"),
    [
        (("cat", "cow", "sheep"), {}, [0, 2, 3, 1, 255]),
        (("cat",), {}, [0, 2, 0, 0, 255]),
        (("cat",), {"others": "void"}, [0, 2, 255, 255, 255]),
        (("cat", "background"), {"void_as_background": True}, [0, 2, 0, 0, 0]),
        ((), {"others": "void", "void_as_background": True}, [0, 255, 255, 255, 0]),
    ],
)
def test_map_mask(visible, options, expected):
    mapped = map_mask(MASK, LABELS, CLASSES, visible=visible, **options)
    assert mapped.dtype == np.uint8
    np.testing.assert_array_equal(mapped, [expected])


def test_classes_outside_the_class_set_become_others():
    few = ClassSet.base(["cat"])
    np.testing.assert_array_equal(map_mask(MASK, LABELS, few, visible=["cat"]), [[0, 1, 0, 0, 255]])


def test_map_mask_refuses():
    with pytest.raises(InputError, match=r"'cta' is not in the class set\. Did you mean 'cat'"):
        map_mask(MASK, LABELS, CLASSES, visible=["cta"])
    with pytest.raises(InputError, match="Mask value 1 is called 'Cat', but the class is 'cat'"):
        map_mask(MASK, LABELS | {1: "Cat"}, CLASSES, visible=["cat"])
    with pytest.raises(InputError, match=r"holds the values \[7\], which have no name\. Known: 0-2"):
        map_mask(MASK, {0: "background", 1: "cat", 2: "cow"}, CLASSES, visible=["cat"])
