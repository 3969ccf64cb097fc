"""The ids of requests along every way that their work takes."""

from __future__ import annotations

import asyncio
import io
import logging
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

with warnings.catch_warnings():
    # Ray Serve 2.60 defines its schemas in a way that pydantic will no longer take some day.
    warnings.simplefilter("ignore")
    from ray.serve.context import _get_serve_request_context, _RequestContext, _serve_request_context

    from deployments import handles
from deployments import request_ids, slow_calls
from deployments.coalescing import Coalescer
from deployments.graph_client import RemoteGraphState
from deployments.graph_state import GraphState
from deployments.request_ids import MAX_IDS, RequestIds, about, current, joined
from deployments.slow_calls import noted
from graph.schema import PutUser, WriteRequest
from tests.deployments.local_state import make_settings, until


@pytest.fixture(autouse=True)
def _as_in_a_replica() -> Iterator[None]:
    request_ids.also_from(handles.serve_request_ids)
    slow_calls.configure(0.0)
    yield
    slow_calls.configure(1.0)
    request_ids.also_from(str)


class Lines:
    """What is logged, each line after the ids of the requests it is about."""

    def __init__(self) -> None:
        self.written = io.StringIO()

    def of(self, text: str) -> list[str]:
        """Ids in front of the lines that hold a text."""
        return [line.split()[0] for line in self.written.getvalue().splitlines() if text in line]


@pytest.fixture
def lines() -> Iterator[Lines]:
    lines = Lines()
    handler = logging.StreamHandler(lines.written)
    handler.setFormatter(logging.Formatter("%(request_id)s %(message)s", defaults={"request_id": "-"}))
    handler.addFilter(RequestIds())
    loggers = [logging.getLogger(name) for name in ("deployments", __name__)]
    before = [(logger.handlers, logger.level) for logger in loggers]
    for logger in loggers:
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
    yield lines
    for logger, (handlers, level) in zip(loggers, before, strict=True):
        logger.handlers = handlers
        logger.setLevel(level)


# ------------------------------------------------------------------------------------------------ the ids


def test_ids_are_joined_once_each_and_not_without_end() -> None:
    assert joined(["a"]) == "a"
    assert joined(["a", "", "b,a", "c"]) == "a,b,c"
    assert joined(["", ""]) == ""
    many = [f"r{n}" for n in range(MAX_IDS + 7)]
    assert joined(many).split(",") == [*many[:MAX_IDS], "+7"]
    longest = joined(["x" * 63 + chr(65 + n % 26) + str(n) for n in range(10_000)])
    assert len(longest) < MAX_IDS * 72


async def test_tasks_of_different_requests_do_not_mix() -> None:
    async def work(name: str) -> str:
        with about(name):
            await asyncio.sleep(0)
            return await asyncio.create_task(_later())

    async def _later() -> str:
        await asyncio.sleep(0)
        return current()

    assert await asyncio.gather(*(work(f"r{n}") for n in range(5))) == [f"r{n}" for n in range(5)]
    assert current() == ""


# -------------------------------------------------------------------------------------- calls that are shared


async def test_a_shared_call_is_made_for_all_its_requests_and_knows_how_long_they_waited() -> None:
    seen: list[tuple[list[int], str]] = []
    waited: list[float] = []
    gate = asyncio.Event()

    async def send(items: list[int]) -> list[int]:
        seen.append((items, current()))
        await gate.wait()
        return items

    coalescer: Coalescer[int, int] = Coalescer(send, waited=waited.append)

    async def ask(n: int) -> int:
        with about(f"r{n}"):
            return await coalescer.call(n)

    first = asyncio.create_task(ask(0))
    await until(lambda: len(seen) == 1)
    others = [asyncio.create_task(ask(n)) for n in (1, 2)]
    nameless = asyncio.create_task(coalescer.call(3))
    await asyncio.sleep(0.05)
    gate.set()
    assert await asyncio.gather(first, *others, nameless) == [0, 1, 2, 3]
    assert seen == [([0], "r0"), ([1, 2, 3], "r1,r2")]
    assert len(waited) == 2
    assert waited[0] < 0.05 <= waited[1]


# -------------------------------------------------------------------------------------------- across handles


