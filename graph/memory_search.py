"""Search among one user's own memories, by meaning and, where there is no vector yet, by words.

Where a memory has a vector of the query's text model, its score is their cosine. The others were written or
rewritten a moment ago, or the embedder is away: a new text takes the old one's vector with it. They are
scored by words and put on the same scale,

    score = base + (1 - base) * words

where `base` is the lower quartile of the cosines, with a 0 put in: what memories that have nothing to do with
the query get. Without any cosine, base is 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graph.schema import Memory, TextKind
from graph.text_vectors import TextVectorTable
from graph.view import GraphView
from graph.words import Wording

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_BLOCK_ROWS = 512
"""Rows that one product reads: their vectors stay in the processor's cache."""


@dataclass(frozen=True, slots=True, eq=False)
class ScoredMemories:
    """All memories of a user that hold, oldest first."""

    memories: list[Memory]
    rows: Int64  # [n]
    scores: Float32  # [n]
    base: float  # score of what has nothing to do with the query
    embedded: BoolArray  # [n], which have a vector

    def best(self, n: int) -> list[tuple[Memory, float]]:
        """The `n` closest to the query, best first; of equals, the one written last."""
        order = np.lexsort((-self.rows, -self.scores))[: max(n, 0)]
        return [(self.memories[place], float(self.scores[place])) for place in order.tolist()]


def score_memories(
    view: GraphView,
    user_row: int,
    wording: Wording,
    vector: Float32 | None,
    model: str | None,
    now: int | None,
) -> ScoredMemories:
    """Every memory of a user that holds, with its score. O(memories * d).

    Args:
        wording: the query.
        vector: the query's vector [d] under `model`; without it, words decide.
        now: Unix seconds; memories that do not hold then are left out. None: all are scored.
    """
    memories = view.memories_of(user_row)
    if now is not None:
        memories = [
            m
            for m in memories
            if (m.valid_at is None or m.valid_at <= now) and (m.invalid_at is None or now < m.invalid_at)
        ]
    rows = np.fromiter([m.row for m in memories], np.int64, len(memories))
    scores = np.zeros(len(rows), np.float32)
    embedded = np.zeros(len(rows), np.bool_)
    base = 0.0
    table = usable_table(view, "memory", model, vector)
    if table is not None and vector is not None:
        scores, embedded = cosines(table, rows, vector)
        base = base_of(scores[embedded])
    waiting = np.flatnonzero(~embedded)
    if len(waiting):
        words = wording.scores([memories[place].text for place in waiting.tolist()])
        scores[waiting] = base + (1 - base) * words
    return ScoredMemories(memories, rows, scores, base, embedded)


def usable_table(
    view: GraphView, kind: TextKind, model: str | None, vector: Float32 | None
) -> TextVectorTable | None:
    """The vectors that a query's can be compared with, if there are any."""
    if model is None or vector is None:
        return None
    table = view.text_vectors(kind, model)
    return table if len(table) and table.dim == len(vector) else None


def cosines(table: TextVectorTable, rows: Int64, vector: Float32) -> tuple[Float32, BoolArray]:
    """Cosine of a vector [d] with those of rows [n], and which rows have one; 0 for the others."""
    scores, found = np.zeros(len(rows), np.float32), np.zeros(len(rows), np.bool_)
    query = vector / max(float(np.linalg.norm(vector)), 1e-12)
    for first in range(0, len(rows), _BLOCK_ROWS):
        part = slice(first, first + _BLOCK_ROWS)
        vectors, found[part] = table.get(rows[part])
        norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
        scores[part] = vectors @ query / np.maximum(norms, 1e-12)
    return scores, found


def base_of(scores: Float32) -> float:
    """Lower quartile of scores [n] with a 0 put in, never below 0."""
    if len(scores) == 0:
        return 0.0
    place = len(scores) // 4
    return max(0.0, float(np.partition(np.append(scores, np.float32(0)), place)[place]))
