"""What the cache asks of a place that keeps its entries.

A store moves opaque bytes under 32-byte keys. What the bytes are is the codec's business, what a key covers
the encoder's; a store neither reads nor checks them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from graph.errors import Unavailable

KEY_BYTES = 32


class StoreUnavailable(Unavailable):
    """The store does not answer, or not in time."""

    code = "cache_unavailable"


class Entry(NamedTuple):
    """One entry as it moves from store to store."""

    namespace: str
    key: bytes  # [32]
    value: bytes
    written_at: float | None
    """Unix seconds; None where the store does not keep it."""
    expires_at: float | None
    """Unix seconds; None: never."""


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """What a store holds. `None` where it cannot say."""

    kind: str  # "redis", "sqlite", ...
    location: str  # without secrets
    entries: int | None
    bytes: int | None
    """Of keys and values, as the store accounts for them."""
    server_memory_bytes: int | None = None
    """What the server behind it uses in all, whoever else it serves."""
    server_max_bytes: int | None = None


class EmbeddingStore(Protocol):
    """A namespace is `Fingerprint.name`. Implementations are thread-safe.

    Every method raises StoreUnavailable when the store cannot answer, within a bounded time, and then has
    changed all of the batch, some of it or nothing; entries themselves are written whole or not at all.
    """

    @property
    def kind(self) -> str:
        """A short word: "redis", "sqlite", "memory", "jsonl", "parquet", "datasets"."""
        ...

    @property
    def location(self) -> str:
        """Where it is, for people; never a secret."""
        ...

    def get_many(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """One value or None per key, in order; expired entries are None."""
        ...

    def put_many(
        self, namespace: str, keys: Sequence[bytes], values: Sequence[bytes], ttl_s: float | None
    ) -> None:
        """Write or replace. `ttl_s` None: until dropped. Of repeated keys the last counts."""
        ...

    def delete(self, namespace: str, keys: Sequence[bytes]) -> int:
        """Drop entries; returns how many there were."""
        ...

    def clear(self, namespace: str | None = None) -> int:
        """Drop a namespace, or (None) everything the cache ever wrote and nothing else; returns how many."""
        ...

    def prune(self, older_than_s: float) -> int:
        """Drop entries written longer ago than that, and expired ones; returns how many."""
        ...

    def namespaces(self) -> dict[str, int]:
        """Number of entries by namespace. O(entries)."""
        ...

    def entries(self, namespace: str | None = None) -> Iterator[Entry]:
        """Every entry once, in no particular order; those written meanwhile may be missed. O(entries)."""
        ...

    def put_entries(self, entries: Iterable[Entry]) -> int:
        """Write entries of another store, keeping their times as far as it can; returns how many.

        Expired ones are left out.
        """
        ...

    def statistics(self) -> StoreStatistics: ...

    def flush(self) -> None:
        """Let other processes see what was put before; for stores that collect before they write."""
        ...

    def close(self) -> None: ...
