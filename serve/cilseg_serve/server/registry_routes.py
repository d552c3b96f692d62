"""Routes of the registry: models and versions with their verdicts, histories, gate reports, promotion and rollback."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from cilseg.registry.describe import details, summaries
from cilseg.registry.policy import GATE_FILE, GATE_PAGE
from cilseg.registry.registry import PRODUCTION, user_name
from cilseg_serve.server.state import ServerState, needs, state_of

router = APIRouter(prefix="/v1/models", tags=["Registry"])
_PRIVATE = ("path", "environment", "config")
_REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; sandbox allow-scripts"
)


class Move(BaseModel):
    """A promotion or a rollback."""

    model_config = ConfigDict(extra="forbid")

    alias: str = PRODUCTION
    reason: str = Field("", max_length=2000)
    who: str | None = Field(None, max_length=100)
    expect: str | None = Field(
        None, max_length=200, description="Where the alias has to be now: a number or reference."
    )
    class_change: bool = False


class Promotion(Move):
    """What to promote."""

    version: int = Field(ge=1, le=10**9)
    force: bool = Field(False, description="Against the gate; needs a reason, which stays in the history.")


class Rollback(Move):
    """How far to go back."""

    steps: int = Field(1, ge=1, le=1000)


@router.get("", dependencies=[needs("infer")])
async def list_models(request: Request) -> list[dict[str, Any]]:
    """All models of the registry: versions with aliases, classes, verdict, parent, and what is loaded here."""
    state = state_of(request)
    rows = await asyncio.to_thread(summaries, state.registry)
    models: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = row["name"]
        served = state.pool.models.get(name)
        model = models.setdefault(
            name,
            {
                "name": name,
                "served": served is not None and served.default is not None,
                "follows": served.ref if served is not None else None,
                "default": served.default if served is not None else None,
                "fault": served.fault if served is not None else None,
                "versions": [],
            },
        )
        loaded = served is not None and row["version"] in served.loaded
        model["versions"].append({**_public(row), "loaded": loaded})
    return list(models.values())


@router.get("/{model}/versions/{number}", dependencies=[needs("infer")])
async def version_details(request: Request, model: str, number: int) -> dict[str, Any]:
    """Everything about one version: classes, lineage, gate, metrics, attachments."""
    state = state_of(request)
    found = _public(await asyncio.to_thread(details, state.registry, f"{model}:{number}"))
    if found.get("gate_set"):
        found["gate_set"] = {key: value for key, value in found["gate_set"].items() if key != "root"}
    return found


@router.get("/{model}/versions/{number}/report", dependencies=[needs("infer")], response_class=Response)
async def gate_report(
    request: Request,
    model: str,
    number: int,
    format: str = Query("html", pattern="^(html|json)$"),
) -> Response:
    """The gate's report on a version, as a page or as JSON."""
    state = state_of(request)

    def read() -> bytes:
        version = state.registry.resolve(f"{model}:{number}")
        return state.registry.attachment(version, GATE_PAGE if format == "html" else GATE_FILE).path.read_bytes()

    data = await asyncio.to_thread(read)
    if format == "json":
        return Response(data, media_type="application/json")
    return Response(data, media_type="text/html", headers={"Content-Security-Policy": _REPORT_POLICY})


@router.get("/{model}/history", dependencies=[needs("infer")])
async def alias_history(request: Request, model: str, alias: str = PRODUCTION) -> list[dict[str, Any]]:
    """Every move of an alias, oldest first: who, when, why, from, to, forced or not."""
    state = state_of(request)
    return [asdict(e) for e in await asyncio.to_thread(lambda: state.registry.history(model, alias=alias))]


@router.post("/{model}/promote", dependencies=[needs("promote")])
async def promote(request: Request, model: str, move: Promotion) -> dict[str, Any]:
    """Point an alias at a version; refused without the gate's PROMOTE (``force`` and a reason overrule it)."""
    state = state_of(request)
    event = await asyncio.to_thread(
        lambda: state.registry.promote(
            f"{model}:{move.version}",
            alias=move.alias,
            who=_who(move),
            why=move.reason,
            force=move.force,
            class_change=move.class_change,
            expect=move.expect,
        )
    )
    return await _moved(state, model, asdict(event))


@router.post("/{model}/rollback", dependencies=[needs("promote")])
async def rollback(request: Request, model: str, move: Rollback) -> dict[str, Any]:
    """Point an alias back at what it pointed to before; no gate is asked."""
    state = state_of(request)
    event = await asyncio.to_thread(
        lambda: state.registry.rollback(
            model,
            alias=move.alias,
            steps=move.steps,
            who=_who(move),
            why=move.reason,
            class_change=move.class_change,
            expect=move.expect,
        )
    )
    return await _moved(state, model, asdict(event))


async def _moved(state: ServerState, model: str, event: dict[str, Any]) -> dict[str, Any]:
    """Let the pool follow at once, and say what answers now."""
    await state.pool.poll()
    served = state.pool.models.get(model)
    return {
        "event": event,
        "default": served.default if served is not None else None,
        "fault": served.fault if served is not None else None,
    }


def _who(move: Move) -> str:
    return f"{move.who.strip()} via {user_name()}" if move.who and move.who.strip() else f"{user_name()} (HTTP)"


def _public(row: dict[str, Any]) -> dict[str, Any]:
    """Return ``row`` without paths of this machine and what else is nobody's business over HTTP."""
    return {key: value for key, value in row.items() if key not in _PRIVATE}
