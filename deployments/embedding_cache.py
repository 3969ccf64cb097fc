"""The store of the embedding cache that the settings name."""

from __future__ import annotations

from deployments.settings import Settings
from models.embedding_cache.opening import Opened, open_with_fallback


def open_cache(settings: Settings, timeout_s: float | None = None) -> Opened:
    """The store, or why there is another or none; `timeout_s` in place of the settings' own.

    A cache that is switched off is none, and not degraded.
    """
    cache = settings.cache
    if not cache.enabled:
        return Opened(None, None)
    return open_with_fallback(
        settings.cache_url,
        settings.cache_file,
        timeout_s=cache.timeout_s if timeout_s is None else timeout_s,
        sqlite_max_bytes=cache.file_max_bytes,
    )
