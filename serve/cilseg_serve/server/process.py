"""Running the server: uvicorn with guarded connections, and a drain when it is told to stop."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from cilseg.errors import CilsegError, InputError
from cilseg_serve.server.access import check_binding
from cilseg_serve.server.app import make_app
from cilseg_serve.server.settings import ServerSettings
from cilseg_serve.server.state import ServerState

_logger = logging.getLogger(__name__)


def serve(settings: ServerSettings) -> None:
    """Serve until SIGTERM or SIGINT. Prints ``serving on http://...`` to the log once requests are answered.

    Raises:
        InputError: no token for an address beyond this machine, the port is taken.
        CilsegError: a model cannot be served.
    """
    check_binding(settings.host, settings.tokens)
    app = make_app(settings)
    sock = _bind(settings.host, settings.port)
    server = DrainingServer(app, settings)
    try:
        server.run([sock])
    finally:
        sock.close()
    if server.failure is not None:
        raise server.failure


class DrainingServer(uvicorn.Server):
    """Uvicorn that stops in order: not ready, new requests refused, those in flight answered, then closed."""

    def __init__(self, app: FastAPI, settings: ServerSettings) -> None:
        limits = settings.limits
        config = uvicorn.Config(
            self._catching(app),
            http=_protocol(limits.header_s),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=limits.connections,
            h11_max_incomplete_event_size=limits.header_bytes,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=5,
            backlog=1024,
            lifespan="on",
        )
        super().__init__(config)
        self.settings = settings
        self.failure: CilsegError | None = None
        self._state: ServerState = app.state.server
        self._stopping: asyncio.Task[None] | None = None

    def _catching(self, app: FastAPI) -> Any:
        """Return ``app``, keeping what its start raises: uvicorn would only log it."""

        async def wrapped(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "lifespan":
                await app(scope, receive, send)
                return
            context = app.router.lifespan_context(app)
            await receive()
            try:
                await context.__aenter__()
            except CilsegError as error:
                self.failure = error
                await send({"type": "lifespan.startup.failed", "message": ""})
                return
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await context.__aexit__(None, None, None)
            await send({"type": "lifespan.shutdown.complete"})

        return wrapped

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        with suppress(SystemExit):
            await super().startup(sockets)
        if self.failure is not None:
            self.should_exit = True
            return
        host, port = sockets[0].getsockname()[:2] if sockets else (self.settings.host, self.settings.port)
        shown = f"[{host}]" if ":" in host else host
        refs = [d.version.ref for m in self._state.pool.models.values() for d in m.loaded.values()]
        _logger.info("serving on http://%s:%s", shown, port, extra={"models": refs, "port": port})

    def _on_signal(self) -> None:
        if self._stopping is not None:
            _logger.warning("stopping at once")
            self.should_exit = self.force_exit = True
            return
        self._stopping = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        traffic = self._state.traffic
        traffic.draining = True
        _logger.info("stopping", extra={"in_flight": traffic.in_flight})
        until = time.monotonic() + self.settings.drain_s
        await asyncio.sleep(self.settings.drain_grace_s)
        while traffic.in_flight and time.monotonic() < until:
            await asyncio.sleep(0.02)
        if traffic.in_flight:
            _logger.warning("stopping with requests unanswered", extra={"in_flight": traffic.in_flight})
        self.should_exit = True


def _protocol(header_s: float) -> type[H11Protocol]:
    """Return the connection class: one that waits ``header_s`` for a request's head and answers errors as JSON."""

    class GuardedConnection(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._arm()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._waits():
                self._arm()
            else:
                self._disarm()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._waits() and self.conn.trailing_data[0]:
                self._arm()

        def send_400_response(self, msg: str) -> None:
            if self.cycle is not None and not self.cycle.response_complete:
                self.transport.close()
                return
            self._answer("400 Bad Request", f"{msg} The head of a request is HTTP/1.1 and at most 32 KiB long.")

        def _waits(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _arm(self) -> None:
            if self._timer is None:
                self._timer = self.loop.call_later(header_s, self._expired)

        def _disarm(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _expired(self) -> None:
            self._timer = None
            if self._waits() and not self.transport.is_closing():
                self._answer("408 Request Timeout", f"The head of the request was not complete after {header_s:g} s.")

        def _answer(self, status: str, text: str) -> None:
            body = json.dumps({"error": text}).encode()
            head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
            self.transport.close()

    return GuardedConnection


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host.strip("[]"), port))
    except OSError as error:
        sock.close()
        raise InputError(
            f"Cannot listen on {host}, port {port} ({error.strerror or error}). Choose another one with --port."
        ) from None
    sock.setblocking(False)
    return sock
