"""External ids: which strings may name a user, an item or an encoder."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema

from graph.errors import InvalidInput
from graph.schema import ID_RULE, MAX_ID_CHARS, is_id


def check_id(text: str, param: str) -> str:
    """`text`, provided it may be an id; raises InvalidInput naming `param` otherwise."""
    if not is_id(text):
        raise InvalidInput(f"{param} {text[:80]!r} is refused: {ID_RULE}", param=param)
    return text


def _check(text: str) -> str:
    if not is_id(text):
        raise ValueError(ID_RULE)
    return text


Id = Annotated[
    str,
    AfterValidator(_check),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": MAX_ID_CHARS, "pattern": "^[^/]+$"}),
]
"""The same rule for a field of a body."""
