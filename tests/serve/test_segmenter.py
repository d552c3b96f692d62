from __future__ import annotations

import asyncio
import json
import logging
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import cilseg_serve
from cilseg.bundle import Preprocessing, read_manifest
from cilseg.errors import ArtifactError, CilsegError, InputError, MissingDependencyError, NotFoundError, ParityError
from cilseg.registry import Registry
from cilseg_serve import Segmenter
from cilseg_serve.preprocessing import prepare, restore_mask
from tests.serve.conftest import BundleMaker
from tests.serve.tiny_model import CLASSES, expected_logits, expected_mask, make_onnx, write_attachment

Image8 = npt.NDArray[np.uint8]


def random_images(sizes_hw: list[tuple[int, int]]) -> list[Image8]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes_hw]


def test_array_path_and_pillow_image_give_the_known_answer(
    make_bundle: BundleMaker, color_image: Image8, tmp_path: Path
) -> None:
    segmenter = Segmenter(make_bundle())
    Image.fromarray(color_image).save(tmp_path / "a.png")
    for source in (color_image, tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(color_image)):
        np.testing.assert_array_equal(segmenter.segment(source).mask, expected_mask(color_image))
    result = segmenter.segment(color_image)
    assert result.class_names == ("background", "red", "green", "blue")
    assert result.present == ("red", "green", "blue")
    assert result.coverage["red"] == pytest.approx(16 * 8 / (24 * 30))
    assert result.confidence is None
    assert segmenter.backend.backend == "onnxruntime"


def test_image_is_resized_for_the_network_and_the_mask_back(make_bundle: BundleMaker, color_image: Image8) -> None:
    segmenter = Segmenter(make_bundle(short_side_px=16))
    prepared = prepare(color_image, Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), short_side_px=16))
    assert prepared.shape == (16, 20, 3)
    np.testing.assert_array_equal(
        segmenter.segment(color_image).mask, restore_mask(expected_mask(prepared), *color_image.shape[:2])
    )


def test_batch_of_mixed_sizes_keeps_order_and_answers(
    make_bundle: BundleMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = Segmenter(make_bundle())
    images = random_images([(5, 7), (9, 4), (5, 7), (1, 1), (5, 7), (9, 4)])
    expected = [expected_mask(image) for image in images]
    for limit in (4_000_000, 70, 1):  # all of a size in one run, two at a time, one by one
        monkeypatch.setattr("cilseg_serve.segmenter.MAX_RUN_PIXELS", limit)
        for result, mask in zip(segmenter.segment_batch(images), expected, strict=True):
            np.testing.assert_array_equal(result.mask, mask)
    assert segmenter.segment_batch([]) == []


def test_confidence_is_the_softmax_of_the_winner(make_bundle: BundleMaker, color_image: Image8) -> None:
    segmenter = Segmenter(make_bundle(confidence=True))
    assert segmenter.has_confidence
    logits = expected_logits(color_image).astype(np.float64)
    top = 1 / np.exp(logits - logits.max(axis=-1, keepdims=True)).sum(axis=-1)
    result = segmenter.segment(color_image, confidence=True)
    assert result.confidence is not None
    np.testing.assert_allclose(result.confidence, top, rtol=1e-5)
    assert segmenter.segment(color_image).confidence is None


def test_confidence_of_a_model_without_it_is_refused(make_bundle: BundleMaker, color_image: Image8) -> None:
    with pytest.raises(InputError, match=r"exported without confidence.*--confidence"):
        Segmenter(make_bundle()).segment(color_image, confidence=True)


def test_threads_share_one_segmenter(make_bundle: BundleMaker) -> None:
    """Eight threads that start together, each with single images, batches and confidences of many sizes."""
    segmenter = Segmenter(make_bundle(confidence=True), threads=1)
    images = random_images([(1 + i % 9, 1 + i % 7) for i in range(24)])
    expected = [expected_mask(image) for image in images]
    start = threading.Barrier(8)

    def hammer(seed: int) -> int:
        rng = np.random.default_rng(seed)
        start.wait()
        for _ in range(60):
            chosen = rng.integers(0, len(images), rng.integers(1, 5))
            sure = bool(rng.integers(0, 2))
            if len(chosen) == 1:
                results = [segmenter.segment(images[chosen[0]], confidence=sure)]
            else:
                results = segmenter.segment_batch([images[i] for i in chosen], confidence=sure)
            for index, result in zip(chosen, results, strict=True):
                np.testing.assert_array_equal(result.mask, expected[index])
                assert (result.confidence is not None) == sure
        return seed

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(hammer, range(8))) == list(range(8))


