"""Log lines as JSON objects on stderr, each with the id of its request."""

from __future__ import annotations

import json
import logging
import re
import sys
import uuid
from contextvars import ContextVar
from datetime import UTC, datetime

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName", "color_message"}


class JsonFormatter(logging.Formatter):
    """``{"time", "level", "logger", "message", "request_id", ...}`` on one line; ``extra=`` adds fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request_id := REQUEST_ID.get()) is not None:
            line["request_id"] = request_id
        line.update({key: value for key, value in vars(record).items() if key not in _OWN})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def log_as_json(*, quiet: bool = False) -> None:
    """Send what cilseg and uvicorn log to stderr as JSON lines, from INFO on (warnings when ``quiet``)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    level = logging.WARNING if quiet else logging.INFO
    for name, least in (("cilseg", level), ("cilseg_serve", level), ("uvicorn", max(level, logging.WARNING))):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(least)


def request_id_of(given: str | None) -> str:
    """Return the client's ``X-Request-ID`` where it is short and plain, else a new one."""
    return given if given is not None and _ID.fullmatch(given) else uuid.uuid4().hex[:16]
