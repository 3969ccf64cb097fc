"""What the cache did since it was made, and what it holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from models.embedding_cache.store import StoreStatistics


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """Every text asked for, repeated ones too, is one of the hits, `coalesced` or one of the `misses`.

    That holds for calls that have read the store; while caching is off nothing is counted but `encoded`.
    """

    namespace: str
    enabled: bool
    ttl_s: float | None
    lookups: int
    memory_hits: int
    store_hits: int
    coalesced: int
    """Texts that waited for the same text of another call, or of the same."""
    misses: int
    encoded: int
    """Texts that the encoder answered."""
    waiting: int
    """Texts in the queue of the encoder now."""
    damaged: int
    """Values of the store that were no entry of their key."""
    unstorable: int
    """Vectors that an entry cannot hold; answered as they are."""
    store_errors: int
    store_skipped: int
    """Calls of the store left out because it had not answered before."""
    writes_dropped: int
    """Entries not written: the queue of writes was full, or the store did not answer."""
    memory_entries: int
    memory_bytes: int
    memory_max_bytes: int
    evictions: int
    breaker: str
    """"closed", "open", "half-open"; "none" without a store."""
    store: StoreStatistics | None
    """None without a store, while it does not answer, and where it was not asked."""

    @property
    def hits(self) -> int:
        return self.memory_hits + self.store_hits

    @property
    def hit_rate(self) -> float:
        """Hits per lookup; 0 before the first."""
        return self.hits / self.lookups if self.lookups else 0.0

    def as_dict(self) -> dict[str, object]:
        """Plain JSON, with `hits` and `hit_rate`."""
        return {**asdict(self), "hits": self.hits, "hit_rate": self.hit_rate}
