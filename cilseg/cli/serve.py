"""``cilseg serve``: the HTTP server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cilseg.cli.common import QuietFlag, RegistryOption

MIB = 2**20


def command(
    refs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[REF]...", help="name@alias, name (both followed), name:3; default: every exported model."
        ),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    token: Annotated[
        list[str] | None,
        typer.Option("--token", metavar="[ROLE+...=]SECRET", help="Roles: infer, tag, promote. Repeatable."),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", metavar="FILE", help="One token a line; not seen by `ps`.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option("--allowed-host", metavar="NAME", help="Host name to answer to. Repeatable.")
    ] = None,
    backend: Annotated[
        str, typer.Option("--backend", help="auto, onnxruntime, onnxruntime-cuda, openvino, tensorrt.")
    ] = "auto",
    precision: Annotated[str, typer.Option("--precision", help="Exported files to serve: fp32, fp16, int8.")] = "fp32",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Threads of one run.")] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, max=64, help="Runs at one time, per version; default: 4, on a GPU 1."),
    ] = None,
    max_batch: Annotated[
        int, typer.Option("--max-batch", min=1, max=256, help="Images that share a run, at most.")
    ] = 8,
    batch_pixels: Annotated[
        int | None,
        typer.Option("--batch-pixels", min=1, help="Pixels that share a run; default by device: 300,000 or 4 million."),
    ] = None,
    batch_delay_ms: Annotated[
        float, typer.Option("--batch-delay-ms", min=0, help="How long a run waits for company.")
    ] = 0.0,
    max_queue: Annotated[int, typer.Option("--max-queue", min=1, help="Images that may wait, per version.")] = 64,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.001, help="Deadline of a request, in seconds.")] = 30.0,
    max_body_mib: Annotated[int, typer.Option("--max-body-mib", min=1, help="Largest body.")] = 64,
    max_pixels: Annotated[int, typer.Option("--max-pixels", min=1, help="Largest image.")] = 50_000_000,
    drain_s: Annotated[float, typer.Option("--drain", min=0, help="Seconds for requests in flight at the end.")] = 30.0,
    poll_s: Annotated[
        float, typer.Option("--poll", min=0.01, help="Seconds between looks at where the aliases point.")
    ] = 1.0,
    images: Annotated[
        list[str] | None,
        typer.Option("--images", metavar="[NAME=]DIR", help="Folder to show, tag and learn from. Repeatable."),
    ] = None,
    watch: Annotated[
        Path | None, typer.Option("--watch", metavar="DIR", help="Queue an update for every tag list put there.")
    ] = None,
    state: Annotated[
        Path | None, typer.Option("--state", metavar="DIR", help="Tag lists and updates; default: in the registry.")
    ] = None,
    class_change: Annotated[
        bool, typer.Option("--class-change", help="Follow an alias to a version that gives ids other names.")
    ] = False,
    allow_unverified: Annotated[
        bool, typer.Option("--allow-unverified", help="Serve models without a passed parity check.")
    ] = False,
    registry: RegistryOption = None,
    quiet: QuietFlag = False,
) -> None:
    """Serve models over HTTP: Open Inference Protocol v2, /v1/segment, tagging, updates, metrics.

    Follows the aliases of the registry: `cilseg promote` and `cilseg rollback` take effect without a failed request.
    Tokens also from CILSEG_TOKENS (one a line). Logs are JSON lines on stderr.

    Examples:

      cilseg serve

      cilseg serve animals@production animals@candidate --images photos/

      curl --data-binary @cow.jpg localhost:8000/v1/segment?format=json
    """
    from cilseg_serve.server.access import parse_tokens
    from cilseg_serve.server.logs import log_as_json
    from cilseg_serve.server.process import serve
    from cilseg_serve.server.roots import parse_roots
    from cilseg_serve.server.settings import Batching, Limits, ServerSettings

    texts = list(token or [])
    lines = token_file.read_text(encoding="utf-8") if token_file is not None else os.environ.get("CILSEG_TOKENS", "")
    texts += [line.strip() for line in lines.splitlines() if line.strip() and not line.startswith("#")]
    log_as_json(quiet=quiet)
    serve(
        ServerSettings(
            refs=tuple(refs or ()),
            registry=registry,
            host=host,
            port=port,
            tokens=parse_tokens(texts),
            allowed_hosts=tuple(allowed_host or ()),
            backend=backend,
            precision=precision,
            threads=threads,
            allow_unverified=allow_unverified,
            class_change=class_change,
            limits=Limits(
                body_bytes=max_body_mib * MIB,
                image_pixels=max_pixels,
                timeout_s=timeout_s,
                max_timeout_s=max(300.0, timeout_s),
            ),
            batching=Batching(
                max_batch=max_batch,
                batch_pixels=batch_pixels,
                delay_s=batch_delay_ms / 1000,
                max_queue=max_queue,
                workers=workers,
            ),
            drain_s=drain_s,
            poll_s=poll_s,
            state_dir=state,
            image_roots=parse_roots(images or ()),
            watch_dir=watch,
        )
    )
