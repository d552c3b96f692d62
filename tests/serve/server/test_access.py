"""Who may do what: tokens and roles on every route, strange hosts and sites, closed headers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from server_world import encoded, opened, picture, two_versions
from starlette.testclient import TestClient

from cilseg.errors import InputError
from cilseg_serve.server.access import ROLES, check_binding, parse_tokens

SECRETS = {role: f"secret-of-{role}" for role in ROLES}
OPEN = {"/v2", "/v2/health/live", "/v2/health/ready", "/openapi.json"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    tokens = parse_tokens([f"{role}={secret}" for role, secret in SECRETS.items()])
    with opened(two_versions(tmp_path_factory.mktemp("guarded")), tokens=tokens) as client:
        yield client


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def routes(client: TestClient) -> list[tuple[str, str]]:
    paths = client.get("/openapi.json").json()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


def role_of(path: str) -> str:
    if path.endswith(("/load", "/unload", "/promote", "/rollback")):
        return "promote"
    return "tag" if path.startswith(("/v1/images", "/v1/tags", "/v1/updates")) else "infer"


def test_every_route_but_health_needs_its_role(guarded: TestClient) -> None:
    checked = 0
    for method, path in routes(guarded):
        if path in OPEN:
            continue
        checked += 1
        url = path.replace("{", "").replace("}", "")
        assert guarded.request(method, url).status_code == 401, path
        assert guarded.request(method, url, headers=bearer("secret-of-nobody")).status_code == 401, path
        for role, secret in SECRETS.items():
            code = guarded.request(method, url, headers=bearer(secret)).status_code
            assert (code == 403) == (role != role_of(path)), (method, path, role, code)
    assert checked > 20


def test_health_is_open(guarded: TestClient) -> None:
    for path in OPEN:
        assert guarded.get(path).status_code == 200


def test_answers_say_what_is_missing(guarded: TestClient) -> None:
    answer = guarded.post("/v1/segment", content=encoded(picture()))
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert "a token with the role infer, got no bearer token" in answer.json()["error"]
    answer = guarded.post("/v1/segment", headers={"Authorization": "Basic secret-of-infer"})
    assert answer.status_code == 401
    answer = guarded.post("/v1/models/colours/promote", headers=bearer(SECRETS["tag"]), json={"version": 2})
    assert "has the roles tag, this needs promote" in answer.json()["error"]
    for strange in ("Bearer", "Bearer \xff\xfe", "Bearer " + "x" * 10_000, "bearer  "):
        headers = {"Authorization": strange.encode("latin-1")}
        assert guarded.get("/metrics", headers=headers).status_code == 401  # type: ignore[arg-type]
    answer = guarded.post(
        "/v1/segment", content=encoded(picture()), headers={"authorization": "bearer secret-of-infer"}
    )
    assert answer.status_code == 200


def test_without_tokens_promotion_is_closed(client: TestClient) -> None:
    answer = client.post("/v1/models/colours/promote", json={"version": 2})
    assert answer.status_code == 403
    assert "started without any" in answer.json()["error"]
    assert client.post("/v2/repository/models/colours/unload").status_code == 403
    assert client.get("/v1/tags").status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""])
def test_strange_host_names_are_refused(client: TestClient, host: str) -> None:
    answer = client.get("/v2", headers={"Host": host})
    assert answer.status_code == 400
    assert "--allowed-host" in answer.json()["error"]


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:9", "[::1]:8000"])
def test_names_of_this_machine_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/v2", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}],
)
def test_pages_of_other_sites_may_not_post(client: TestClient, headers: dict[str, str]) -> None:
    answer = client.post("/v1/segment", content=encoded(picture()), headers=headers)
    assert answer.status_code == 403
    assert "Pages of another site" in answer.json()["error"]


def test_a_page_of_the_server_itself_may_post(client: TestClient) -> None:
    headers = {"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/v1/segment", content=encoded(picture()), headers=headers).status_code == 200


def test_headers_and_cors_are_closed(client: TestClient) -> None:
    preflight = client.options(
        "/v1/segment", headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    )
    assert preflight.status_code == 405
    for answer in (preflight, client.get("/v2"), client.get("/nothing")):
        names = {name.lower() for name in answer.headers}
        assert not [n for n in names if n.startswith("access-control")]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in names


def test_tokens_are_read_whole() -> None:
    first, second = parse_tokens(["all-roles-secret", "infer+tag=only=two=roles"])
    assert first.roles == frozenset(ROLES)
    assert second.roles == {"infer", "tag"}
    with pytest.raises(InputError) as refused:
        parse_tokens(["short", "infr=long-enough-secret", "with a blank in it"])
    text = str(refused.value)
    assert "token 1" in text
    assert "token 2: roles 'infr'" in text
    assert "token 3" in text
    assert "long-enough-secret" not in text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.8.8.8"])
def test_loopback_needs_no_token(host: str) -> None:
    check_binding(host, ())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", ""])
def test_other_addresses_do(host: str) -> None:
    with pytest.raises(InputError, match="Without a token"):
        check_binding(host, ())
    check_binding(host, parse_tokens(["long-enough"]))
