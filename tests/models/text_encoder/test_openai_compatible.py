"""The remote encoder against a server that answers well, badly, late and not at all."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from graph.errors import InvalidInput, Unavailable, WeftError
from models.text_encoder import openai_compatible
from models.text_encoder.openai_compatible import OpenAICompatibleEncoder
from tests.models.text_encoder.embeddings_server import EmbeddingsServer

KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_compatible, "_FIRST_PAUSE_S", 0.005)


def opened(server: EmbeddingsServer, **options: Any) -> OpenAICompatibleEncoder:
    return OpenAICompatibleEncoder(server.url, "remote-model", **{"api_key": KEY, **options})


@pytest.mark.parametrize("floats", [False, True])
def test_vectors_in_order_whatever_the_form(server: EmbeddingsServer, floats: bool) -> None:
    server.floats = floats
    encoder = opened(server, max_batch=2)
    texts = ["b", "a story", "b", "c d", "e"]
    np.testing.assert_allclose(encoder.encode(texts), server.encoder.encode(texts), atol=1e-7)
    assert [request["input"] for request in server.requests[1:]] == [["b", "a story"], ["c d", "e"]]
    assert {request["path"] for request in server.requests} == {"/v1/embeddings"}
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    encoder.close()


def test_tokens_are_known_for_lone_texts_only(server: EmbeddingsServer) -> None:
    encoder = opened(server)
    assert encoder.encode_counted(["a", "a"]).tokens.tolist() == [7, 7]
    assert encoder.encode_counted(["a", "b"]).tokens.tolist() == [-1, -1]
    with pytest.raises(InvalidInput, match="truncate"):
        encoder.encode_counted(["a"], truncate=False)
    encoder.close()


def test_dimensions_are_learnt_or_asked_for(server: EmbeddingsServer) -> None:
    full, short = opened(server), opened(server, dimensions=4)
    assert (full.fingerprint.dimensions, short.fingerprint.dimensions) == (8, 4)
    assert full.fingerprint.digest != short.fingerprint.digest
    assert short.encode(["a"]).shape == (1, 4)
    assert "dimensions" not in server.requests[0] and server.requests[1]["dimensions"] == 4
    full.close(), short.close()


def test_a_server_that_shortens_not_as_asked_is_refused(server: EmbeddingsServer) -> None:
    server.change = lambda body: body | {"data": [entry | {"embedding": [1.0] * 8} for entry in body["data"]]}
    with pytest.raises(Unavailable, match="8 dimensions for text 0, not 4"):
        opened(server, dimensions=4)


def _without_first(body: dict[str, Any]) -> Any:
    return body | {"data": body["data"][1:]}


def _same_index(body: dict[str, Any]) -> Any:
    return body | {"data": [entry | {"index": 0} for entry in body["data"]]}


def _embedding(value: Any) -> Any:
    return lambda body: body | {"data": [entry | {"embedding": value} for entry in body["data"]]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without_first, "1 vectors"),
        (_same_index, "others than asked"),
        (_embedding([1.0] * 7), "7 dimensions for text 0, not 8"),
        (_embedding([float("nan")] * 8), "not finite"),
        (_embedding("!!"), "shape"),
        (_embedding([[1.0] * 8]), "shape"),
        (lambda body: ["no", "object"], "shape"),
    ],
)
def test_answers_that_are_none(server: EmbeddingsServer, change: Any, said: str) -> None:
    encoder = opened(server)
    server.change = change
    with pytest.raises(Unavailable, match=said):
        encoder.encode(["a", "b"])
    encoder.close()


def test_passing_failures_are_tried_again(server: EmbeddingsServer) -> None:
    encoder = opened(server)
    server.answers = [(429, {"retry-after": "0.01"}, {}), (503, {}, {})]
    assert encoder.encode(["a"]).shape == (1, 8)
    assert len(server.requests) == 4
    encoder.close()


def test_retry_after_is_waited_for(server: EmbeddingsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = opened(server)
    waited: list[float] = []
    monkeypatch.setattr(encoder._pause, "wait", lambda seconds: waited.append(seconds) or False)
    server.answers = [(429, {"retry-after": "3"}, {}), (429, {"retry-after": "9999"}, {})]
    encoder.encode(["a"])
    assert waited == [3.0, 8.0]
    encoder.close()


def test_lasting_failure_is_unavailable(server: EmbeddingsServer) -> None:
    encoder = opened(server)
    server.answers = [(500, {}, {})] * 9
    with pytest.raises(Unavailable, match="4 times, last with status 500"):
        encoder.encode(["a"])
    assert len(server.requests) == 5
    encoder.close()


def test_a_slow_server_is_unavailable(server: EmbeddingsServer) -> None:
    encoder = opened(server, timeout_s=0.1)
    server.stall.clear()
    with pytest.raises(Unavailable, match=r"no answer within 0\.1 s"):
        encoder.encode(["a"])
    server.stall.set()
    encoder.close()


def test_no_server_is_unavailable() -> None:
    with EmbeddingsServer() as server:
        url = server.url
    with pytest.raises(Unavailable, match="no connection"):
        OpenAICompatibleEncoder(url, "remote-model")


def test_the_key_is_in_no_message(server: EmbeddingsServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    encoder = opened(server)
    server.answers = [(401, {}, {"error": {"message": f"Incorrect API key provided: {KEY}."}})]
    with pytest.raises(Unavailable, match=r"status 401: Incorrect API key provided: \[key\]") as caught:
        encoder.encode(["a"])
    for shown in (repr(encoder), str(encoder), str(caught.value), repr(caught.value), caplog.text):
        assert KEY not in shown
    encoder.close()


@pytest.mark.parametrize(
    "arguments",
    [
        ("http://127.0.0.1:1", ""),
        ("127.0.0.1:1", "m"),
        ("ftp://host", "m"),
        ("", "m"),
        ("http://host:notaport/v1", "m"),
        ("http://[::1/v1", "m"),
        ("http://me:secret@host/v1", "m"),
        ("http://host/v1?key=secret", "m"),
    ],
)
def test_refused_arguments(arguments: tuple[str, str]) -> None:
    with pytest.raises(WeftError) as caught:
        OpenAICompatibleEncoder(*arguments)
    assert isinstance(caught.value, InvalidInput)
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("status", "expected"),
    [(400, InvalidInput), (413, InvalidInput), (422, InvalidInput)]
    + [(status, Unavailable) for status in (401, 403, 404, 405)],
)
def test_only_what_is_about_the_texts_is_the_callers_doing(
    server: EmbeddingsServer, status: int, expected: type[WeftError]
) -> None:
    encoder = opened(server)
    server.answers = [(status, {}, {"error": {"message": "no"}})]
    with pytest.raises(WeftError) as caught:
        encoder.encode(["a"])
    assert type(caught.value) is expected
    assert expected is Unavailable or server.url not in caught.value.message
    encoder.close()


@pytest.mark.parametrize("status", [408, 424, 425])
def test_what_passes_is_tried_again(server: EmbeddingsServer, status: int) -> None:
    encoder = opened(server)
    server.answers = [(status, {}, {"error": {"message": "not now"}})]
    assert encoder.encode(["a"]).shape[0] == 1
    encoder.close()


def test_two_servers_are_two_models() -> None:
    names = set()
    for _ in range(2):
        with EmbeddingsServer() as one:
            encoder = OpenAICompatibleEncoder(one.url, "m")
            again = OpenAICompatibleEncoder(one.url.replace("http://", "HTTP://") + "/", "m")
            assert again.fingerprint == encoder.fingerprint
            names.add(encoder.fingerprint.name)
            encoder.close()
            again.close()
    assert len(names) == 2
