"""A user's memories as lines of context: those that match the question, those beside them, and the newest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta

import numpy as np
import numpy.typing as npt

from graph.context_lines import ContextLine, one_line, said, shortened
from graph.context_order import Candidates
from graph.memory_search import ScoredMemories
from graph.schema import Memory
from graph.view import GraphView
from graph.words import content_words, similarities

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

ABOUT_WEIGHT = 0.5
"""What an item in question adds to the relevance of a memory about it, of what is missing to 1."""
STRONG_MATCH = 0.35
"""From this relevance on, a memory brings along those it is related to."""
STRONG_MATCHES = 8
BESIDE_WEIGHT = 0.7
"""Relevance of a memory beside a strong match, as a share of the match's."""

SAME_WORDS = 0.9
"""From this similarity of their trigrams on, two texts are one."""
SAME_VECTOR, SAME_VECTOR_WORDS = 0.97, 0.7
"""From this cosine on, two texts are one if they also share so many trigrams: a paraphrase, no other fact.

Texts that are this much alike are one only where they have the same words, the commonest aside, the same time
and the same items: "my sister Anna" is not "my sister Anne", however close the two are."""

NEWEST = 16
RECENT = 8
"""So many memories back, recency counts half."""
SPARE = 16
"""Memories that are looked at beyond the lines asked for: near-duplicates drop out."""
MAX_SCANNED = 2_048
MAX_ABOUT, MAX_TITLE_CHARS = 3, 100
MAX_RELATIONS_READ = 64


