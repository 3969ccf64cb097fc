"""Items as a retriever searches them by text: one index for every text model that may be asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deployments.messages import Int64
from deployments.text_models import ACTIVE, CANDIDATE, model_named
from graph.schema import ChangeSet, Item
from graph.view import GraphView
from models.text_search import TextSearch

_WORDS_ALONE = ""


class SearchableItems:
    """Follows a view. The active model's index and the candidate's are held, so that neither ever lacks
    vectors that the view has; without any model there is one of words alone.
    """

    def __init__(self) -> None:
        self._view = GraphView()
        self._indexes: dict[str, TextSearch] = {}

    @property
    def active(self) -> str | None:
        """Name of the text model that answers."""
        return model_named(self._view, ACTIVE)

    def get(self, model: str | None) -> TextSearch | None:
        """The index of that model; None asks for words, which any index has."""
        return self._indexes.get(self.active or _WORDS_ALONE if model is None else model)

    def num_without_vector(self) -> int:
        """Live items that the active model has no vector of."""
        index = self.get(None)
        return self._view.num_items - (0 if index is None else len(index))

    def load(self, view: GraphView) -> None:
        self._view = view
        self._indexes = {}
        self._follow_models()

    def apply(self, changes: ChangeSet) -> None:
        """Call after the view has applied the same changes."""
        if any(pointer.scope == "text_model" for pointer in changes.pointers):
            self._follow_models()
        live = [item for item in changes.items if not item.deleted]
        gone = np.array([item.row for item in changes.items if item.deleted], np.int64)
        for name in list(self._indexes):
            index = self._fitting(name)
            if len(gone):
                index.remove(gone)
            self._put_titles(index, live)
            self._put_vectors(
                name, np.array([v.row for v in changes.text_vectors if v.model == name], np.int64)
            )

    def _follow_models(self) -> None:
        named = (model_named(self._view, pointer) for pointer in (ACTIVE, CANDIDATE))
        wanted = [name for name in named if name] or [_WORDS_ALONE]
        for name in set(self._indexes) - set(wanted):
            del self._indexes[name]
        for name in wanted:
            if name not in self._indexes:
                self._build(name)

    def _build(self, name: str) -> TextSearch:
        table = self._view.text_vectors("item", name)
        index = self._indexes[name] = TextSearch(max(1, table.dim))
        self._put_titles(index, list(self._view.items()))
        self._put_vectors(name, table.rows())
        return index

    def _fitting(self, name: str) -> TextSearch:
        """The index of a model, made anew once the length of the model's vectors is known."""
        index, dim = self._indexes[name], self._view.text_vectors("item", name).dim
        return index if dim in (0, index.dim) else self._build(name)

    def _put_vectors(self, name: str, rows: Int64) -> None:
        vectors, present = self._view.text_vectors("item", name).get(rows)
        # A vector may be gone again within the same changes, or belong to an item that is.
        live = present & np.array([self._view.item_at(row) is not None for row in rows.tolist()], np.bool_)
        if live.any():
            self._indexes[name].upsert_vectors(rows[live], vectors[live])

    @staticmethod
    def _put_titles(index: TextSearch, items: Sequence[Item]) -> None:
        if items:
            index.upsert_texts(
                np.array([item.row for item in items], np.int64), [item.title for item in items]
            )
