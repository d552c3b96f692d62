"""Routes for tagging: the images of the allowed folders, and tag lists that ``cilseg update`` reads."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from cilseg.bundle import write_file_atomically
from cilseg.errors import ConflictError, NotFoundError
from cilseg_serve.images import IMAGE_SUFFIXES
from cilseg_serve.server.errors import BadRequestError, TooLargeError
from cilseg_serve.server.roots import below_any, inside, root_named
from cilseg_serve.server.state import ServerState, needs, state_of
from cilseg_serve.server.tag_documents import SCHEMA, check_list_name, check_paths, parse_document, tagged_files
from cilseg_serve.server.uploads import decode_upload

router = APIRouter(prefix="/v1", tags=["Tagging"])
_LISTING_S = 5.0
_MAX_LISTED = 200_000
Name = Annotated[str, Field(min_length=1, max_length=200)]


class TaggedClass(BaseModel):
    """A new class."""

    model_config = ConfigDict(extra="forbid")
    name: Name
    color: str | None = Field(None, pattern="^#[0-9a-fA-F]{6}$")


class TaggedFile(BaseModel):
    """An image and what is in it; a class in neither list is unknown (a new one: as ``untagged`` says)."""

    model_config = ConfigDict(extra="forbid")
    file: str = Field(min_length=1, max_length=1000)
    present: list[Name] = Field(default_factory=list, max_length=255)
    absent: list[Name] = Field(default_factory=list, max_length=255)


class TagDocument(BaseModel):
    """A tag list; ``image_root`` is the name of an image folder, or ``NAME/FOLDER``."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    schema_: Literal["cilseg.tags/1"] = Field("cilseg.tags/1", alias="schema")
    image_root: str = Field(min_length=1, max_length=2000)
    classes: list[TaggedClass] = Field(default_factory=list, max_length=255)
    images: list[TaggedFile] = Field(default_factory=list, max_length=200_000)
    untagged: Literal["absent", "unknown"] = "absent"


@router.get("/images", dependencies=[needs("tag")])
async def image_folders(request: Request) -> list[dict[str, str]]:
    """The image folders that may be looked at and tagged."""
    return [{"name": name} for name, _ in state_of(request).settings.image_roots]


@router.get("/images/{root}", dependencies=[needs("tag")])
async def list_images(
    request: Request,
    root: str,
    after: str = Query("", max_length=1000, description="Go on after this file."),
    limit: int = Query(100, ge=1, le=1000),
    tags: str | None = Query(None, description="A saved tag list; its images are marked as tagged."),
    untagged: bool = Query(False, description="Only images that the tag list does not name."),
) -> dict[str, Any]:
    """The images of a folder in the order of their paths, page by page."""
    state = state_of(request)
    folder = root_named(state.settings.image_roots, root)
    files = await asyncio.to_thread(_listing, state, folder)
    tagged: set[str] = set()
    if tags is not None:
        document = _read_list(_list_path(state, tags))
        base = Path(str(document["image_root"]))
        tagged = {_relative(folder, base / file) for file in tagged_files(document)}
    wanted = [f for f in files if f > after and not (untagged and f in tagged)]
    page = wanted[:limit]
    return {
        "root": root,
        "total": len(files),
        "tagged": len(tagged & set(files)),
        "images": [{"file": f, "tagged": f in tagged} for f in page],
        "next": page[-1] if len(wanted) > limit else None,
    }


@router.get("/images/{root}/{file:path}", dependencies=[needs("tag")], response_class=Response)
async def show_image(
    request: Request,
    root: str,
    file: str,
    max_side: int | None = Query(None, ge=16, le=4096, description="Shrink to this; the answer is a JPEG then."),
) -> Response:
    """One image of a folder, upright."""
    state = state_of(request)
    path = inside(root_named(state.settings.image_roots, root), file)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise NotFoundError(f"{file[:100]!r} is no image file.")

    def encode() -> bytes:
        limits = state.settings.limits
        if path.stat().st_size > limits.body_bytes:
            raise TooLargeError(
                f"{file[:100]!r} has {path.stat().st_size:,} bytes, at most {limits.body_bytes:,} are read."
            )
        pixels = decode_upload(path.read_bytes(), limits, state.pixels, name=file)
        try:
            image = Image.fromarray(pixels)
            if max_side is not None:
                image.thumbnail((max_side, max_side))
            buffer = io.BytesIO()
            image.save(buffer, format="JPEG", quality=90)
            return buffer.getvalue()
        finally:
            state.pixels.give_back(pixels.shape[0] * pixels.shape[1])

    data = await asyncio.get_running_loop().run_in_executor(state.decoders, encode)
    return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=60"})


