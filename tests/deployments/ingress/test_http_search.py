"""/v1/search and /v1/rerank."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest

from deployments.ingress import text_schemas
from deployments.ingress.application import create_app
from deployments.ingress.text_schemas import MAX_DOCUMENTS
from deployments.messages import RerankQuery, SearchQuery
from graph.schema import MAX_TEXT_CHARS
from tests.deployments.ingress.error_shape import error_of
from tests.deployments.ingress.fake_backend import TEXT_MODEL, FakeBackend, vector_of

SEARCH, RERANK = "/v1/search", "/v1/rerank"


@pytest.fixture
async def http(backend: FakeBackend) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(lambda: backend))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def test_search(http: httpx.AsyncClient) -> None:
    answer = (await http.post(SEARCH, json={"query": "a quiet film", "n": 2, "exclude": ["i0"]})).json()
    assert answer == {
        "query": "a quiet film",
        "results": [
            {"item_id": "i1", "title": "Title 1", "score": 0.5},
            {"item_id": "i2", "title": "Title 2", "score": 1 / 3},
        ],
        "version": "store1.7",
        "text_model": TEXT_MODEL,
        "waiting": 2,
    }


async def test_words_alone(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.has_text_model = False
    answer = (await http.post(SEARCH, json={"query": "title"})).json()
    text_schemas.SearchAnswer.model_validate(answer, strict=True)
    assert answer["text_model"] is None


async def test_what_search_asks(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    await http.post(SEARCH, json={"query": "a"})
    assert backend.asked.pop() == SearchQuery("a")
    body = {
        "query": "x" * MAX_TEXT_CHARS,
        "target": "items",
        "n": 1000,
        "tags": ["drama", "new"],
        "exclude": ["i0", "unknown"],
        "candidates": ["i1"],
        "min_version": "store1.5",
    }
    await http.post(SEARCH, json=body, headers={"x-weft-min-version": "store1.6"})
    assert backend.asked.pop() == SearchQuery(
        "x" * MAX_TEXT_CHARS, 1000, ("drama", "new"), ("i0", "unknown"), ("i1",), min_version=6
    )
    await http.post(SEARCH, json={"query": "a", "candidates": []})
    assert backend.asked.pop() == SearchQuery("a", candidates=())


async def test_search_waits_for_a_version(http: httpx.AsyncClient) -> None:
    response = await http.post(SEARCH, json={"query": "a"}, headers={"x-weft-min-version": "store1.99"})
    assert error_of(response, 503, "not_yet")["retryable"] is True


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"query": ""}, "query"),
        ({"query": " \n"}, "query"),
        ({"query": "x" * (MAX_TEXT_CHARS + 1)}, "query"),
        ({"query": "a\x00"}, "query"),
        ({"query": 5}, "query"),
        ({"query": ["a"]}, "query"),
        ({"n": 0}, "n"),
        ({"n": 1001}, "n"),
        ({"n": "1"}, "n"),
        ({"tags": ["x" * 65]}, "tags[0]"),
        ({"exclude": ["a/b"]}, "exclude[0]"),
        ({"candidates": ["x"] * 1001}, "candidates"),
        ({"target": "memories"}, "target"),
        ({"min_version": "7"}, "min_version"),
        ({"because": True}, "because"),
    ],
)
async def test_searches_that_are_refused(http: httpx.AsyncClient, change: dict, param: str) -> None:
    response = await http.post(SEARCH, json={"query": "a"} | change)
    assert error_of(response, 422, "invalid_input")["param"] == param


async def test_rerank(http: httpx.AsyncClient) -> None:
    documents = ["one two", "a query", {"text": "three"}, "one two"]
    cosines = [float(vector_of(text) @ vector_of("a query")) for text in ("one two", "a query", "three")]
    body = {"query": "a query", "documents": documents, "model": "rerank-v3.5"}
    answer = (await http.post(RERANK, json=body)).json()
    assert answer["model"] == TEXT_MODEL
    assert answer["usage"] == {"total_tokens": 9}
    scores = {result["index"]: result["relevance_score"] for result in answer["results"]}
    assert scores == {0: cosines[0], 1: cosines[1], 2: cosines[2], 3: cosines[0]}
    assert answer["results"][0] == {"index": 1, "relevance_score": pytest.approx(1.0)}
    assert np.all(np.diff(list(scores.values())) <= 0)
    best = (await http.post(RERANK, json=body | {"top_n": 2, "return_documents": True})).json()
    assert [result["document"] for result in best["results"]] == [
        {"text": ["one two", "a query", "three", "one two"][result["index"]]} for result in best["results"]
    ]
    assert [result["index"] for result in best["results"]] == list(scores)[:2]
    assert "document" not in answer["results"][0]


async def test_what_rerank_asks(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    for sent, asked in ((None, None), (1, 1), (10**30, 2)):
        await http.post(RERANK, json={"query": "q", "documents": ["a", {"text": "b"}], "top_n": sent})
        assert backend.asked.pop() == RerankQuery("q", ("a", "b"), asked)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"query": ""}, "query"),
        ({"query": "\t"}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": "a"}, "documents"),
        ({"documents": ["a", ""]}, "documents[1].text"),
        ({"documents": ["a", 5]}, "documents[1]"),
        ({"documents": ["a\x00"]}, "documents[0].text"),
        ({"documents": [{"title": "a"}]}, "documents[0].text"),
        ({"documents": [{"text": "a", "title": "b"}]}, "documents[0].title"),
        ({"top_n": 0}, "top_n"),
        ({"top_n": True}, "top_n"),
        ({"return_documents": 1}, "return_documents"),
        ({"model": 5}, "model"),
        ({"texts": ["a"]}, "texts"),
    ],
)
async def test_reranks_that_are_refused(http: httpx.AsyncClient, change: dict, param: str) -> None:
    response = await http.post(RERANK, json={"query": "a", "documents": ["b"]} | change)
    assert error_of(response, 422, "invalid_input")["param"] == param


async def test_surrogates(http: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json"}
    for path, body in (
        (SEARCH, rb'{"query": "\ud800"}'),
        (RERANK, rb'{"query": "\ud800", "documents": ["a"]}'),
        (RERANK, rb'{"query": "a", "documents": ["\udfff"]}'),
    ):
        error_of(await http.post(path, content=body, headers=headers), 422, "invalid_input")


async def test_how_many_documents(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    body = {"query": "a", "documents": ["b"] * (MAX_DOCUMENTS + 1)}
    error = error_of(await http.post(RERANK, json=body), 413, "batch_too_large")
    assert error["param"] == "documents"
    assert backend.asked == []
    body["documents"].pop()
    assert len((await http.post(RERANK, json=body)).json()["results"]) == MAX_DOCUMENTS
