"""Triton model repositories: layout and configuration, parsed with Triton's own message definition."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tritonclient
from google.protobuf import text_format

from cilseg.errors import ArtifactError, InputError, NotFoundError, ParityError
from cilseg.registry import Registry
from cilseg.update.triton import export_triton
from cilseg_export.triton_config import TritonModel, config_text
from cilseg_export.triton_repository import write_triton_model
from cilseg_serve.backends.engine_file import EngineRecord, Profile
from tests.registry_of_tiny import register_tiny
from tests.serve.tiny_model import CLASSES, expected_mask


def load_schema() -> ModuleType:
    """Load ``model_config.proto`` as tritonclient carries it, without its gRPC client."""
    path = Path(tritonclient.__path__[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCHEMA = load_schema()


def parse(text: str) -> Any:
    return text_format.Parse(text, SCHEMA.ModelConfig())


def read(folder: Path) -> Any:
    return parse((folder / "config.pbtxt").read_text(encoding="utf-8"))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    registry = Registry.open(tmp_path / "registry")
    for swap in (False, True):
        register_tiny(registry, tmp_path / f"bundle{swap}", swap=swap)
    return registry


def model(**fields: Any) -> TritonModel:
    standard: dict[str, Any] = {
        "name": "tiny",
        "served": 3,
        "backend": "onnxruntime",
        "outputs": ("mask", "confidence", "logits"),
        "n_classes": 4,
        "warm_up_hw": (240, 320),
        "labels_file": "labels_3.txt",
    }
    return TritonModel(**{**standard, **fields})


def attach_engine(registry: Registry, *, capability: str, precision: str = "float32", max_batch: int = 4) -> None:
    record = EngineRecord(
        onnx_sha256="sha256:00",
        tensorrt="10.16.1.11",
        compute_capability=capability,
        gpu="a GPU",
        precision=precision,
        profile=Profile(name="small", min=(1, 16, 16), opt=(1, 100, 120), max=(max_batch, 200, 200)),
        metadata={"cilseg.manifest": '{"outputs": ["mask"]}'},
    )
    registry.attach(
        registry.resolve("tiny:1"),
        record.file_name,
        f"engine for {capability}".encode(),
        kind="tensorrt",
        metadata={"engine": record.model_dump(mode="json", by_alias=True), "parity": {"passed": True}},
    )


@pytest.mark.parametrize("backend", ["onnxruntime", "python", "tensorrt", "openvino"])
def test_every_configuration_is_what_triton_defines(backend: str) -> None:
    config = parse(config_text(model(backend=backend, instances=2, parameters={"cilseg.ref": 'a "quoted" häst:3'})))
    batched = backend != "openvino"
    axis = [] if batched else [-1]
    assert (config.name, config.backend, list(config.version_policy.specific.versions)) == ("tiny", backend, [3])
    assert config.max_batch_size == (8 if batched else 0)
    assert config.HasField("dynamic_batching") == batched
    (image,) = config.input
    assert (image.name, image.data_type, list(image.dims)) == ("image", SCHEMA.TYPE_UINT8, [*axis, -1, -1, 3])
    outputs = {o.name: (o.data_type, list(o.dims), o.label_filename) for o in config.output}
    assert outputs == {
        "mask": (SCHEMA.TYPE_UINT8, [*axis, -1, -1], "labels_3.txt"),
        "confidence": (SCHEMA.TYPE_FP32, [*axis, -1, -1], ""),
        "logits": (SCHEMA.TYPE_FP32, [*axis, 4, -1, -1], ""),
    }
    (group,) = config.instance_group
    kinds = SCHEMA.ModelInstanceGroup
    assert (group.kind, group.count) == (kinds.KIND_GPU if backend == "tensorrt" else kinds.KIND_CPU, 2)
    assert list(group.profile) == (["0"] if backend == "tensorrt" else [])
    warm = [(w.batch_size, list(w.inputs["image"].dims)) for w in config.model_warmup]
    assert warm == ([(1, [240, 320, 3]), (8, [240, 320, 3])] if batched else [(0, [1, 240, 320, 3])])
    assert config.parameters["cilseg.ref"].string_value == 'a "quoted" häst:3'


def test_threads_and_gpu_are_options_of_the_backend() -> None:
    assert parse(config_text(model(threads=2))).parameters["intra_op_thread_count"].string_value == "2"
    assert parse(config_text(model(threads=2, backend="python"))).parameters["threads"].string_value == "2"
    config = parse(config_text(model(gpu=True)))
    assert config.instance_group[0].kind == SCHEMA.ModelInstanceGroup.KIND_GPU
    (cuda,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (cuda.name, dict(cuda.parameters)) == ("cuda", {"use_tf32": "0"})


def test_versions_stay_and_the_one_written_last_is_served(registry: Registry, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    for number in (1, 2):
        result = export_triton(registry, f"tiny:{number}", repository)
    assert result.versions == (1, 2)
    folder = repository / "tiny"
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == [
        "1/model.onnx",
        "2/model.onnx",
        "config.pbtxt",
        "labels_1.txt",
        "labels_2.txt",
    ]
    assert (folder / "labels_2.txt").read_text().split() == list(CLASSES.names)
    original = registry.attachment(registry.resolve("tiny:1"), "model.onnx").path.read_bytes()
    assert (folder / "1" / "model.onnx").read_bytes() == original
    assert list(read(folder).version_policy.specific.versions) == [2]
    assert read(folder).parameters["cilseg.version"].string_value == registry.resolve("tiny:2").digest
    export_triton(registry, "tiny:1", repository)
    assert list(read(folder).version_policy.specific.versions) == [1]
    assert (folder / "2" / "model.onnx").is_file()
    assert read(folder).output[0].label_filename == "labels_1.txt"


def test_the_openvino_model_keeps_its_float32_weights(registry: Registry, tmp_path: Path) -> None:
    import openvino

    folder = export_triton(registry, "tiny:1", tmp_path, backend="openvino").folder
    assert sorted(p.name for p in (folder / "1").iterdir()) == ["model.bin", "model.xml"]
    read_back = openvino.Core().read_model(folder / "1" / "model.xml")
    kinds = {op.output(0).element_type.get_type_name() for op in read_back.get_ops() if op.type_info.name == "Constant"}
    assert "f16" not in kinds
    image = np.random.default_rng(0).integers(0, 256, (2, 9, 11, 3), dtype=np.uint8)
    answers = openvino.compile_model(read_back, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({"image": image})
    np.testing.assert_array_equal(answers["mask"], expected_mask(image))


def test_the_python_model_stands_beside_the_onnx_file(registry: Registry, tmp_path: Path) -> None:
    folder = export_triton(registry, "tiny:1", tmp_path, backend="python").folder
    assert sorted(p.name for p in (folder / "1").iterdir()) == ["model.onnx", "model.py"]
    text = (folder / "1" / "model.py").read_text()
    compile(text, "model.py", "exec")
    assert "cilseg" not in "".join(line for line in text.splitlines() if "import" in line)
    onnxruntime.InferenceSession(str(folder / "1" / "model.onnx"))


def test_one_plan_per_compute_capability(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"tiny:1 has no TensorRT engine. .*cilseg export tiny:1 --trt"):
        export_triton(registry, "tiny:1", tmp_path / "models", backend="tensorrt")
    attach_engine(registry, capability="9.0")
    attach_engine(registry, capability="8.6", max_batch=2)
    folder = export_triton(registry, "tiny:1", tmp_path / "models", backend="tensorrt").folder
    config = read(folder)
    assert dict(config.cc_model_filenames) == {"8.6": "model_sm86.plan", "9.0": "model_sm90.plan"}
    assert (folder / "1" / "model_sm86.plan").read_bytes() == b"engine for 8.6"
    assert config.max_batch_size == 2, "what every plan takes"
    assert [list(w.inputs["image"].dims) for w in config.model_warmup] == [[100, 120, 3]] * 2
    assert [o.name for o in config.output] == ["mask"]


def test_what_cannot_be_served_is_refused_and_nothing_is_written(registry: Registry, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    with pytest.raises(InputError, match=r"no Triton backend 'onxruntime' here. Did you mean 'onnxruntime'\?"):
        export_triton(registry, "tiny:1", repository, backend="onxruntime")
    with pytest.raises(InputError, match="are 1 or more"):
        export_triton(registry, "tiny:1", repository, instances=0)
    register_tiny(registry, tmp_path / "unsure", name="unsure", parity={"passed": False})
    with pytest.raises(ParityError, match=r"unsure:1: model.onnx has no passed parity check.*cilseg export unsure:1"):
        export_triton(registry, "unsure:1", repository)
    with pytest.raises(NotFoundError):
        export_triton(registry, "tiny:1", repository, file_name="model_fp16.onnx")
    assert not repository.exists()
    repository.write_text("a file")
    with pytest.raises(InputError, match="is a file; a Triton model repository is a folder"):
        export_triton(registry, "tiny:1", repository)


def test_a_failed_write_leaves_the_served_version_alone(registry: Registry, tmp_path: Path) -> None:
    folder = export_triton(registry, "tiny:1", tmp_path / "models").folder
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(FileNotFoundError):
        write_triton_model(
            tmp_path / "models", model(served=1), class_set=CLASSES, onnx=tmp_path / "gone.onnx", engines={}
        )
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []
