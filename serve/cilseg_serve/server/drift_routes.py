"""``GET /v1/drift``: has what the served versions see changed since their gate sets were drawn?"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Query, Request

from cilseg_serve.server.oip import number_of
from cilseg_serve.server.state import needs, state_of

router = APIRouter(prefix="/v1", tags=["Drift"])


@router.get("/drift", dependencies=[needs("infer")])
async def drift(
    request: Request,
    model: str | None = Query(None, description="Model; default: all that are served."),
    version: str | None = Query(None, description="Version; default: the one that answers."),
) -> list[dict[str, Any]]:
    """Class mix, confidence and looks of the last images against the gate set, with what chance alone would do."""
    state = state_of(request)
    names = [model] if model is not None else [n for n, m in state.pool.models.items() if m.default is not None]
    deployments = [state.pool.find(name, number_of(version)) for name in names]
    reports = [await asyncio.to_thread(d.drift.report) for d in deployments]
    for report in reports:
        for signal in report["signals"]:
            state.metrics.drift.labels(report["model"], report["version"], signal["name"]).set(signal["value"])
    return reports
