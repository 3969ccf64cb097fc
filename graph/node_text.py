"""The text of a node: what of it a text model reads, and the digest that tells one text from another."""

from __future__ import annotations

import hashlib

from graph.schema import Item, Memory

DIGEST_BYTES = 16


def item_text(item: Item) -> str:
    """What of an item is embedded, as short sentences: title with year, tags, text. Never empty.

    "Toy Story (1995). Adventure, Animation, Children. A cowboy doll is threatened by a new toy."
    """
    title = item.title.strip()
    # Many catalogues, MovieLens among them, carry the year in the title.
    if item.year is not None and not title.endswith(f"({item.year})"):
        title = f"{title} ({item.year})"
    tags = ", ".join(tag.strip() for tag in item.tags)
    return " ".join(_sentence(part) for part in (title, tags, item.text.strip()) if part)


def memory_text(memory: Memory) -> str:
    """What of a memory is embedded: its text."""
    return memory.text


def text_digest(text: str) -> str:
    """The first 32 hex digits of the text's SHA-256.

    It tells only whether a vector is of the text that its node has now, never names a text among all texts:
    two texts of one node would have to agree in 128 bits to be confused.
    """
    return hashlib.sha256(text.encode()).hexdigest()[: 2 * DIGEST_BYTES]


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?", "\u2026")) else f"{text}."
