"""Query strings: declared once per route, parsed by hand, documented from the same declaration.

Parsing is strict: an unknown parameter, a value out of bounds and a scalar given twice are InvalidInput
naming the parameter. It is also the hot path's: a plain query string is split without urllib, and the parsed
form is remembered, because clients repeat `n=10` for every user.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

from deployments.ingress.identifiers import check_id
from graph.errors import InvalidInput
from graph.schema import LABEL_RULE, MAX_TAG_CHARS, MAX_TAGS, RATING_HIGH, RATING_LOW, is_label
from models.adapter_pointers import ADAPTER_SCOPES

MAX_N = 1_000
MAX_PAGE = 1_000
MAX_IDS = 1_000
"""Ids in `exclude` or `candidates` of one request."""

_REMEMBERED = 1_024
_REMEMBERED_BYTES = 256  # longer query strings are parsed each time: they rarely repeat


@dataclass(frozen=True, slots=True)
class Parameter:
    """One query parameter. `read` turns its text into a value or raises InvalidInput."""

    name: str
    read: Callable[[str, str], Any]
    schema: Mapping[str, object]
    description: str
    default: Any = None
    many: bool = False
    limit: int = 1  # values a repeated or comma-separated parameter may have
    required: bool = False


@dataclass(frozen=True, slots=True)
class Query:
    """What a request asked for: every declared parameter; the version token and `explain` apart from them."""

    values: Mapping[str, Any]
    token: str | None
    explain: bool = False


class QuerySpec:
    """The parameters a route accepts; `min_version` is one of them on every read, not on writes."""

    def __init__(self, *parameters: Parameter, reads: bool = True) -> None:
        self._parameters = {p.name: p for p in (*parameters, *([MIN_VERSION] if reads else ()))}
        self._reads = reads
        self._required = [p.name for p in parameters if p.required]
        self._defaults = {p.name: p.default for p in parameters if p is not EXPLAIN}
        self._nothing = None if self._required else Query(self._defaults, None)
        self._remembered: dict[bytes, Query] = {}

    def parse(self, query_string: bytes) -> Query:
        """Complexity O(length), O(1) for a query string seen before. Raises InvalidInput."""
        if not query_string and self._nothing is not None:
            return self._nothing
        query = self._remembered.get(query_string)
        if query is None:
            query = self._parse(query_string)
            if len(query_string) <= _REMEMBERED_BYTES:
                if len(self._remembered) >= _REMEMBERED:
                    self._remembered.clear()
                self._remembered[query_string] = query
        return query

    def openapi(self) -> dict[str, Any]:
        """The `parameters` of the route's OpenAPI operation, the header of a read or a write included."""
        described: list[dict[str, Any]] = [
            {
                "name": p.name,
                "in": "query",
                "required": p.required,
                "description": p.description,
                "schema": dict(p.schema) | ({} if p.default is None or p.many else {"default": p.default}),
            }
            for p in self._parameters.values()
        ]
        if not self._reads:
            return {"parameters": [*described, *IDEMPOTENT["parameters"]]}
        header = {
            "name": "x-weft-min-version",
            "in": "header",
            "required": False,
            "description": MIN_VERSION.description,
            "schema": {"type": "string"},
        }
        return {"parameters": [*described, header]}

    def _parse(self, query_string: bytes) -> Query:
        values = dict(self._defaults)
        lists: dict[str, list[Any]] = {}
        token: str | None = None
        explain = False
        seen: set[str] = set()
        for part in query_string.decode("utf-8", "replace").split("&"):
            if not part:
                continue
            name, _, text = part.partition("=")
            name = _decoded(name)
            parameter = self._parameters.get(name)
            if parameter is None:
                known = ", ".join(self._parameters)
                raise InvalidInput(
                    f"unknown query parameter {name[:80]!r}; this route takes {known}", param=name[:80]
                )
            if parameter.many:
                given = lists.setdefault(name, [])
                # Split first: a comma that belongs to a value is sent as %2C.
                given.extend(parameter.read(_decoded(value), name) for value in text.split(",") if value)
                if len(given) > parameter.limit:
                    raise InvalidInput(
                        f"{name} has more than {parameter.limit:,} values; send fewer per request",
                        param=name,
                    )
                continue
            if name in seen:
                raise InvalidInput(f"{name} is given twice", param=name)
            seen.add(name)
            value = parameter.read(_decoded(text), name)
            if parameter is MIN_VERSION:
                token = value
            elif parameter is EXPLAIN:
                explain = value
            else:
                values[name] = value
        for name, given in lists.items():
            values[name] = tuple(given)
        for name in self._required:
            if name not in seen:
                raise InvalidInput(f"{name} is missing: {self._parameters[name].description}", param=name)
        return Query(values, token, explain)


IDEMPOTENT: dict[str, Any] = {
    "parameters": [
        {
            "name": "idempotency-key",
            "in": "header",
            "required": False,
            "description": "Within 24 hours, the same key and body are written once; another body is a 409.",
            "schema": {"type": "string", "maxLength": 200},
        }
    ]
}
"""The OpenAPI parameters of a write."""


def refuse_query(query_string: bytes) -> None:
    """For routes that take no parameters at all."""
    if query_string:
        name = _decoded(query_string.decode("utf-8", "replace").partition("=")[0])[:80]
        raise InvalidInput(f"unknown query parameter {name!r}; this route takes none", param=name)