def test_async_calls_answer_while_the_loop_goes_on(make_bundle: BundleMaker) -> None:
    segmenter = Segmenter(make_bundle(), threads=1)
    images = random_images([(5 + i, 9) for i in range(12)])

    async def main() -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        ticker = asyncio.create_task(tick())
        results = await asyncio.gather(*(segmenter.segment_async(image) for image in images))
        [batched] = await segmenter.segment_batch_async(images[:1])
        with pytest.raises(InputError, match="exported without confidence"):
            await segmenter.segment_async(images[0], confidence=True)
        ticker.cancel()
        for image, result in zip([*images, images[0]], [*results, batched], strict=True):
            np.testing.assert_array_equal(result.mask, expected_mask(image))
        return ticks

    assert asyncio.run(main()) > 0


def test_graph_is_run_as_it_is_on_request(make_bundle: BundleMaker, color_image: Image8) -> None:
    segmenter = Segmenter(make_bundle(short_side_px=16, logits=True))
    assert segmenter.has_logits
    logits, mask = segmenter.run_graph(color_image[None], ("logits", "mask"))
    np.testing.assert_array_equal(logits[0].transpose(1, 2, 0), expected_logits(color_image))
    np.testing.assert_array_equal(mask[0], expected_mask(color_image))
    assert not Segmenter(make_bundle(name="plain")).has_logits


