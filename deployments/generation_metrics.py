"""Metrics of generation: of every one that ended, and of the backend as it describes itself."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from deployments import metrics, slow_calls
from deployments.generation_run import GenerationRun
from deployments.request_ids import about

log = logging.getLogger(__name__)

_ADAPTER_EVENTS = {
    "loads": "load",
    "failures": "failure",
    "hits": "hit",
    "misses": "miss",
    "evictions": "eviction",
}


def count_generation(run: GenerationRun) -> None:
    """A generation has ended, in whatever way."""
    started, result = run.started, run.result
    source = "none" if started is None else started.source
    outcome = "unknown"
    if run.error is not None:
        outcome = run.error.code
    elif result is not None:
        outcome = result.finish_reason
    metrics.GENERATIONS.inc(source, outcome)
    # A backend elsewhere knows the prompt's tokens at the end, the engine at the beginning.
    prompt_tokens = result.prompt_tokens if result is not None else started.prompt_tokens if started else 0
    metrics.PROMPT_TOKENS.inc(by=prompt_tokens)
    if started is not None:
        metrics.CACHED_TOKENS.inc(by=started.cached_tokens)
        metrics.QUEUE.observe(run.queued_ms / 1e3, "language_model")
    if result is not None and started is not None:
        metrics.INFERENCE.observe(max(0.0, result.latency_ms - run.queued_ms) / 1e3, "language_model")
        if result.completion_tokens:
            metrics.FIRST_TOKEN.observe(result.first_token_ms / 1e3)
        if result.completion_tokens > 1:
            rest_ms = result.latency_ms - result.first_token_ms
            metrics.OUTPUT_TOKEN.observe(max(0.0, rest_ms) / 1e3 / (result.completion_tokens - 1))
    # The loop that delivers events works for nobody in particular: the run knows whom it is for.
    with about(run.query.request_id):
        slow_calls.note(log, f"a generation that ended with {outcome}", run.seconds)


def measure_backend(found: Mapping[str, Any]) -> None:
    """Take over what `LanguageBackend.status` says. One elsewhere says less than the engine."""
    running, queued = found.get("running", 0), found.get("queued", 0)
    metrics.WAITING.set(queued, "language_model")
    metrics.ENGINE_ROWS.set(running, "busy")
    metrics.ENGINE_ROWS.set(max(0, found.get("max_batch", 0) - running), "free")
    metrics.COMPLETION_TOKENS.follow(found.get("tokens_generated", 0))
    if "out_of_memory" in found:
        metrics.OUT_OF_MEMORY.follow(found["out_of_memory"])
        metrics.KV_CACHE.set(found["kv_cache_bytes"])
    if (prefixes := found.get("prefix_cache")) is not None:
        metrics.PREFIX_LOOKUPS.follow(prefixes["hits"], "hit")
        metrics.PREFIX_LOOKUPS.follow(prefixes["misses"], "miss")
        metrics.PREFIX_BYTES.set(prefixes["bytes"])
    adapters = found.get("adapters", {})
    if "resident" in adapters:
        metrics.ADAPTERS_RESIDENT.set(adapters["resident"])
        metrics.ADAPTER_MEMORY.set(adapters["resident_bytes"])
        for counted, event in _ADAPTER_EVENTS.items():
            metrics.ADAPTER_EVENTS.follow(adapters[counted], event)
