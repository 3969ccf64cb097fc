"""Tokens, waiting, and what one replica remembers."""

from __future__ import annotations

import httpx
import pytest

from deployments.ingress.versions import Acknowledged
from graph.schema import User
from tests.deployments.ingress.error_shape import error_of
from tests.deployments.ingress.fake_backend import FakeBackend

READS = [
    "/v1/users",
    "/v1/users/ada",
    "/v1/users/ada/ratings",
    "/v1/users/ada/recommendations",
    "/v1/items",
    "/v1/items/i0",
    "/v1/items/i0/similar",
    "/v1/nodes/ada/embedding",
]
RATING = {"user_id": "ada", "item_id": "i0", "value": 4.0}


@pytest.mark.parametrize("path", READS)
async def test_header_and_query(http: httpx.AsyncClient, backend: FakeBackend, path: str) -> None:
    headers = {"x-weft-min-version": "store1.3"}
    assert (await http.get(path)).json()["version"] == "store1.7"
    await http.get(path, headers=headers)
    await http.get(f"{path}?min_version=store1.5")
    await http.get(f"{path}?min_version=store1.2", headers=headers)
    assert backend.min_versions == [0, 3, 5, 3]
    for bad in ({"headers": {"x-weft-min-version": "store2.1"}}, {"params": {"min_version": "store2.1"}}):
        assert error_of(await http.get(path, **bad), 409, "foreign_token")["param"] == "min_version"
    for text in ("", "7", "store1.", "store1.x", ".5", "store1.-1"):
        headers = {"x-weft-min-version": text}
        assert error_of(await http.get(path, headers=headers), 422, "invalid_input")["param"] == "min_version"
    response = await http.get(path, headers={"x-weft-min-version": "store1.99"})
    assert error_of(response, 503, "not_yet")["retryable"] is True


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/recommendations", {"user_ids": ["ada"]}),
        ("/v1/recommendations/session", {"items": ["i0"]}),
        ("/v1/search", {"query": "a"}),
    ],
)
async def test_header_and_body(http: httpx.AsyncClient, backend: FakeBackend, path: str, body: dict) -> None:
    await http.post(path, json=body, headers={"x-weft-min-version": "store1.3"})
    await http.post(path, json=body | {"min_version": "store1.5"})
    assert backend.min_versions == [3, 5]
    foreign = await http.post(path, json=body | {"min_version": "store2.1"})
    error_of(foreign, 409, "foreign_token")


async def test_a_users_own_writes_are_remembered(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.known_users["bob"] = User(9, "bob", {}, 1)
    written = await http.post("/v1/ratings", json=RATING)
    assert written.json()["version"] == "store1.8"
    backend.view_version = 7
    for path in READS[1:4]:
        error_of(await http.get(path), 503, "not_yet")
    assert (await http.get("/v1/users/bob/recommendations")).status_code == 200
    many = await http.post("/v1/recommendations", json={"user_ids": ["ada", "bob"]})
    assert [result.get("error", {}).get("code") for result in many.json()["results"]] == ["not_yet", None]
    backend.view_version = 8
    for path in READS[1:4]:
        assert (await http.get(path)).status_code == 200


async def test_ratings_are_remembered_for_their_items(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    await http.post("/v1/ratings", json={"ratings": [RATING, RATING | {"item_id": "i1"}]})
    backend.view_version = 7
    for item_id, status in (("i0", 503), ("i1", 503), ("i2", 200)):
        assert (await http.get(f"/v1/items/{item_id}")).status_code == status
    backend.view_version = 8
    await http.delete("/v1/users/ada/ratings/i0")
    error_of(await http.get("/v1/items/i0"), 503, "not_yet")


async def test_a_session_sees_the_writes_of_its_items(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    path = "/v1/recommendations/session"
    for version, item_id in ((8, "i0"), (9, "i1")):
        await http.put(f"/v1/items/{item_id}", json={"title": "A"})
        assert backend.version == version
    for items, expected in ((["i0", "i1"], 9), (["i1", "i0"], 9), (["i2", "i0"], 8), (["i2"], 0)):
        await http.post(path, json={"items": items})
        assert backend.min_versions[-1] == expected
    await http.post(path, json={"items": ["i0"], "min_version": "store1.9"})
    assert backend.min_versions[-1] == 9


async def test_every_write_is_remembered(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.view_version = 7
    for method, path, body, read in (
        ("PUT", "/v1/users/ada", {}, "/v1/users/ada"),
        ("PUT", "/v1/items/i0", {"title": "A"}, "/v1/items/i0"),
        ("POST", "/v1/items", {"items": [{"item_id": "i1", "title": "A"}]}, "/v1/items/i1"),
        ("POST", "/v1/ratings", {"ratings": [RATING | {"user_id": "new"}]}, "/v1/users/new/ratings"),
        ("DELETE", "/v1/users/new/ratings/i0", None, "/v1/users/new"),
        ("DELETE", "/v1/items/i0", None, "/v1/items/i0/similar"),
        ("DELETE", "/v1/users/ada", None, "/v1/nodes/ada/embedding"),
    ):
        written = await http.request(method, path, json=body)
        assert written.status_code == 200, written.text
        await http.get(read)
        assert f"store1.{backend.min_versions[-1]}" == written.json()["version"]


async def test_a_change_of_store_forgets(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    await http.post("/v1/ratings", json=RATING)
    backend.store_id, backend.version = "store2", 1
    assert (await http.get("/v1/users/ada/recommendations")).json()["version"] == "store2.1"
    assert backend.min_versions[-1] == 0


def test_memory_is_bounded_and_never_goes_back() -> None:
    memory = Acknowledged(capacity=2)
    memory.remember("s", "a", 5)
    memory.remember("s", "a", 4)
    assert memory.version_of("s", "a") == 5
    memory.remember("s", "b", 6)
    memory.remember("s", "a", 7)
    memory.remember("s", "c", 8)
    assert [memory.version_of("s", node) for node in "abc"] == [7, 0, 8]
    assert memory.version_of("other", "a") == 0
    memory.remember("other", "a", 1)
    assert memory.version_of("other", "a") == 1
    assert len(memory) == 1