def test_image_too_large_for_one_piece_is_refused_with_advice(
    make_bundle: BundleMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cilseg_serve.segmenter.MAX_WHOLE_PIXELS", 99)
    segmenter = Segmenter(make_bundle())
    assert segmenter.segment(np.zeros((9, 11, 3), np.uint8)).mask.shape == (9, 11)
    with pytest.raises(InputError, match=r"10 x 10 px is too large .*at most 99 pixels.*SlidingWindow.*--tile 1024"):
        segmenter.segment(np.zeros((10, 10, 3), np.uint8))


def test_one_pixel(make_bundle: BundleMaker) -> None:
    assert Segmenter(make_bundle(short_side_px=16)).segment(np.full((1, 1, 3), 200, np.uint8)).mask.tolist() == [[1]]


def _damage(bundle: Path, how: str) -> None:
    folder = bundle / "attachments"
    model, sidecar = folder / "model.onnx", folder / "model.onnx.json"
    digest = read_manifest(bundle).digest
    passed = {"parity": {"passed": True}}
    if how == "no manifest":
        (bundle / "manifest.json").unlink()
    elif how == "no model":
        model.unlink()
    elif how == "no sidecar":
        sidecar.unlink()
    elif how == "sidecar not JSON":
        sidecar.write_text("{")
    elif how == "sidecar without fields":
        sidecar.write_text("{}")
    elif how == "truncated model":
        model.write_bytes(model.read_bytes()[:100])
    elif how == "another version":
        write_attachment(bundle, "sha256:" + "0" * 64, make_onnx(), passed)
    elif how == "changed manifest":
        manifest = json.loads((bundle / "manifest.json").read_text())
        manifest["classes"][1]["name"] = "rouge"
        (bundle / "manifest.json").write_text(json.dumps(manifest))
    elif how == "not ONNX":
        write_attachment(bundle, digest, b"no model at all", passed)
    elif how == "another graph":
        write_attachment(bundle, digest, make_onnx(input_name="images"), passed)
    elif how == "parity failed":
        write_attachment(bundle, digest, make_onnx(), {"parity": {"passed": False}})
    elif how == "parity missing":
        write_attachment(bundle, digest, make_onnx(), {})


@pytest.mark.parametrize(
    ("how", "error", "exit_code", "words"),
    [
        ("no manifest", NotFoundError, 2, ["is no bundle", "manifest.json is missing"]),
        ("no model", NotFoundError, 2, ["has no exported model", "cilseg export REF"]),
        (
            "no sidecar",
            ArtifactError,
            5,
            ["model.onnx.json, the record of", "is missing", "cilseg export REF"],
        ),
        ("sidecar not JSON", ArtifactError, 5, ["model.onnx.json cannot be read", "cilseg export REF"]),
        ("sidecar without fields", ArtifactError, 5, ["cannot be read", "'sha256'"]),
        ("truncated model", ArtifactError, 5, ["is damaged: 100 bytes", "expected sha256:", "cilseg export REF"]),
        ("another version", ArtifactError, 5, ["was exported from version sha256:000000000000..."]),
        ("changed manifest", ArtifactError, 5, ["was exported from version", "this one is"]),
        ("not ONNX", ArtifactError, 5, ["onnxruntime cannot load the model", "Export it again"]),
        ("another graph", ArtifactError, 5, ["not a cilseg graph", "'images'"]),
        ("parity failed", ParityError, 4, ["parity check of its exported model failed", "allow_unverified=True"]),
        ("parity missing", ParityError, 4, ["is not on record", "cilseg export REF"]),
    ],
)
def test_damaged_bundles_are_refused_with_advice(
    make_bundle: BundleMaker, how: str, error: type[CilsegError], exit_code: int, words: list[str]
) -> None:
    bundle = make_bundle()
    _damage(bundle, how)
    with pytest.raises(error) as caught:
        Segmenter(bundle)
    assert caught.value.exit_code == exit_code
    for word in [str(bundle), *words]:
        assert word in str(caught.value)


def test_model_announced_by_its_sidecar_is_taken(make_bundle: BundleMaker) -> None:
    """A process killed while it replaced the model leaves the new file and both records."""
    bundle = make_bundle(metadata={"parity": {"passed": False}})
    sidecar = bundle / "attachments" / "model.onnx.json"
    old = json.loads(sidecar.read_text())
    new_model = make_onnx(confidence=True)
    write_attachment(bundle, old["version_digest"], new_model, {"parity": {"passed": True}})
    sidecar.write_text(json.dumps({**old, "next": json.loads(sidecar.read_text())}))
    assert Segmenter(bundle).has_confidence
    (bundle / "attachments" / "model.onnx").write_bytes(make_onnx())
    with pytest.raises(ParityError):
        Segmenter(bundle)


def test_unverified_model_runs_on_request_with_a_warning(
    make_bundle: BundleMaker, color_image: Image8, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = make_bundle(metadata={"parity": {"passed": False}})
    with caplog.at_level(logging.WARNING):
        segmenter = Segmenter(bundle, allow_unverified=True)
    assert "UNVERIFIED MODEL" in caplog.text
    np.testing.assert_array_equal(segmenter.segment(color_image).mask, expected_mask(color_image))


def test_ids_outside_the_class_set_are_refused(make_bundle: BundleMaker, color_image: Image8) -> None:
    with pytest.raises(ArtifactError, match="largest id 6"):
        Segmenter(make_bundle(offset=3)).segment(color_image)


def test_bad_arguments(make_bundle: BundleMaker, tmp_path: Path) -> None:
    bundle = make_bundle()
    with pytest.raises(InputError, match="threads is at least 1, got 0"):
        Segmenter(bundle, threads=0)
    with pytest.raises(
        InputError, match=r"is a file, expected a bundle folder or a reference \(or Segmenter.from_onnx"
    ):
        Segmenter(str(bundle / "attachments" / "model.onnx"))
    with pytest.raises(NotFoundError, match=r"nowhere is no bundle"):
        Segmenter(tmp_path / "nowhere")
    with pytest.raises(NotFoundError, match="no such ONNX file"):
        Segmenter.from_onnx(tmp_path / "no.onnx")


def test_bare_onnx_file_names_its_classes_or_they_are_given(tmp_path: Path, color_image: Image8) -> None:
    preprocessing = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), short_side_px=None)
    (tmp_path / "bare.onnx").write_bytes(make_onnx())
    with pytest.raises(InputError, match="does not name its classes"):
        Segmenter.from_onnx(tmp_path / "bare.onnx")
    given = Segmenter.from_onnx(tmp_path / "bare.onnx", class_set=CLASSES, preprocessing=preprocessing)
    payload = {"classes": CLASSES.to_json(), "preprocessing": preprocessing.model_dump(mode="json")}
    (tmp_path / "full.onnx").write_bytes(make_onnx(metadata={"cilseg.manifest": json.dumps(payload)}))
    named = Segmenter.from_onnx(tmp_path / "full.onnx", threads=1)
    assert named.class_set == CLASSES
    assert named.preprocessing == preprocessing
    for segmenter in (given, named):
        np.testing.assert_array_equal(segmenter.segment(color_image).mask, expected_mask(color_image))
    (tmp_path / "odd.onnx").write_bytes(make_onnx(metadata={"cilseg.manifest": "{}"}))
    with pytest.raises(ArtifactError, match="cannot be read"):
        Segmenter.from_onnx(tmp_path / "odd.onnx")


