"""Cursors of listings: the row that the next page begins with."""

from __future__ import annotations

from graph.errors import InvalidInput


def read_cursor(after: str | None) -> int:
    """The row that a page begins with. Raises InvalidInput for what is no cursor."""
    if after is None:
        return 0
    if not after.isascii() or not after.isdigit() or len(after) > 18:
        raise InvalidInput(f"cursor {after[:40]!r}: use the `next` of the page before", param="after")
    return int(after)
