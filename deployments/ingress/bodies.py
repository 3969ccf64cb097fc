"""Bodies that FastAPI does not parse: parts of a request, and routes that take more than one content type.

Mistakes are reported as those of every other body are.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

B = TypeVar("B", bound=BaseModel)


def parsed(model: type[B], value: Any) -> B:
    """A body from plain data. Raises RequestValidationError."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise RequestValidationError(
            [{**entry, "loc": ("body", *entry["loc"])} for entry in error.errors(include_url=False)]
        ) from None


def parsed_json(model: type[B], text: bytes) -> B:
    """A body from JSON. Raises RequestValidationError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        position = getattr(error, "pos", 0)
        reason = getattr(error, "msg", "it is no UTF-8, or nested too deeply")
        raise RequestValidationError(
            [{"type": "json_invalid", "loc": ("body", position), "msg": reason, "ctx": {"error": reason}}]
        ) from None
    return parsed(model, value)
