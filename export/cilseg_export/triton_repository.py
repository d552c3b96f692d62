"""A Triton model repository: ``DIR/NAME/config.pbtxt``, ``DIR/NAME/labels_N.txt``, ``DIR/NAME/N/...``.

Triton's version number is the registry's. The configuration names the one version that is served, so that a rollback is
writing an older version again: its folder is still there, and Triton's own rule (the highest number) never applies.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cilseg.bundle import write_file_atomically
from cilseg.classes import ClassSet
from cilseg.errors import ArtifactError, InputError, MissingDependencyError
from cilseg_export.triton_config import OPENVINO, PYTHON, TENSORRT, TritonModel, check_triton_backend, config_text

CONFIG = "config.pbtxt"
MODEL_FILE = "model.onnx"
PYTHON_MODEL = Path(__file__).with_name("triton_python_model.py")


def write_triton_model(
    repository: Path, model: TritonModel, *, class_set: ClassSet, onnx: Path | None, engines: Mapping[str, Path]
) -> Path:
    """Write one version of a model and make it the served one; return the model's folder.

    Args:
        repository: the model repository; made if missing.
        model: what the configuration says; ``labels_file`` and ``engines`` are filled in here.
        class_set: names for the label file.
        onnx: the ONNX file (not for TensorRT).
        engines: compute capability -> engine file (TensorRT).

    Raises:
        InputError: unknown backend, or the repository is a file.
        ArtifactError: no engine for TensorRT.
        MissingDependencyError: openvino is not installed, for the OpenVINO backend.
    """
    check_triton_backend(model.backend)
    if repository.exists() and not repository.is_dir():
        raise InputError(f"{repository} is a file; a Triton model repository is a folder.")
    if model.backend == TENSORRT and not engines:
        raise ArtifactError(f"{model.name} has no TensorRT engine. Build one first: cilseg export REF --trt")
    folder = repository / model.name
    folder.mkdir(parents=True, exist_ok=True)
    names = {capability: f"model_sm{capability.replace('.', '')}.plan" for capability in engines}
    final = replace(model, labels_file=f"labels_{model.served}.txt", engines=names)
    # Triton takes folders with numeric names for versions, so this one is invisible to it.
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=folder))
    try:
        if model.backend == TENSORRT:
            for capability, engine in engines.items():
                shutil.copyfile(engine, staging / names[capability])
        else:
            assert onnx is not None
            _write_model(staging, model.backend, onnx)
        staging.chmod(0o755)
        _swap(staging, folder / str(model.served))
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    write_file_atomically(folder / final.labels_file, ("\n".join(class_set.names) + "\n").encode())
    write_file_atomically(folder / CONFIG, config_text(final).encode())
    return folder


def _write_model(folder: Path, backend: str, onnx: Path) -> None:
    if backend == OPENVINO:
        try:
            import openvino
        except ImportError as exc:
            raise MissingDependencyError(
                f"Writing the OpenVINO model needs the package openvino ({exc}): pip install 'cilseg[openvino]'"
            ) from exc
        # Without compress_to_fp16=False the weights would be rounded to float16.
        openvino.save_model(openvino.convert_model(onnx), folder / "model.xml", compress_to_fp16=False)
        return
    shutil.copyfile(onnx, folder / MODEL_FILE)
    if backend == PYTHON:
        shutil.copyfile(PYTHON_MODEL, folder / "model.py")


def _swap(new: Path, target: Path) -> None:
    """Put ``new`` in the place of ``target``."""
    if not target.exists():
        new.rename(target)
        return
    old = target.with_name(f".old-{target.name}-{new.name}")
    target.rename(old)
    new.rename(target)
    shutil.rmtree(old)
