"""/v1/cache."""

from __future__ import annotations

import httpx
import pytest

from deployments.messages import CacheInvalidation
from tests.deployments.ingress.error_shape import error_of
from tests.deployments.ingress.fake_backend import TEXT_MODEL, FakeBackend

STATS, INVALIDATE = "/v1/cache/stats", "/v1/cache/invalidate"


async def test_statistics(http: httpx.AsyncClient) -> None:
    await http.post("/v1/embeddings", json={"input": ["a", "b"]})
    expected = {"store": "memory", "hits": 3, "tiers": [{"name": "memory", "entries": 2}]}
    assert (await http.get(STATS)).json() == expected


@pytest.mark.parametrize(
    ("body", "what", "dropped"),
    [
        ({"all": True}, CacheInvalidation(everything=True), 3),
        ({"model": TEXT_MODEL}, CacheInvalidation(model=TEXT_MODEL), 3),
        ({"model": "another"}, CacheInvalidation(model="another"), 0),
        ({"texts": ["a", "c", "d"]}, CacheInvalidation(texts=("a", "c", "d")), 2),
        ({"texts": ["a"], "all": None, "model": None}, CacheInvalidation(texts=("a",)), 1),
    ],
)
async def test_invalidation(
    http: httpx.AsyncClient, backend: FakeBackend, body: dict, what: CacheInvalidation, dropped: int
) -> None:
    backend.cached = {"a", "b", "c"}
    assert (await http.post(INVALIDATE, json=body)).json() == {"dropped": dropped}
    assert backend.asked == [what]
    assert len(backend.cached) == 3 - dropped


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, None),
        ({"all": True, "texts": ["a"]}, None),
        ({"all": True, "model": "m"}, None),
        ({"model": "m", "texts": ["a"]}, None),
        ({"all": None}, None),
        ({"all": False}, "all"),
        ({"all": 1}, "all"),
        ({"model": ""}, "model"),
        ({"texts": []}, "texts"),
        ({"texts": ["a", ""]}, "texts[1]"),
        ({"texts": "a"}, "texts"),
        ({"surprise": 1}, "surprise"),
    ],
)
async def test_invalidations_that_are_refused(
    http: httpx.AsyncClient, backend: FakeBackend, body: dict, param: str | None
) -> None:
    error = error_of(await http.post(INVALIDATE, json=body), 422, "invalid_input")
    assert error["param"] == param
    if param is None:
        assert "exactly one of" in error["message"]
    assert backend.asked == []


async def test_how_many_texts(app, http: httpx.AsyncClient, backend: FakeBackend) -> None:
    app._edge._max_body_bytes = 1 << 20
    response = await http.post(INVALIDATE, json={"texts": ["a"] * 2049})
    assert error_of(response, 413, "batch_too_large")["param"] == "texts"
    assert (await http.post(INVALIDATE, json={"texts": ["a"] * 2048})).status_code == 200
