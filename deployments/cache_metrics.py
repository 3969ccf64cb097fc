"""Metrics of the text model and the cache in front of it, from the cache's own statistics."""

from __future__ import annotations

from deployments import metrics
from models.embedding_cache.statistics import CacheStatistics

_BREAKER = {"open": 1.0, "half-open": 0.5}


def observe_slice(waited_s: float, encoded_s: float) -> None:
    """A slice of texts went through the text model."""
    metrics.QUEUE.observe(waited_s, "text_embedder")
    metrics.INFERENCE.observe(encoded_s, "text_embedder")


def measure_cache(found: CacheStatistics) -> None:
    """Take over what the cache in front of one model has counted. Thread-safe."""
    model = found.namespace
    metrics.TEXTS_ENCODED.follow(found.encoded, model)
    if not found.enabled:
        return
    if found.memory_max_bytes:
        metrics.CACHE_HITS.follow(found.memory_hits, model, "memory")
        metrics.CACHE_MISSES.follow(found.lookups - found.memory_hits, model, "memory")
        metrics.CACHE_MEMORY.set(found.memory_bytes, model)
        metrics.CACHE_EVICTIONS.follow(found.evictions, model)
    if found.breaker != "none":
        metrics.CACHE_HITS.follow(found.store_hits, model, "store")
        metrics.CACHE_MISSES.follow(found.misses, model, "store")
        metrics.BREAKER_OPEN.set(_BREAKER.get(found.breaker, 0.0), model)
    metrics.CACHE_COALESCED.follow(found.coalesced, model)
    kinds = {
        "store": found.store_errors,
        "skipped": found.store_skipped,
        "damaged": found.damaged,
        "dropped": found.writes_dropped,
    }
    for kind, count in kinds.items():
        metrics.CACHE_ERRORS.follow(count, model, kind)
