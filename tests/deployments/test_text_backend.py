"""The ingress' side of embeddings: what it makes of a text embedder that is slow, away, or defective."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.exceptions import RayTaskError

with warnings.catch_warnings():
    # Ray Serve 2.60 defines its schemas in a way that pydantic will no longer take some day.
    warnings.simplefilter("ignore")
    import deployments.ingress.optional_embeddings as optional_embeddings
    from deployments.ingress.handle_backend import HandleBackend, Parts
    from deployments.ingress.text_status import combined, degraded
from deployments.graph_state import GraphState
from deployments.messages import CacheInvalidation, EmbedAnswer, EmbedQuery, SearchAnswer, SearchQuery
from graph.errors import InvalidInput, TextTooLong, Unavailable
from graph.node_text import item_text, text_digest
from graph.schema import PutItem, PutMemory, WriteRequest
from tests.deployments.local_state import make_settings

MODEL = "m-0"


class Handle:
    """A deployment handle over an object, or over several replicas for `broadcast`."""

    def __init__(self, *replicas: Any) -> None:
        self.replicas = replicas

    def __getattr__(self, method: str) -> Any:
        class Method:
            remote = staticmethod(getattr(self.replicas[0], method))

        return Method

    def broadcast(self, method: str, *args: Any) -> Any:
        replicas = self.replicas

        class Response:
            async def results_async(self, *, timeout_s: float) -> list[Any]:
                return [await getattr(replica, method)(*args) for replica in replicas]

        return Response()


class Embedder:
    def __init__(self) -> None:
        self.asked: list[EmbedQuery] = []
        self.behaviour: Callable[[EmbedQuery], Awaitable[Any]] | None = None

    async def embed(self, query: EmbedQuery) -> Any:
        self.asked.append(query)
        if self.behaviour is not None:
            return await self.behaviour(query)
        vectors = np.array([[len(text), 1] for text in query.texts], np.float32)
        return EmbedAnswer(vectors, np.full(len(query.texts), 3, np.int32), 1, 0, "m", MODEL)

    async def invalidate(self, what: CacheInvalidation) -> int:
        return 3

    async def status(self) -> dict[str, Any]:
        return {"replica": "r", "failures": {}, "cache_degraded": None}


class Searcher:
    def __init__(self) -> None:
        self.asked: list[tuple[list[SearchQuery], Any, str | None]] = []

    async def search(self, queries: list[SearchQuery], vectors: Any, model: str | None) -> list[Any]:
        self.asked.append((queries, vectors, model))
        return [SearchAnswer((), 7, model, 0) for _ in queries]


class Ingress:
    def __init__(self, folder: Path) -> None:
        self.settings = make_settings(
            folder, text_embedder={"backend": "hashing", "model": "m", "write_wait_s": 0.05}
        )
        self.state = GraphState(self.settings)
        self.embedder, self.searcher = Embedder(), Searcher()
        unused = Handle(object())
        parts = Parts(unused, Handle(self.searcher), Handle(self.embedder), unused, unused)
        self.backend = HandleBackend(self.settings, parts, _Remote(self.state), self.state.store_id)

    async def put(self, item_id: str, title: str = "A film", tags: tuple[str, ...] = ()) -> Any:
        return await self.backend.write(WriteRequest((PutItem(item_id, title, tags),)))

    def vector(self, item_id: str) -> Any:
        view = self.state._writer.view
        return view.text_vectors("item", MODEL).vector(view.item(item_id).row)


class _Remote:
    def __init__(self, state: GraphState) -> None:
        self.state = state

    async def write_through_restarts(self, requests: list[WriteRequest], timeout_s: float) -> list[Any]:
        return await self.state.write(requests)


@pytest.fixture
async def ingress(tmp_path: Path) -> Any:
    made = Ingress(tmp_path)
    yield made
    await made.state.close()


async def hang(query: EmbedQuery) -> Any:
    await asyncio.sleep(60)


async def be_away(query: EmbedQuery) -> Any:
    return Unavailable("restarting")


async def crash(query: EmbedQuery) -> Any:
    raise RayTaskError("embed", "traceback", ValueError("a defect"))


async def refuse(query: EmbedQuery) -> Any:
    return InvalidInput("not these")


async def overflow(query: EmbedQuery) -> Any:
    vectors = np.full((len(query.texts), 2), 1e30, np.float32)
    return EmbedAnswer(vectors, np.zeros(len(query.texts), np.int32), 0, 0, "m", MODEL)


# --------------------------------------------------------------------------------------------------- writing


async def test_an_item_and_its_vector_are_one_version(ingress: Ingress) -> None:
    before = ingress.state._head
    result = await ingress.put("a", "A film", ("x", "y", "x"))
    assert (result.version, result.changed) == (before + 1, 1)
    assert ingress.state._head == before + 1
    text = item_text(ingress.state._writer.view.item("a"))
    np.testing.assert_array_equal(ingress.vector("a"), [len(text), 1])


@pytest.mark.parametrize("behaviour", [hang, be_away, crash, refuse, overflow])
async def test_no_failure_of_the_embedder_fails_a_write(
    ingress: Ingress, behaviour: Callable[[EmbedQuery], Awaitable[Any]]
) -> None:
    ingress.embedder.behaviour = behaviour
    result = await asyncio.wait_for(ingress.put("a"), 2)
    assert result.changed == 1
    assert ingress.vector("a") is None


async def test_after_a_failure_writes_do_not_wait_for_a_while(
    ingress: Ingress, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingress.embedder.behaviour = be_away
    await ingress.put("a")
    await ingress.put("b")
    assert len(ingress.embedder.asked) == 1
    monkeypatch.setattr(optional_embeddings, "_PAUSE_S", 0.0)
    ingress.backend._write_vectors._embeddings._paused_until = 0.0
    await ingress.put("c")
    ingress.embedder.behaviour = None
    await ingress.put("d")
    assert len(ingress.embedder.asked) == 3
    assert ingress.vector("d") is not None


async def test_refused_texts_do_not_keep_others_from_their_vectors(ingress: Ingress) -> None:
    ingress.embedder.behaviour = refuse
    await ingress.put("a")
    ingress.embedder.behaviour = None
    await ingress.put("b")
    assert ingress.vector("b") is not None


async def test_a_memory_has_its_vector_in_the_version_of_its_write(ingress: Ingress) -> None:
    before = ingress.state._head
    put = PutMemory("m", "ann", "I weave at night")
    result = await ingress.backend.write(WriteRequest((put, PutItem("a", "A film"))))
    assert result.version == before + 1 == ingress.state._head
    view = ingress.state._writer.view
    memory = view.find_memory("m")
    assert memory is not None
    vectors = view.text_vectors("memory", MODEL)
    np.testing.assert_array_equal(vectors.vector(memory.row), [len(put.text), 1])
    assert vectors.digest(memory.row) == text_digest(put.text)
    assert ingress.vector("a") is not None  # asked for together
    assert [len(query.texts) for query in ingress.embedder.asked] == [2]


@pytest.mark.parametrize("behaviour", [hang, be_away, crash, refuse, overflow])
async def test_no_failure_of_the_embedder_fails_the_write_of_a_memory(
    ingress: Ingress, behaviour: Callable[[EmbedQuery], Awaitable[Any]]
) -> None:
    ingress.embedder.behaviour = behaviour
    write = ingress.backend.write(WriteRequest((PutMemory("m", "ann", "a fact"),)))
    assert (await asyncio.wait_for(write, 2)).changed > 0
    assert len(ingress.state._writer.view.text_vectors("memory", MODEL)) == 0


async def test_many_memories_do_not_wait(ingress: Ingress) -> None:
    puts = tuple(PutMemory(f"m{n}", "ann", "a fact") for n in range(33))
    await ingress.backend.write(WriteRequest(puts))
    assert ingress.embedder.asked == []


async def test_many_items_do_not_wait(ingress: Ingress) -> None:
    puts = tuple(PutItem(f"i{n}", "A film") for n in range(33))
    await ingress.backend.write(WriteRequest(puts))
    assert ingress.embedder.asked == []


# ------------------------------------------------------------------------------------------------- searching


@pytest.mark.parametrize("behaviour", [be_away, crash, refuse])
async def test_a_search_goes_by_words_where_there_are_no_vectors(
    ingress: Ingress, behaviour: Callable[[EmbedQuery], Awaitable[Any]]
) -> None:
    ingress.embedder.behaviour = behaviour
    answer = await ingress.backend.search(SearchQuery("film"))
    assert answer.text_model is None
    ((_, vectors, model),) = ingress.searcher.asked
    assert (vectors, model) == (None, None)


async def test_searches_that_wait_together_are_embedded_together(ingress: Ingress) -> None:
    await asyncio.gather(*(ingress.backend.search(SearchQuery(f"film {n}")) for n in range(10)))
    assert sum(len(queries) for queries, _, _ in ingress.searcher.asked) == 10
    assert len(ingress.searcher.asked) < 10
    for queries, vectors, model in ingress.searcher.asked:
        np.testing.assert_array_equal(vectors[:, 0], [len(query.text) for query in queries])
        assert model == MODEL


async def test_a_write_that_gave_up_does_not_keep_searches_from_their_vectors(ingress: Ingress) -> None:
    ingress.embedder.behaviour = hang
    await ingress.put("a")
    ingress.embedder.behaviour = None
    assert (await ingress.backend.search(SearchQuery("film"))).text_model == MODEL


# ------------------------------------------------------------------------------------------------- embedding


async def test_many_texts_go_in_pieces_and_come_back_in_order(ingress: Ingress) -> None:
    texts = tuple("x" * (n % 50) for n in range(600))
    answer = await ingress.backend.embed(EmbedQuery(texts))
    assert [len(query.texts) for query in ingress.embedder.asked] == [192, 192, 192, 24]
    np.testing.assert_array_equal(answer.vectors[:, 0], [len(text) for text in texts])
    assert answer.tokens.tolist() == [3] * 600
    assert (answer.hits, answer.truncated) == (4, 0)


async def test_a_text_that_is_too_long_is_named_by_its_place_in_the_request(ingress: Ingress) -> None:
    async def too_long(query: EmbedQuery) -> Any:
        if "long" in query.texts:
            place = query.texts.index("long")
            return TextTooLong(f"text {place} has 300 tokens, the window is 256", param=f"texts[{place}]")
        return await Embedder().embed(query)

    ingress.embedder.behaviour = too_long
    texts = ("short",) * 500 + ("long",)
    with pytest.raises(TextTooLong) as caught:
        await ingress.backend.embed(EmbedQuery(texts, truncate=False))
    assert caught.value.param == "input[500]"
    assert caught.value.message.startswith("text 500 has 300 tokens")


async def test_dropped_entries_are_counted_once_however_many_replicas(ingress: Ingress) -> None:
    handle = Handle(Embedder(), Embedder())
    ingress.backend._embedder = handle
    assert await ingress.backend.invalidate_cache(CacheInvalidation(everything=True)) == 3


# ------------------------------------------------------------------------------------------------ operations


def test_counts_of_the_replicas_are_added_up() -> None:
    names = ("hits", "memory_hits", "store_hits", "coalesced", "misses", "encoded", "damaged")
    rest = ("store_errors", "writes_dropped", "memory_entries", "memory_bytes")
    one: dict[str, Any] = {name: 1 for name in (*names, *rest)} | {"lookups": 4, "store": None, "ttl_s": 9.0}
    store = {"kind": "redis"}
    replicas = [{"models": {"a": one, "b": one}}, {"models": {"a": one | {"store": store}}}]
    found = combined(replicas)
    assert (found["lookups"], found["hits"], found["hit_rate"]) == (12, 3, 0.25)
    assert (found["ttl_s"], found["store"]) == (9.0, store)


@pytest.mark.parametrize(
    ("embedder", "indexer", "expected"),
    [
        ({"failures": {}, "cache_degraded": None}, {"waiting": 0}, set()),
        ({"failures": {}, "cache_degraded": "no Redis"}, {"waiting": 0}, {"cache"}),
        (
            {"failures": {"": "no model"}, "cache_degraded": None},
            {"waiting": 2},
            {"text_embedder", "text_vectors"},
        ),
        ({"error": "no answer"}, {"error": "no answer"}, {"text_embedder", "text_indexer"}),
        ({"failures": {}}, {"waiting": 0, "refused": 2}, {"refused_texts"}),
        ({"failures": {}}, {"waiting": 0, "failure": "replicas differ"}, {"text_vectors"}),
    ],
)
def test_what_works_less_well_is_said(
    embedder: dict[str, Any], indexer: dict[str, Any], expected: set[str]
) -> None:
    assert set(degraded({"text_embedder": embedder, "text_indexer": indexer})) == expected
