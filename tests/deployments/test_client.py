"""The clients: what they send, what they retry, what they remember. No network, no waiting."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable

import httpx
import orjson
import pytest

from deployments import client as module
from deployments import client_adapters, client_calls, client_generation, client_keys, client_memories
from deployments.client import (
    AsyncWeftClient,
    ConflictError,
    ConnectionFailed,
    ForeignTokenError,
    InternalServerError,
    InvalidRequestError,
    NotFoundError,
    RateLimitError,
    UnavailableError,
    WeftAPIError,
    WeftClient,
)

WRITTEN = {"version": "s.5", "changed": 1, "replayed": False}
RECOMMENDED = {
    "user_id": "ada",
    "basis": "personal",
    "recommendations": [{"item_id": "i", "title": "I", "score": 1.0, "because": []}],
    "version": "s.5",
    "item_version": "s.5",
    "encoder": "e",
}


def failed(status: int, code: str, retryable: bool = False, **headers: str) -> httpx.Response:
    error = {
        "code": code,
        "message": "m",
        "type": "t",
        "param": "p",
        "request_id": "r",
        "retryable": retryable,
    }
    return httpx.Response(status, json={"error": error}, headers=headers)


class Script:
    """A server that plays its answers in order and keeps the requests; the last answer repeats."""

    def __init__(self, *answers: httpx.Response | Exception | dict) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.slept: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, dict):
            return httpx.Response(200, json=answer)
        # A copy: a response can be consumed once, and parametrised tests share theirs.
        return httpx.Response(answer.status_code, content=answer.content, headers=answer.headers)

    async def asleep(self, seconds: float) -> None:
        self.slept.append(seconds)


Run = Callable[..., object]


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs `(name, *args)` calls in order on one client of either kind; answers the last result."""

    def run_sync(script: Script, *steps: tuple, **options: float) -> object:
        transport = httpx.MockTransport(script)
        with WeftClient("http://t", transport=transport, sleep=script.slept.append, **options) as weft:
            return [_outcome(lambda s=s: getattr(weft, s[0])(*s[1:])) for s in steps][-1]()

    def run_async(script: Script, *steps: tuple, **options: float) -> object:
        async def main() -> object:
            transport = httpx.MockTransport(script)
            async with AsyncWeftClient(
                "http://t", transport=transport, sleep=script.asleep, **options
            ) as weft:
                outcomes = []
                for step in steps:
                    try:
                        result = await getattr(weft, step[0])(*step[1:])
                        outcomes.append(lambda result=result: result)
                    except WeftAPIError as error:
                        outcomes.append(_raiser(error))
                return outcomes[-1]

        return asyncio.run(main())()

    return run_sync if request.param == "sync" else run_async


def _raiser(error: Exception) -> Callable[[], object]:
    def again() -> object:
        raise error

    return again


def _outcome(call: Callable[[], object]) -> Callable[[], object]:
    try:
        result = call()
    except WeftAPIError as error:
        return _raiser(error)
    return lambda: result


def test_both_clients_have_every_call() -> None:
    built = {
        name
        for calls in (client_calls, client_generation, client_adapters, client_memories, client_keys)
        for name, function in vars(calls).items()
        if inspect.isfunction(function)
        and not name.startswith("_")
        and function not in (client_calls.writing, client_calls.paged)  # what other calls are made of
        and str(inspect.signature(function).return_annotation).startswith("Call")
    }
    assert len(built) == 52
    for kind in (WeftClient, AsyncWeftClient):
        assert built <= set(vars(kind))
    assert set(module.__all__) >= {"WeftClient", "AsyncWeftClient", "WeftAPIError"}


def test_a_rating_and_the_read_after_it(run: Run) -> None:
    script = Script(WRITTEN, RECOMMENDED)
    answer = run(script, ("rate", "ada", "i/1".replace("/", ","), 4.0), ("recommend", "a b", 3))
    assert answer.recommendations[0].item_id == "i"
    write, read = script.requests
    assert orjson.loads(write.content) == {"user_id": "ada", "item_id": "i,1", "value": 4.0}
    assert write.headers["content-type"] == "application/json"
    assert "x-weft-min-version" not in write.headers
    assert read.url.raw_path == b"/v1/users/a%20b/recommendations?n=3"
    assert read.headers["x-weft-min-version"] == "s.5"


