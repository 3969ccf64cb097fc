"""What text embedder and text indexer say of themselves, put together for operators."""

from __future__ import annotations

from collections import Counter
from typing import Any

_COUNTS = (
    "lookups",
    "hits",
    "memory_hits",
    "store_hits",
    "coalesced",
    "misses",
    "encoded",
    "damaged",
    "store_errors",
    "writes_dropped",
    "memory_entries",
    "memory_bytes",
)


def merged(replicas: list[dict[str, Any]]) -> dict[str, Any]:
    """Status of the text embedder: of one replica, with whatever is wrong in any of them."""
    failures: dict[str, str] = {}
    for replica in replicas:
        failures |= replica["failures"]
    reasons = (replica["cache_degraded"] for replica in replicas)
    return {
        **replicas[0],
        "replicas": [replica["replica"] for replica in replicas],
        "failures": failures,
        "cache_degraded": next(filter(None, reasons), None),
    }


def degraded(parts: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What works less well than it could, and why, in words."""
    found: dict[str, str] = {}
    embedder, indexer = parts["text_embedder"], parts["text_indexer"]
    if reason := embedder.get("cache_degraded"):
        found["cache"] = reason
    failure = next((text for text in embedder.get("failures", {}).values()), None)
    if reason := embedder.get("error") or failure:
        found["text_embedder"] = f"a text model is not available: {reason}"
    if reason := indexer.get("error"):
        found["text_indexer"] = f"new texts get no vectors: {reason}"
    if waiting := indexer.get("waiting"):
        reason = indexer.get("failure") or "they are being made"
        found["text_vectors"] = f"{waiting} texts wait for their vectors: {reason}"
    elif reason := indexer.get("failure"):
        found["text_vectors"] = str(reason)
    if refused := indexer.get("refused"):
        found["refused_texts"] = f"the text model refuses {refused} texts: see GET /v1/status"
    if reason := _language_model(parts.get("language_model", {})):
        found["language_model"] = reason
    return found


def _language_model(status: dict[str, Any]) -> str | None:
    if reason := status.get("error") or status.get("failure"):
        return f"nothing can be generated: {reason}"
    if (audit := status.get("audit")) and audit["failure"]:
        return f"generations are missing in the audit log: {audit['failure']}"
    return None


def combined(replicas: list[dict[str, Any]]) -> dict[str, object]:
    """Statistics of the cache over all replicas of the text embedder: counts added up, and each as it is."""
    counts: Counter[str] = Counter()
    store, ttl_s = None, None
    for replica in replicas:
        for statistics in replica["models"].values():
            counts.update({name: statistics[name] for name in _COUNTS})
            store, ttl_s = statistics["store"] or store, statistics["ttl_s"]
    lookups = counts["lookups"]
    return {
        **{name: counts[name] for name in _COUNTS},
        "hit_rate": counts["hits"] / lookups if lookups else 0.0,
        "ttl_s": ttl_s,
        "store": store,
        "replicas": replicas,
    }