def _decoded(text: str) -> str:
    return unquote_plus(text, errors="replace") if "%" in text or "+" in text else text


def integer(low: int, high: int) -> Callable[[str, str], int]:
    """Reads whole numbers of a range."""

    def read(text: str, name: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 9) or not low <= int(text) <= high:
            raise InvalidInput(
                f"{name} is {text[:40]!r}, allowed are whole numbers {low} to {high}", param=name
            )
        return int(text)

    return read


def _boolean(text: str, name: str) -> bool:
    if text in ("true", "1"):
        return True
    if text in ("false", "0"):
        return False
    raise InvalidInput(f"{name} is {text[:40]!r}, allowed are true and false", param=name)


def _rating(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not RATING_LOW <= value <= RATING_HIGH:
        raise InvalidInput(
            f"{name} is {text[:40]!r}, allowed are numbers {RATING_LOW} to {RATING_HIGH}", param=name
        )
    return value


def _tag(text: str, name: str) -> str:
    if not is_label(text, MAX_TAG_CHARS):
        raise InvalidInput(
            f"{name} {text[:80]!r}: a tag has 1 to {MAX_TAG_CHARS} characters and {LABEL_RULE}", param=name
        )
    return text


def _cursor(text: str, name: str) -> str:
    if not text or len(text) > 200 or not text.isprintable():
        raise InvalidInput(f"{name} is not a cursor; use `next` of the page before, unchanged", param=name)
    return text


def _text(text: str, name: str) -> str:
    return text


def _choice(*allowed: str) -> Callable[[str, str], str]:
    def read(text: str, name: str) -> str:
        if text not in allowed:
            raise InvalidInput(
                f"{name} is {text[:40]!r}, allowed are {', '.join(allowed[:-1])} and {allowed[-1]}",
                param=name,
            )
        return text

    return read


EXPLAIN = Parameter(
    "explain",
    _boolean,
    {"type": "boolean"},
    "Have the language model say in a sentence why, of the first items; slower.",
    default=False,
)
MIN_VERSION = Parameter(
    "min_version",
    _text,
    {"type": "string"},
    "A `version` of an earlier answer: this read waits until it can see what that answer saw.",
)
_N = Parameter(
    "n",
    integer(1, MAX_N),
    {"type": "integer", "minimum": 1, "maximum": MAX_N},
    "How many items to return.",
    default=10,
)
_TAGS = Parameter(
    "tags",
    _tag,
    {"type": "array", "items": {"type": "string"}},
    "Only items that carry all of these tags; repeated or comma separated (a comma in a tag is %2C).",
    default=(),
    many=True,
    limit=MAX_TAGS,
)
_EXCLUDE = Parameter(
    "exclude",
    check_id,
    {"type": "array", "items": {"type": "string"}},
    "Item ids never to return; repeated or comma separated (a comma in an id is %2C).",
    default=(),
    many=True,
    limit=MAX_IDS,
)

READ = QuerySpec()
_LIMIT = Parameter(
    "limit",
    integer(1, MAX_PAGE),
    {"type": "integer", "minimum": 1, "maximum": MAX_PAGE},
    "Records per page.",
    default=100,
)
_AFTER = Parameter("after", _cursor, {"type": "string"}, "`next` of the page before.")
PAGE = QuerySpec(_LIMIT, _AFTER)
ADAPTERS = QuerySpec(
    _LIMIT,
    _AFTER,
    Parameter(
        "scope",
        _choice(*ADAPTER_SCOPES),
        {"type": "string", "enum": list(ADAPTER_SCOPES)},
        "Only adapters of users, of domains, or the one of everybody.",
    ),
    Parameter("name", check_id, {"type": "string"}, "Only adapters of this user or domain."),
)
SIMILAR = QuerySpec(
    _N,
    _TAGS,
    _EXCLUDE,
    Parameter(
        "by",
        _choice("graph", "text"),
        {"type": "string", "enum": ["graph", "text"]},
        "What makes items similar: who rated them (graph), or what their titles, tags and texts say (text).",
        default="graph",
    ),
)
EMBEDDING = QuerySpec(
    Parameter(
        "kind",
        _choice("user", "item", "memory"),
        {"type": "string", "enum": ["user", "item", "memory"]},
        "Which node, when a user and an item share the id; a memory only if it is asked for.",
    ),
    Parameter("user_id", check_id, {"type": "string"}, "Whose memory it is; with kind=memory alone."),
)
RECOMMEND = QuerySpec(
    _N,
    _TAGS,
    _EXCLUDE,
    Parameter(
        "candidates",
        check_id,
        {"type": "array", "items": {"type": "string"}},
        "Restrict the answer to these item ids; repeated or comma separated (a comma in an id is %2C).",
        many=True,
        limit=MAX_IDS,
    ),
    Parameter(
        "exclude_seen", _boolean, {"type": "boolean"}, "Leave out what the user has rated.", default=True
    ),
    Parameter(
        "exclude_below",
        _rating,
        {"type": "number", "minimum": RATING_LOW, "maximum": RATING_HIGH},
        "Leave out what the user rated under this value, even when seen items may return.",
    ),
    Parameter(
        "because", _boolean, {"type": "boolean"}, "Name the rated items behind each item.", default=True
    ),
    Parameter(
        "exact_items",
        _boolean,
        {"type": "boolean"},
        "Bring item vectors up to `min_version` before searching; slower.",
        default=False,
    ),
    EXPLAIN,
)
