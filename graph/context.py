"""A user's context: which facts of their own part of the graph go into a prompt.

`select` gathers candidates from the user's memories, ratings and recommendations and orders them; `fit` cuts
them to a budget of tokens. Everything is read from rows that the user owns and from items, which are shared.

A line's score is in [0, 1] and means the same for every kind:

    score = w * strength + (1 - w) * relevance

`relevance` is how close the line's source is to the question: 0 what has nothing to do with it, 1 what has
all its words or the same vector. `strength` is what the kind itself says: how new a memory or a rating is
and how clear the rating, how close a neighbour, how high a suggestion. w depends on the kind, and on whether
there is a question.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graph.context_items import (
    ANCHORS,
    MAX_REASON_CHARS,
    NAMED_FROM,
    OwnItems,
    Question,
    related_items,
)
from graph.context_lines import (
    HEADER,
    LINE_KINDS,
    ContextLine,
    LineKind,
    because_of,
    render,
    render_line,
    shortened,
)
from graph.context_memories import OwnMemories
from graph.context_order import Candidates, ordered
from graph.memory_search import score_memories
from graph.view import GraphView
from graph.words import Wording

WITH_QUESTION: Mapping[LineKind, float] = {
    "said": 0.2,
    "liked": 0.2,
    "disliked": 0.12,
    "related": 0.12,
    "suggested": 0.15,
}
"""Weight of strength for each kind."""
WITHOUT_QUESTION: Mapping[LineKind, float] = {
    "said": 0.5,
    "liked": 0.5,
    "disliked": 0.3,
    "related": 0.25,
    "suggested": 0.6,
}
SUGGESTION_WANTED = 0.5
"""Weight of a suggestion's rank where the question asks for one."""
SUGGESTION_RANK = 4
"""So many places down, a suggestion's rank counts half."""

LEAST_RELEVANCE = 0.1
"""A memory below it is no answer to the question."""

_ASKING = (
    "recommend", "suggest", "advice", "advise", "idea", "next", "watch", "read", "play", "listen", "try",
    "buy", "tonight", "something", "anything", "pick", "choose", "should", "similar", "enjoy",
)  # fmt: skip
"""Words that ask for something new, by their beginnings."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A recommended item, with the titles that are the reasons."""

    item_id: str
    title: str
    because: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class ContextQuery:
    """What is known about a user, with a question in mind.

    `vector` is the question's under `text_model`; without it, and for memories that have no vector of that
    model, words decide. Facts that do not hold at `now` drop out.
    """

    user_id: str
    query: str  # "" for no question
    now: int  # Unix seconds
    vector: npt.NDArray[np.float32] | None = None  # [d], unit length
    text_model: str | None = None
    suggestions: tuple[Suggestion, ...] = ()  # best first
    must: tuple[str, ...] = ()  # item ids among the suggestions that come first, whatever else there is
    max_lines: int = 64


@dataclass(frozen=True, slots=True)
class Fitted:
    """A context as a prompt has it: `text` renders `lines`, in the prompt's order, and is `tokens` long."""

    text: str
    lines: tuple[ContextLine, ...]
    tokens: int


def select(view: GraphView, query: ContextQuery) -> list[ContextLine]:
    """Lines about the user, the most useful first, at most `max_lines`. Raises UnknownUser.

    The first lines are those of `must`, then the memory that answers the question best, the best suggestion
    if the question asks for one (or there is no question), and the liked item that fits best; the rest
    follows by score.
    """
    user_row = view.user(query.user_id).row
    question = Question(query.query.strip(), query.vector, query.text_model)
    wanted = asks_for_suggestion(query.query.strip())
    weights = dict(WITH_QUESTION if question.asked else WITHOUT_QUESTION)
    if question.asked and wanted:
        weights["suggested"] = SUGGESTION_WANTED

    scored = score_memories(view, user_row, question.wording, query.vector, query.text_model, query.now)
    memories = OwnMemories(view, scored)
    offered = {s.item_id: view.find_item(s.item_id) for s in query.suggestions}
    known = [item for item in offered.values() if item is not None]
    items = OwnItems(view, user_row, question, known, memories.item_rows)
    must = [item_id for item_id in dict.fromkeys(query.must) if item_id in offered]
    in_question = {row: value for row, value in items.others.items() if value >= NAMED_FROM}
    in_question |= {item.row: 1.0 for item_id in must if (item := offered[item_id]) is not None}
    anchors = items.liked_rows[items.liked.best(weights["liked"], ANCHORS)].tolist()
    suggestions = _still_new(view, user_row, query.suggestions, must)
    groups = [
        memories.candidates(in_question, query.text_model, query.max_lines),
        items.liked.at(items.liked.best(weights["liked"], query.max_lines)),
        items.disliked.at(items.disliked.best(weights["disliked"], query.max_lines)),
        related_items(view, user_row, anchors, frozenset(offered), question),
        _suggested(view, suggestions, items.others, must),
    ]
    places = {suggestion.item_id: place for place, suggestion in enumerate(suggestions)}
    head: list[tuple[LineKind, int]] = [("suggested", places[item_id]) for item_id in must]
    head += _best_of_kinds(groups, weights, question.asked, "suggested" if wanted and not must else None)
    return ordered(groups, weights, head, query.max_lines)


