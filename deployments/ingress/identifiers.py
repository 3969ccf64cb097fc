"""External ids: which strings may name a user, an item or an encoder."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema

from graph.errors import InvalidInput
from graph.schema import MAX_ID_CHARS

# An id is one segment of a path: no slash, no control characters, nothing that trimming would change, none of
# the dot segments that clients and proxies resolve, and no lone surrogates, which have no UTF-8 form.
_ID = re.compile(rf"(?!\.{{1,2}}\Z)(?=\S)[^\x00-\x1f\x7f-\x9f/\ud800-\udfff]{{1,{MAX_ID_CHARS}}}(?<=\S)")
_RULE = (
    f"an id has 1 to {MAX_ID_CHARS} characters, no '/', no control characters and no whitespace at either end"
)


def check_id(text: str, param: str) -> str:
    """`text`, provided it may be an id; raises InvalidInput naming `param` otherwise."""
    if _ID.fullmatch(text) is None:
        raise InvalidInput(f"{param} {text[:80]!r} is refused: {_RULE}", param=param)
    return text


def _check(text: str) -> str:
    if _ID.fullmatch(text) is None:
        raise ValueError(_RULE)
    return text


Id = Annotated[
    str,
    AfterValidator(_check),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": MAX_ID_CHARS, "pattern": "^[^/]+$"}),
]
"""The same rule for a field of a body."""
