"""Items as lines of context: what a user liked and disliked, what is beside it, what to suggest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from graph.context_lines import ContextLine, LineKind, because_of, shortened
from graph.context_order import Candidates
from graph.memory_search import base_of, cosines, usable_table
from graph.neighbours import LIKED_FROM, neighbours
from graph.schema import RATING_HIGH, RATING_LOW, Item
from graph.view import GraphView
from graph.words import Wording

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

DISLIKED_UP_TO = 2.0
"""A rating up to here says: disliked; between it and LIKED_FROM, nothing worth a line."""
MAX_RATINGS_READ = 2_000
"""Of what was liked and disliked, so many are looked at: the latest."""
NAMED_FROM = 0.75
"""A title that the question names so surely is in question, whatever else is asked."""
ANCHORS = 12
"""Liked items whose neighbours are looked for."""
RELATED = 6
"""More would crowd out what the user said: neighbours are many."""
RECENT = 8
"""So many ratings back, recency counts half."""
MAX_REASON_CHARS = 100


class Question:
    """A question, and how close texts and items are to it."""

    def __init__(self, text: str, vector: Float32 | None, model: str | None) -> None:
        self.asked = bool(text)
        self.wording = Wording(text)
        self.vector, self.model = vector, model

    def relevance(self, view: GraphView, items: Sequence[Item], *, by_vector: int | None = None) -> Float64:
        """Of items [n], float64 [n] in [0, 1]: by title and tags and, of the first `by_vector`, by vector."""
        if not self.asked or not items:
            return np.zeros(len(items))
        details = [" ".join(i.tags) if i.year is None else f"{' '.join(i.tags)} {i.year}" for i in items]
        named, words = self.wording.of_titles([item.title for item in items], details)
        found = np.maximum(np.where(named >= NAMED_FROM, named, 0), words).astype(np.float64)
        table = usable_table(view, "item", self.model, self.vector)
        if table is not None and self.vector is not None:
            rows = np.array([item.row for item in items[:by_vector]], np.int64)
            scores, present = cosines(table, rows, self.vector)
            base = base_of(scores[present])
            near = np.clip((scores - base) / max(1 - base, 1e-6), 0, 1)
            found[: len(near)] = np.maximum(found[: len(near)], near)
        return found


class OwnItems:
    """The items of a user's ratings, the latest first, and others besides.

    `suggested` items count by vector too; `about` is what the user's memories are related to.
    """

    def __init__(
        self,
        view: GraphView,
        user_row: int,
        question: Question,
        suggested: Sequence[Item],
        about: Sequence[int],
    ) -> None:
        rated = view.ratings_of(user_row)
        latest = np.lexsort((rated.item_rows, rated.timestamps))[::-1]
        values = rated.values[latest]
        telling = np.flatnonzero((values >= LIKED_FROM) | (values <= DISLIKED_UP_TO))[:MAX_RATINGS_READ]
        rows, values = rated.item_rows[latest[telling]], values[telling]
        own = [item for row in rows.tolist() if (item := view.item_at(row)) is not None]
        others = [*suggested, *(item for row in about if (item := view.item_at(row)) is not None)]
        relevance = question.relevance(view, [*own, *others], by_vector=len(own) + len(suggested))
        self.others: dict[int, float] = {
            item.row: value for item, value in zip(others, relevance[len(own) :].tolist(), strict=True)
        }
        """Relevance of the suggested items and of those that memories are about, by row."""
        live = np.array([item.row for item in own], np.int64)
        if len(live) < len(rows):
            values = values[np.isin(rows, live)]
        liked = values >= LIKED_FROM
        self.liked_rows = live[liked]
        self.liked = _rated("liked", own, np.flatnonzero(liked), values, relevance)
        self.disliked = _rated("disliked", own, np.flatnonzero(~liked), values, relevance)


def _rated(
    kind: LineKind, items: Sequence[Item], places: Int64, values: Float32, relevance: Float64
) -> Candidates:
    """The items [n] at some places, rated with `values` [n], the latest first."""
    far = values[places] - LIKED_FROM if kind == "liked" else DISLIKED_UP_TO - values[places]
    span = RATING_HIGH - LIKED_FROM if kind == "liked" else DISLIKED_UP_TO - RATING_LOW
    strength = 0.5 * far.astype(np.float64) / span + 0.5 / (1 + np.arange(len(places)) / RECENT)

    def line(place: int, score: float) -> ContextLine:
        item, value = items[places[place]], values[places[place]]
        return ContextLine(kind, "item", item.item_id, shortened(item.title), score, f"rated {value:.1f}")

    return Candidates(kind, relevance[places], strength, line)


def related_items(
    view: GraphView, user_row: int, anchors: Sequence[int], without: frozenset[str], question: Question
) -> Candidates:
    """Items beside liked ones, the `anchors`, but for the ids in `without`."""
    found = [
        (item, near)
        for near in neighbours(view, user_row, anchors, RELATED + len(without))
        if (item := view.item_at(near.item_row)) is not None and item.item_id not in without
    ][:RELATED]

    def line(place: int, score: float) -> ContextLine:
        item, near = found[place]
        reasons = [
            shortened(reason.title, MAX_REASON_CHARS) for row in near.reasons if (reason := view.item_at(row))
        ]
        text = shortened(because_of(item.title, reasons))
        return ContextLine("related", "item", item.item_id, text, score, "liked by others who like the same")

    closeness = np.array([near.score for _, near in found], np.float64)
    strength = closeness / closeness[0] if found else closeness
    return Candidates("related", question.relevance(view, [item for item, _ in found]), strength, line)