@router.get("/tags", dependencies=[needs("tag")])
async def list_tag_lists(request: Request) -> list[dict[str, Any]]:
    """The saved tag lists."""
    folder = state_of(request).tags_dir
    names = sorted(p.stem for p in folder.glob("*.json")) if folder.is_dir() else []
    return [{"name": name, "etag": _etag((folder / f"{name}.json").read_bytes())} for name in names]


@router.get("/tags/{name}", dependencies=[needs("tag")])
async def read_tag_list(request: Request, name: str) -> Response:
    """A saved tag list; its ``ETag`` goes into ``If-Match`` when it is saved again."""
    state = state_of(request)
    path = _list_path(state, name)
    document = _read_list(path)
    document["image_root"] = _public_root(state, Path(str(document["image_root"])))
    return Response(
        json.dumps(document, ensure_ascii=False),
        media_type="application/json",
        headers={"ETag": f'"{_etag(path.read_bytes())}"'},
    )


@router.put("/tags/{name}", dependencies=[needs("tag")])
async def save_tag_list(
    request: Request, name: str, document: TagDocument, if_match: str | None = Header(None, max_length=200)
) -> dict[str, Any]:
    """Save a tag list that ``cilseg update --tags`` reads. ``If-Match`` refuses to overwrite somebody else's work."""
    state = state_of(request)
    path = state.tags_dir / f"{check_list_name(name)}.json"
    root = below_any(state.settings.image_roots, document.image_root)
    stored = document.model_dump(by_alias=True, exclude_none=True) | {"schema": SCHEMA, "image_root": str(root)}
    for row in stored["images"]:
        if not row["absent"]:
            del row["absent"]

    def save() -> str:
        if stored["images"]:
            check_paths(stored, root)
        current = _etag(path.read_bytes()) if path.is_file() else None
        if if_match is not None and if_match.strip('"') != (current or ""):
            raise ConflictError(f"Tag list {name!r} was saved by somebody else meanwhile. Read it again, then save.")
        path.parent.mkdir(parents=True, exist_ok=True)
        data = (json.dumps(stored, indent=1, ensure_ascii=False) + "\n").encode()
        write_file_atomically(path, data)
        return _etag(data)

    return {"name": name, "images": len(document.images), "etag": await asyncio.to_thread(save)}


def _list_path(state: ServerState, name: str) -> Path:
    path = state.tags_dir / f"{check_list_name(name)}.json"
    if not path.is_file():
        raise NotFoundError(f"There is no tag list {name!r}. Save one with PUT /v1/tags/{name}.")
    return path


def _read_list(path: Path) -> dict[str, Any]:
    document = parse_document(path.read_bytes())
    if "image_root" not in document:
        raise BadRequestError(f"Tag list {path.stem!r} was not saved by this server.")
    return document


def _public_root(state: ServerState, folder: Path) -> str:
    for name, root in state.settings.image_roots:
        if folder.is_relative_to(root):
            rest = folder.relative_to(root).as_posix()
            return name if rest == "." else f"{name}/{rest}"
    return folder.name


def _relative(folder: Path, file: Path) -> str:
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else ""


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _listing(state: ServerState, folder: Path) -> list[str]:
    """Return the images below ``folder``; looked up again after some seconds. Links to folders are not followed."""
    found = state.listings.get(folder)
    if found is not None and time.monotonic() - found[0] < _LISTING_S:
        return found[1]
    files: list[str] = []
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        base = Path(here).relative_to(folder)
        files += [
            (base / n).as_posix() for n in names if Path(n).suffix.lower() in IMAGE_SUFFIXES and not n.startswith(".")
        ]
        if len(files) > _MAX_LISTED:
            break
    files.sort()
    state.listings[folder] = (time.monotonic(), files)
    return files
