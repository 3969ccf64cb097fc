"""Entries from store to store: export, import, warming a new server from an old one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from models.embedding_cache.store import EmbeddingStore


def copy_entries(
    source: EmbeddingStore,
    target: EmbeddingStore,
    namespace: str | None = None,
    batch: int = 1000,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Copy a namespace, or (None) all; values byte for byte, times as far as the target keeps them.

    `progress` is told after every batch how many were copied so far. Interrupted, what was copied stays;
    copying again is safe. Returns how many were copied, expired ones left out. Raises StoreUnavailable.
    """
    copied = 0
    entries = source.entries(namespace)
    while chunk := list(islice(entries, batch)):
        copied += target.put_entries(chunk)
        if progress is not None:
            progress(copied)
    return copied
