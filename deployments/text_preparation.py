"""Text vectors from the command line: before a service starts, or by waiting for the one that runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deployments.client import WeftClient
from deployments.settings import Settings
from deployments.store_access import open_writer, read_view, service_url
from deployments.text_models import (
    ACTIVE,
    CANDIDATE,
    SPECS,
    configured_spec,
    model_named,
    put_model,
    spec_value,
)
from graph.errors import Unavailable
from graph.node_text import item_text, memory_text, text_digest
from graph.schema import Operation, PutPointer, PutTextVector, TextKind, WriteRequest
from graph.text_vectors import packed
from graph.view import GraphView
from models.embedding_cache.cached_encoder import CachedEncoder
from models.embedding_cache.opening import Opened, open_with_fallback
from models.text_encoder.opening import open_encoder

Report = Callable[[str, int, int, str], None]
"""Stage, done, total, message."""

_STAGE = "text vectors"
_STALLED_S = 60.0
_POLL_S = 0.5


def open_cache(settings: Settings) -> Opened:
    """The store of the embedding cache as the service would choose it."""
    cache = settings.cache
    if not cache.enabled:
        return Opened(None, None)
    url = None if cache.url is None else cache.url.get_secret_value()
    return open_with_fallback(url or settings.redis_url, settings.cache_file, timeout_s=cache.timeout_s)


@contextmanager
def cached_encoder(settings: Settings) -> Iterator[CachedEncoder]:
    """The configured text model behind the configured cache.

    Raises InvalidInput, NotFound or Unavailable for a model that cannot be opened.
    """
    encoder = open_encoder(configured_spec(settings.text_embedder, os.cpu_count() or 1))
    opened = open_cache(settings)
    try:
        with CachedEncoder(
            encoder,
            opened.store,
            memory_bytes=0,  # every text is asked for once
            ttl_s=settings.cache.ttl_s,
            enabled=settings.cache.enabled,
        ) as cached:
            yield cached
    finally:
        if opened.store is not None:
            opened.store.close()


def prepare_text_vectors(settings: Settings, report: Report) -> str | None:
    """See that every item and memory has its vector; returns the name of the model they are of.

    Where a service runs, its indexer does the work and this waits for it; raises Unavailable when it makes no
    progress. Otherwise raises what opening the text model raises.
    """
    url = service_url(settings)
    if url is not None:
        return _wait_for_service(url, report)
    return _embed_all(settings, report)


def _embed_all(settings: Settings, report: Report) -> str:
    view = read_view(settings)
    with cached_encoder(settings) as encoder, open_writer(settings, "weft train") as write:
        name = encoder.fingerprint.name
        nodes = _waiting(view, name)
        size = settings.text_indexer.batch_texts
        for first in range(0, len(nodes), size):
            report(_STAGE, first, len(nodes), "")
            batch = nodes[first : first + size]
            vectors = encoder.encode([text for _, _, text in batch])
            operations: list[Operation] = [
                PutTextVector(kind, node_id, name, text_digest(text), packed(vector))
                for (kind, node_id, text), vector in zip(batch, vectors, strict=True)
            ]
            write(WriteRequest(tuple(operations)))
        report(_STAGE, len(nodes), len(nodes), "")
        if model_named(view, ACTIVE) != name:
            # Everything has a vector of this model, so it can answer at once.
            spec = configured_spec(settings.text_embedder, os.cpu_count() or 1)
            remember = PutPointer(SPECS, name, spec_value(spec, encoder.fingerprint))
            write(WriteRequest((remember, put_model(ACTIVE, name), put_model(CANDIDATE, None))))
    return name


def _waiting(view: GraphView, name: str) -> list[tuple[TextKind, str, str]]:
    """Kind, id and text of the nodes without a vector of their text under that model."""
    items = (view.item_at(row) for row in view.waiting_texts("item", name).tolist())
    memories = (view.memory_at(row) for row in view.waiting_texts("memory", name).tolist())
    found: list[tuple[TextKind, str, str]] = [("item", i.item_id, item_text(i)) for i in items if i]
    found += [("memory", m.memory_id, memory_text(m)) for m in memories if m]
    return found


def _wait_for_service(url: str, report: Report) -> str | None:
    total, least, since = 0, None, time.monotonic()
    with WeftClient(url) as client:
        while True:
            indexer = client.status()["text_indexer"]
            waiting, failure = indexer.get("waiting", 0), indexer.get("failure") or indexer.get("error")
            total = max(total, waiting)
            report(_STAGE, total - waiting, total, failure or "")
            if waiting == 0 and not failure and indexer.get("candidate") is None:
                active = indexer.get("active")
                return None if active is None else str(active)
            if least is None or waiting < least:
                least, since = waiting, time.monotonic()
            if time.monotonic() - since > _STALLED_S:
                raise Unavailable(
                    f"{waiting} texts wait for their vectors and the service gets no further: "
                    f"{failure or 'see its log'}"
                )
            time.sleep(_POLL_S)
