"""LitServe, as its documentation shows it: python -m benchmarks.serve_peers.lit_serve MODEL PORT

Hooks as in the readme of Lightning-AI/LitServe; batching and the number of workers at their defaults. The type of a
request is read from the signature of ``decode_request``, so annotations must not be postponed to texts here.
"""

import io
import sys
from typing import Annotated, Any

import litserve
import numpy as np
import onnxruntime
from fastapi import Body, Response
from PIL import Image


class SegmentationAPI(litserve.LitAPI):  # type: ignore[misc]
    def __init__(self, model: str) -> None:
        super().__init__()
        self._path = model

    def setup(self, device: str) -> None:  # noqa: ARG002
        self._session = onnxruntime.InferenceSession(self._path, providers=["CPUExecutionProvider"])

    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> Any:
        return np.asarray(Image.open(io.BytesIO(request)).convert("RGB"))

    def predict(self, image: Any) -> Any:
        (mask,) = self._session.run(["mask"], {"image": image[None]})
        return mask[0]

    def encode_response(self, mask: Any) -> Response:
        buffer = io.BytesIO()
        Image.fromarray(mask).save(buffer, format="PNG")
        return Response(buffer.getvalue(), media_type="image/png")


if __name__ == "__main__":
    server = litserve.LitServer(SegmentationAPI(sys.argv[1]), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
