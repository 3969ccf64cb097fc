"""A service of this machine alone: foreign names and foreign web pages."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from deployments.ingress.application import create_app
from tests.deployments.ingress.error_shape import error_of
from tests.deployments.ingress.fake_backend import FakeBackend

RATING = {"user_id": "ada", "item_id": "i0", "value": 4.0}
PATHS = ("/livez", "/v1/users/ada", "/v1/users/ada/recommendations", "/v1/nothing")


@pytest.fixture
async def local(backend: FakeBackend) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(lambda: backend, loopback_only=True))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
        yield client


@pytest.mark.parametrize(
    "host",
    ["localhost", "LocalHost:8000", "127.0.0.1", "127.0.0.1:65535", "127.8.0.1:1", "[::1]", "[::1]:8000"],
)
async def test_this_machine(local: httpx.AsyncClient, host: str) -> None:
    for _ in range(2):  # looked at, then remembered
        for path in PATHS[:3]:
            assert (await local.get(path, headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "localhost@evil.example",
        "127.0.0.1.evil.example",
        "192.168.0.7:8000",
        "0.0.0.0:8000",
        "[::]:8000",
        "::1",
        "[fe80::1]",
        "localhost:8000:1",
        "localhost:x",
        "localhost ",
        "caf\xe9",
    ],
)
async def test_other_names(local: httpx.AsyncClient, backend: FakeBackend, host: str) -> None:
    headers = {"host": host.encode("latin-1")}
    for path in PATHS:
        error = error_of(await local.get(path, headers=headers), 403, "foreign_host")
        assert (error["retryable"], error["param"], error["type"]) == (False, "Host", "permission_error")
    error_of(await local.post("/v1/ratings", json=RATING, headers=headers), 403, "foreign_host")
    assert backend.writes == backend.queries == []


async def test_a_request_without_a_host(backend: FakeBackend) -> None:
    app, sent = create_app(lambda: backend, loopback_only=True), []

    async def send(message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/livez", "query_string": b"", "headers": []}
    await app(scope, None, send)
    assert sent[0]["status"] == 403


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "http://127.0.0.1:8000", "https://[::1]:8000", "http://localhost"]
)
async def test_pages_of_this_machine_may_write(local: httpx.AsyncClient, origin: str) -> None:
    assert (await local.post("/v1/ratings", json=RATING, headers={"origin": origin})).status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://evil.example",
        "https://localhost.evil.example",
        "http://192.168.0.7",
        "file://localhost",
    ],
)
async def test_other_pages_may_not(local: httpx.AsyncClient, backend: FakeBackend, origin: str) -> None:
    headers = {"origin": origin}
    for method, path, body in (
        ("POST", "/v1/ratings", RATING),
        ("POST", "/v1/encoders/e/activate", None),
        ("PUT", "/v1/users/ada", {}),
        ("DELETE", "/v1/users/ada", None),
        ("POST", "/v1/embeddings", {"input": "a"}),
        ("POST", "/v1/search", {"query": "a"}),
        ("POST", "/v1/rerank", {"query": "a", "documents": ["b"]}),
        ("POST", "/v1/cache/invalidate", {"all": True}),
        ("OPTIONS", "/v1/ratings", None),
    ):
        response = await local.request(method, path, json=body, headers=headers)
        error = error_of(response, 403, "foreign_origin")
        assert (error["retryable"], error["param"]) == (False, "Origin")
    assert backend.writes == backend.asked == []
    for path in PATHS[:3]:  # without CORS headers, the page cannot read the answer
        assert (await local.get(path, headers=headers)).status_code == 200


async def test_hosts_are_remembered_up_to_a_bound(local: httpx.AsyncClient) -> None:
    for port in range(200):
        assert (await local.get("/livez", headers={"host": f"localhost:{port}"})).status_code == 200
    app = local._transport.app  # type: ignore[attr-defined]
    assert len(app._edge._loopback_only._hosts) == 64


async def test_unless_asked_for_nobody_is_refused(http: httpx.AsyncClient) -> None:
    headers = {"host": "evil.example", "origin": "http://evil.example"}
    assert (await http.post("/v1/ratings", json=RATING, headers=headers)).status_code == 200
