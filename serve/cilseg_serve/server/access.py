"""Who may do what: tokens with roles, and requests that a browser sends on behalf of another site."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cilseg.errors import FaultCollector, InputError
from cilseg_serve.server.errors import BadRequestError, ForbiddenError, UnauthorizedError

ROLES = ("infer", "tag", "promote")
"""``infer``: segment and look; ``tag``: images, tag lists, updates; ``promote``: what is served."""
_MIN_CHARACTERS = 8


@dataclass(frozen=True)
class Token:
    """A secret, kept as its SHA-256, and the roles that it gives."""

    digest: bytes
    roles: frozenset[str]


def parse_tokens(texts: Iterable[str]) -> tuple[Token, ...]:
    """Read ``SECRET`` (all roles) or ``ROLE+ROLE=SECRET``.

    Raises:
        InputError: unknown roles, secrets under 8 characters; all faults, none of the secrets.
    """
    faults = FaultCollector("Tokens")
    tokens = []
    for number, text in enumerate(texts, start=1):
        head, mark, tail = text.partition("=")
        known = bool(mark) and set(head.split("+")) <= set(ROLES)
        roles, secret = (frozenset(head.split("+")), tail) if known else (frozenset(ROLES), text)
        if mark and not known and head.replace("+", "").isalpha() and len(head) < 24:
            faults.add(f"token {number}: roles {head!r} are not among {', '.join(ROLES)} (joined by +)")
        if len(secret) < _MIN_CHARACTERS or not secret.isprintable() or " " in secret:
            faults.add(f"token {number}: a secret has {_MIN_CHARACTERS} printable characters or more and no blanks")
        tokens.append(Token(hashlib.sha256(secret.encode()).digest(), roles))
    faults.raise_if_any('Make one with: python -c "import secrets; print(secrets.token_urlsafe())"')
    return tuple(tokens)


def is_loopback(host: str) -> bool:
    """Return whether ``host`` reaches this machine only."""
    if host in ("localhost", "testserver"):
        return host == "localhost"
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_binding(host: str, tokens: Sequence[Token]) -> None:
    """Refuse to listen beyond this machine without a token.

    Raises:
        InputError: another address than loopback, and no token.
    """
    if not tokens and not is_loopback(host):
        raise InputError(
            f"Without a token the server listens on this machine only, not on {host}. Give --token-file FILE (or "
            "CILSEG_TOKENS), or leave --host at 127.0.0.1."
        )


def authorise(authorization: str | None, role: str, tokens: Sequence[Token]) -> None:
    """Check an ``Authorization`` header against ``role``; every token is compared, in constant time.

    Without any token in the server, ``infer`` and ``tag`` are open (it listens on loopback) and ``promote`` is closed.

    Raises:
        UnauthorizedError: no token, or an unknown one.
        ForbiddenError: the token has other roles, or the server has no tokens and ``role`` is promote.
    """
    if not tokens:
        if role == "promote":
            raise ForbiddenError(
                "Changing what is served needs a token, and this server was started without any. Start it with "
                "--token-file FILE, or use `cilseg promote` and `cilseg rollback`."
            )
        return
    scheme, _, secret = (authorization or "").partition(" ")
    given = hashlib.sha256(secret.strip().encode("utf-8", "surrogateescape")).digest()
    roles: frozenset[str] | None = None
    for token in tokens:
        if hmac.compare_digest(token.digest, given):
            roles = token.roles
    if scheme.lower() != "bearer" or roles is None:
        got = "an unknown token" if scheme.lower() == "bearer" else "no bearer token"
        raise UnauthorizedError(
            f"This needs a token with the role {role}, got {got}. Send: Authorization: Bearer TOKEN"
        )
    if role not in roles:
        raise ForbiddenError(f"The token has the roles {', '.join(sorted(roles))}, this needs {role}.")


def check_site(method: str, host: str, origin: str | None, fetch_site: str | None, allowed: Sequence[str]) -> None:
    """Refuse requests under a strange host name (DNS rebinding) and from pages of other sites.

    Args:
        allowed: host names that the server answers to; empty: any name (it has tokens).

    Raises:
        BadRequestError: no such host here.
        ForbiddenError: a page of another site sent it.
    """
    name = _without_port(host)
    if allowed and name not in allowed and not is_loopback(name):
        raise BadRequestError(
            f"This server does not answer to the host name {name[:100]!r}. Add it with --allowed-host NAME."
        )
    strange = origin is not None and origin.partition("://")[2] != host
    if method not in ("GET", "HEAD", "OPTIONS") and (strange or fetch_site in ("cross-site", "same-site")):
        raise ForbiddenError(f"Pages of another site ({str(origin)[:100]}) may not send requests here.")


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0].lstrip("[").lower()
    return host.partition(":")[0].lower()
