"""What a request can be refused for, each with its HTTP status and headers; and every error as an HTTP answer.

The body is always ``{"error": "<sentence>"}``, the error form of the Open Inference Protocol v2.
"""

from __future__ import annotations

from collections.abc import Mapping

from cilseg.errors import ArtifactError, CilsegError, InputError


class BadRequestError(InputError):
    """The request does not follow the protocol."""

    http_status = 400


class UnauthorizedError(InputError):
    """No token, or one that is not known."""

    http_status = 401


class ForbiddenError(InputError):
    """The token (or, without tokens, anybody) may not do this."""

    http_status = 403


class SlowBodyError(InputError):
    """The body did not arrive in time."""

    http_status = 408


class TooLargeError(InputError):
    """The body or the image is over a limit."""

    http_status = 413


class UnsupportedError(InputError):
    """An encoding or media type that is not read."""

    http_status = 415


class OverloadedError(CilsegError):
    """The queue is full; ``retry_after_s`` is when it is worth trying again."""

    http_status = 429

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnavailableError(CilsegError):
    """The server is stopping, or the model is not loaded (yet)."""

    http_status = 503


class DeadlineError(CilsegError):
    """The answer would come later than the client waits."""

    http_status = 504


class ClientGoneError(CilsegError):
    """The client closed the connection; nobody reads the answer. 499 stands in the log only."""

    http_status = 499


def status_of(error: CilsegError) -> int:
    """Return the HTTP status of ``error``. A damaged artifact is the server's fault, not the request's."""
    return 500 if isinstance(error, ArtifactError) else error.http_status


def headers_of(error: CilsegError) -> Mapping[str, str]:
    """Return the headers that an answer with ``error`` carries."""
    if isinstance(error, OverloadedError):
        return {"Retry-After": str(error.retry_after_s)}
    if isinstance(error, UnavailableError):
        return {"Retry-After": "1"}
    if isinstance(error, UnauthorizedError):
        return {"WWW-Authenticate": 'Bearer realm="cilseg"'}
    if isinstance(error, SlowBodyError | TooLargeError):
        return {"Connection": "close"}
    return {}
