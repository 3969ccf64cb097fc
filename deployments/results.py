"""Rows that ranking and search found, as the answers name them: ids, titles, reasons.

Rows without a live item are left out: it went while the ranking or the search ran.
"""

from __future__ import annotations

from collections.abc import Sequence

from deployments.messages import Reason, Recommendation
from graph.view import GraphView
from models.ranking import RankResult
from models.text_search import SearchResult


def ranked(view: GraphView, result: RankResult) -> tuple[Recommendation, ...]:
    """With the reasons of each."""
    return tuple(
        Recommendation(item.item_id, item.title, score, _reasons(view, reasons))
        for row, score, reasons in zip(
            result.rows.tolist(), result.scores.tolist(), result.reasons, strict=True
        )
        if (item := view.item_at(row)) is not None
    )


def named(view: GraphView, result: SearchResult) -> tuple[Recommendation, ...]:
    return tuple(
        Recommendation(item.item_id, item.title, score)
        for row, score in zip(result.rows.tolist(), result.scores.tolist(), strict=True)
        if (item := view.item_at(row)) is not None
    )


def _reasons(view: GraphView, reasons: Sequence[tuple[int, float]]) -> tuple[Reason, ...]:
    return tuple(
        Reason(item.item_id, item.title, contribution)
        for row, contribution in reasons
        if (item := view.item_at(row)) is not None
    )
