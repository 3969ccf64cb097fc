"""The two pointers of the feed that name encoders: what answers, and what is to be built beside it."""

from __future__ import annotations

from graph.view import GraphView

SCOPE, ACTIVE, CANDIDATE = "encoder", "active", "candidate"


def digest_of(view: GraphView, name: str) -> str | None:
    """Digest that the pointer `name` holds, if any."""
    pointer = view.pointer(SCOPE, name)
    digest = None if pointer is None else pointer.value.get("digest")
    return str(digest) if digest else None
