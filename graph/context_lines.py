"""Lines of a user's context, and how a prompt reads them.

Every line has one source, a memory or an item, and stays one line whatever its text holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

LineKind: TypeAlias = Literal["said", "liked", "disliked", "related", "suggested"]
"""What a line says of its source: a memory (said), an item the user rated (liked, disliked), an item beside
the liked ones in the graph (related), an item that is recommended next (suggested)."""
LINE_KINDS: tuple[LineKind, ...] = ("said", "liked", "disliked", "related", "suggested")
"""In the order in which a prompt has them."""

HEADER = "What is known about this user:"

MAX_TEXT_CHARS = 400
"""Longer texts are cut in their line: one memory is not to take a whole budget."""

EXPLAIN_QUESTION = "Why is {title} suggested?"
"""What the language model is asked when an item's recommendation is to be explained in a sentence."""


@dataclass(frozen=True, slots=True)
class ContextLine:
    """One thing that is known about a user."""

    kind: LineKind
    source_kind: Literal["memory", "item"]
    source_id: str
    text: str  # without the label, see `render_line`
    score: float = 0.0  # of the selection, comparable within one context only
    why: str = ""  # a few words for people: "similarity 0.71", "rated 5.0"
    place: int = 0  # among those of its kind that have an order of their own: recommendations, best first


def one_line(text: str) -> str:
    """The text with every run of white space, line breaks too, as one space."""
    return " ".join(text.split())


def shortened(text: str, max_chars: int = MAX_TEXT_CHARS) -> str:
    """The text on one line; a longer one is cut after a word and marked with an ellipsis."""
    line = one_line(text)
    if len(line) <= max_chars:
        return line
    cut = line[: max_chars - 1]
    # A word that is cut loses its rest; a single endless one stays as far as it goes.
    if line[max_chars - 1] != " " and " " in cut:
        cut = cut[: cut.rindex(" ")]
    return f"{cut.rstrip()}\u2026"


def said(text: str, about: Sequence[str] = (), valid_on: str = "") -> str:
    """Text of a memory's line: what was said, of when (ISO date) and about which titles."""
    prefix = f"({valid_on}) " if valid_on else ""
    suffix = f" (about {' and '.join(map(one_line, about))})" if about else ""
    return f"{prefix}{one_line(text)}{suffix}"


def because_of(title: str, reasons: Sequence[str]) -> str:
    """Text of a related or suggested item's line: the title and the titles that are the reasons."""
    if not reasons:
        return one_line(title)
    return f"{one_line(title)}, because of {' and '.join(map(one_line, reasons))}"


def render_line(line: ContextLine) -> str:
    return f"- {line.kind}: {one_line(line.text)}"


def render(lines: Sequence[ContextLine]) -> str:
    """The context as a prompt has it; empty without lines."""
    return "\n".join([HEADER, *map(render_line, lines)]) if lines else ""


def with_context(system_prompt: str, context: str) -> str:
    """The content of the system message: the caller's own system prompt, if any, and then the context."""
    return "\n\n".join(part for part in (system_prompt, context) if part)
