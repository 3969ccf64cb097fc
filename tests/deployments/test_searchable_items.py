"""Searchable items against ones made anew from the view, and what runs on the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import deployments.searchable_items as searchable_module
from deployments.searchable_items import SearchableItems
from deployments.text_models import ACTIVE, CANDIDATE, SCOPE
from graph.schema import ChangeSet, Item, Pointer, TextVector
from graph.text_vectors import packed
from graph.view import GraphView
from models.text_search import TextQuery, TextSearch, TitleSearch
from models.trigram_index import TrigramIndex
from tests.deployments.local_state import until

WORDS = ["alien", "heat", "matrix", "toy", "story", "up"]
DIGEST = "0" * 32


class Graph:
    """A view, and the changes that brought it there."""

    def __init__(self, count: int = 0, **models: int) -> None:
        """`count` items; for every name in `models`, vectors of that length."""
        self.view = GraphView("s")
        self.rng = np.random.default_rng(0)
        self.change(
            items=[self.item(row) for row in range(count)],
            pointers=[
                self.pointer(role, name) for role, name in zip((ACTIVE, CANDIDATE), models, strict=False)
            ],
            text_vectors=[
                self.vector(row, name, dim) for name, dim in models.items() for row in range(count)
            ],
        )

    def change(self, **changes: Any) -> ChangeSet:
        made = ChangeSet(self.view.version, self.view.version + 1, **changes)
        self.view.apply(made)
        return made

    def item(self, row: int, deleted: bool = False) -> Item:
        title = " ".join(self.rng.choice(WORDS, 2))
        return Item(row, f"i{row}", title, (), 2000, "", self.view.version + 1, deleted=deleted)

    def vector(self, row: int, model: str, dim: int, deleted: bool = False) -> TextVector:
        vector = self.rng.standard_normal(dim).astype(np.float32)
        return TextVector("item", row, model, DIGEST, packed(vector), self.view.version + 1, deleted=deleted)

    def pointer(self, role: str, name: str | None) -> Pointer:
        return Pointer(SCOPE, role, {"name": name}, self.view.version + 1)


@pytest.fixture(params=["inline", "thread"])
def anywhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pieces, so that there are several; searches on the loop or off it."""
    monkeypatch.setattr(searchable_module, "_SLICE", 7)
    monkeypatch.setattr(searchable_module, "_INLINE_TITLES", 10**6 if request.param == "inline" else 0)


@contextmanager
def held(
    monkeypatch: pytest.MonkeyPatch, owner: type, method: str, after: int = 0
) -> Iterator[Callable[[], int]]:
    """Calls of a method, `after` so many, wait until the end of the block; gives how many have begun."""
    gate, begun = threading.Event(), []
    before = getattr(owner, method)

    def waiting(self: Any, *arguments: Any) -> Any:
        begun.append(threading.get_ident())
        assert threading.get_ident() != threading.main_thread().ident, "the event loop would stand still"
        assert len(begun) <= after or gate.wait(30)
        return before(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, waiting)
        try:
            yield lambda: len(begun)
        finally:
            gate.set()


async def answers(items: SearchableItems, queries: dict[str, np.ndarray]) -> list[Any]:
    """Everything that searches say, by words and by each model's vectors."""
    texts = [TextQuery(text, 50) for text in ("alien heat", "toy stroy", "nothing")]
    found = []
    for model, vectors in [(None, None), *queries.items()]:
        searched = await items.search(texts, vectors, model)
        results = [(r.rows.tolist(), r.scores.round(4).tolist()) for r in searched.results]
        found.append((searched.text_model, searched.waiting, results))
        if model is not None:
            for row in range(0, 60, 7):
                similar = await items.similar(model, row, 5, None, np.empty(0, np.int64))
                found.append(None if similar is None else similar.rows.tolist())
    return found


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("seed", range(5))
async def test_what_is_followed_equals_what_is_made_anew(seed: int) -> None:
    graph = Graph(20, a=4)
    rng = graph.rng = np.random.default_rng(seed)
    items = SearchableItems(graph.view)
    dims = {"a": 4, "b": 6, "c": 8}
    queries = {name: rng.standard_normal((3, dim)).astype(np.float32) for name, dim in dims.items()}
    for _ in range(30):
        rows = np.unique(rng.integers(60, size=rng.integers(1, 25))).tolist()
        live = {item.row for item in graph.view.items()}
        name = str(rng.choice(list(dims)))
        what = rng.integers(5)
        if what == 0:
            changes = graph.change(items=[graph.item(row) for row in rows])
        elif what == 1:
            gone = [row for row in rows if row in live]
            had = [(n, r) for n in dims for r in gone if r in graph.view.text_vectors("item", n)]
            changes = graph.change(
                items=[graph.item(row, deleted=True) for row in gone],
                text_vectors=[graph.vector(row, n, dims[n], deleted=True) for n, row in had],
            )
        elif what == 2:
            held = [row for row in rows if row in live]
            changes = graph.change(text_vectors=[graph.vector(row, name, dims[name]) for row in held])
        elif what == 3:
            table = graph.view.text_vectors("item", name)
            held = [row for row in (table.rows().tolist() if rng.integers(2) else rows) if row in table]
            changes = graph.change(text_vectors=[graph.vector(row, name, 1, deleted=True) for row in held])
        else:
            role = str(rng.choice([ACTIVE, CANDIDATE]))
            changes = graph.change(pointers=[graph.pointer(role, None if rng.integers(4) == 0 else name)])
        await items.apply(changes)
        assert await answers(items, queries) == await answers(SearchableItems(graph.view), queries)


