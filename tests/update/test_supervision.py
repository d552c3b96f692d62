"""What each method is refused without, or with too much: in words, before training, with nothing registered."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from update_story import NEW, OLD, settings

from cilseg.errors import InputError, NotFoundError
from cilseg.methods import METHODS
from cilseg.update import UpdateRequest, update_version


@pytest.fixture
def refusal(registry, contents):
    """Message of an update that has to be refused; registry and run folders stay as they were."""
    before = contents(registry.root)

    def of(method: str, *overrides: str, error: type[Exception] = InputError, **given: object) -> str:
        with pytest.raises(error) as caught:
            update_version(registry, UpdateRequest(config=settings(method, *overrides), **given))
        assert contents(registry.root) == before
        assert [v.ref for v in registry.versions("shapes")] == ["shapes:1"]
        return str(caught.value)

    return of


@pytest.fixture
def masks(base_story):
    """What a method that learns from masks is given."""
    return {"data": base_story.scenes, "classes": (NEW,)}


@pytest.fixture
def tags(base_story, tmp_path):
    return base_story.tag_list(tmp_path / "tags.json")


@pytest.mark.parametrize("method", ["mib", "ft", "joint", "lwf", "plop", "sdr"])
def test_tags_for_a_method_that_wants_masks(refusal, tags, method):
    message = refusal(method, tags=tags)
    assert f"Method {method!r} learns from masks: 3 faults" in message
    assert "it takes no --tags" in message
    assert "give --data DIR (images and masks)" in message
    assert "give --classes NEW,..." in message
    assert "With image tags only, use --method tags --tags FILE." in message


@pytest.mark.parametrize("method", [n for n, m in METHODS.items() if m.supervision in ("tags", "points", "scribbles")])
def test_masks_for_a_method_that_wants_tags(refusal, masks, method):
    message = refusal(method, **masks, saliency="builtin" if method == "eps" else None)
    assert f"Method {method!r} learns from {METHODS[method].supervision}: 2 faults" in message
    assert "give --tags FILE" in message
    assert "it takes no --data and no --classes: it never sees masks" in message
    assert "With masks, use --method masks, mib or joint" in message


def test_a_new_class_without_an_image_that_lacks_it(refusal, base_story, tmp_path):
    everywhere = {f"image{i}": {"present": [NEW]} for i in range(4)}
    for method in ("wilson", "cam"):
        message = refusal(method, tags=base_story.tag_list(tmp_path / "tags.json", n=4, **everywhere))
        assert f"new class {NEW!r} has no image tagged absent (4 present, 0 unknown)" in message
        assert f'with "absent": ["{NEW}"]' in message


class TestNoNewClass:
    @pytest.fixture
    def old_tags(self, base_story, tmp_path):
        images = {path.name: [OLD[i % 2]] for i, path in enumerate(base_story.source.image_paths[:8])}
        path = tmp_path / "old.json"
        path.write_text(json.dumps({"image_root": str(base_story.scenes / "images"), **_rows(images)}))
        return path

    @pytest.mark.parametrize("method", ["cam", "seam", "ss", "eps", "mib-points", "mib-scribbles"])
    def test_nothing_to_learn(self, refusal, old_tags, method):
        message = refusal(method, tags=old_tags, saliency="builtin" if method == "eps" else None)
        assert f"Tag list {old_tags} brings no new class, and {method} learns new classes only." in message
        assert "--method tags, which learns from tags of old classes too" in message

    @pytest.mark.parametrize("prior", ["fixed", "none"])
    def test_a_localizer_without_maps(self, refusal, old_tags, prior):
        message = refusal("wilson", f"update.wilson.prior={prior}", tags=old_tags)
        assert f"With update.wilson.prior={prior} the localizer has maps of new classes alone" in message
        assert "Use prior=learned" in message

    @pytest.mark.parametrize("method", ["wilson", "tags"])
    def test_some_methods_refine(self, registry, old_tags, method):
        result = update_version(registry, UpdateRequest(config=settings(method), tags=old_tags, gate=False))
        assert result.candidate.manifest.class_set.names == ("background", *OLD)


def _rows(images):
    return {"images": [{"file": name, "present": present} for name, present in images.items()]}


class TestLookAlikes:
    def test_weights_of_a_class_that_is_none(self, refusal, tags):
        given = ("update.tags.look_alikes=true", f"update.tags.look_alike_weights={{{NEW}: {{{OLD[0]}x: 1}}}}")
        assert f"Did you mean {OLD[0]!r}?" in refusal("tags", *given, tags=tags)

    def test_weights_are_told_by_the_names_of_classes(self, registry, tags):
        config = settings("tags", "update.tags.look_alikes=true")
        update_version(registry, UpdateRequest(config=config, tags=tags, gate=False))
        (told,) = registry.root.glob("runs/update-*/look_alikes.json")
        assert [(new, list(row)) for new, row in json.loads(told.read_text()).items()] == [(NEW, list(OLD))]


class TestSaliency:
    def test_eps_without(self, refusal, tags):
        message = refusal("eps", tags=tags)
        assert "it needs to know where objects are: give --saliency DIR" in message
        assert "--saliency builtin to make the maps from the parent's own features" in message
        assert "use tags or cam" in message

    @pytest.mark.parametrize("method", ["cam", "wilson", "mib-points"])
    def test_for_a_method_that_takes_none(self, refusal, tags, method):
        assert "it takes no --saliency; eps does" in refusal(method, tags=tags, saliency="builtin")

    def test_a_folder_that_lacks_maps(self, refusal, base_story, tags, tmp_path):
        folder = tmp_path / "maps"
        message = refusal("eps", tags=tags, saliency=str(folder), error=NotFoundError)
        assert f"Folder {folder} does not exist" in message
        folder.mkdir()
        first, second, *_ = base_story.source.image_paths
        Image.new("L", (64, 64)).save(folder / f"{first.stem}.png")
        message = refusal("eps", tags=tags, saliency=str(folder))
        assert f"Folder {folder}: 7 faults" in message
        assert f"no saliency map for {second.name} (expected {second.stem}.png)" in message
        assert first.name not in message

    def test_an_unreadable_map(self, refusal, base_story, tags, tmp_path):
        folder = tmp_path / "maps"
        folder.mkdir()
        for file in base_story.source.image_paths:
            (folder / f"{file.stem}.png").write_bytes(b"")
        assert f"Saliency folder {folder}" in refusal("eps", tags=tags, saliency=str(folder))


class TestPriors:
    """Priors beside tags; the method tags alone uses them."""

    @pytest.fixture
    def listed(self, base_story, tmp_path):
        """Write a tag list over copies of the images, with a prior of these values for the first image."""

        def write(values, **row):
            images = tmp_path / "images"
            images.mkdir()
            for file in base_story.source.image_paths:
                (images / file.name).write_bytes(file.read_bytes())
            Image.fromarray(values).save(images / "prior.png")
            return base_story.tag_list(tmp_path / "tags.json", image_root=images, image0={"prior": "prior.png", **row})

        return write

    @pytest.mark.parametrize("method", ["cam", "wilson", "mib-points"])
    def test_priors_for_a_method_that_takes_none(self, refusal, tags, method):
        assert "it takes no --prior-masks; tags does" in refusal(method, tags=tags, prior_masks="priors")

    def test_a_folder_without_a_prior_for_any_image(self, refusal, tags, tmp_path):
        folder = tmp_path / "priors"
        message = refusal("tags", tags=tags, prior_masks=str(folder), error=NotFoundError)
        assert f"--prior-masks {folder}: no such folder" in message
        folder.mkdir()
        Image.new("L", (64, 64)).save(folder / "another.png")
        message = refusal("tags", tags=tags, prior_masks=str(folder))
        assert f"--prior-masks {folder}: no PNG in it is named like one of the 8 images of the list" in message

    def test_unusable_priors(self, refusal, base_story, tags, tmp_path):
        folder = tmp_path / "priors"
        folder.mkdir()
        first, second, *_ = base_story.source.image_paths
        Image.new("L", (64, 32)).save(folder / f"{first.stem}.png")
        (folder / f"{second.stem}.png").write_bytes(b"")
        message = refusal("tags", tags=tags, prior_masks=str(folder))
        assert f"Priors of {tags}: 2 faults" in message
        assert f"{first.stem}.png: 64 x 32 px, but its image has 64 x 64; resize the prior" in message
        assert f"{second.stem}.png: the image file is empty" in message
        assert "an image needs no prior" in message

    def test_a_prior_of_the_list_that_names_no_class(self, refusal, listed):
        picture = Image.new("P", (64, 64), 7)
        picture.putpalette([0, 0, 0] * 256)
        tags = listed(np.zeros((64, 64), np.uint8))
        picture.save(tags.parent / "images" / "prior.png")
        assert "prior.png: the indices [7] name nothing" in refusal("tags", tags=tags)

    def test_a_prior_that_is_not_there(self, refusal, listed):
        tags = listed(np.zeros((64, 64), np.uint8), prior="none.png")
        assert "images[0].prior: file 'none.png' does not exist" in refusal("tags", tags=tags)

    def test_priors_in_the_list_and_beside_it(self, refusal, listed):
        tags = listed(np.zeros((64, 64), np.uint8))
        message = refusal("tags", tags=tags, prior_masks="priors")
        assert f"Tag list {tags} names priors of its own: leave out --prior-masks" in message

    def test_priors_without_a_new_class(self, refusal, base_story, tmp_path):
        tags = base_story.tag_list(tmp_path / "tags.json", n=2, image0={"present": [OLD[0]]}, image1={"present": []})
        document = json.loads(tags.read_text())
        tags.write_text(json.dumps({**document, "classes": []}))
        message = refusal("tags", tags=tags, prior_masks="priors")
        assert "brings no new class to label: leave out --prior-masks" in message


class TestReplay:
    def test_recall_without(self, refusal, masks):
        message = refusal("recall", **masks)
        assert "it needs images that stand in for the old classes: give --replay DIR" in message
        assert "without any, mib and plop learn from the same masks" in message

    @pytest.mark.parametrize("method", ["mib", "pifs"])
    def test_for_a_method_that_takes_none(self, refusal, masks, tmp_path, method):
        given = {**masks, "shots": 1} if method == "pifs" else masks
        assert "it takes no --replay; recall does" in refusal(method, **given, replay=tmp_path)

    def test_a_folder_that_is_not_there(self, refusal, masks, tmp_path):
        message = refusal("recall", **masks, replay=tmp_path / "none", error=NotFoundError)
        assert "does not exist. Give a folder with one folder of images per class" in message

    def test_missing_and_unknown_classes(self, refusal, base_story, masks, tmp_path):
        replay = base_story.replay(tmp_path / "replay", OLD[:1])
        (replay / f"{OLD[1]}s").mkdir()
        message = refusal("recall", **masks, replay=replay)
        assert f"Folder {replay}: 2 faults" in message
        assert f"folder '{OLD[1]}s' is no class of the model. Did you mean '{OLD[1]}'?" in message
        assert f"class {OLD[1]!r} has no folder" in message
        assert "Every class needs a folder of its name with at least one image." in message

    def test_an_empty_folder(self, refusal, base_story, masks, tmp_path):
        replay = base_story.replay(tmp_path / "replay", OLD[:1])
        (replay / OLD[1]).mkdir()
        assert f"class {OLD[1]!r} has no image in its folder" in refusal("recall", **masks, replay=replay)

    def test_an_unreadable_image(self, refusal, base_story, masks, tmp_path):
        replay = base_story.replay(tmp_path / "replay")
        (replay / OLD[0] / "x.png").write_bytes(b"not an image")
        assert "x.png" in refusal("recall", **masks, replay=replay)


class TestShots:
    @pytest.mark.parametrize("shots", [None, 0, -1])
    def test_none(self, refusal, masks, shots):
        message = refusal("pifs", **masks, shots=shots)
        assert f"give --shots K, the number of annotated images per new class, 1 or more (got {shots})" in message

    def test_more_than_there_are(self, refusal, base_story, masks):
        source = base_story.source
        count = sum(NEW in source.classes_in(i) for i in range(len(source)))
        message = refusal("pifs", **masks, shots=count + 1)
        assert f"class {NEW!r} is in {count} of the {len(source)} images" in message
        assert "Ask for fewer shots or add annotated images." in message

    @pytest.mark.parametrize("method", ["mib", "ft"])
    def test_for_a_method_that_takes_none(self, refusal, masks, method):
        message = refusal(method, **masks, shots=3)
        assert "it takes no --shots; with a few annotated images per class use --method pifs" in message

    def test_a_linear_parent(self, refusal, masks):
        assert "imprints a cosine classifier, and the parent has a linear one" in refusal("pifs", **masks, shots=1)


class TestPointsAndScribbles:
    def test_no_point_at_all(self, refusal, tags):
        message = refusal("mib-points", tags=tags)
        assert f"new class {NEW!r} has no point in any image" in message
        assert f'"points": [[x, y, "{NEW}"]]' in message
        assert "With image tags alone use --method tags." in message

    def test_no_scribble_at_all(self, refusal, tags):
        message = refusal("mib-scribbles", tags=tags)
        assert f"new class {NEW!r} has no scribble in any image" in message
        assert '"scribble": "FILE.png"' in message

    def test_a_point_outside_its_image(self, refusal, base_story, tmp_path):
        index, (x, y) = base_story.first_with(NEW)
        row = {f"image{index}": {"points": [[x, y, NEW], [64, 3, NEW]]}}
        message = refusal("mib-points", tags=base_story.tag_list(tmp_path / "tags.json", **row))
        name = base_story.source.image_paths[index].name
        assert f"{name}: Point annotations: 1 fault" in message
        assert "point (64, 3) is outside the image of 64 x 64 pixels" in message

    @pytest.mark.parametrize(
        ("size", "value", "says"),
        [
            ((32, 64), 1, "32 x 64 px, but its image has 64 x 64"),
            ((64, 64), 7, "the values [7] name nothing; 0 is background, 1 to 1 are the classes of the list"),
        ],
    )
    def test_an_unusable_scribble(self, refusal, base_story, tmp_path, size, value, says):
        index, _ = base_story.first_with(NEW)
        images = tmp_path / "images"
        images.mkdir()
        for file in base_story.source.image_paths:
            (images / file.name).write_bytes(file.read_bytes())
        Image.fromarray(np.full(size[::-1], value, np.uint8)).save(images / "drawn.png")
        row = {f"image{index}": {"scribble": "drawn.png"}}
        tags = base_story.tag_list(tmp_path / "tags.json", image_root=images, **row)
        message = refusal("mib-scribbles", tags=tags)
        assert f"drawn.png: {says}" in message


class TestOptions:
    @pytest.mark.parametrize(
        ("override", "says"),
        [
            ("update.mibb.kd_weight=3", "unknown key update.mibb. Did you mean 'mib'?"),
            ("update.mib.kdweight=3", "unknown key update.mib.kdweight. Did you mean 'kd_weight'?"),
            ("update.mib.kd_weight=-1", "update.mib.kd_weight: Input should be greater than or equal to 0 (got -1)"),
            ("update.plop.gate=papers", "update.plop.gate: Input should be 'paper' or 'reference' (got 'papers')"),
            ("update.cam.weak.epoch=3", "unknown key update.cam.weak.epoch. Did you mean 'epochs'?"),
            ("update.ft.anything=3", "unknown key update.ft.anything."),
        ],
    )
    def test_unknown_sections_keys_and_values(self, override, says):
        with pytest.raises(InputError) as caught:
            settings("mib", override)
        assert says in str(caught.value)
