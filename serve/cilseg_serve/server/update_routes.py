"""Routes of the update service: queue an update, watch it, cancel and resume it. Nothing is promoted here."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile

from cilseg.errors import CilsegError, FaultCollector, InputError
from cilseg_serve.images import IMAGE_SUFFIXES
from cilseg_serve.server.errors import BadRequestError
from cilseg_serve.server.state import ServerState, needs, state_of
from cilseg_serve.server.tag_documents import check_list_name, check_paths, image_root_of, parse_document
from cilseg_serve.server.update_jobs import FINISHED, IMAGES, TAGS, Job, Options, now

router = APIRouter(prefix="/v1/updates", tags=["Updates"])
_MAX_FILES = 20_000
_FOLLOW_S = 0.5
_DOC: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object"},
                "example": {"tag_list": "cows", "options": {"model": "animals"}},
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "tags": {"type": "string", "format": "binary"},
                        "images": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "options": {"type": "string"},
                    },
                }
            },
        },
    }
}


class UpdateOptions(BaseModel):
    """What is asked beside the tags; what is left out comes from the parent version."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    model: str | None = Field(None, max_length=64, description="Start from what is served of this model.")
    from_: str | None = Field(None, alias="from", max_length=200, description="Start from this version.")
    method: str | None = Field(None, pattern="^[a-z0-9][a-z0-9_-]{0,39}$")
    seed: int | None = Field(None, ge=0, lt=2**31)
    untagged: Literal["absent", "unknown"] | None = None
    on_regression: Literal["keep", "fuse"] | None = None


class UpdateBody(BaseModel):
    """A tag list in the request (``tags``), or the name of a saved one (``tag_list``)."""

    model_config = ConfigDict(extra="forbid")
    tags: dict[str, Any] | None = None
    tag_list: str | None = None
    options: UpdateOptions = Field(default_factory=lambda: UpdateOptions.model_validate({}))


@router.post("", dependencies=[needs("tag")], openapi_extra=_DOC)
async def start_update(request: Request) -> dict[str, Any]:
    """Queue an update: a tag list whose images lie in an image folder of the server, or are uploaded with it.

    JSON: ``{"tags": {...}}`` or ``{"tag_list": "NAME"}``, and ``options``. Form: a file ``tags``, files ``images``
    (named as the list names them), and ``options`` as JSON.
    """
    state = state_of(request)
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media == "multipart/form-data":
        async with request.form(max_files=_MAX_FILES, max_fields=8) as form:
            job = await _from_form(state, form)
    else:
        job = await asyncio.to_thread(_from_json, state, await request.body())
    return describe(state, job)


@router.get("", dependencies=[needs("tag")])
async def list_updates(request: Request) -> list[dict[str, Any]]:
    """All updates, newest first."""
    state = state_of(request)
    return await asyncio.to_thread(lambda: [describe(state, job) for job in reversed(state.jobs.all())])


@router.get("/{update}", dependencies=[needs("tag")])
async def show_update(request: Request, update: str) -> dict[str, Any]:
    """State and progress of an update; when done, its candidate and the gate's verdict."""
    state = state_of(request)
    return await asyncio.to_thread(lambda: describe(state, state.jobs.read(update)))


@router.get("/{update}/log", dependencies=[needs("tag")], response_class=Response)
async def update_log(
    request: Request,
    update: str,
    offset: int = Query(0, ge=0, lt=2**40, description="Byte to start at; X-Next-Offset says where it goes on."),
    follow: bool = Query(False, description="Keep the connection until the update is over."),
) -> Response:
    """What the training writes, as text."""
    state = state_of(request)
    state.jobs.path(update)
    if follow:
        return StreamingResponse(_follow(state, update, offset), media_type="text/plain; charset=utf-8")
    data, following = await asyncio.to_thread(state.jobs.log, update, offset)
    return Response(data, media_type="text/plain; charset=utf-8", headers={"X-Next-Offset": str(following)})


@router.post("/{update}/cancel", dependencies=[needs("tag")])
async def cancel_update(request: Request, update: str) -> dict[str, Any]:
    """Stop an update; it can be resumed."""
    state = state_of(request)
    return describe(state, await asyncio.to_thread(state.jobs.cancel, update))


@router.post("/{update}/resume", dependencies=[needs("tag")])
async def resume_update(request: Request, update: str) -> dict[str, Any]:
    """Queue a failed or cancelled update again; its training goes on from the last checkpoint."""
    state = state_of(request)
    return describe(state, await asyncio.to_thread(state.jobs.resume, update))


def describe(state: ServerState, job: Job) -> dict[str, Any]:
    """Return an update as the routes show it: no paths of the server."""
    shown: dict[str, Any] = {
        "id": job.id,
        "state": job.state,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "images": job.images,
        "source": job.source,
        "options": {key: value for key, value in vars(job.options).items() if value is not None},
        "parent": job.parent,
        "attempts": job.attempts,
        "candidate": job.candidate,
        "verdict": job.verdict,
        "headline": job.headline,
        "report": None,
        "progress": None,
        "error": job.error,
    }
    if job.candidate is not None and ":" in job.candidate:
        name, _, number = job.candidate.partition(":")
        shown["report"] = f"/v1/models/{name}/versions/{number}/report"
    if job.state == "running":
        shown["progress"] = _progress(state, job)
    return shown


