"""The application: routes, errors in one form, and what happens at start and end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from cilseg import __version__
from cilseg.errors import CilsegError
from cilseg.registry import Registry
from cilseg_serve.server import (
    drift_routes,
    oip,
    registry_routes,
    segment,
    tagging_routes,
    update_routes,
    web_page,
)
from cilseg_serve.server.api_page import api_page
from cilseg_serve.server.gateway import Gateway, error_answer
from cilseg_serve.server.settings import ServerSettings
from cilseg_serve.server.state import ServerState, needs, state_of

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def make_app(settings: ServerSettings, *, registry: Registry | None = None) -> FastAPI:
    """Return the ASGI application of ``cilseg serve``; models are loaded when it starts.

    Raises:
        InputError: the registry's address has no known form.
    """
    state = ServerState(settings, registry or Registry.open(settings.registry))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await state.start()
        try:
            yield
        finally:
            await state.stop()

    app = FastAPI(
        title="cilseg",
        version=__version__,
        summary="Semantic segmentation: Open Inference Protocol v2, and more.",
        docs_url=None,  # both load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        responses={"4XX": {"description": 'What is wrong with the request: {"error": "..."}'}},
    )
    app.state.server = state
    for module in (oip, segment, registry_routes, tagging_routes, update_routes, drift_routes, web_page):
        app.include_router(module.router)
    app.add_api_route("/metrics", metrics, methods=["GET"], dependencies=[needs("infer")], response_class=Response)
    app.add_api_route("/docs", docs, methods=["GET"], include_in_schema=False)
    app.add_exception_handler(CilsegError, on_cilseg_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_middleware(Gateway, settings=settings, traffic=state.traffic, metrics=state.metrics)
    return app


async def docs(request: Request) -> Response:
    """This interface, to read."""
    return Response(api_page(request.app.openapi()), media_type="text/html")


async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    state = state_of(request)
    state.refresh_metrics()
    return Response(state.metrics.text(), media_type=_METRICS_TYPE)


async def on_cilseg_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, CilsegError)
    status, body, headers = error_answer(error)
    request.scope["state"].setdefault("log", {})["error"] = str(error)[:500]
    return Response(body, status, headers=dict(headers))


async def on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, CilsegError):  # FastAPI wraps what reading a body raises
        return await on_cilseg_error(request, error.__cause__)
    path = request.url.path[:200]
    words = {
        404: f"There is nothing at {path}. See /openapi.json, or GET /v2 for the server's name.",
        405: f"{request.method[:10]} is not allowed at {path}.",
    }
    text = words.get(error.status_code, str(error.detail))
    return _answer(error.status_code, text, error.headers)


async def on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = "; ".join(
        f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()[:10]
    )
    return _answer(422, f"{request.method} {request.url.path[:200]}: {faults}.")


def _answer(status: int, text: str, headers: object = None) -> Response:
    given = dict(headers) if isinstance(headers, dict) else {}
    return Response(json.dumps({"error": text}), status, media_type="application/json", headers=given)