@pytest.mark.usefixtures("anywhere")
async def test_vectors_of_another_length_replace_those_before() -> None:
    graph = Graph(10, a=4)
    items = SearchableItems(graph.view)
    await items.apply(
        graph.change(text_vectors=[graph.vector(row, "a", 4, deleted=True) for row in range(10)])
    )
    query = np.ones((1, 6), np.float32)
    assert (await items.search([TextQuery("alien", 5)], query[:, :4], "a")).text_model is None
    await items.apply(graph.change(text_vectors=[graph.vector(row, "a", 6) for row in range(9)]))
    searched = await items.search([TextQuery("nothing", 50)], query, "a")
    assert (searched.text_model, searched.waiting, len(searched.results[0])) == ("a", 1, 9)
    assert (await items.search([TextQuery("alien", 5)], query[:, :4], "a")).text_model is None


async def test_titles_are_indexed_once_whatever_models_come(monkeypatch: pytest.MonkeyPatch) -> None:
    indexed: list[int] = []
    upsert = TrigramIndex.upsert

    def counted(self: TrigramIndex, rows: Any, texts: Any) -> None:
        indexed.extend(rows.tolist())
        upsert(self, rows, texts)

    monkeypatch.setattr(TrigramIndex, "upsert", counted)
    graph = Graph(10, a=4)
    items = SearchableItems(graph.view)
    await items.apply(graph.change(pointers=[graph.pointer(CANDIDATE, "b")]))
    await items.apply(graph.change(text_vectors=[graph.vector(row, "b", 8) for row in range(10)]))
    await items.apply(graph.change(pointers=[graph.pointer(ACTIVE, "b"), graph.pointer(CANDIDATE, None)]))
    assert sorted(indexed) == list(range(10))
    await items.apply(graph.change(items=[graph.item(3)]))
    assert len(indexed) == 11


async def test_changes_wait_for_searches_and_the_loop_for_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searchable_module, "_INLINE_TITLES", 0)
    graph = Graph(10, a=4)
    items = SearchableItems(graph.view)
    with held(monkeypatch, TrigramIndex, "scores") as searching:
        first = asyncio.create_task(items.search([TextQuery("alien", 5)], None, None))
        await until(lambda: searching() == 1)
        changed = Item(10, "i10", "zzzz", (), 2000, "", 9)
        changing = asyncio.create_task(items.apply(graph.change(items=[changed])))
        lock = items._titles._lock
        await until(lambda: lock._writers_waiting == 1)
        # However small, a search does not go onto the loop now: it would wait there for the change.
        monkeypatch.setattr(searchable_module, "_INLINE_TITLES", 10**6)
        second = asyncio.create_task(items.search([TextQuery("zzzz", 5)], None, None))
        await asyncio.sleep(0)
        assert not (first.done() or changing.done() or second.done())
    await first
    await changing
    assert (await second).results[0].rows.tolist() == [10]
    assert not items._changing


async def test_a_model_is_searched_when_all_its_vectors_are_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searchable_module, "_SLICE", 4)
    graph = Graph(10, a=4)
    items = SearchableItems(graph.view)
    graph.change(text_vectors=[graph.vector(row, "b", 6) for row in range(10)])
    asked = [TextQuery("nothing", 50)], np.ones((1, 6), np.float32), "b"
    with held(monkeypatch, TextSearch, "upsert_vectors", after=1) as filling:
        changing = asyncio.create_task(
            items.apply(graph.change(pointers=[graph.pointer(ACTIVE, "b"), graph.pointer(CANDIDATE, "a")]))
        )
        await until(lambda: filling() == 2)
        searched = await items.search(*asked)
        assert (searched.text_model, searched.waiting) == (None, 10)
        # The titles are nobody's alone: they answer meanwhile, and so does the other model.
        assert (await items.search([TextQuery("x", 5)], np.ones((1, 4), np.float32), "a")).waiting == 0
        assert len((await items.search([TextQuery("alien", 50)], None, None)).results[0])
    await changing
    searched = await items.search(*asked)
    assert (searched.text_model, searched.waiting, len(searched.results[0])) == ("b", 0, 10)


async def test_changes_without_texts_need_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Graph(3)
    items = SearchableItems(graph.view)
    with held(monkeypatch, SearchableItems, "_apply") as applying:
        await items.apply(graph.change())
        await items.apply(graph.change(pointers=[Pointer("encoder", "active", {"digest": "x"}, 2)]))
        assert applying() == 0


async def test_much_work_leaves_the_loop_and_little_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    scores = TitleSearch.scores

    def recorded(self: TitleSearch, text: str) -> Any:
        threads.append(threading.get_ident())
        return scores(self, text)

    monkeypatch.setattr(TitleSearch, "scores", recorded)
    items = SearchableItems(Graph(20, a=4).view)
    monkeypatch.setattr(searchable_module, "_INLINE_TITLES", 40)
    for count, inline in ((2, True), (3, False)):
        for vectors, model in ((None, None), (np.ones((count, 4), np.float32), "a")):
            threads.clear()
            await items.search([TextQuery("alien", 5)] * count, vectors, model)
            assert len(threads) == count
            assert {thread == threading.get_ident() for thread in threads} == {inline}
