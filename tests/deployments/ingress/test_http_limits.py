"""Every bound of the contract, at the bound and one beyond."""

from __future__ import annotations

import httpx
import pytest

from deployments.ingress.application import create_app
from graph.schema import MAX_ROWS_PER_WRITE, MAX_TAGS, MAX_TEXT_CHARS, MAX_TITLE_CHARS
from tests.deployments.ingress.error_shape import error_of
from tests.deployments.ingress.fake_backend import FakeBackend


@pytest.fixture
async def http(backend: FakeBackend):
    transport = httpx.ASGITransport(create_app(lambda: backend))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def _chunks(size: int):
    for _ in range(size // 1024):
        yield b" " * 1024


async def test_body_size(backend: FakeBackend) -> None:
    transport = httpx.ASGITransport(create_app(lambda: backend, max_body_bytes=4096))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        headers = {"content-type": "application/json"}
        row = b'{"user_id":"ada","item_id":"i0","value":4}'
        for body in (row.ljust(4097), _chunks(8192)):  # with a length, and chunked
            response = await http.post("/v1/ratings", content=body, headers=headers)
            error_of(response, 413, "body_too_large")
        for path in ("/v1/users/ada", "/v1/users/ada/ratings/i0"):
            response = await http.request("DELETE", path, content=b"x" * 4097)
            error_of(response, 413, "body_too_large")
        assert backend.writes == []
        assert (await http.post("/v1/ratings", content=row.ljust(4096), headers=headers)).status_code == 200


@pytest.mark.parametrize("path", ["/v1/users/ada/recommendations", "/v1/items/i0/similar"])
@pytest.mark.parametrize(
    "query",
    ["n=0", "n=1001", "n=-1", "n=1.5", "n=ten", "n=", "n=٣", "n=" + "9" * 5000, "n=1&n=2", "n=%31%00"],
)
async def test_n_in_queries(http: httpx.AsyncClient, path: str, query: str) -> None:
    assert error_of(await http.get(f"{path}?{query}"), 422, "invalid_input")["param"] == "n"
    for good in ("n=1", "n=1000"):
        assert (await http.get(f"{path}?{good}")).status_code == 200


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("exclude_seen=yes", "exclude_seen"),
        ("because=", "because"),
        ("explain=yes", "explain"),
        ("explain=1&explain=1", "explain"),
        ("exclude_below=0.4", "exclude_below"),
        ("exclude_below=5.1", "exclude_below"),
        ("exclude_below=nan", "exclude_below"),
        ("exclude=" + ",".join(map(str, range(1001))), "exclude"),
        ("exclude=a/b", "exclude"),
        ("candidates=" + "x" * 129, "candidates"),
        ("candidates=" + ",".join(map(str, range(1001))), "candidates"),
        ("tags=" + "x" * 65, "tags"),
        ("tags=a%00b", "tags"),
        ("tags=" + ",".join(map(str, range(MAX_TAGS + 1))), "tags"),
        ("min_version=7", "min_version"),
        ("%FF=1", "\ufffd"),
    ],
)
async def test_recommendation_queries(http: httpx.AsyncClient, query: str, param: str) -> None:
    response = await http.get(f"/v1/users/ada/recommendations?{query}")
    assert error_of(response, 422, "invalid_input")["param"] == param


@pytest.mark.parametrize("path", ["/v1/users", "/v1/items", "/v1/users/ada/ratings"])
async def test_pages(http: httpx.AsyncClient, path: str) -> None:
    for query in ("limit=0", "limit=1001", "after=", "after=" + "x" * 201):
        error = error_of(await http.get(f"{path}?{query}"), 422, "invalid_input")
        assert error["param"] == query.partition("=")[0]
    assert (await http.get(f"{path}?limit=1000")).status_code == 200


BAD_IDS = ["x" * 129, "%20a", "a%20", "a%00b", "a%7F", "a%0A", "%C2%85", "a%C2%A0"]


