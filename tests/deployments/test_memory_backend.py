"""The ingress' side of memories and context: what it makes of parts that lag, are slow, or are away."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

with warnings.catch_warnings():
    # Ray Serve 2.60 defines its schemas in a way that pydantic will no longer take some day.
    warnings.simplefilter("ignore")
    from deployments.ingress.handle_backend import HandleBackend, Parts
from deployments.graph_encoder import GraphEncoder
from deployments.graph_state import GraphState
from deployments.memory_messages import MemoryQuery
from deployments.messages import (
    EmbedAnswer,
    EmbedQuery,
    Reason,
    RecommendAnswer,
    Recommendation,
    RecommendQuery,
)
from graph.context import ContextQuery
from graph.errors import NotYet, Unavailable, UnknownItem, UnknownMemory, UnknownUser, WeftError
from graph.schema import PutItem, PutMemory, PutRating, WriteRequest
from tests.deployments.local_state import make_settings, until
from tests.deployments.test_text_backend import MODEL, Embedder, Handle, _Remote, be_away, crash, hang

IN_A_HURRY = {"timeout_s": 0.1, "suggestions": 2}


class Recommender:
    """Recommends items i5, i4, ... because of i0, or the candidates it is given."""

    def __init__(self) -> None:
        self.asked: list[RecommendQuery] = []
        self.failure: WeftError | None = None
        self.hangs = False

    async def recommend(self, queries: list[RecommendQuery]) -> list[Any]:
        self.asked += queries
        if self.hangs:
            await asyncio.sleep(60)
        if self.failure is not None:
            return [self.failure for _ in queries]
        return [self._answer(query) for query in queries]

    def _answer(self, query: RecommendQuery) -> RecommendAnswer:
        ids = [f"i{n}" for n in range(5, -1, -1)] if query.candidates is None else list(query.candidates)
        found = [
            Recommendation(i, f"Film {i[1:]}", 1.0, (Reason("i0", "Film 0", 0.5),))
            for i in ids
            if not (query.exclude_seen and i in ("i0", "i1"))
        ]
        return RecommendAnswer(query.user_id, tuple(found[: query.n]), "personal", 1, 1, "e")


class Ingress:
    """A backend over a real state and graph encoder, and over fakes of what a context can do without."""

    def __init__(self, folder: Path, **groups: Any) -> None:
        self.settings = make_settings(
            folder,
            **{"context": {"timeout_s": 20, "suggestions": 2}, "ingress": {"min_version_timeout_s": 5}}
            | groups,
        )
        self.state = GraphState(self.settings)
        self.encoder = GraphEncoder(self.settings, self.state)
        self.embedder, self.recommender = Embedder(), Recommender()
        unused = Handle(object())
        parts = Parts(Handle(self.encoder), Handle(self.recommender), Handle(self.embedder), unused, unused)
        self.backend = HandleBackend(self.settings, parts, _Remote(self.state), self.state.store_id)  # type: ignore[arg-type]

    async def start(self) -> None:
        await self.encoder.start()
        await self.backend.write(
            WriteRequest(
                (
                    *(PutItem(f"i{n}", f"Film {n}") for n in range(6)),
                    PutRating("ann", "i0", 5.0),
                    PutRating("ann", "i1", 1.0),
                    PutMemory("a1", "ann", "horror is nothing for me"),
                    PutMemory("b1", "bob", "horror is all I want"),
                )
            )
        )

    async def close(self) -> None:
        await self.encoder.stop()
        await self.state.close()

    async def asked_for(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> ContextQuery:
        """What the encoder is asked when the backend is asked for context lines."""
        seen: list[ContextQuery] = []
        answer = self.encoder.context

        async def watch(query: ContextQuery, min_version: int) -> Any:
            seen.append(query)
            return await answer(query, min_version)

        monkeypatch.setattr(self.encoder, "context", watch)
        await self.backend.context_lines(**{"user_id": "ann", "query": "q", "min_version": 0} | options)
        return seen[-1]


@pytest.fixture
async def ingress(tmp_path: Path) -> AsyncIterator[Ingress]:
    made = Ingress(tmp_path)
    await made.start()
    yield made
    await made.close()


@pytest.fixture
async def hurried(tmp_path: Path) -> AsyncIterator[Ingress]:
    """One that waits for nobody for long."""
    made = Ingress(tmp_path, context=IN_A_HURRY)
    await made.start()
    yield made
    await made.close()


def sources(found: Any, kind: str) -> list[str]:
    return [line.source_id for line in found.lines if line.kind == kind]


# ------------------------------------------------------------------------------------------------- memories


async def test_a_memory_is_there_and_found_by_its_vector_in_the_version_of_its_write(
    ingress: Ingress,
) -> None:
    """Reads wait for the version; the vector came with the write."""
    text = "I weave at night"
    # The fake gives texts of one length the same vector.
    for n in range(5):
        written = await ingress.backend.write(WriteRequest((PutMemory(f"n{n}", "new", text + "!" * n),)))
        record = await ingress.backend.memory("new", f"n{n}", written.version)
        assert (record.memory.text, record.version) == (text + "!" * n, written.version)
        page = await ingress.backend.memories("new", 10, None, written.version)
        assert len(page.records) == n + 1
        query = MemoryQuery("new", "?" * len(text + "!" * n), 1, min_version=written.version)
        found = await ingress.backend.search_memories(query)
        assert [f.record.memory.memory_id for f in found.found] == [f"n{n}"] or n == 0
        assert (found.text_model, found.version) == (MODEL, written.version)
        graph = await ingress.backend.user_graph("new", 2, 10, written.version)
        assert len(graph.graph.nodes) == n + 2


async def test_reads_of_a_version_that_does_not_come_end(tmp_path: Path) -> None:
    ingress = Ingress(tmp_path, ingress={"min_version_timeout_s": 0.05})
    await ingress.start()
    ahead = ingress.state._head + 1
    for read in (
        ingress.backend.memory("ann", "a1", ahead),
        ingress.backend.memories("ann", 1, None, ahead),
        ingress.backend.search_memories(MemoryQuery("ann", "x", min_version=ahead)),
        ingress.backend.user_graph("ann", 1, 1, ahead),
        ingress.backend.context_lines("ann", "", ahead),
    ):
        with pytest.raises(NotYet):
            await read
    await ingress.close()


async def test_errors_of_the_encoder_are_raised(ingress: Ingress) -> None:
    with pytest.raises(UnknownMemory):
        await ingress.backend.memory("ann", "b1", 0)
    for read in (
        ingress.backend.memories("nobody", 1, None, 0),
        ingress.backend.search_memories(MemoryQuery("nobody", "x")),
        ingress.backend.user_graph("nobody", 1, 1, 0),
        ingress.backend.context_lines("nobody", "x", 0),
    ):
        with pytest.raises(UnknownUser):
            await read


@pytest.mark.parametrize("behaviour", [hang, be_away, crash])
async def test_a_search_goes_by_words_where_there_is_no_vector_in_time(
    hurried: Ingress, behaviour: Callable[..., Any]
) -> None:
    hurried.embedder.behaviour = behaviour
    async with asyncio.timeout(5):
        found = await hurried.backend.search_memories(MemoryQuery("ann", "horror"))
    assert [f.record.memory.memory_id for f in found.found] == ["a1"]
    assert found.text_model is None
    # A question that had to wait in vain keeps neither searches of items nor writes from their vectors.
    hurried.embedder.behaviour = None
    assert hurried.backend._embeddings._paused_until == 0.0
    before = len(hurried.embedder.asked)
    await hurried.backend.search_memories(MemoryQuery("ann", "horror"))
    assert len(hurried.embedder.asked) == before  # it pauses for itself


async def test_a_vector_that_is_given_is_taken(ingress: Ingress) -> None:
    before = len(ingress.embedder.asked)
    vector = np.array([24.0, 1.0], np.float32)
    found = await ingress.backend.search_memories(MemoryQuery("ann", "zzz", vector=vector, text_model=MODEL))
    assert (found.text_model, len(found.found)) == (MODEL, 1)
    assert len(ingress.embedder.asked) == before


# -------------------------------------------------------------------------------------------------- context


async def test_a_context_has_memories_ratings_and_suggestions(ingress: Ingress) -> None:
    head = ingress.state._head
    found = await ingress.backend.context_lines("ann", "what of horror?", head)
    assert (found.missing, found.version) == ((), head)
    assert (sources(found, "said"), sources(found, "liked")) == (["a1"], ["i0"])
    assert sorted(sources(found, "suggested")) == ["i4", "i5"]
    (suggestion,) = [line for line in found.lines if line.source_id == "i5"]
    assert suggestion.text == "Film 5, because of Film 0"
    (query,) = ingress.recommender.asked
    assert (query.user_id, query.n, query.min_version) == ("ann", 2, head)
    prompt = ingress.settings.text_embedder.query_prompt
    assert (ingress.embedder.asked[-1].texts, ingress.embedder.asked[-1].prompt) == (
        ("what of horror?",),
        prompt,
    )


async def test_what_the_encoder_is_asked(ingress: Ingress, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = await ingress.asked_for(monkeypatch, query="four", explain_item="i1")
    np.testing.assert_array_equal(asked.vector, [4, 1])  # type: ignore[arg-type]
    assert (asked.user_id, asked.query, asked.text_model) == ("ann", "four", MODEL)
    assert [s.item_id for s in asked.suggestions] == ["i1", "i5", "i4"]
    assert asked.must == ("i1",)
    assert asked.max_lines == ingress.settings.context.max_lines


async def test_an_item_to_explain_comes_with_its_reasons_also_when_it_is_rated(ingress: Ingress) -> None:
    found = await ingress.backend.context_lines("ann", "why?", 0, explain_item="i1")
    first = found.lines[0]
    assert (first.kind, first.source_id, first.text) == ("suggested", "i1", "Film 1, because of Film 0")
    (of_item,) = [q for q in ingress.recommender.asked if q.candidates]
    assert (of_item.candidates, of_item.exclude_seen, of_item.n) == (("i1",), False, 1)
    again = await ingress.backend.context_lines("ann", "why?", 0, explain_item="i5")
    assert sources(again, "suggested").count("i5") == 1


async def test_an_item_that_does_not_exist_cannot_be_explained(ingress: Ingress) -> None:
    ingress.recommender.failure = Unavailable("restarting")
    with pytest.raises(UnknownItem):
        await ingress.backend.context_lines("ann", "why?", 0, explain_item="i77")


@pytest.mark.parametrize("how", ["refused", "hanging"])
async def test_without_recommendations_the_rest_is_there(hurried: Ingress, how: str) -> None:
    hurried.recommender.hangs = how == "hanging"
    hurried.recommender.failure = Unavailable("restarting")
    async with asyncio.timeout(5):
        found = await hurried.backend.context_lines("ann", "horror", 0)
    assert found.missing == ("suggestions",)
    assert sources(found, "said") == ["a1"]
    assert sources(found, "suggested") == []
    explained = await hurried.backend.context_lines("ann", "horror", 0, explain_item="i3")
    assert explained.missing == ("suggestions",)
    assert (explained.lines[0].source_id, explained.lines[0].text) == ("i3", "Film 3")


@pytest.mark.parametrize("behaviour", [hang, be_away, crash])
async def test_without_the_embedder_words_decide(hurried: Ingress, behaviour: Callable[..., Any]) -> None:
    hurried.embedder.behaviour = behaviour
    async with asyncio.timeout(5):
        found = await hurried.backend.context_lines("ann", "horror", 0)
    assert found.missing == ("similarity",)
    assert sources(found, "said") == ["a1"]
    hurried.recommender.failure = Unavailable("restarting")
    both = await hurried.backend.context_lines("ann", "horror", 0)
    assert set(both.missing) == {"similarity", "suggestions"}


async def test_embedder_and_recommendations_are_waited_for_together(ingress: Ingress) -> None:
    begun: set[str] = set()

    async def meet(name: str, others: set[str]) -> None:
        begun.add(name)
        await until(lambda: begun >= others)

    async def embed(query: EmbedQuery) -> Any:
        await meet("embedder", {"recommender"})
        return EmbedAnswer(np.ones((1, 2), np.float32), np.ones(1, np.int32), 0, 0, "m", MODEL)

    recommend = ingress.recommender.recommend

    async def recommend_when_met(queries: list[RecommendQuery]) -> list[Any]:
        await meet("recommender", {"embedder"})
        assert [query.candidates for query in queries] == [None, ("i3",)]  # in one call
        return await recommend(queries)

    ingress.embedder.behaviour = embed
    ingress.recommender.recommend = recommend_when_met  # type: ignore[method-assign]
    found = await ingress.backend.context_lines("ann", "horror", 0, explain_item="i3")
    assert found.missing == ()


async def test_without_a_question_nothing_is_embedded_and_nothing_missing(ingress: Ingress) -> None:
    before = len(ingress.embedder.asked)
    found = await ingress.backend.context_lines("ann", "  ", 0)
    assert (found.missing, len(ingress.embedder.asked)) == ((), before)
    assert sources(found, "said") == ["a1"]


async def test_without_suggestions_nobody_is_asked_for_them(tmp_path: Path) -> None:
    ingress = Ingress(tmp_path, context={"suggestions": 0})
    await ingress.start()
    found = await ingress.backend.context_lines("ann", "horror", 0)
    assert (found.missing, sources(found, "suggested"), ingress.recommender.asked) == ((), [], [])
    found = await ingress.backend.context_lines("ann", "horror", 0, explain_item="i3")
    assert sources(found, "suggested") == ["i3"]
    assert len(ingress.recommender.asked) == 1
    await ingress.close()


async def test_a_fact_is_in_the_context_of_the_version_that_wrote_it_and_of_nobody_else(
    ingress: Ingress,
) -> None:
    for n in range(5):
        written = await ingress.backend.write(WriteRequest((PutMemory(f"n{n}", "new", f"fact {n}"),)))
        found = await ingress.backend.context_lines("new", "which fact?", written.version)
        assert f"n{n}" in sources(found, "said")
    bobs = await ingress.backend.context_lines("bob", "which fact about horror?", ingress.state._head)
    assert sources(bobs, "said") == ["b1"]
