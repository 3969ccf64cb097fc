"""Query strings of a user's relations, graph and context."""

from __future__ import annotations

from deployments.ingress.identifiers import check_id
from deployments.ingress.queries import MAX_PAGE, Parameter, QuerySpec, integer
from graph.errors import InvalidInput
from graph.schema import (
    LABEL_RULE,
    MAX_ID_CHARS,
    MAX_RELATION_CHARS,
    MAX_TEXT_CHARS,
    TEXT_RULE,
    is_label,
    is_text,
)

MAX_DEPTH = 8
MAX_CONTEXT_TOKENS = 32_768


def _relation_name(text: str, name: str) -> str:
    if not is_label(text, MAX_RELATION_CHARS):
        raise InvalidInput(
            f"{name}: a relation's name has 1 to {MAX_RELATION_CHARS} characters and {LABEL_RULE}", param=name
        )
    return text


def _question(text: str, name: str) -> str:
    # The value is not repeated: it is what a user said.
    if not is_text(text):
        raise InvalidInput(f"{name} has at most {MAX_TEXT_CHARS:,} characters and {TEXT_RULE}", param=name)
    return text


def _id(name: str, description: str, *, required: bool = False) -> Parameter:
    schema = {"type": "string", "minLength": 1, "maxLength": MAX_ID_CHARS}
    return Parameter(name, check_id, schema, description, required=required)


RELATION = QuerySpec(
    _id("memory_id", "The memory that the relation leaves.", required=True),
    Parameter(
        "name",
        _relation_name,
        {"type": "string", "minLength": 1, "maxLength": MAX_RELATION_CHARS},
        "What the relation is called.",
        required=True,
    ),
    _id("item_id", "The item it leads to; this or to_memory_id."),
    _id("to_memory_id", "The memory it leads to; this or item_id."),
    reads=False,
)
GRAPH = QuerySpec(
    Parameter(
        "depth",
        integer(1, MAX_DEPTH),
        {"type": "integer", "minimum": 1, "maximum": MAX_DEPTH},
        "Edges between the user and a node at most.",
        default=2,
    ),
    Parameter(
        "limit",
        integer(1, MAX_PAGE),
        {"type": "integer", "minimum": 1, "maximum": MAX_PAGE},
        "Nodes at most.",
        default=100,
    ),
)
CONTEXT = QuerySpec(
    Parameter(
        "query",
        _question,
        {"type": "string", "maxLength": MAX_TEXT_CHARS},
        "The question a prompt would ask; without it, what is there whatever is asked.",
    ),
    Parameter(
        "max_tokens",
        integer(1, MAX_CONTEXT_TOKENS),
        {"type": "integer", "minimum": 1, "maximum": MAX_CONTEXT_TOKENS},
        "Tokens at most; without it, as many as a prompt gets by default.",
    ),
    _id(
        "explain_item", "An item whose line comes first; without `query` the question is why it is suggested."
    ),
)