class OwnMemories:
    """A user's valid memories with their relations.

    Only relations that leave a memory of the user's own are read, and those between two of them.
    """

    def __init__(self, view: GraphView, scored: ScoredMemories) -> None:
        self._view, self._scored = view, scored
        rows = scored.rows.tolist() if view.num_relations else []
        relations = list(map(view.relations_of, rows))
        self._about = [
            (place, r.target_row)
            for place, found in enumerate(relations)
            if found
            for r in found
            if r.target_kind == "item"
        ]
        items: dict[int, list[int]] = {}
        for place, row in self._about:
            items.setdefault(place, []).append(row)
        self._items = {p: tuple(sorted(set(rows[:MAX_RELATIONS_READ]))) for p, rows in items.items()}
        """Rows of the items that a memory is about, ascending, by place."""

    @property
    def item_rows(self) -> list[int]:
        """Items that a memory is related to."""
        return list(dict.fromkeys(row for _, row in self._about))

    def candidates(self, in_question: Mapping[int, float], model: str | None, max_lines: int) -> Candidates:
        """Memories worth a line, near-duplicates left out.

        Args:
            in_question: item rows that the question is about, with a relevance in (0, 1].
            model: text model of the vectors.
            max_lines: lines that are wanted at most.
        """
        scored, memories = self._scored, self._scored.memories
        scale = max(1 - scored.base, 1e-6)
        relevance = np.clip((scored.scores.astype(np.float64) - scored.base) / scale, 0, 1)
        why = self._lift_about(relevance, in_question)
        why |= self._lift_beside(relevance)
        newest_first = _newest_first(memories)
        rank = np.empty(len(memories), np.int64)
        rank[newest_first] = np.arange(len(memories))
        pool = self._pool(relevance, newest_first, rank, max_lines + SPARE)
        similar, same = self._compare(pool, model)
        kept = self._without_older(pool, rank, same, relevance)
        places = [pool[k] for k in kept]

        def line(place: int, score: float) -> ContextLine:
            memory = memories[at := places[place]]
            text = self._text(memory, at)
            return ContextLine(
                "said", "memory", memory.memory_id, text, score, why.get(at) or self._why(at, relevance[at])
            )

        recency = 1 / (1 + rank[places] / RECENT)
        return Candidates("said", relevance[places], recency, line, similar[np.ix_(kept, kept)])

    def _lift_about(self, relevance: Float64, in_question: Mapping[int, float]) -> dict[int, str]:
        """Raise what is about an item in question; returns reasons by place."""
        best: dict[int, int] = {}
        for place, row in self._about:
            if row in in_question and in_question[row] > in_question.get(best.get(place, -1), 0.0):
                best[place] = row
        for place, row in best.items():
            relevance[place] += (1 - relevance[place]) * ABOUT_WEIGHT * in_question[row]
        return {p: f"about {item.title}" for p, row in best.items() if (item := self._view.item_at(row))}

    def _lift_beside(self, relevance: Float64) -> dict[int, str]:
        """Raise what is one relation away from the strongest matches; returns reasons by place."""
        strong = np.flatnonzero(relevance >= STRONG_MATCH)
        strong = strong[np.argsort(-relevance[strong], kind="stable")][:STRONG_MATCHES]
        lifted = [
            (beside, BESIDE_WEIGHT * float(relevance[place]))
            for place in strong.tolist()
            for beside in self._beside(place)
        ]
        raised = {}
        for place, value in lifted:
            if value > relevance[place]:
                relevance[place] = value
                raised[place] = "related to a match"
        return raised

    def _beside(self, place: int) -> list[int]:
        """Places of the valid memories that a relation joins to one, whichever way it leads."""
        rows = self._scored.rows
        row = int(rows[place])
        ends = [r.target_row for r in self._view.relations_of(row) if r.target_kind == "memory"]
        ends += [r.memory_row for r in self._view.relations_to("memory", row)]
        # What is not among the user's own valid memories has no place.
        near = np.searchsorted(rows, ends)
        return [int(p) for p, end in zip(near, ends, strict=True) if p < len(rows) and rows[p] == end]

    def _pool(self, relevance: Float64, newest_first: Int64, rank: Int64, wanted: int) -> list[int]:
        """Places of the memories to choose from: the best matches, then the newest."""
        matching = np.flatnonzero(relevance > 0)
        order = matching[np.lexsort((rank[matching], -relevance[matching]))][:MAX_SCANNED]
        pool = self._distinct(order.tolist(), rank, relevance, wanted)
        newest = newest_first[: max(NEWEST, wanted - len(pool))]
        places = dict.fromkeys([*pool, *newest.tolist()])
        return self._distinct(places, rank, relevance, wanted + NEWEST)

    def _distinct(self, places: Iterable[int], rank: Int64, relevance: Float64, limit: int) -> list[int]:
        """The first `limit` places that say different things; of two with the same text, time and items the
        newer one, which takes over the other's relevance.
        """
        chosen: dict[tuple[str, int | None, tuple[int, ...]], int] = {}
        for place in places:
            memory = self._scored.memories[place]
            key = one_line(memory.text).casefold(), memory.valid_at, self._items.get(place, ())
            before = chosen.get(key)
            if before is None:
                if len(chosen) == limit:
                    break
                chosen[key] = place
                continue
            newer = place if rank[place] < rank[before] else before
            chosen[key] = newer
            relevance[newer] = max(relevance[place], relevance[before])
        return list(chosen.values())

    def _without_older(
        self, pool: Sequence[int], rank: Int64, same: npt.NDArray[np.bool_], relevance: Float64
    ) -> list[int]:
        """Places in the pool without those that a newer memory repeats; it takes over their relevance."""
        gone: set[int] = set()
        pairs = np.argwhere(np.triu(same, 1)).tolist()
        # The newest first: what drops out itself makes nothing else drop out.
        by_age = sorted(
            (sorted(pair, key=lambda k: rank[pool[k]]) for pair in pairs), key=lambda p: rank[pool[p[0]]]
        )
        for newer, older in by_age:
            if newer in gone or older in gone:
                continue
            if self._says(pool[newer]) == self._says(pool[older]):
                gone.add(older)
                relevance[pool[newer]] = max(relevance[pool[newer]], relevance[pool[older]])
        return [k for k in range(len(pool)) if k not in gone]

    def _says(self, place: int) -> tuple[frozenset[str], int | None, tuple[int, ...]]:
        memory = self._scored.memories[place]
        return content_words(memory.text), memory.valid_at, self._items.get(place, ())

    def _compare(self, pool: Sequence[int], model: str | None) -> tuple[Float32, npt.NDArray[np.bool_]]:
        """How similar every two memories are, float32 [n, n] in [0, 1], and which are one, bool [n, n]."""
        scored = self._scored
        words = similarities([scored.memories[place].text for place in pool])
        same = words >= SAME_WORDS
        embedded = scored.embedded[pool]
        if model is None or not embedded.any():
            return words, same
        vectors, _ = self._view.text_vectors("memory", model).get(scored.rows[pool])
        vectors[~embedded] = 0
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        cosine = vectors @ vectors.T
        same |= (cosine >= SAME_VECTOR) & (words >= SAME_VECTOR_WORDS)
        near = np.clip((cosine - scored.base) / max(1 - scored.base, 1e-6), 0, 1)
        return np.maximum(words, near).astype(np.float32), same

    def _text(self, memory: Memory, place: int) -> str:
        items = [item for row in self._items.get(place, ()) if (item := self._view.item_at(row)) is not None]
        items.sort(key=lambda item: item.item_id)
        titles = dict.fromkeys(shortened(item.title, MAX_TITLE_CHARS) for item in items)
        day = "" if memory.valid_at is None else _day(memory.valid_at)
        return said(shortened(memory.text), list(titles)[:MAX_ABOUT], day)

    def _why(self, place: int, relevance: float) -> str:
        if relevance <= 0:
            return "recent"
        if self._scored.embedded[place]:
            return f"similarity {self._scored.scores[place]:.2f}"
        return f"words {relevance:.2f}"


def _newest_first(memories: Sequence[Memory]) -> Int64:
    """Places of memories, the newest first.

    By `valid_at`; one without it is taken to be as late as the latest written before it.
    """
    valid_at = np.fromiter(
        [-1 if m.valid_at is None else m.valid_at for m in memories], np.int64, len(memories)
    )
    times = np.where(valid_at >= 0, valid_at, np.maximum.accumulate(valid_at))
    return np.lexsort((np.arange(len(memories)), times))[::-1]


def _day(unix_s: int) -> str:
    return (date(1970, 1, 1) + timedelta(days=unix_s // 86_400)).isoformat()
