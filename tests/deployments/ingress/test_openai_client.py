"""OpenAI's own Python client against /v1/embeddings: through a socket, and in process."""

from __future__ import annotations

import base64

import httpx2
import numpy as np
import openai
import pytest

from deployments.ingress.application import create_app
from graph.errors import Overloaded, Unavailable
from tests.deployments.ingress.fake_backend import MODEL, SHORT, TEXT_MODEL, FakeBackend, vector_of

TEXTS = ["a quiet film", "rain", "Zoë ☃"]


def check(answer: openai.types.CreateEmbeddingResponse, texts: list[str]) -> None:
    assert answer.object == "list"
    assert answer.model == MODEL
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(len(t.split()) for t in texts)
    assert [(entry.object, entry.index) for entry in answer.data] == [
        ("embedding", n) for n in range(len(texts))
    ]
    got = np.array([entry.embedding for entry in answer.data], np.float64).astype(np.float32)
    assert got.tobytes() == np.stack([vector_of(text) for text in texts]).tobytes()


def test_texts(client: openai.OpenAI) -> None:
    check(client.embeddings.create(model=MODEL, input="a quiet film"), ["a quiet film"])
    for form in (openai.omit, "float"):
        check(client.embeddings.create(model=TEXT_MODEL, input=TEXTS, encoding_format=form), TEXTS)
    answer = client.embeddings.create(model=MODEL, input="rain", encoding_format="base64", user="someone")
    decoded = np.frombuffer(base64.b64decode(answer.data[0].embedding), "<f4")  # asked for, so left as it is
    assert decoded.tobytes() == vector_of("rain").tobytes()


def test_it_asks_for_base64_by_itself(client: openai.OpenAI) -> None:
    raw = client.embeddings.with_raw_response.create(model=MODEL, input=TEXTS)
    assert all(isinstance(entry["embedding"], str) for entry in raw.http_response.json()["data"])
    check(raw.parse(), TEXTS)


def test_options(client: openai.OpenAI) -> None:
    short = client.embeddings.create(model=MODEL, input="rain", dimensions=SHORT)
    assert len(short.data[0].embedding) == SHORT
    more = client.embeddings.create(model=MODEL, input="rain", extra_body={"weft": {"prompt": "query: "}})
    expected = vector_of("rain", "query: ")
    assert np.array(more.data[0].embedding, np.float32).tobytes() == expected.tobytes()
    assert more.model_extra["weft"] == {"text_model": TEXT_MODEL, "cached": 1, "truncated": 0}


@pytest.mark.parametrize(
    ("options", "kind", "status", "code", "param"),
    [
        ({"input": [1, 2]}, openai.BadRequestError, 400, "unsupported_input", "input"),
        ({"input": [[1], [2]]}, openai.BadRequestError, 400, "unsupported_input", "input"),
        ({"model": "another"}, openai.NotFoundError, 404, "unknown_text_model", "model"),
        ({"input": ["a"] * 2049}, openai.APIStatusError, 413, "batch_too_large", "input"),
        ({"input": "x" * (5 << 20)}, openai.APIStatusError, 413, "body_too_large", None),
        ({"input": []}, openai.UnprocessableEntityError, 422, "invalid_input", "input"),
        ({"input": ""}, openai.UnprocessableEntityError, 422, "invalid_input", "input[0]"),
        ({"dimensions": 7}, openai.UnprocessableEntityError, 422, "invalid_input", "dimensions"),
        (
            {"input": "a " * 9, "extra_body": {"weft": {"truncate": False}}},
            openai.UnprocessableEntityError,
            422,
            "text_too_long",
            "input",
        ),
        (
            {"extra_headers": {"host": "evil.example"}},
            openai.PermissionDeniedError,
            403,
            "foreign_host",
            "Host",
        ),
    ],
)
def test_refusals(
    client: openai.OpenAI, options: dict, kind: type[openai.APIStatusError], status: int, code: str, param
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.embeddings.create(**{"model": MODEL, "input": "a"} | options)
    error = caught.value
    assert type(error) is kind
    assert (error.status_code, error.code, error.param) == (status, code, param)
    assert error.type in ("invalid_request_error", "not_found_error", "permission_error")
    assert error.request_id == error.body["request_id"]
    assert error.body["message"] in error.message


@pytest.mark.parametrize(
    ("raised", "kind", "status", "family"),
    [
        (Overloaded("too many texts wait"), openai.RateLimitError, 429, "rate_limit_error"),
        (Unavailable("the model loads"), openai.InternalServerError, 503, "unavailable_error"),
        (RuntimeError("secret"), openai.InternalServerError, 500, "internal_error"),
    ],
)
def test_failures(
    client: openai.OpenAI, backend: FakeBackend, raised: Exception, kind: type, status: int, family: str
) -> None:
    backend.raises = raised
    with pytest.raises(kind) as caught:
        client.embeddings.create(model=MODEL, input="a")
    error = caught.value
    assert (error.status_code, error.type) == (status, family)
    assert ("retry-after" in error.response.headers) is (status != 500)
    assert "secret" not in str(error)


async def test_the_asynchronous_client(backend: FakeBackend) -> None:
    transport = httpx2.ASGITransport(create_app(lambda: backend, loopback_only=True))
    http_client = httpx2.AsyncClient(transport=transport)
    async with openai.AsyncOpenAI(
        base_url="http://localhost:8000/v1", api_key="x", max_retries=0, http_client=http_client
    ) as client:
        check(await client.embeddings.create(model=MODEL, input=TEXTS), TEXTS)
        check(await client.embeddings.create(model=MODEL, input="rain", encoding_format="float"), ["rain"])
        with pytest.raises(openai.BadRequestError) as caught:
            await client.embeddings.create(model=MODEL, input=[1, 2])
        assert caught.value.code == "unsupported_input"
        backend.raises = Overloaded("too many texts wait")
        with pytest.raises(openai.RateLimitError):
            await client.embeddings.create(model=MODEL, input="a")


async def test_it_comes_back_after_an_overload(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = [Overloaded("too many texts wait")]
    embed = backend.embed

    async def at_first_overloaded(query):
        if refusals:
            raise refusals.pop()
        return await embed(query)

    slept = []

    async def asleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(backend, "embed", at_first_overloaded)
    monkeypatch.setattr("openai._base_client.anyio.sleep", asleep)
    http_client = httpx2.AsyncClient(transport=httpx2.ASGITransport(create_app(lambda: backend)))
    async with openai.AsyncOpenAI(base_url="http://t/v1", api_key="x", http_client=http_client) as client:
        check(await client.embeddings.create(model=MODEL, input=TEXTS), TEXTS)
    assert slept == [1.0]  # as Retry-After says
