"""Routes of the Open Inference Protocol v2 over HTTP: metadata, health, inference, model repository."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from cilseg import __version__
from cilseg.errors import InputError
from cilseg_serve.images import encode_mask
from cilseg_serve.server.deployment import Deployment
from cilseg_serve.server.errors import BadRequestError, TooLargeError, UnavailableError
from cilseg_serve.server.inference import Answered, deadline_of, segment_pictures
from cilseg_serve.server.protocol import (
    ENCODED,
    HEADER_LENGTH,
    IMAGE,
    InferRequest,
    Tensor,
    WantedOutput,
    decompress,
    header_length,
    parse_infer,
    write_infer,
)
from cilseg_serve.server.state import ServerState, needs, state_of

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol v2"])
_IN_THREAD_BYTES = 64 * 1024
_MAX_JSON_VALUES = 4_000_000
_INFER_DOC: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "JSON, or JSON followed by binary tensors (see Inference-Header-Content-Length).",
        "content": {
            "application/json": {
                "schema": {"type": "object", "required": ["inputs"]},
                "example": {
                    "inputs": [
                        {"name": "image", "datatype": "UINT8", "shape": [1, 1, 2, 3], "data": [0, 0, 0, 255, 0, 0]}
                    ],
                    "outputs": [{"name": "mask"}],
                },
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    "parameters": [
        {
            "name": HEADER_LENGTH,
            "in": "header",
            "required": False,
            "schema": {"type": "integer", "minimum": 0},
            "description": "Length of the JSON part; 0: the body is one encoded image.",
        }
    ],
}
_REPOSITORY_DOC: dict[str, Any] = {
    "requestBody": {
        "required": False,
        "content": {"application/json": {"schema": {"type": "object"}, "example": {"parameters": {"version": "3"}}}},
    }
}


@router.get("")
async def server_metadata() -> dict[str, Any]:
    """Name, version and extensions of the server."""
    return {"name": "cilseg", "version": __version__, "extensions": ["binary_tensor_data", "model_repository"]}


@router.get("/health/live")
async def live() -> dict[str, bool]:
    """Whether the server answers at all."""
    return {"live": True}


@router.get("/health/ready")
async def ready(request: Request) -> dict[str, bool]:
    """Whether every model answers and the server is not stopping; 503 where not."""
    state = state_of(request)
    if state.traffic.draining:
        raise UnavailableError("The server is stopping.")
    if not state.pool.ready:
        raise UnavailableError("Not every model is loaded.")
    return {"ready": True}


@router.get("/models/{model}", dependencies=[needs("infer")])
@router.get("/models/{model}/versions/{version}", dependencies=[needs("infer")])
async def model_metadata(request: Request, model: str, version: str | None = None) -> dict[str, Any]:
    """Inputs and outputs of a model. Classes, colours and preprocessing stand under ``parameters``."""
    state = state_of(request)
    deployment = state.pool.find(model, number_of(version))
    sides = [-1, -1, -1]
    outputs: list[dict[str, Any]] = [{"name": "mask", "datatype": "UINT8", "shape": sides}]
    if deployment.segmenter.has_confidence:
        outputs.append({"name": "confidence", "datatype": "FP32", "shape": sides})
    outputs.append({"name": "encoded_mask", "datatype": "BYTES", "shape": [-1]})
    return {
        "name": model,
        "versions": [str(n) for n in sorted(state.pool.models[model].loaded)],
        "platform": "cilseg_onnx",
        "inputs": [
            {"name": IMAGE, "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
            {"name": ENCODED, "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": outputs,
        "parameters": {
            "version": str(deployment.number),
            "digest": deployment.version.digest,
            "classes": list(deployment.segmenter.class_set.names),
            "colors": ["#" + bytes(c).hex() for c in deployment.segmenter.class_set.palette],
            "short_side_px": deployment.segmenter.preprocessing.short_side_px,
        },
    }


@router.get("/models/{model}/ready", dependencies=[needs("infer")])
@router.get("/models/{model}/versions/{version}/ready", dependencies=[needs("infer")])
async def model_ready(request: Request, model: str, version: str | None = None) -> dict[str, Any]:
    """Whether a model answers; 404 or 503 where not."""
    state_of(request).pool.find(model, number_of(version))
    return {"name": model, "ready": True}


@router.post("/models/{model}/infer", dependencies=[needs("infer")], openapi_extra=_INFER_DOC)
@router.post("/models/{model}/versions/{version}/infer", dependencies=[needs("infer")], openapi_extra=_INFER_DOC)
async def infer(request: Request, model: str, version: str | None = None) -> Response:
    """Segment a batch: ``image`` (UINT8, [N, H, W, 3]) or ``encoded_image`` (BYTES, [N]: JPEG, PNG, ...)."""
    state = state_of(request)
    with state.pool.find(model, number_of(version)).use() as deployment:
        parsed = await _read(request, state)
        wanted = _wanted(parsed, deployment)
        answered = await segment_pictures(
            state,
            request,
            deployment,
            parsed.pictures,
            confidence=any(w.name == "confidence" for w in wanted),
            deadline=deadline_of(request, state, parsed.timeout_s),
        )
        if all(w.binary and w.name != "encoded_mask" for w in wanted):
            body, length = _write(answered, wanted, parsed)
        else:
            body, length = await asyncio.to_thread(_write, answered, wanted, parsed)
    headers = {"Server-Timing": answered.timing}
    if length is not None:
        headers[HEADER_LENGTH] = str(length)
    return Response(
        body, media_type="application/json" if length is None else "application/octet-stream", headers=headers
    )


@router.post("/repository/index", dependencies=[needs("infer")], openapi_extra=_REPOSITORY_DOC)
async def repository_index(request: Request) -> list[dict[str, str]]:
    """All versions of the served models in the registry, and whether each is loaded; ``{"ready": true}`` only those."""
    state = state_of(request)
    only_ready = (await _json_object(request)).get("ready", False)
    if not isinstance(only_ready, bool):
        raise BadRequestError(f"ready is true or false, got {str(only_ready)[:40]!r}.")
    rows = []
    for served in list(state.pool.models.values()):
        versions = await asyncio.to_thread(state.registry.versions, served.name)
        for version in versions:
            loaded = version.number in served.loaded
            if only_ready and not loaded:
                continue
            reason = "" if loaded else "unloaded"
            if served.fault is not None and version.number == served.default:
                reason = served.fault
            state_name = "READY" if loaded else "UNAVAILABLE"
            rows.append({"name": served.name, "version": str(version.number), "state": state_name, "reason": reason})
    return rows


@router.post("/repository/models/{model}/load", dependencies=[needs("promote")], openapi_extra=_REPOSITORY_DOC)
async def load_model(request: Request, model: str) -> dict[str, Any]:
    """Load a model of the registry, or with ``{"parameters": {"version": "3"}}`` another version of it."""
    number = await _version_parameter(request)
    deployment = await state_of(request).pool.load(model, number)
    return {"name": model, "version": str(deployment.number), "state": "READY"}


@router.post("/repository/models/{model}/unload", dependencies=[needs("promote")], openapi_extra=_REPOSITORY_DOC)
async def unload_model(request: Request, model: str) -> dict[str, Any]:
    """Unload a model, or one version of it; requests in flight are answered."""
    await state_of(request).pool.unload(model, await _version_parameter(request))
    return {"name": model, "state": "UNAVAILABLE"}


def number_of(version: str | None) -> int | None:
    """Return the number that a path names.

    Raises:
        BadRequestError: no number.
    """
    if version is None:
        return None
    if not version.isascii() or not version.isdigit() or len(version) > 9:
        raise BadRequestError(f"A version is a number, got {version[:40]!r}.")
    return int(version)


async def _read(request: Request, state: ServerState) -> InferRequest:
    raw = await request.body()
    limits = state.settings.limits
    encoding = request.headers.get("content-encoding")

    def parse() -> InferRequest:
        body = decompress(raw, encoding, limit=limits.body_bytes)
        length = header_length(request.headers.get(HEADER_LENGTH), len(body))
        return parse_infer(body, length, json_limit=limits.json_bytes)

    length = request.headers.get(HEADER_LENGTH, "")
    json_bytes = int(length) if length.isascii() and length.isdigit() and len(length) < 13 else len(raw)
    if encoding is None and json_bytes <= _IN_THREAD_BYTES:
        return parse()
    return await asyncio.get_running_loop().run_in_executor(state.decoders, parse)


def _wanted(parsed: InferRequest, deployment: Deployment) -> tuple[WantedOutput, ...]:
    """Return the outputs to answer with; without a choice mask and, where the model has it, confidence."""
    if parsed.outputs is not None:
        return parsed.outputs
    names = ("mask", "confidence") if deployment.segmenter.has_confidence else ("mask",)
    return tuple(WantedOutput(name, parsed.binary_by_default) for name in names)


def _write(answered: Answered, wanted: tuple[WantedOutput, ...], parsed: InferRequest) -> tuple[bytes, int | None]:
    return write_infer(
        [_tensor(answered, w) for w in wanted],
        wanted,
        model=answered.deployment.model,
        version=str(answered.deployment.number),
        request_id=parsed.id,
    )


def _tensor(answered: Answered, wanted: WantedOutput) -> Tensor:
    results = answered.results
    if wanted.name == "encoded_mask":
        files = [encode_mask(r.mask, r.palette) for r in results]
        return Tensor(wanted.name, "BYTES", (len(files),), files)
    sizes = {r.mask.shape for r in results}
    if len(sizes) > 1:
        raise InputError(
            f"The images of this request differ in size ({', '.join(f'{w} x {h}' for h, w in sorted(sizes)[:4])}), so "
            "their masks are no tensor. Ask for the output encoded_mask, or send one image a request."
        )
    shape = (len(results), *next(iter(sizes)))
    if not wanted.binary and int(np.prod(shape)) > _MAX_JSON_VALUES:
        raise TooLargeError(
            f"Output {wanted.name!r} of shape {list(shape)} is too large for JSON; ask for it as binary."
        )
    if wanted.name == "mask":
        return Tensor("mask", "UINT8", shape, np.stack([r.mask for r in results]))
    sure = [r.confidence for r in results if r.confidence is not None]
    return Tensor("confidence", "FP32", shape, np.stack(sure))


async def _json_object(request: Request) -> dict[str, Any]:
    body = await request.body()
    if not body:
        return {}
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequestError("The body is no JSON. Leave it empty or send an object.") from None
    if not isinstance(found, dict):
        raise BadRequestError(f"The body is a JSON object, got {type(found).__name__}.")
    return found


async def _version_parameter(request: Request) -> int | None:
    parameters = (await _json_object(request)).get("parameters") or {}
    if not isinstance(parameters, dict):
        raise BadRequestError("parameters is an object.")
    version = parameters.get("version")
    if version is not None and not isinstance(version, str | int):
        raise BadRequestError("The parameter version is a number.")
    return number_of(None if version is None else str(version))
