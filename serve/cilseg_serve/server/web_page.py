"""``/``: the page. Its files lie beside this package and are read once; nothing else can be asked for by name."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter, Response

from cilseg.errors import NotFoundError

router = APIRouter(include_in_schema=False)
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_cache: dict[str, tuple[bytes, str]] = {}


@router.api_route("/", methods=["GET", "HEAD"])
async def page() -> Response:
    """The page: segmenting, the registry, tagging."""
    return _answer("index.html")


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
async def page_file(name: str) -> Response:
    """A file that the page consists of."""
    return _answer(name)


def page_files() -> dict[str, tuple[bytes, str]]:
    """Return bytes and media type of each file of the page, by name."""
    if not _cache:
        for entry in files("cilseg_serve").joinpath("web").iterdir():
            suffix = entry.name[entry.name.rfind(".") :]
            if suffix in _TYPES:
                _cache[entry.name] = (entry.read_bytes(), _TYPES[suffix])
    return _cache


def _answer(name: str) -> Response:
    found = page_files().get(name)
    if found is None:
        raise NotFoundError(f"The page has no file {name[:100]!r}. It is at /.")
    data, media = found
    return Response(data, media_type=None, headers={"Content-Type": media})
