"""What every request goes through: id, host and origin, limits of its body, one line in the log, metrics, errors."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cilseg.errors import CilsegError
from cilseg_serve.server.access import check_site
from cilseg_serve.server.errors import (
    BadRequestError,
    ClientGoneError,
    OverloadedError,
    SlowBodyError,
    TooLargeError,
    UnavailableError,
    headers_of,
    status_of,
)
from cilseg_serve.server.logs import REQUEST_ID, request_id_of
from cilseg_serve.server.metrics import Metrics
from cilseg_serve.server.settings import ServerSettings

_logger = logging.getLogger(__name__)
_SAFE_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'; "
        b"frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    ),
)
_WHILE_DRAINING = ("/v2/health/", "/metrics")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_LINGER_BYTES, _LINGER_S = 8 * 2**20, 2.0


@dataclass
class Traffic:
    """What goes on at this moment; belongs to the event loop."""

    draining: bool = False
    in_flight: int = 0
    buffered_bytes: int = 0


@dataclass
class _Exchange:
    """One request and its answer."""

    scope: Scope
    headers: Headers
    limit_bytes: int
    limit_s: float
    started: float = field(default_factory=time.monotonic)
    received: int = 0
    complete: bool = False
    status: int | None = None
    sent: int = 0
    error: str | None = None


class Gateway:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, traffic: Traffic, metrics: Metrics) -> None:
        self.app, self.settings, self.traffic, self.metrics = app, settings, traffic, metrics
        names = () if settings.tokens and not settings.allowed_hosts else (settings.host, *settings.allowed_hosts)
        self._hosts = tuple(n.lower() for n in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limits = self.settings.limits
        upload = scope["path"] == "/v1/updates"
        exchange = _Exchange(
            scope,
            Headers(scope=scope),
            limits.upload_bytes if upload else limits.body_bytes,
            limits.upload_s if upload else limits.body_s,
        )
        request_id = request_id_of(exchange.headers.get("x-request-id"))
        REQUEST_ID.set(request_id)
        scope.setdefault("state", {})["started"] = exchange.started
        self.traffic.in_flight += 1

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = self._with_headers(message["headers"], request_id)
            else:
                exchange.sent += len(message.get("body", b""))
            await send(message)

        async def receiving() -> Message:
            return await self._receive(exchange, receive, upload=upload)

        try:
            self._check(exchange)
            await self.app(scope, receiving, sending)
        except CilsegError as error:
            await self._refuse(exchange, error, receive, sending)
        except Exception as error:
            _logger.exception("Unexpected error", extra={"path": scope["path"][:200]})
            exchange.error = type(error).__name__
            if exchange.status is None:
                failure = CilsegError(f"Something went wrong in the server; its log says more (request {request_id}).")
                await answer_error(sending, failure)
        finally:
            self.traffic.in_flight -= 1
            if not upload:
                self.traffic.buffered_bytes -= exchange.received
            self._record(exchange)

    def _check(self, exchange: _Exchange) -> None:
        scope, headers = exchange.scope, exchange.headers
        if self.traffic.draining and not scope["path"].startswith(_WHILE_DRAINING):
            raise UnavailableError("The server is stopping. Send the request to another one, or again in a moment.")
        check_site(
            scope["method"],
            headers.get("host", ""),
            headers.get("origin"),
            headers.get("sec-fetch-site"),
            self._hosts,
        )
        length = headers.get("content-length")
        if length is not None and (not length.isascii() or not length.isdigit() or len(length) > 15):
            raise BadRequestError(f"Content-Length is a number of bytes, got {length[:40]!r}.")
        if length is not None and int(length) > exchange.limit_bytes:
            raise self._too_large(exchange, int(length))

    async def _receive(self, exchange: _Exchange, receive: Receive, *, upload: bool) -> Message:
        if exchange.complete:
            return await receive()
        limits = self.settings.limits
        left_s = exchange.started + exchange.limit_s - time.monotonic()
        try:
            async with asyncio.timeout(min(limits.body_idle_s, left_s)):
                message = await receive()
        except TimeoutError:
            raise SlowBodyError(
                f"The body stopped after {exchange.received} bytes. Send it within {exchange.limit_s:g} s, without "
                f"pauses of more than {limits.body_idle_s:g} s."
            ) from None
        if message["type"] != "http.request":
            raise ClientGoneError("The client left before its body was complete.")
        size = len(message.get("body", b""))
        exchange.received += size
        exchange.complete = not message.get("more_body", False)
        if not upload:
            self.traffic.buffered_bytes += size
        if exchange.received > exchange.limit_bytes:
            raise self._too_large(exchange, exchange.received)
        if self.traffic.buffered_bytes > limits.buffered_bytes and self.traffic.in_flight > 1:
            raise OverloadedError("The bodies of other requests fill the memory. Try again in a moment.")
        return message

    def _too_large(self, exchange: _Exchange, size: int) -> TooLargeError:
        return TooLargeError(
            f"The body has {size:,} bytes or more, at most {exchange.limit_bytes:,} are taken. Send smaller images or "
            "fewer at a time."
        )

    async def _refuse(self, exchange: _Exchange, error: CilsegError, receive: Receive, send: Send) -> None:
        exchange.error = str(error)
        if exchange.status is None:
            await answer_error(send, error, before_end=lambda: self._linger(exchange, receive))

    async def _linger(self, exchange: _Exchange, receive: Receive) -> None:
        """Read on for a moment: a connection that is closed on unread bytes may lose the answer."""
        if exchange.complete or exchange.headers.get("content-length", "0") == "0":
            return
        seen = 0
        try:
            async with asyncio.timeout(_LINGER_S):
                while seen < _LINGER_BYTES:
                    message = await receive()
                    seen += len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        return
        except TimeoutError:
            return

    def _with_headers(self, headers: Any, request_id: str) -> list[tuple[bytes, bytes]]:
        given = list(headers)
        names = {name.lower() for name, _ in given}
        given += [pair for pair in _SAFE_HEADERS if pair[0] not in names]
        given.append((b"x-request-id", request_id.encode()))
        if b"cache-control" not in names:
            given.append((b"cache-control", b"no-store"))
        if self.traffic.draining and b"connection" not in names:
            given.append((b"connection", b"close"))
        return given

    def _record(self, exchange: _Exchange) -> None:
        scope = exchange.scope
        route = getattr(scope.get("route"), "path", None) or "unmatched"
        seconds = time.monotonic() - exchange.started
        code = exchange.status if exchange.status is not None else 499
        method = (
            scope["method"] if scope["method"] in _METHODS else "other"
        )  # a label must not have any number of values
        self.metrics.requests.labels(route, method, str(code)).inc()
        self.metrics.request_seconds.labels(route).observe(seconds)
        level = logging.INFO if code < 500 else logging.WARNING
        if _logger.isEnabledFor(level):
            fields: dict[str, Any] = {
                "method": scope["method"],
                "path": scope["path"][:200],
                "code": code,
                "duration_s": round(seconds, 6),
                "received_bytes": exchange.received,
                "sent_bytes": exchange.sent,
                "client": (scope.get("client") or ("",))[0],
                **scope["state"].get("log", {}),
            }
            if exchange.error is not None:
                fields["error"] = exchange.error[:500]
            _logger.log(level, "request", extra=fields)


async def answer_error(send: Send, error: CilsegError, *, before_end: Any = None) -> None:
    """Send ``error`` as ``{"error": ...}``; ``before_end`` is awaited when the answer can be read already."""
    status, body, headers = error_answer(error)
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": body, "more_body": before_end is not None})
    if before_end is not None:
        await before_end()
        await send({"type": "http.response.body", "body": b""})


def error_answer(error: CilsegError) -> tuple[int, bytes, Mapping[str, str]]:
    """Return status, body and headers of the answer with ``error``."""
    body = json.dumps({"error": str(error)}).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers_of(error)}
    return status_of(error), body, headers
