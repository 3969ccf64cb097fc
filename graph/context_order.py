"""Candidates for a context's lines, and their order: the most useful first, and a mix from the start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graph.context_lines import ContextLine, LineKind

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

REDUNDANCY_WEIGHT = 0.3
"""What a memory loses that is the same as one taken before (maximal marginal relevance, Carbonell and
Goldstein 1998: relevance less the greatest similarity to what is taken already)."""
CROWDING = 0.1
"""Each line of a kind divides the next one's score by so much more: 1, 1.1, 1.2, ..."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Possible lines of one kind."""

    kind: LineKind
    relevance: Float64  # [n] in [0, 1], to the question
    strength: Float64  # [n] in [0, 1], what the kind itself says
    line: Callable[[int, float], ContextLine]  # the line at a place, given its score
    similar: Float32 | None = None  # [n, n] in [0, 1], of every two

    def __len__(self) -> int:
        return len(self.relevance)

    def scores(self, weight: float) -> Float64:
        """Scores [n] where strength weighs `weight`."""
        scores: Float64 = weight * self.strength + (1 - weight) * self.relevance
        return scores

    def best(self, weight: float, limit: int) -> Int64:
        """Places of the `limit` with the highest scores, best first; of equals, the first."""
        return np.argsort(-self.scores(weight), kind="stable")[:limit]

    def at(self, places: Int64) -> Candidates:
        """Those at some places alone."""
        similar = None if self.similar is None else self.similar[np.ix_(places, places)]

        def line(place: int, score: float) -> ContextLine:
            return self.line(int(places[place]), score)

        return Candidates(self.kind, self.relevance[places], self.strength[places], line, similar)


def ordered(
    groups: Sequence[Candidates],
    weights: Mapping[LineKind, float],
    head: Sequence[tuple[LineKind, int]],
    max_lines: int,
) -> list[ContextLine]:
    """At most `max_lines` lines: those of `head`, by kind and place, then the best of the rest, one by one.

    Of equals the one in the earlier group, at the earlier place, is taken. O(max_lines * candidates).
    """
    ends = np.cumsum([len(group) for group in groups]).tolist()
    starts = [end - len(group) for end, group in zip(ends, groups, strict=True)]
    group_at = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    scores = np.concatenate([group.scores(weights[group.kind]) for group in groups])
    values, redundancy = scores.copy(), np.zeros(len(scores))
    crowds = [1.0] * len(groups)
    kinds = [group.kind for group in groups]
    queue = [starts[kinds.index(kind)] + place for kind, place in dict.fromkeys(head)]
    gone = np.zeros(len(scores))  # infinite where taken
    taken: list[int] = []
    while len(taken) < min(max_lines, len(scores)):
        chosen = queue.pop(0) if queue else int(np.argmax(values))
        taken.append(chosen)
        gone[chosen] = np.inf
        number = int(group_at[chosen])
        part = slice(starts[number], ends[number])
        similar = groups[number].similar
        if similar is not None:
            redundancy[part] = np.maximum(redundancy[part], similar[chosen - part.start])
        crowds[number] += CROWDING
        values[part] = scores[part] / crowds[number] - REDUNDANCY_WEIGHT * redundancy[part] - gone[part]
    return [
        groups[number].line(place - starts[number], float(scores[place]))
        for place, number in zip(taken, group_at[taken].tolist(), strict=True)
    ]
