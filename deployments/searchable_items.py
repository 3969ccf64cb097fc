"""Items as a retriever searches them by text: titles, and vectors of every model that may be asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

import numpy as np

from deployments.messages import Float32, Int64
from deployments.text_models import ACTIVE, CANDIDATE, SCOPE, model_named
from graph.schema import ChangeSet, Item
from graph.view import GraphView
from models.text_search import SearchResult, TextQuery, TextSearch, TitleSearch

T = TypeVar("T")

_INLINE_TITLES = 5_000
"""Titles per batch (queries * items) that are cheaper to search at once than to hand to a thread."""

_SLICE = 1_024
"""Items per change of an index: for so long searches are kept out, and at most so long the GIL is held."""


@dataclass(frozen=True, slots=True, eq=False)
class Searched:
    results: list[SearchResult]  # one per query
    text_model: str | None  # whose vectors took part
    waiting: int  # items without a vector of it; while none took part, of the active model


class SearchableItems:
    """Follows a view that only `apply`'s caller changes; complete as soon as it is made.

    The vectors of the active model and of the candidate are held, so that neither ever lacks what the view
    has. Everything that takes long runs in threads. Changes always do, however small: a change waits for the
    searches under way, and the event loop must not wait with it. Calls of `apply` must not overlap.
    """

    def __init__(self, view: GraphView) -> None:
        self._view = view
        self._titles = TitleSearch()
        self._by_model: dict[str, TextSearch] = {}
        self._changing = False
        self._put_titles(view.items())
        self._follow_models(ChangeSet(0, view.version))

    @property
    def active(self) -> str | None:
        """Name of the text model that answers."""
        return model_named(self._view, ACTIVE)

    def num_without_vector(self, model: str | None = None) -> int:
        """Live items that a model, by default the active one, has no vector of."""
        index = self._by_model.get(model or self.active or "")
        # Between a commit and its end the index may hold items that the view has no more.
        return max(0, self._view.num_items - (0 if index is None else len(index)))

    async def search(
        self, queries: Sequence[TextQuery], vectors: Float32 | None, model: str | None
    ) -> Searched:
        """Search for queries, whose vectors [queries, d] under `model` are given apart.

        By title alone where there are none to compare those with.
        """
        index = None if vectors is None or model is None else self._by_model.get(model)
        if index is None or vectors is None or vectors.shape[1] != index.dim or not len(index):
            model, titles = None, self._titles
            waiting = self.num_without_vector()
            results = await self._run(len(queries), lambda: [titles.search(query) for query in queries])
        else:
            fused, waiting = index, self.num_without_vector(model)
            asked = [replace(query, vector=vectors[n]) for n, query in enumerate(queries)]
            results = await self._run(len(queries), lambda: fused.search_batch(asked))
        return Searched(results, model, waiting)

    async def similar(
        self, model: str, row: int, n: int, allowed: Int64 | None, exclude: Int64
    ) -> SearchResult | None:
        """The items closest to one by vectors of `model`; None if it has no vector."""
        index = self._by_model.get(model)
        if index is None:
            return None
        return await self._run(1, lambda: index.similar(row, n, allowed, exclude))

    async def apply(self, changes: ChangeSet) -> None:
        """Call after the view has applied the same changes, and change it no more until this returns."""
        if changes.items or changes.text_vectors or any(p.scope == SCOPE for p in changes.pointers):
            self._changing = True
            try:
                await asyncio.to_thread(self._apply, changes)
            finally:
                self._changing = False

    async def _run(self, num_queries: int, search: Callable[[], T]) -> T:
        # Where changes are under way, a search may have to wait for them.
        if not self._changing and num_queries * len(self._titles) <= _INLINE_TITLES:
            return search()
        return await asyncio.to_thread(search)

    # ------------------------------------------------------------------------------------------ in a thread

    def _apply(self, changes: ChangeSet) -> None:
        gone = np.array([item.row for item in changes.items if item.deleted], np.int64)
        if len(gone):
            self._titles.remove(gone)
            for index in self._by_model.values():
                index.remove_vectors(gone)
        self._put_titles(item for item in changes.items if not item.deleted)
        self._follow_models(changes)

    def _follow_models(self, changes: ChangeSet) -> None:
        named = (model_named(self._view, pointer) for pointer in (ACTIVE, CANDIDATE))
        wanted = {name for name in named if name}
        for name in set(self._by_model) - wanted:
            del self._by_model[name]
        for name in wanted:
            table, index = self._view.text_vectors("item", name), self._by_model.get(name)
            if index is not None and table.dim in (0, index.dim):
                rows = [v.row for v in changes.text_vectors if v.model == name and v.kind == "item"]
                self._put_vectors(index, name, np.array(rows, np.int64))
            elif len(table):
                # The first vectors, or others in place of all; searched from when all of them are in.
                index = TextSearch(table.dim, titles=self._titles)
                self._put_vectors(index, name, table.rows())
                self._by_model[name] = index

    def _put_titles(self, items: Iterator[Item]) -> None:
        while batch := list(islice(items, _SLICE)):
            self._titles.upsert(np.array([item.row for item in batch], np.int64), [i.title for i in batch])

    def _put_vectors(self, index: TextSearch, name: str, changed: Int64) -> None:
        """Make the index hold of the rows that changed what the view has."""
        table = self._view.text_vectors("item", name)
        for first in range(0, len(changed), _SLICE):
            rows = changed[first : first + _SLICE]
            vectors, present = table.get(rows)
            # A vector may be gone again within the same changes, or belong to an item that is.
            live = present & np.array(
                [self._view.item_at(row) is not None for row in rows.tolist()], np.bool_
            )
            if not live.all():
                index.remove_vectors(rows[~live])
            if live.any():
                index.upsert_vectors(rows[live], vectors[live])
