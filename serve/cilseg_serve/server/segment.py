"""``POST /v1/segment``: an image file in, its class map, an overlay or figures out; made for curl."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from typing import Any

from fastapi import APIRouter, Query, Request, Response
from PIL import Image
from starlette.datastructures import UploadFile

from cilseg.errors import did_you_mean
from cilseg_serve.images import encode_mask
from cilseg_serve.server.errors import BadRequestError
from cilseg_serve.server.inference import Answered, deadline_of, segment_pictures
from cilseg_serve.server.oip import number_of
from cilseg_serve.server.state import needs, state_of

router = APIRouter(prefix="/v1", tags=["Segmentation"])
FORMATS = {"mask": "image/png", "overlay": "image/jpeg", "json": "application/json"}
_DOC: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"image": {"type": "string", "format": "binary"}}}
            },
        },
    },
    "responses": {
        "200": {
            "description": "The class map (palette PNG of ids), an overlay, or figures.",
            "content": {media: {} for media in FORMATS.values()},
        }
    },
}


@router.post("/segment", dependencies=[needs("infer")], openapi_extra=_DOC, response_class=Response)
async def segment(
    request: Request,
    model: str | None = Query(None, description="Model; may be left out where one is served."),
    version: str | None = Query(None, description="Version; default: the one that answers for the model."),
    format: str | None = Query(None, description="mask, overlay or json; default: by Accept, else mask."),
    confidence: bool = Query(False, description="Also the mean confidence (json)."),
    mask: bool = Query(False, description="Also the class map, as base64 PNG (json)."),
) -> Response:
    """Segment one image. Send the file as the body, or as the field ``image`` of a form."""
    state = state_of(request)
    kind = _kind(format, request.headers.get("accept"))
    with state.pool.find(model or state.pool.only_model(), number_of(version)).use() as deployment:
        data = await _image_bytes(request)
        answered = await segment_pictures(
            state,
            request,
            deployment,
            [data],
            confidence=confidence,
            deadline=deadline_of(request, state),
        )
        body = await asyncio.get_running_loop().run_in_executor(
            state.decoders, lambda: _encode(answered, kind, with_mask=mask)
        )
    headers = {
        "Server-Timing": answered.timing,
        "X-Cilseg-Model": deployment.version.ref,
        "X-Cilseg-Digest": deployment.version.digest,
    }
    return Response(body, media_type=FORMATS[kind], headers=headers)


def _kind(format_: str | None, accept: str | None) -> str:
    """Return which of :data:`FORMATS` to answer with."""
    if format_ is not None:
        if format_ not in FORMATS:
            raise BadRequestError(
                f"There is no format {format_[:40]!r}.{did_you_mean(format_[:40], FORMATS)} "
                f"Formats: {', '.join(FORMATS)}."
            )
        return format_
    for part in (accept or "").split(","):
        media = part.partition(";")[0].strip().lower()
        for kind, known in FORMATS.items():
            if media == known:
                return kind
    return "mask"


async def _image_bytes(request: Request) -> bytes:
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "multipart/form-data":
        return await request.body()
    async with request.form(max_files=1, max_fields=4) as form:
        found = form.get("image")
        if not isinstance(found, UploadFile):
            raise BadRequestError(
                f"The form has no file in a field named image; it has: {', '.join(map(str, form)) or 'nothing'}. "
                "With curl: -F image=@cow.jpg"
            )
        return await found.read()


def _encode(answered: Answered, kind: str, *, with_mask: bool) -> bytes:
    result, image = answered.results[0], answered.images[0]
    if kind == "mask":
        return encode_mask(result.mask, result.palette)
    if kind == "overlay":
        buffer = io.BytesIO()
        Image.fromarray(result.overlay(image)).save(buffer, format="JPEG", quality=90)
        return buffer.getvalue()
    done = answered.done[0]
    payload: dict[str, Any] = {
        "model": answered.deployment.model,
        "version": str(answered.deployment.number),
        "width_px": int(result.mask.shape[1]),
        "height_px": int(result.mask.shape[0]),
        "coverage": result.coverage,
        "present": list(result.present),
        "colors": dict(zip(result.class_names, ("#" + bytes(c).hex() for c in result.palette), strict=True)),
        "queue_s": round(done.queue_s, 6),
        "run_s": round(done.run_s, 6),
    }
    if result.confidence is not None:
        payload["mean_confidence"] = float(result.confidence.mean())
    if with_mask:
        payload["mask_png"] = base64.b64encode(encode_mask(result.mask, result.palette)).decode()
    return json.dumps(payload).encode()