def test_every_write_is_idempotent_and_keeps_its_key(run: Run) -> None:
    steps = [
        ("rate", "u", "i", 1.0),
        ("rate_many", [{"user_id": "u", "item_id": "i", "value": 1.0}]),
        ("put_user", "u"),
        ("put_item", "i", "I"),
        ("put_items", [{"item_id": "i", "title": "I"}]),
        ("delete_user", "u"),
        ("delete_item", "i"),
        ("delete_rating", "u", "i"),
    ]
    keys = set()
    for step in steps:
        script = Script(httpx.ReadError("cut"), failed(503, "unavailable", True), WRITTEN)
        assert run(script, step).version == "s.5"
        assert len({request.headers["idempotency-key"] for request in script.requests}) == 1
        assert len(script.requests) == 3
        keys.add(script.requests[0].headers["idempotency-key"])
    assert len(keys) == len(steps)


@pytest.mark.parametrize(
    "trouble",
    [
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout("slow"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("cut"),
        failed(503, "not_yet", True),
        failed(429, "overloaded", True),
        httpx.Response(502, text="<html>"),
        httpx.Response(500, text="proxy"),
        httpx.Response(503),
    ],
)
def test_what_is_retried(run: Run, trouble: httpx.Response | Exception) -> None:
    script = Script(trouble, trouble, RECOMMENDED)
    assert run(script, ("recommend", "ada")).user_id == "ada"
    assert len(script.requests) == 3
    assert len(script.slept) == 2
    assert 0 < script.slept[0] <= 0.05


TEXT_CALLS = [
    (
        client_calls.embed(["a"]),
        {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": "AACAPwAAAMA="}],
            "model": "m",
            "usage": {"prompt_tokens": 1, "total_tokens": 1},
            "weft": {"text_model": "t", "cached": 0, "truncated": 0},
        },
    ),
    (
        client_calls.search("a"),
        {"query": "a", "results": [], "version": "s.9", "text_model": "t", "waiting": 0},
    ),
    (client_calls.rerank("a", ["b"]), {"model": "t", "results": [], "usage": {"total_tokens": 2}}),
    (client_calls.cache_statistics(), {"hits": 1}),
    (client_calls.invalidate_cache(everything=True), {"dropped": 1}),
]


@pytest.mark.parametrize(("call", "answer"), TEXT_CALLS)
def test_posts_that_only_read_are_repeated(run: Run, call: client_calls.Call, answer: dict) -> None:
    busy = failed(429, "overloaded", True, **{"retry-after": "1"})
    script = Script(httpx.ReadTimeout("slow"), httpx.Response(502, text="<html>"), busy, answer)
    run(script, ("send", call))
    assert len(script.requests) == 4
    assert len({request.content for request in script.requests}) == 1
    assert script.slept[-1] > 1
    assert "idempotency-key" not in script.requests[0].headers


def test_search_reads_what_was_written(run: Run) -> None:
    script = Script(WRITTEN, TEXT_CALLS[1][1])
    run(script, ("rate", "u", "i", 1.0), ("search", "a"), ("search", "b"))
    sent = [request.headers.get("x-weft-min-version") for request in script.requests]
    assert sent == [None, "s.5", "s.9"]
    for other in (0, 2, 3, 4):  # no view of the graph answers these
        script = Script(WRITTEN, TEXT_CALLS[other][1])
        run(script, ("rate", "u", "i", 1.0), ("send", TEXT_CALLS[other][0]))
        assert "x-weft-min-version" not in script.requests[-1].headers


def test_what_text_calls_send(run: Run) -> None:
    script = Script(TEXT_CALLS[0][1])
    found = run(script, ("embed", "a"))
    assert found.vectors.tolist() == [[1.0, -2.0]]
    call = client_calls.embed(["a"], model="m", dimensions=2, truncate=False, prompt="")
    run(script, ("send", call))
    assert [orjson.loads(request.content) for request in script.requests] == [
        {"input": ["a"], "encoding_format": "base64", "weft": {"truncate": True}},
        {
            "input": ["a"],
            "encoding_format": "base64",
            "model": "m",
            "dimensions": 2,
            "weft": {"truncate": False, "prompt": ""},
        },
    ]


@pytest.mark.parametrize("embedding", ["AACAPwAAAM", "AACAPw!!", "AACAPwAA", None, [1.0]])
def test_vectors_that_are_none(run: Run, embedding: object) -> None:
    answer = TEXT_CALLS[0][1] | {"data": [{"embedding": embedding}]}
    with pytest.raises(InternalServerError, match="not one of this API"):
        run(Script(answer), ("embed", "a"))


@pytest.mark.parametrize(
    ("trouble", "attempts"),
    [
        (httpx.ConnectError("refused"), 2),
        (failed(503, "unavailable", True), 2),
        (httpx.ReadTimeout("slow"), 1),
        (httpx.Response(500, text="proxy"), 1),
    ],
)
def test_a_call_that_is_not_idempotent(run: Run, trouble: object, attempts: int) -> None:
    script = Script(trouble, WRITTEN)
    if attempts == 2:
        run(script, ("activate_encoder", "e"))
    else:
        with pytest.raises(WeftAPIError):
            run(script, ("activate_encoder", "e"))
    assert len(script.requests) == attempts


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (422, "invalid_input", InvalidRequestError),
        (413, "body_too_large", InvalidRequestError),
        (404, "unknown_user", NotFoundError),
        (409, "idempotency_conflict", ConflictError),
        (429, "overloaded", RateLimitError),
        (503, "unavailable", UnavailableError),
        (500, "internal", InternalServerError),
    ],
)
def test_typed_errors(run: Run, status: int, code: str, kind: type[WeftAPIError]) -> None:
    script = Script(failed(status, code))
    with pytest.raises(kind) as caught:
        run(script, ("get_user", "ada"))
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.code, error.param, error.request_id) == (status, code, "p", "r")
    assert error.retryable is False
    assert len(script.requests) == 1


