"""What users write is in no error and in no line of the log, whatever is wrong with the rest of a request."""

from __future__ import annotations

import asyncio
import copy
import functools
import json
import logging
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.ingress.application import create_app
from graph.errors import Overloaded, Unavailable, UnknownAdapter
from tests.deployments.ingress.fake_backend import FakeBackend

SECRET = "xyzzy-my-diary"
TURN = {"role": "user", "content": SECRET}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/generate": {"text": SECRET, "system_prompt": SECRET, "stop": [SECRET], "user_id": "ada"},
    "/v1/generate/batch": {
        "requests": [{"text": SECRET}, {"messages": [TURN], "system_prompt": SECRET, "temperature": 1}]
    },
    "/v1/chat/completions": {
        "messages": [
            {"role": "system", "content": SECRET},
            TURN,
            {**TURN, "content": [{"type": "text", "text": SECRET}]},
        ],
        "stop": SECRET,
        "stream": False,
        "user": "ada",
        "weft": {"domain": "films", "use_context": True, "max_context_tokens": 9},
    },
    "/v1/completions": {"prompt": [SECRET], "max_tokens": 3, "logprobs": 1, "stop": [SECRET]},
    "/v1/users/ada/memories": {
        "memories": [
            {"text": SECRET, "source": SECRET, "valid_at": "2026-03-01", "invalid_at": 1_900_000_000},
            {"text": SECRET},
        ]
    },
    "/v1/users/ada/memories/m0": {"text": SECRET, "source": SECRET, "valid_at": 1},
    "/v1/users/ada/memories/search": {"query": SECRET, "n": 3, "valid_only": True},
}
WRONG = [None, [], {}, 0, -1, 1e300, True, SECRET, [SECRET], [[SECRET]], {"text": SECRET}, [{"role": SECRET}]]
FAILURES = [
    None,
    Unavailable("away"),
    Overloaded("full"),
    UnknownAdapter("there is none"),
    RuntimeError("a defect"),
]


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a body can be made wrong: every key and index in it, and a key that it does not have."""
    if isinstance(value, dict):
        return [
            (*at, "surprise"),
            *(place for key, inner in value.items() for place in ((*at, key), *places(inner, (*at, key)))),
        ]
    if isinstance(value, list):
        return [place for n, inner in enumerate(value) for place in ((*at, n), *places(inner, (*at, n)))]
    return []


def changed(body: dict[str, Any], place: tuple[Any, ...], wrong: Any) -> dict[str, Any]:
    whole = copy.deepcopy(body)
    inner: Any = whole
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = wrong
    return whole


_backend = functools.cache(FakeBackend)
_app = functools.cache(lambda: create_app(_backend))
_CASES = [(route, place) for route, body in BODIES.items() for place in places(body)]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(_CASES),
    st.sampled_from(WRONG),
    st.sampled_from(FAILURES),
    st.none() | st.integers(0, 200),
    st.sampled_from(["application/json", "text/plain"]),
)
def test_no_error_tells_what_was_said(
    caplog: pytest.LogCaptureFixture,
    case: tuple[str, tuple[Any, ...]],
    wrong: Any,
    failure: Exception | None,
    cut: int | None,
    kind: str,
) -> None:
    route, place = case
    caplog.clear()
    caplog.set_level(logging.DEBUG, "weft")
    content = json.dumps(changed(BODIES[route], place, wrong)).encode()[:cut]
    _backend().raises = failure

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(_app())
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            method = "PUT" if route.endswith("/m0") else "POST"
            return await http.request(method, route, content=content, headers={"content-type": kind})

    response = asyncio.run(ask())
    answers = response.json().get("results", [response.json()])
    for answer in answers:
        assert SECRET not in json.dumps(answer.get("error"))
    assert SECRET not in str(response.headers)
    assert SECRET not in caplog.text
