"""``config.pbtxt`` of a Triton model: text made from what is known about the files, nothing left to auto-completion.

Fields and spelling follow ``model_config.proto`` of triton-inference-server/common; a test parses every text with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cilseg.errors import InputError, did_you_mean

ONNXRUNTIME: Final = "onnxruntime"
TENSORRT: Final = "tensorrt"
OPENVINO: Final = "openvino"
PYTHON: Final = "python"
TRITON_BACKENDS: Final = (ONNXRUNTIME, TENSORRT, OPENVINO, PYTHON)
QUEUE_DELAY_US: Final = 2000
"""How long a request waits for company."""
_TYPES: Final = {"mask": "TYPE_UINT8", "confidence": "TYPE_FP32", "logits": "TYPE_FP32"}


@dataclass(frozen=True)
class TritonModel:
    """What the configuration of one model says."""

    name: str
    served: int
    """The version that Triton serves; the others stay in the folder for a rollback."""
    backend: str
    outputs: tuple[str, ...]
    n_classes: int
    warm_up_hw: tuple[int, int]
    labels_file: str
    max_batch: int = 8
    gpu: bool = False
    instances: int = 1
    threads: int | None = None
    engines: Mapping[str, str] = field(default_factory=dict)
    """Compute capability -> plan file in the version's folder (TensorRT)."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Texts for people and tools, such as the version's digest."""


def check_triton_backend(backend: str) -> str:
    """Return ``backend`` if Triton configurations are written for it.

    Raises:
        InputError: they are not.
    """
    if backend not in TRITON_BACKENDS:
        raise InputError(
            f"There is no Triton backend {backend!r} here.{did_you_mean(backend, TRITON_BACKENDS)} Backends: "
            f"{', '.join(TRITON_BACKENDS)}."
        )
    return backend


def config_text(model: TritonModel) -> str:
    """Return ``config.pbtxt``.

    OpenVINO gets ``max_batch_size: 0`` and a batch axis of its own: the README of its backend reports crashes with
    Triton's batching.
    """
    batching = model.backend != OPENVINO
    batch_axis = [] if batching else [-1]
    lines = [
        f'name: "{model.name}"',
        f'backend: "{model.backend}"',
        f"max_batch_size: {model.max_batch if batching else 0}",
        f"version_policy {{ specific {{ versions: [ {model.served} ] }} }}",
        _tensor("input", "image", "TYPE_UINT8", [*batch_axis, -1, -1, 3], "format: FORMAT_NHWC" if batching else ""),
    ]
    for output in model.outputs:
        dims = [*batch_axis, *((model.n_classes, -1, -1) if output == "logits" else (-1, -1))]
        label = f'label_filename: "{model.labels_file}"' if output == "mask" else ""
        lines.append(_tensor("output", output, _TYPES[output], dims, label))
    if batching:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_DELAY_US} }}")
    lines += _instances(model)
    lines += [_warm_up(model, batch, batching=batching) for batch in sorted({1, model.max_batch if batching else 1})]
    if model.backend == ONNXRUNTIME and model.gpu:
        lines.append(
            'optimization { execution_accelerators { gpu_execution_accelerator : [ { name : "cuda" '
            'parameters { key: "use_tf32" value: "0" } } ] } }'
        )
    for capability, file_name in sorted(model.engines.items()):
        lines.append(f'cc_model_filenames {{ key: "{capability}" value: "{file_name}" }}')
    for key, value in sorted({**_thread_parameters(model), **model.parameters}.items()):
        lines.append(f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}")
    return "\n".join(lines) + "\n"


def _tensor(kind: str, name: str, type_name: str, dims: Sequence[int], more: str = "") -> str:
    text = f'{kind} [ {{ name: "{name}" data_type: {type_name} dims: [ {", ".join(map(str, dims))} ]'
    return f"{text}{' ' + more if more else ''} }} ]"


def _instances(model: TritonModel) -> list[str]:
    gpu = model.gpu or model.backend == TENSORRT
    kind = "KIND_GPU" if gpu else "KIND_CPU"
    profile = ' profile: [ "0" ]' if model.backend == TENSORRT else ""
    return [f"instance_group [ {{ kind: {kind} count: {model.instances}{profile} }} ]"]


def _warm_up(model: TritonModel, batch: int, *, batching: bool) -> str:
    height, width = model.warm_up_hw
    dims = [height, width, 3] if batching else [batch, height, width, 3]
    size = batch if batching else 0
    return (
        f'model_warmup [ {{ name: "batch of {batch}" batch_size: {size} inputs {{ key: "image" value {{ '
        f"data_type: TYPE_UINT8 dims: [ {', '.join(map(str, dims))} ] random_data: true }} }} }} ]"
    )


def _thread_parameters(model: TritonModel) -> dict[str, str]:
    names = {ONNXRUNTIME: "intra_op_thread_count", PYTHON: "threads"}
    found = {}
    if model.threads is not None and model.backend in names:
        found[names[model.backend]] = str(model.threads)
    return found


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
