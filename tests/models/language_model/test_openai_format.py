"""Requests, chunks and errors in OpenAI's shapes."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from graph.errors import InvalidInput, Unavailable
from models.language_model.openai_format import read_chunk, read_error, request_body
from models.language_model.protocol import GenerationRequest, Message, Prompt, Sampling, TokenLogprob

TURNS = (Message("system", "be kind"), Message("user", "hé"))
COMMON = {"model": "m", "stream": True, "stream_options": {"include_usage": True}}
PLAIN = {"temperature": 1.0, "top_p": 1.0}


def body(prompt: Prompt, **sampling: Any) -> dict[str, Any]:
    found = json.loads(request_body(GenerationRequest("r", prompt, Sampling(**sampling)), "m"))
    assert isinstance(found, dict)
    return found


def test_only_what_is_asked_for_is_sent() -> None:
    turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hé"}]
    assert body(TURNS) == COMMON | PLAIN | {"messages": turns}
    assert body("once") == COMMON | PLAIN | {"prompt": "once"}
    everything: dict[str, Any] = {
        "max_tokens": 7,
        "temperature": 0.0,
        "top_p": 0.5,
        "top_k": 3,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "seed": 0,
    }
    assert body("once", **everything, stop=("a", "b")) == COMMON | everything | {
        "prompt": "once",
        "stop": ["a", "b"],
    }


def test_a_context_is_part_of_the_system_message() -> None:
    def sent(prompt: Prompt) -> Any:
        return json.loads(request_body(GenerationRequest("r", prompt, context="known: x"), "m"))["messages"]

    asked = {"role": "user", "content": "hé"}
    assert sent(TURNS) == [{"role": "system", "content": "be kind\n\nknown: x"}, asked]
    assert sent(TURNS[1:]) == [{"role": "system", "content": "known: x"}, asked]
    with pytest.raises(InvalidInput, match="takes no context"):
        request_body(GenerationRequest("r", "once", context="known: x"), "m")


def test_logprobs_are_asked_for_as_each_route_has_them() -> None:
    assert body(TURNS, logprobs=0).items() >= {"logprobs": True, "top_logprobs": 0}.items()
    assert body("once", logprobs=2)["logprobs"] == 2
    assert "top_logprobs" not in body("once", logprobs=2)


def test_a_prompt_that_is_no_text() -> None:
    with pytest.raises(InvalidInput, match="surrogates"):
        body("\ud800")


def chunk(choice: dict[str, Any], num_top: int | None = None, **more: Any) -> Any:
    return read_chunk(json.dumps({"choices": [choice], **more}), num_top)


def test_text_reason_and_usage() -> None:
    assert chunk({"delta": {"content": "a"}}).text == "a"
    assert chunk({"text": "b", "delta": {"content": "a"}}).text == "b"
    assert chunk({"delta": {"role": "assistant", "content": None}}).text == ""
    assert chunk({"index": 1, "text": "x", "finish_reason": "stop"}).reason is None
    reasons = [("stop", "stop"), ("length", "length"), ("content_filter", "stop"), (None, None)]
    for theirs, ours in reasons:
        assert chunk({"text": "", "finish_reason": theirs}).reason == ours
    assert chunk({"text": "", "finish_reason": "abort"}).error == "the server gave up (abort)"
    usage = {"prompt_tokens": 3, "completion_tokens": None}
    assert read_chunk(json.dumps({"choices": [], "usage": usage}), None).usage == (3, 0)
    assert chunk({"text": ""}, usage=None).usage is None
    assert read_chunk('{"choices":[{"text":"a\\ud83d\\ude00\\ud83d"}]}', None).text == "a😀\ufffd"


def test_logprobs_of_chat() -> None:
    tops = [{"token": "b", "logprob": -3.0}, {"token": "a", "logprob": -1}, {"token": "c", "logprob": -2.0}]
    content = [{"token": "b", "logprob": -3.0, "top_logprobs": tops}, {"token": "d", "logprob": -0.5}]
    choice = {"delta": {"content": "bd"}, "logprobs": {"content": content}}
    assert chunk(choice, 2).logprobs == (
        TokenLogprob("b", -1, -3.0, (("a", -1, -1.0), ("c", -1, -2.0))),
        TokenLogprob("d", -1, -0.5),
    )
    assert chunk(choice, 0).logprobs[0].top == ()
    assert chunk(choice, None).logprobs == ()
    assert chunk({"delta": {}, "logprobs": {"content": []}}, 2).logprobs == ()


def test_logprobs_of_completions() -> None:
    found: dict[str, Any] = {"tokens": ["b", "d"], "token_logprobs": [-3, -0.5]}
    tops = [{"b": -3.0, "a": -1.0, "c": -2.0}, None]
    with_tops = chunk({"text": "bd", "logprobs": found | {"top_logprobs": tops}}, 2).logprobs
    assert with_tops[0] == TokenLogprob("b", -1, -3.0, (("a", -1, -1.0), ("c", -1, -2.0)))
    assert with_tops[1] == TokenLogprob("d", -1, -0.5)
    assert [entry.top for entry in chunk({"text": "bd", "logprobs": found}, 0).logprobs] == [(), ()]
    assert math.isinf(
        chunk({"text": "", "logprobs": found | {"token_logprobs": [-math.inf, 0]}}, 0).logprobs[0].logprob
    )


@pytest.mark.parametrize(
    "data",
    [
        "{oops",
        "[]",
        "7",
        '{"choices":[3]}',
        '{"choices":[{"text":3}]}',
        '{"choices":[{"text":"","logprobs":{"tokens":["a"],"token_logprobs":[]}}]}',
        '{"choices":[{"text":"","logprobs":{"tokens":["a"],"token_logprobs":[null]}}]}',
        '{"usage":{"prompt_tokens":-1,"completion_tokens":1}}',
        '{"usage":{"prompt_tokens":1e999,"completion_tokens":1}}',
        '{"usage":{"prompt_tokens":1}}',
        "[" * 200_000,
    ],
)
def test_what_is_no_chunk(data: str) -> None:
    with pytest.raises(Unavailable, match="no chunk"):
        read_chunk(data, 2)


def test_errors_whatever_they_are_wrapped_in() -> None:
    bodies: list[Any] = [
        {"error": {"message": "bad", "code": 404}},
        {"message": "bad", "object": "error", "code": 404},
    ]
    for found in bodies:
        error = read_error(json.dumps(found).encode())
        assert (error.message, error.code) == ("bad", "404")
    for raw in (b'{"error": "bad"}', b'{"detail": "bad"}', b'"bad"', b"bad"):
        assert read_error(raw).message == "bad"
    assert read_error(b"\xff").message == "\ufffd"
    assert read_error(b"[" * 200_000).message.startswith("[[")
    assert read_error(b'{"error": {"message": "\\ud800"}}').message == "\ufffd"
    assert read_error(b'{"error": {"message": "This model\'s maximum Context Length is 8"}}').is_too_long
    assert read_chunk('{"error": {"message": "bad"}}', None).error == "bad"