def fit(lines: Sequence[ContextLine], max_tokens: int, count: Callable[[str], int]) -> Fitted:
    """As many of the lines as `max_tokens` hold, taken in order, put in the prompt's order.

    A line that is too long is passed over for shorter ones behind it. `count` gives the tokens of a text;
    what it says of the whole text decides, for counts of parts need not add up. Once chosen, the same lines
    make the same text, whatever the order in which they came.
    """
    chosen: list[ContextLine] = []
    left = max_tokens - (count(HEADER) if lines else 0)
    too_long: float = math.inf  # characters of the shortest line that did not fit
    for line in lines:
        rendered = f"\n{render_line(line)}"
        if left <= 0 or len(rendered) >= too_long:
            continue
        if (tokens := count(rendered)) <= left:
            chosen.append(line)
            left -= tokens
        else:
            too_long = len(rendered)
    while chosen:
        shown = tuple(sorted(chosen, key=_place_in_prompt))
        text = render(shown)
        tokens = count(text)
        if tokens <= max_tokens:
            return Fitted(text, shown, tokens)
        chosen.pop()
    return Fitted("", (), 0)


def asks_for_suggestion(question: str) -> bool:
    """Whether a question, or its absence, leaves room for a suggestion: by a list of English words."""
    return not question or any(word.startswith(_ASKING) for word in Wording(question).words)


_LIKED: LineKind = "liked"


def _best_of_kinds(
    groups: Sequence[Candidates],
    weights: Mapping[LineKind, float],
    asked: bool,
    also: LineKind | None,
) -> list[tuple[LineKind, int]]:
    """Kind and place of what the first lines are to have: a memory, `also`, a liked item."""
    of_kind = {group.kind: group for group in groups}
    head: list[tuple[LineKind, int]] = []
    said = of_kind["said"]
    if len(said) and asked:
        # The one that matches best, be it old; none where nothing matches.
        place = int(np.argmax(said.relevance))
        head += [("said", place)] if said.relevance[place] >= LEAST_RELEVANCE else []
    elif len(said):
        head.append(("said", int(said.best(weights["said"], 1)[0])))
    for kind in (also, _LIKED):
        if kind is not None and len(of_kind[kind]):
            head.append((kind, int(of_kind[kind].best(weights[kind], 1)[0])))
    return head


def _still_new(
    view: GraphView, user_row: int, suggestions: Sequence[Suggestion], must: Sequence[str]
) -> list[Suggestion]:
    """The suggestions, each once, but for what the user has rated meanwhile; `must` stays whatever it is."""
    distinct: dict[str, Suggestion] = {}
    for suggestion in suggestions:
        distinct.setdefault(suggestion.item_id, suggestion)
    rows = [-1 if (item := view.find_item(item_id)) is None else item.row for item_id in distinct]
    rated = np.isin(rows, view.ratings_of(user_row).item_rows).tolist()
    return [s for s, seen in zip(distinct.values(), rated, strict=True) if not seen or s.item_id in must]


def _suggested(
    view: GraphView, suggestions: Sequence[Suggestion], relevance: Mapping[int, float], must: Sequence[str]
) -> Candidates:
    """The suggestions; those of `must` are asked about, and need not be recommended."""
    recommended = [s.item_id for s in suggestions if s.item_id not in must]
    ranks = {item_id: rank for rank, item_id in enumerate(recommended, start=1)}
    items = [view.find_item(suggestion.item_id) for suggestion in suggestions]
    close = [0.0 if item is None else relevance.get(item.row, 0.0) for item in items]

    def line(place: int, score: float) -> ContextLine:
        found = suggestions[place]
        reasons = [shortened(reason, MAX_REASON_CHARS) for reason in found.because]
        text = shortened(because_of(found.title, reasons))
        rank = ranks.get(found.item_id)
        why = "asked about" if rank is None else f"recommended, place {rank}"
        return ContextLine("suggested", "item", found.item_id, text, score, why, place)

    strength = 1 / (1 + np.arange(len(suggestions)) / SUGGESTION_RANK)
    return Candidates("suggested", np.array(close, np.float64), strength, line)


def _place_in_prompt(line: ContextLine) -> tuple[int, int, str, str, str]:
    return LINE_KINDS.index(line.kind), line.place, line.source_kind, line.source_id, line.text
