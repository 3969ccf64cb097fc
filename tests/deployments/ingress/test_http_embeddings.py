"""/v1/embeddings: what is asked of the backend, what is answered, what is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator

import httpx
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from deployments.ingress import embeddings
from deployments.ingress.application import create_app
from deployments.ingress.exchange import encoded
from deployments.ingress.text_schemas import MAX_TEXTS
from deployments.messages import EmbedAnswer, EmbedQuery
from graph.errors import Overloaded
from tests.deployments.ingress.error_shape import error_of
from tests.deployments.ingress.fake_backend import (
    DIMENSIONS,
    MODEL,
    SHORT,
    TEXT_MODEL,
    FakeBackend,
    vector_of,
)

PATH = "/v1/embeddings"
TEXTS = ["a quiet film", "rain", "a quiet film", "Zoë ☃ 𝄞", " "]


@pytest.fixture
async def http(backend: FakeBackend) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(lambda: backend))  # bodies of the usual size
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def vectors_of(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    entries = response.json()["data"]
    assert [(entry["object"], entry["index"]) for entry in entries] == [
        ("embedding", n) for n in range(len(entries))
    ]
    rows = [
        np.frombuffer(base64.b64decode(entry["embedding"], validate=True), "<f4")
        if isinstance(entry["embedding"], str)
        else np.array(entry["embedding"], np.float64).astype(np.float32)
        for entry in entries
    ]
    return np.stack(rows)


async def test_floats_and_base64_are_the_same_vectors_in_order(http: httpx.AsyncClient) -> None:
    expected = np.stack([vector_of(text) for text in TEXTS])
    for form in ({}, {"encoding_format": "float"}, {"encoding_format": None}, {"encoding_format": "base64"}):
        response = await http.post(PATH, json={"input": TEXTS} | form)
        assert vectors_of(response).tobytes() == expected.tobytes()
        as_text = isinstance(response.json()["data"][0]["embedding"], str)
        assert as_text is (form.get("encoding_format") == "base64")


async def test_the_rest_of_the_answer(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.cached.add("rain")
    long = "nine words are one too many for this window"
    answer = (await http.post(PATH, json={"input": ["rain", long]})).json()
    assert answer["object"] == "list"
    assert answer["model"] == MODEL
    assert answer["usage"] == {"prompt_tokens": 10, "total_tokens": 10}
    assert answer["weft"] == {"text_model": TEXT_MODEL, "cached": 1, "truncated": 1}


@pytest.mark.parametrize(
    ("body", "query"),
    [
        ({"input": "a"}, EmbedQuery(("a",))),
        ({"input": ["a", "b"], "model": None}, EmbedQuery(("a", "b"))),
        ({"input": "a", "model": MODEL, "user": "u"}, EmbedQuery(("a",), model=MODEL)),
        ({"input": "a", "model": TEXT_MODEL}, EmbedQuery(("a",), model=TEXT_MODEL)),
        ({"input": "a", "dimensions": SHORT}, EmbedQuery(("a",), dimensions=SHORT)),
        ({"input": "a", "weft": {}}, EmbedQuery(("a",))),
        (
            {"input": "a", "weft": {"prompt": "query: ", "truncate": False}},
            EmbedQuery(("a",), prompt="query: ", truncate=False),
        ),
        ({"input": "a", "weft": {"prompt": ""}}, EmbedQuery(("a",), prompt="")),
    ],
)
async def test_what_is_asked(
    http: httpx.AsyncClient, backend: FakeBackend, body: dict, query: EmbedQuery
) -> None:
    vectors = vectors_of(await http.post(PATH, json=body))
    assert backend.asked == [query]
    expected = [vector_of(text, query.prompt or "")[: query.dimensions or DIMENSIONS] for text in query.texts]
    assert vectors.tobytes() == np.stack(expected).tobytes()


@pytest.mark.parametrize("tokens", [[1], [1, 2], [[1]], [[1], [2, 3]], [[]], [0]])
async def test_tokens_are_refused(http: httpx.AsyncClient, backend: FakeBackend, tokens: list) -> None:
    error = error_of(await http.post(PATH, json={"input": tokens}), 400, "unsupported_input")
    assert (error["param"], error["type"]) == ("input", "invalid_request_error")
    assert "send texts" in error["message"]
    assert backend.asked == []


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ""}, "input[0]"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": ["a", 5]}, "input[1]"),
        ({"input": ["a", None]}, "input[1]"),
        ({"input": ["a", ["b"]]}, "input[1]"),
        ({"input": None}, "input"),
        ({"input": 5}, "input"),
        ({"input": {"text": "a"}}, "input"),
        ({"input": ["a\x00"]}, "input[0]"),
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"model": "x" * 201}, "model"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 1.5}, "dimensions"),
        ({"dimensions": True}, "dimensions"),
        ({"dimensions": 10**30}, "dimensions"),
        ({"dimensions": 7}, "dimensions"),
        ({"weft": None}, "weft"),
        ({"weft": {"truncate": 1}}, "weft.truncate"),
        ({"weft": {"prompt": 1}}, "weft.prompt"),
        ({"weft": {"surprise": 1}}, "weft.surprise"),
        ({"surprise": 1}, "surprise"),
    ],
)
async def test_bodies_that_are_refused(http: httpx.AsyncClient, change: dict, param: str) -> None:
    response = await http.post(PATH, json={"input": "a"} | change)
    assert error_of(response, 422, "invalid_input")["param"] == param


async def test_half_of_a_character(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    headers = {"content-type": "application/json"}
    for body, param in (
        (rb'{"input": ["a", "\ud800"]}', "input[1]"),
        (rb'{"input": "a\udfffb"}', "input[0]"),
        (rb'{"input": "a", "model": "\ud800"}', "model"),
        (rb'{"input": "a", "weft": {"prompt": "\ud800"}}', "weft.prompt"),
    ):
        response = await http.post(PATH, content=body, headers=headers)
        assert error_of(response, 422, "invalid_input")["param"] == param
    assert backend.asked == []
    whole = await http.post(PATH, content=rb'{"input": "\ud834\udd1e"}', headers=headers)
    assert vectors_of(whole).tobytes() == vector_of("𝄞").tobytes()


async def test_how_many(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    texts = [f"text {n}" for n in range(MAX_TEXTS + 1)]
    error = error_of(await http.post(PATH, json={"input": texts}), 413, "batch_too_large")
    assert (error["param"], error["type"], error["retryable"]) == ("input", "invalid_request_error", False)
    assert backend.asked == []
    assert vectors_of(await http.post(PATH, json={"input": texts[:-1]})).shape == (MAX_TEXTS, DIMENSIONS)
    error_of(await http.post(PATH, json={"input": "x" * (5 << 20)}), 413, "body_too_large")


async def test_what_the_backend_refuses(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    long = {"input": "nine words are one too many for this window", "weft": {"truncate": False}}
    assert error_of(await http.post(PATH, json=long), 422, "text_too_long")["param"] == "input"
    other = {"input": "a", "model": "text-embedding-3-small"}
    assert error_of(await http.post(PATH, json=other), 404, "unknown_text_model")["param"] == "model"
    backend.raises = Overloaded("too many texts wait")
    response = await http.post(PATH, json={"input": "a"})
    assert error_of(response, 429, "overloaded")["retryable"] is True
    assert response.headers["retry-after"] == "1"


async def test_unknown_token_counts_do_not_count(
    http: httpx.AsyncClient, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def embed(query: EmbedQuery) -> EmbedAnswer:
        tokens = np.array([-1, 2**31 - 1, 5, -1], np.int32)
        return EmbedAnswer(np.ones((4, 2), np.float32), tokens, 0, 0, MODEL, TEXT_MODEL)

    monkeypatch.setattr(backend, "embed", embed)
    answer = (await http.post(PATH, json={"input": list("abcd")})).json()
    assert answer["usage"]["total_tokens"] == 2**31 + 4


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(arrays(np.float32, (3, 4), elements=finite), st.booleans())
def test_every_float32_arrives_exactly(vectors: np.ndarray, transposed: bool) -> None:
    given = vectors.T if transposed else vectors
    given.flags.writeable = False  # as arrays that crossed a process border are
    tokens = np.ones(len(given), np.int32)
    found = EmbedAnswer(given, tokens, 0, 0, MODEL, TEXT_MODEL)
    floats = encoded(embeddings._payload(found, as_base64=False))
    texts = orjson.loads(encoded(embeddings._payload(found, as_base64=True)))["data"]
    decoded = np.stack([np.frombuffer(base64.b64decode(entry["embedding"]), "<f4") for entry in texts])
    assert decoded.tobytes() == given.tobytes()
    for loads in (orjson.loads, json.loads):
        rows = [entry["embedding"] for entry in loads(floats)["data"]]
        assert np.array(rows, np.float64).astype(np.float32).tobytes() == given.tobytes()