def test_references_are_resolved_in_the_registry(
    make_bundle: BundleMaker, color_image: Image8, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    registry = Registry.open(tmp_path / "store")
    bundle = make_bundle()
    shutil.rmtree(bundle / "attachments")
    version = registry.register("tiny", bundle)
    with pytest.raises(NotFoundError, match=r"tiny:1 has no exported model"):
        Segmenter("tiny", registry=registry)
    registry.attach(version, "model.onnx", make_onnx(), kind="onnx", metadata={"parity": {"passed": True}})
    for source in ("tiny:1", "tiny", None):
        segmenter = Segmenter(source, registry=tmp_path / "store")
        assert (segmenter.name, segmenter.digest) == ("tiny:1", version.digest)
        np.testing.assert_array_equal(segmenter.segment(color_image).mask, expected_mask(color_image))
    assert Segmenter(version.path).digest == version.digest
    with pytest.raises(NotFoundError, match="tinny"):
        Segmenter("tinny", registry=registry)


def test_changed_manifest_in_the_registry_is_refused(make_bundle: BundleMaker, tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "store")
    bundle = make_bundle()
    shutil.rmtree(bundle / "attachments")
    version = registry.register("tiny", bundle)
    changed = json.loads((version.path / "manifest.json").read_text())
    changed["seed"] = 1
    (version.path / "manifest.json").write_text(json.dumps(changed))
    with pytest.raises(ArtifactError) as caught:
        Segmenter("tiny", registry=registry)
    assert caught.value.exit_code == 5


def test_missing_onnxruntime_names_the_extra(make_bundle: BundleMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'cilseg\[cpu\]'"):
        Segmenter(make_bundle())


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import cilseg_serve", ["torch", "onnxruntime", "sqlalchemy", "numpy", "PIL", "pydantic"]),
        ("from cilseg_serve import Segmenter", ["torch", "onnxruntime", "sqlalchemy"]),
        ("import cilseg.cli.predict", ["torch", "onnxruntime", "sqlalchemy", "numpy", "PIL"]),
    ],
)
def test_imports_stay_light(statement: str, absent: list[str]) -> None:
    code = f"import sys; {statement}; print([m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_exist_and_misspelt_ones_do_not() -> None:
    for name in cilseg_serve.__all__:
        assert getattr(cilseg_serve, name).__name__ == name
        assert name in dir(cilseg_serve)
    with pytest.raises(AttributeError, match="Segmentor"):
        cilseg_serve.Segmentor  # type: ignore[attr-defined]  # noqa: B018


def test_the_exported_file_of_a_precision_is_asked_for_by_name(
    make_bundle: BundleMaker, color_image: Image8, tmp_path: Path
) -> None:
    registry = Registry.open(tmp_path / "store")
    bundle = make_bundle()
    shutil.rmtree(bundle / "attachments")
    version = registry.register("tiny", bundle)
    with pytest.raises(InputError, match=r"Unknown precision 'int4'.*Precisions: fp32, fp16, int8"):
        Segmenter("tiny", registry=registry, precision="int4")
    with pytest.raises(NotFoundError, match=r"model\.int8\.onnx is missing.*cilseg export REF --precision int8"):
        Segmenter("tiny", registry=registry, precision="int8")
    registry.attach(version, "model.int8.onnx", make_onnx(), kind="onnx", metadata={"parity": {"passed": False}})
    with pytest.raises(ParityError, match="failed"):
        Segmenter("tiny", registry=registry, precision="int8")
    registry.attach(version, "model.int8.onnx", make_onnx(), kind="onnx", metadata={"parity": {"passed": True}})
    answer = Segmenter("tiny", registry=registry, precision="int8").segment(color_image)
    np.testing.assert_array_equal(answer.mask, expected_mask(color_image))
    with pytest.raises(NotFoundError, match=r"model\.onnx is missing"):
        Segmenter("tiny", registry=registry)