def _progress(state: ServerState, job: Job) -> dict[str, Any] | None:
    line = state.jobs.progress(job, state.registry.root)
    if line is None:
        return None
    known = ("iteration", "epoch", "lr_factor", "elapsed_s")
    losses = {k: v for k, v in line.items() if k not in known}
    found = {"iteration": line.get("iteration"), "epoch": line.get("epoch"), "losses": losses, "epochs": None}
    try:
        config = state.registry.resolve(job.parent).manifest.config
        found["epochs"] = config["update"]["optimiser"]["epochs"]
    except (CilsegError, KeyError, TypeError):
        pass
    return found


async def _follow(state: ServerState, update: str, offset: int) -> AsyncIterator[bytes]:
    while True:
        over = state.jobs.read(update).state in FINISHED
        data, offset = await asyncio.to_thread(state.jobs.log, update, offset)
        if data:
            yield data
        elif over or state.traffic.draining:
            return
        else:
            await asyncio.sleep(_FOLLOW_S)


def _from_json(state: ServerState, data: bytes) -> Job:
    body = _validated(UpdateBody, data, "The body")
    if (body.tags is None) == (body.tag_list is None):
        raise BadRequestError("Give either tags (a tag list) or tag_list (the name of a saved one).")
    if body.tag_list is not None:
        path = state.tags_dir / f"{check_list_name(body.tag_list)}.json"
        if not path.is_file():
            raise BadRequestError(
                f"There is no tag list {body.tag_list!r}. Save one with PUT /v1/tags/{body.tag_list}."
            )
        data = path.read_bytes()
        source = {"kind": "tag_list", "name": body.tag_list}
    else:
        data = json.dumps(body.tags, ensure_ascii=False).encode()
        source = {"kind": "request"}
    document = parse_document(data)
    default = state.settings.image_roots[0][1] if len(state.settings.image_roots) == 1 else None
    if default is None and document.get("image_root") is None:
        raise BadRequestError("Say where the images are: image_root in the tag list (NAME/FOLDER), or upload them.")
    root = image_root_of(document, state.settings.image_roots, default=default or Path())
    count = check_paths(document, root)
    job_id = state.jobs.new_id()
    _check_start(state, body.options)
    folder = state.jobs.prepare(job_id)
    (folder / TAGS).write_bytes(data)
    return state.jobs.write(Job(job_id, now(), str(root), count, _options(body.options), source))


async def _from_form(state: ServerState, form: FormData) -> Job:
    tags = form.get("tags")
    if not isinstance(tags, UploadFile):
        raise BadRequestError("The form has no file in a field named tags. With curl: -F tags=@new_classes.json")
    data = await tags.read()
    document = parse_document(data)
    options = _validated(UpdateOptions, str(form.get("options") or "{}"), "options")
    await asyncio.to_thread(_check_start, state, options)
    uploads = [f for f in form.getlist("images") if isinstance(f, UploadFile)]
    job_id = state.jobs.new_id()
    folder = state.jobs.prepare(job_id)
    try:
        if uploads:
            await asyncio.to_thread(_save, uploads, folder / IMAGES)
            root = folder / IMAGES
        else:
            root = image_root_of(document, state.settings.image_roots, default=folder)
        count = await asyncio.to_thread(check_paths, document, root.resolve())
        (folder / TAGS).write_bytes(data)
        job = Job(job_id, now(), str(root.resolve()), count, _options(options), {"kind": "upload"})
        return await asyncio.to_thread(state.jobs.write, job)
    except BaseException:
        await asyncio.to_thread(shutil.rmtree, folder, True)
        raise


def _save(uploads: list[UploadFile], folder: Path) -> None:
    """Write uploaded images below ``folder`` under the names that they were sent with."""
    faults = FaultCollector("Uploaded images")
    for upload in uploads:
        name = upload.filename or ""
        path = PurePosixPath(name)
        strange = path.is_absolute() or ".." in path.parts or "\0" in name or "\\" in name or len(name) > 300
        if strange or path.suffix.lower() not in IMAGE_SUFFIXES:
            faults.add(f"{name[:100]!r} is no name of an image file (a.jpg, folder/b.png)")
            continue
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            faults.add(f"{name[:100]!r} was sent twice")
            continue
        with target.open("xb") as stream:
            shutil.copyfileobj(upload.file, stream)
    faults.raise_if_any("Send them with the names that the tag list uses.")


def _check_start(state: ServerState, options: UpdateOptions) -> None:
    """Check now that there is something to start from."""
    if options.model is not None and options.from_ is not None:
        raise BadRequestError("Give model or from, not both.")
    state.registry.resolve(options.from_ or options.model)


def _options(asked: UpdateOptions) -> Options:
    return Options(
        model=asked.model,
        parent=asked.from_,
        method=asked.method,
        seed=asked.seed,
        untagged=asked.untagged,
        on_regression=asked.on_regression,
    )


def _validated(kind: type[Any], data: bytes | str, what: str) -> Any:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, f['loc'])) or 'it'}: {f['msg']}" for f in error.errors(include_url=False)[:10]
        )
        raise InputError(f"{what} cannot be used: {faults}.") from None
