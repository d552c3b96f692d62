"""FastAPI and onnxruntime, as their tutorials put them together.

python -m benchmarks.serve_peers.plain_fastapi MODEL PORT

A ``def`` endpoint runs in the framework's thread pool (fastapi.tiangolo.com, "Concurrency and async / await"); files
come as ``UploadFile`` or as the raw body; one ``InferenceSession`` is shared (onnxruntime.ai, "Python API").
"""

from __future__ import annotations

import io
import sys
from typing import Annotated

import numpy as np
import onnxruntime
import uvicorn
from fastapi import Body, FastAPI, Response
from PIL import Image


def make_app(model: str) -> FastAPI:
    app = FastAPI()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

    @app.post("/predict")
    def predict(data: Annotated[bytes, Body(media_type="application/octet-stream")]) -> Response:
        image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        (mask,) = session.run(["mask"], {"image": image[None]})
        buffer = io.BytesIO()
        Image.fromarray(mask[0]).save(buffer, format="PNG")
        return Response(buffer.getvalue(), media_type="image/png")

    return app


if __name__ == "__main__":
    uvicorn.run(make_app(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
