"""Times of a body: ISO 8601 or Unix seconds come in, ISO 8601 in UTC goes out."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema

from graph.times import unix_seconds

Time = Annotated[
    int,
    BeforeValidator(unix_seconds),
    WithJsonSchema(
        {
            "anyOf": [{"type": "string"}, {"type": "number"}],
            "description": "ISO 8601 (UTC where it names no zone) or Unix seconds; fractions are cut.",
        }
    ),
]
"""A field of a body, as whole Unix seconds."""