class Handle:
    """A deployment handle that looks at what Serve would send along."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []

    def _look(self) -> None:
        context = _get_serve_request_context()
        self.sent.append((context.request_id, context._internal_request_id))

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            raise AttributeError(method)

        async def answer() -> str:
            return method

        def remote(*_: object) -> Any:
            self._look()
            return answer()

        return type("Method", (), {"remote": staticmethod(remote)})

    def broadcast(self, _method: str) -> Any:
        self._look()

        class Found:
            async def results_async(self, *, timeout_s: float) -> list[str]:
                return []

        return Found()


async def test_calls_take_the_ids_along_where_serve_has_its_own() -> None:
    handle: Any = Handle()
    # As in the ingress: Serve has made an id of its own for the request.
    token = _serve_request_context.set(_RequestContext(request_id="serves", _internal_request_id="inner"))
    try:
        with about("ours"):
            assert await handles.call(handle, "recommend") == "recommend"
            await handles.call_all(handle, "status", timeout_s=1.0)
            assert await handles.call_apart(handle, "generate") == "generate"
            assert await handles.cancelling(handle, "generate") == "generate"
        # Apart: nothing by which the router could take two calls for one.
        assert handle.sent == [("ours", "inner"), ("ours", "inner"), ("ours", ""), ("ours", "")]
        assert _get_serve_request_context().request_id == "serves", "nothing is left behind"
    finally:
        _serve_request_context.reset(token)


async def test_a_replica_hands_on_what_came_with_a_call() -> None:
    handle: Any = Handle()
    token = _serve_request_context.set(_RequestContext(request_id="r1,r2", _internal_request_id="inner"))
    try:
        assert current() == "r1,r2"
        await handles.call(handle, "user_vectors")
        await handles.call_apart(handle, "info")
        assert handle.sent == [("r1,r2", "inner"), ("r1,r2", "")]
        with about("narrower"):
            assert current() == "narrower"
    finally:
        _serve_request_context.reset(token)


async def test_a_call_that_is_for_nobody_has_no_id_of_ours() -> None:
    handle: Any = Handle()
    await handles.call(handle, "item_vectors")
    await handles.call_apart(handle, "info")
    assert handle.sent == [("", ""), ("", "")]


# ------------------------------------------------------------------------------------------- the graph state


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[GraphState]:
    state = GraphState(make_settings(tmp_path, log={"slow_call_s": 0}))
    yield state
    await state.close()


async def test_lines_about_a_group_of_writes_name_its_requests(state: GraphState, lines: Lines) -> None:
    writes = [
        state.write([WriteRequest((PutUser("ada", {}),)), WriteRequest((PutUser("bob", {}),))], "r1,r2"),
        state.write([WriteRequest((PutUser("eve", {}),))], "r3"),
    ]
    await asyncio.gather(*writes)
    assert lines.of("a group of 3 writes") == ["r1,r2,r3"]


async def test_lines_of_the_writer_s_own_thread_name_them_too(state: GraphState, lines: Lines) -> None:
    def broken(_requests: Any) -> Any:
        logging.getLogger("deployments.graph_state").error("planning goes wrong")
        raise RuntimeError("a defect")

    state._writer.commit = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        await state.write([WriteRequest((PutUser("ada", {}),))], "r9")
    assert lines.of("planning goes wrong") == ["r9"]
    assert lines.of("could not be planned") == ["r9"]


async def test_the_actor_is_told_the_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Any, ...]] = []

    async def remember(_self: Any, *arguments: Any) -> list[Any]:
        told.append(arguments)
        return []

    monkeypatch.setattr(RemoteGraphState, "_call", remember)
    with about("r1,r2"):
        await RemoteGraphState().write([])
    assert told == [("write", [], "r1,r2")]


# ------------------------------------------------------------------------------------------------- slow calls


class Part:
    @noted
    async def quick(self) -> int:
        return 1

    @noted
    async def fails(self) -> int:
        raise ValueError("no")


async def test_calls_are_noted_from_the_limit_on_failures_too(lines: Lines) -> None:
    part = Part()
    with about("r1"):
        assert await part.quick() == 1
        with pytest.raises(ValueError, match="no"):
            await part.fails()
    assert lines.of("quick took") == ["r1"]
    assert lines.of("fails took") == ["r1"]
    slow_calls.configure(60.0)
    await part.quick()
    assert lines.of("quick took") == ["r1"], "the second was not slow"