@pytest.mark.parametrize("bad", BAD_IDS)
async def test_ids_in_paths(http: httpx.AsyncClient, backend: FakeBackend, bad: str) -> None:
    for method, path in (
        ("GET", "/v1/users/{}"),
        ("PUT", "/v1/users/{}"),
        ("DELETE", "/v1/users/{}"),
        ("GET", "/v1/users/{}/ratings"),
        ("GET", "/v1/users/{}/recommendations"),
        ("DELETE", "/v1/users/{}/ratings/i0"),
        ("DELETE", "/v1/users/ada/ratings/{}"),
        ("GET", "/v1/items/{}"),
        ("PUT", "/v1/items/{}"),
        ("DELETE", "/v1/items/{}"),
        ("GET", "/v1/items/{}/similar"),
        ("GET", "/v1/nodes/{}/embedding"),
        ("POST", "/v1/encoders/{}/activate"),
    ):
        body = ({"title": "A"} if "items" in path else {}) if method == "PUT" else None
        response = await http.request(method, path.format(bad), json=body)
        assert error_of(response, 422, "invalid_input")["param"] is not None
    assert backend.writes == []


async def test_good_ids(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    for good, path in (
        ("x" * 128, "x" * 128),
        ("a b,c", "a%20b%2Cc"),
        ("Zoë☃", "Zo%C3%AB%E2%98%83"),
        ("a\u200db", "a%E2%80%8Db"),
    ):
        assert (await http.put(f"/v1/users/{path}", json={})).status_code == 200
        assert (await http.get(f"/v1/users/{path}/recommendations")).json()["user_id"] == good


async def test_commas_in_queries(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    path = "/v1/users/ada/recommendations"
    await http.get(f"{path}?tags=rock%2C%20soft,new&tags=a%2Cb&exclude=x%2Cy&candidates=1,2%2C3")
    assert backend.queries[-1].tags == ("rock, soft", "new", "a,b")
    assert backend.queries[-1].exclude == ("x,y",)
    assert backend.queries[-1].candidates == ("1", "2,3")
    await http.get(path, params={"tags": ["a,b", "c"]})  # as clients encode it
    assert backend.queries[-1].tags == ("a,b", "c")


RATING = {"user_id": "ada", "item_id": "i0", "value": 4.0}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"value": True}, "value"),
        ({"value": "4"}, "value"),
        ({"value": None}, "value"),
        ({"value": 0.49}, "value"),
        ({"value": 5.01}, "value"),
        ({"timestamp": -1}, "timestamp"),
        ({"timestamp": 2**32}, "timestamp"),
        ({"timestamp": 1.5}, "timestamp"),
        ({"timestamp": True}, "timestamp"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": 5}, "user_id"),
        ({"user_id": "a/b"}, "user_id"),
        ({"user_id": ".."}, "user_id"),
        ({"item_id": " a"}, "item_id"),
        ({"item_id": "x" * 129}, "item_id"),
        ({"surprise": 1}, "surprise"),
    ],
)
async def test_rating_rows(http: httpx.AsyncClient, backend: FakeBackend, change: dict, param: str) -> None:
    bad = RATING | change
    assert error_of(await http.post("/v1/ratings", json=bad), 422, "invalid_input")["param"] == param
    many = await http.post("/v1/ratings", json={"ratings": [RATING, bad]})
    assert error_of(many, 422, "invalid_input")["param"] == f"ratings[1].{param}"
    assert backend.writes == []


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_numbers_that_are_not_finite(http: httpx.AsyncClient, number: str) -> None:
    body = f'{{"user_id":"ada","item_id":"i0","value":{number}}}'
    headers = {"content-type": "application/json"}
    error_of(await http.post("/v1/ratings", content=body, headers=headers), 422, "invalid_input")


