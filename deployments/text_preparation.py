"""Text vectors from the command line: before a service starts, or by waiting for the one that runs."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from deployments.embedding_cache import open_cache
from deployments.service_client import service_client
from deployments.settings import Settings
from deployments.store_access import Write, open_writer, read_view, service_url
from deployments.text_models import (
    ACTIVE,
    CANDIDATE,
    SPECS,
    configured_spec,
    model_named,
    put_model,
    spec_value,
)
from graph.errors import InvalidInput, Unavailable
from graph.node_text import item_text, memory_text, text_digest
from graph.schema import Operation, PutPointer, PutTextVector, TextKind, WriteRequest
from graph.text_vectors import packed
from graph.view import GraphView
from models.embedding_cache.cached_encoder import CachedEncoder
from models.text_encoder.opening import open_encoder
from models.text_encoder.protocol import Float32

log = logging.getLogger(__name__)

Report = Callable[[str, int, int, str], None]
"""Stage, done, total, message."""

_STAGE = "text vectors"
_STALLED_S = 60.0
_POLL_S = 0.5


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


def encode_accepted(
    encoder: CachedEncoder, texts: Sequence[str], prompt: str | None = None
) -> list[Float32 | InvalidInput]:
    """A vector [d] for every text, in order, or why the model refuses it, which costs the others nothing.

    Raises as the encoder does for what is no text's fault.
    """
    try:
        return list(encoder.encode(texts, prompt))
    except InvalidInput as error:
        if len(texts) == 1:
            return [error]
        middle = len(texts) // 2
        first = encode_accepted(encoder, texts[:middle], prompt)
        return first + encode_accepted(encoder, texts[middle:], prompt)


def prepare_text_vectors(settings: Settings, report: Report) -> str | None:
    """See that every item and memory has its vector; returns the name of the model they are of.

    Where a service runs, its indexer does the work and this waits for it; raises Unavailable when it makes no
    progress. Otherwise raises what opening the text model raises, and StoreLocked. Interrupted, what was
    written stays, and the next call goes on from there. A text that the model refuses gets no vector.
    """
    url = service_url(settings)
    if url is not None:
        return _wait_for_service(settings, url, report)
    # The lock first: opening a model takes seconds, and nobody may write between reading and writing.
    with open_writer(settings, "weft train") as write, cached_encoder(settings) as encoder:
        return _embed_all(settings, write, encoder, report)


def _embed_all(settings: Settings, write: Write, encoder: CachedEncoder, report: Report) -> str:
    view = read_view(settings)
    name = encoder.fingerprint.name
    nodes = _waiting(view, name)
    size = settings.text_indexer.batch_texts
    for first in range(0, len(nodes), size):
        report(_STAGE, first, len(nodes), "")
        batch = nodes[first : first + size]
        operations: list[Operation] = []
        vectors = encode_accepted(encoder, [text for _, _, text in batch])
        for (kind, node_id, text), found in zip(batch, vectors, strict=True):
            if isinstance(found, InvalidInput):
                log.warning("model %r refuses the text of %s %r: %s", name, kind, node_id, found.message)
            else:
                operations.append(PutTextVector(kind, node_id, name, text_digest(text), packed(found)))
        if operations:
            write(WriteRequest(tuple(operations)))
    report(_STAGE, len(nodes), len(nodes), "")
    if model_named(view, ACTIVE) != name or model_named(view, CANDIDATE) is not None:
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


def _wait_for_service(settings: Settings, url: str, report: Report) -> str | None:
    least, since = None, time.monotonic()
    total, written = 0, None
    with service_client(settings, url) as client:
        while True:
            parts = client.status()
            indexer = parts["text_indexer"]
            # What was written before this began; the indexer may not know of it yet.
            written = parts["graph_state"].get("version") if written is None else written
            behind = written is None or indexer.get("version", -1) < written
            waiting, failure = indexer.get("waiting", 0), _failure(indexer)
            total = max(total, waiting)
            report(_STAGE, total - waiting, total, failure or "")
            active, candidate = indexer.get("active"), indexer.get("candidate")
            if not behind and waiting == 0 and candidate is None and (active is not None or not failure):
                return None if active is None else str(active)
            if least is None or waiting < least:
                least, since = waiting, time.monotonic()
            if time.monotonic() - since > _STALLED_S:
                raise Unavailable(
                    f"{waiting} texts wait for their vectors and the service gets no further: "
                    f"{failure or 'see its log'}"
                )
            time.sleep(_POLL_S)


def _failure(indexer: dict[str, Any]) -> str | None:
    """Why the indexer gets no further, if it says so: it does not answer, has no model, or one that fails."""
    models = (model.get("failure") for model in indexer.get("models", {}).values())
    reasons = (indexer.get("error"), indexer.get("failure"), *models)
    return next((str(reason) for reason in reasons if reason), None)