def test_retry_after_is_kept_and_the_deadline_ends_it(run: Run) -> None:
    script = Script(failed(503, "not_yet", True, **{"retry-after": "2"}), RECOMMENDED)
    run(script, ("recommend", "ada"))
    assert script.slept[0] > 2
    script = Script(failed(503, "not_yet", True, **{"retry-after": "2"}))
    with pytest.raises(UnavailableError):
        run(script, ("recommend", "ada"), deadline_s=1.0)
    assert (len(script.requests), script.slept) == (1, [])


def test_attempts_are_bounded(run: Run) -> None:
    script = Script(httpx.ConnectError("refused"))
    with pytest.raises(ConnectionFailed) as caught:
        run(script, ("live",), max_attempts=4)
    assert (caught.value.code, caught.value.status, caught.value.retryable) == ("connection_failed", 0, True)
    assert len(script.requests) == 4
    with pytest.raises(ConnectionFailed) as caught:
        run(Script(httpx.ReadTimeout("slow")), ("live",), max_attempts=1)
    assert caught.value.code == "timeout"


def test_the_highest_version_is_remembered(run: Run) -> None:
    script = Script(WRITTEN, WRITTEN | {"version": "s.9"}, WRITTEN | {"version": "s.7"}, RECOMMENDED)
    run(script, *[("rate", "u", "i", 1.0)] * 3, ("recommend", "u"))
    assert script.requests[-1].headers["x-weft-min-version"] == "s.9"


def test_another_store_drops_the_memory_and_says_so(run: Run) -> None:
    script = Script(WRITTEN, failed(409, "foreign_token"), RECOMMENDED)
    with pytest.raises(ForeignTokenError, match=r"another store.*dropped"):
        run(script, ("rate", "u", "i", 1.0), ("recommend", "u"))
    assert len(script.requests) == 2
    script = Script(WRITTEN, failed(409, "foreign_token"), RECOMMENDED)
    run(script, ("rate", "u", "i", 1.0), ("recommend", "u"), ("recommend", "u"))
    assert "x-weft-min-version" not in script.requests[-1].headers


def test_answers_that_are_not_ours(run: Run) -> None:
    for answer in (httpx.Response(200, text="<html>"), httpx.Response(200, json={"hello": 1})):
        with pytest.raises(InternalServerError) as caught:
            run(Script(answer), ("recommend", "u"))
        assert caught.value.code == "shapeless"
    with pytest.raises(InvalidRequestError):
        run(Script(httpx.Response(404, text="nginx")), ("recommend", "u"))


def test_options_and_ids(run: Run) -> None:
    script = Script(RECOMMENDED)
    with pytest.raises(ValueError, match="cannot be an id"):
        run(script, ("get_user", "a/b"))
    call = client_calls.recommend(
        "u",
        5,
        tags=["a"],
        exclude=["x", "y"],
        candidates=[],
        exclude_seen=False,
        exclude_below=2.0,
        because=False,
        explain=True,
    )
    run(script, ("send", call))
    query = script.requests[-1].url.query
    assert (
        query == b"n=5&tags=a&exclude=x&exclude=y&exclude_below=2.0&candidates="
        b"&exclude_seen=false&because=false&explain=true"
    )


def test_readiness_does_not_raise(run: Run) -> None:
    script = Script(httpx.Response(503, json={"ready": False, "parts": {"encoder": "loading"}, "error": {}}))
    answer = run(script, ("ready",))
    assert (answer.ready, answer.parts) == (False, {"encoder": "loading"})