async def test_surrogates(http: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json"}
    for path, body in (
        ("/v1/ratings", b'{"user_id":"\\ud800","item_id":"i0","value":4}'),
        ("/v1/items", b'{"items":[{"item_id":"i","title":"\\udfff"}]}'),
        ("/v1/recommendations", b'{"user_ids":["\\ud800"]}'),
    ):
        error_of(await http.post(path, content=body, headers=headers), 422, "invalid_input")


async def test_rows_per_write(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    for path, plural, row in (
        ("/v1/ratings", "ratings", RATING),
        ("/v1/items", "items", {"item_id": "i0", "title": "A"}),
    ):
        for count, status in ((0, 422), (MAX_ROWS_PER_WRITE, 200), (MAX_ROWS_PER_WRITE + 1, 422)):
            response = await http.post(path, json={plural: [row] * count})
            assert response.status_code == status
            if status == 422:
                assert error_of(response)["param"] == plural
    assert [len(request.operations) for request in backend.writes] == [MAX_ROWS_PER_WRITE] * 2


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"title": ""}, "title"),
        ({"title": "x" * (MAX_TITLE_CHARS + 1)}, "title"),
        ({"title": "a\x00"}, "title"),
        ({"title": "a\nb"}, "title"),
        ({"title": " "}, "title"),
        ({"title": 5}, "title"),
        ({}, "title"),
        ({"title": "A", "tags": "drama"}, "tags"),
        ({"title": "A", "tags": [""]}, "tags[0]"),
        ({"title": "A", "tags": ["x" * 65]}, "tags[0]"),
        ({"title": "A", "tags": ["a\tb"]}, "tags[0]"),
        ({"title": "A", "tags": ["x"] * (MAX_TAGS + 1)}, "tags"),
        ({"title": "A", "year": "1990"}, "year"),
        ({"title": "A", "year": True}, "year"),
        ({"title": "A", "year": 10_000}, "year"),
        ({"title": "A", "text": "x" * (MAX_TEXT_CHARS + 1)}, "text"),
        ({"title": "A", "text": "a\x00"}, "text"),
    ],
)
async def test_items(http: httpx.AsyncClient, body: dict, param: str) -> None:
    assert error_of(await http.put("/v1/items/x", json=body), 422, "invalid_input")["param"] == param


@pytest.mark.parametrize(
    "attributes",
    [
        [],
        {"a": None},
        {"a": {}},
        {"a": [1]},
        {"a": 2**53},
        {"a": "x" * 501},
        {"a": ["x"] * 65},
        {"": 1},
        {"x" * 65: 1},
        {str(n): n for n in range(65)},
    ],
)
async def test_attributes(http: httpx.AsyncClient, attributes: object) -> None:
    response = await http.put("/v1/users/x", json={"attributes": attributes})
    assert error_of(response, 422, "invalid_input")["param"].startswith("attributes")


async def test_attributes_keep_their_types(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    attributes = {"a": True, "b": 1, "c": 1.5, "d": "x", "e": ["y"], "f": 1.0}
    await http.put("/v1/users/x", json={"attributes": attributes})
    kept = (await http.get("/v1/users/x")).json()["attributes"]
    assert kept == attributes
    assert {name: type(value) for name, value in kept.items()} == {
        name: type(value) for name, value in attributes.items()
    }


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"user_ids": []}, "user_ids"),
        ({"user_ids": ["ada"] * 257}, "user_ids"),
        ({"user_ids": ["ada", "a/b"]}, "user_ids[1]"),
        ({"user_ids": ["ada"], "n": 1001}, "n"),
        ({"user_ids": ["ada"], "n": True}, "n"),
        ({"user_ids": ["ada"], "because": 1}, "because"),
        ({"user_ids": ["ada"], "explain": True}, "explain"),
        ({"user_ids": ["ada"], "exclude": ["x"] * 1001}, "exclude"),
        ({"user_ids": ["ada"], "exclude_below": 9}, "exclude_below"),
        ({"user_ids": ["ada"], "min_version": "x"}, "min_version"),
    ],
)
async def test_many_users(http: httpx.AsyncClient, body: dict, param: str) -> None:
    assert error_of(await http.post("/v1/recommendations", json=body), 422, "invalid_input")["param"] == param
    assert (await http.post("/v1/recommendations", json={"user_ids": ["ada"] * 256})).status_code == 200


@pytest.mark.parametrize(
    ("items", "param"),
    [
        ([], "items"),
        (["i0"] * 1001, "items"),
        ([{"item_id": "i0", "value": 6}], "items[0].value"),
        ([5], "items[0]"),
    ],
)
async def test_sessions(http: httpx.AsyncClient, items: list, param: str) -> None:
    response = await http.post("/v1/recommendations/session", json={"items": items})
    assert error_of(response, 422, "invalid_input")["param"] == param


@pytest.mark.parametrize("key", ["", "x" * 201, "a\tb", "ü"])
async def test_idempotency_keys(http: httpx.AsyncClient, key: str) -> None:
    headers = {"idempotency-key": key.encode("latin-1")}
    response = await http.post("/v1/ratings", json=RATING, headers=headers)
    assert error_of(response, 422, "invalid_input")["param"] == "Idempotency-Key"
