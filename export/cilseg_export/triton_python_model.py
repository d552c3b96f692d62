"""Triton's Python backend: runs ``model.onnx`` of this folder with onnxruntime. Copied into the model repository.

Stands alone: Triton's interpreter needs numpy and onnxruntime, nothing of cilseg. Requests of one size that arrive
together are one run.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

# The interpreter inside the backend does not read PYTHONPATH by itself; it goes first, as usual.
sys.path[:0] = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p not in sys.path]

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402

MODEL_FILE = "model.onnx"


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model; called once per instance."""
        config = json.loads(args["model_config"])
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        threads = config["parameters"].get("threads", {}).get("string_value")
        if threads:
            options.intra_op_num_threads = int(threads)
        path = os.path.join(args["model_repository"], args["model_version"], MODEL_FILE)  # noqa: PTH118
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._outputs = [output["name"] for output in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests, in order."""
        images = [pb_utils.get_input_tensor_by_name(request, "image").as_numpy() for request in requests]
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            by_size.setdefault(image.shape[1:], []).append(index)
        responses: list[Any] = [None] * len(requests)
        for members in by_size.values():
            try:
                answers = self._session.run(self._outputs, {"image": np.concatenate([images[i] for i in members])})
            except Exception as error:
                for index in members:
                    responses[index] = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
                continue
            start = 0
            for index in members:
                rows = slice(start, start + len(images[index]))
                tensors = [
                    pb_utils.Tensor(name, np.ascontiguousarray(answer[rows]))
                    for name, answer in zip(self._outputs, answers)  # noqa: B905
                ]
                responses[index] = pb_utils.InferenceResponse(tensors)
                start = rows.stop
        return responses
