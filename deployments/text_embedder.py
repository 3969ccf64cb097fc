"""The text embedder deployment: text models behind the embedding cache."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from deployments.following import Follower
from deployments.graph_client import GraphStateClient
from deployments.messages import (
    CacheInvalidation,
    EmbedAnswer,
    EmbedQuery,
    RerankAnswer,
    RerankQuery,
    TextModelInfo,
)
from deployments.settings import Settings
from deployments.text_models import (
    ACTIVE,
    configured_spec,
    model_named,
    models_in_use,
    remembered_spec,
    spec_value,
)
from graph.errors import InvalidInput, Unavailable, UnknownTextModel, WeftError
from graph.schema import ChangeSet
from graph.view import GraphView
from models.embedding_cache.cached_encoder import CachedEncoder
from models.embedding_cache.opening import Opened, open_with_fallback
from models.reranking import by_cosine
from models.text_encoder.matryoshka import shortened
from models.text_encoder.opening import TextModelSpec, open_encoder
from models.text_encoder.protocol import Fingerprint, TextEncoder

log = logging.getLogger(__name__)

_URGENT_TEXTS = 8
"""Calls of so few texts are somebody waiting: they overtake bulk work between two slices."""
_RETRY_S = 5.0
_MAX_RETRY_S = 60.0
_GRACE_S = 10.0
"""A model that was replaced is closed so long afterwards: calls for it are still on their way."""


@dataclass(frozen=True, slots=True)
class _Model:
    spec: TextModelSpec
    cached: CachedEncoder

    @property
    def fingerprint(self) -> Fingerprint:
        return self.cached.fingerprint


class TextEmbedder:
    """One replica: the configured model, and older ones for as long as their vectors are in use.

    A model that cannot be opened does not keep the replica from starting: calls say why, and it is tried
    again.
    """

    def __init__(
        self,
        settings: Settings,
        source: GraphStateClient,
        opener: Callable[[TextModelSpec], TextEncoder] = open_encoder,
    ) -> None:
        self._settings = settings
        self._limits = settings.text_embedder
        self._opener = opener
        self._spec = configured_spec(settings.text_embedder, os.cpu_count() or 1)
        self._opened = Opened(None, None)
        self._models: dict[str, _Model] = {}
        self._configured: str | None = None
        self._failures: dict[str, str] = {}  # why a model is not there, by name; the configured one under ""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._leaving: set[str] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._view = GraphView()
        self._follower = Follower(
            "text_embedder", self, source, settings.snapshot_dir, frozenset(("pointer",))
        )

    async def start(self) -> None:
        """Open cache and model; returns when both were tried."""
        if self._settings.cache.enabled:
            self._opened = await asyncio.to_thread(self._open_store)
        # Before following: most of the time it is the one that the feed names, and opened twice otherwise.
        await self._open(self._spec, None)
        await self._follower.start()

    async def stop(self) -> None:
        tasks = [*self._tasks.values(), *self._closing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._follower.stop()
        for model in self._models.values():
            await model.cached.aclose()
        if self._opened.store is not None:
            await asyncio.to_thread(self._opened.store.close)

    # --------------------------------------------------------------------------------------- being a replica

    async def load(self, view: GraphView) -> None:
        self._view = view
        await self._follow_models()

    async def apply(self, changes: ChangeSet) -> None:
        self._view.apply(changes)
        if changes.pointers:
            await self._follow_models()

    def generations(self) -> tuple[str, ...]:
        return tuple(self._models)

    def failed(self) -> tuple[str, ...]:
        return tuple(name for name in self._failures if name)

    async def _follow_models(self) -> None:
        """Open what something reads and is not here, close what nobody reads any more."""
        wanted = models_in_use(self._view, self._settings.encoder_dir)
        for name in wanted:
            spec = remembered_spec(self._view, name, self._spec)
            if name not in self._models and name not in self._tasks and spec is not None:
                self._start_opening(spec, name)
        for name in set(self._models) - {*wanted, self._configured} - self._leaving:
            self._leaving.add(name)
            task = asyncio.create_task(self._close_later(name))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _close_later(self, name: str) -> None:
        """Close a model that nothing uses, once those who asked for it have their answers."""
        await asyncio.sleep(_GRACE_S)
        self._leaving.discard(name)
        used = {*models_in_use(self._view, self._settings.encoder_dir), self._configured}
        if name not in used and name in self._models:
            log.info("text model %s is no longer in use", name)
            await self._models.pop(name).cached.aclose()

    # ------------------------------------------------------------------------------------------------ models

    def _open_store(self) -> Opened:
        cache = self._settings.cache
        url = None if cache.url is None else cache.url.get_secret_value()
        return open_with_fallback(
            url or self._settings.redis_url, self._settings.cache_file, timeout_s=cache.timeout_s
        )

    def _start_opening(self, spec: TextModelSpec, name: str | None, delay_s: float = 0.0) -> None:
        async def later() -> None:
            await asyncio.sleep(delay_s)
            await self._open(spec, name, min(max(_RETRY_S, 2 * delay_s), _MAX_RETRY_S))

        self._tasks[name or ""] = asyncio.create_task(later())

    async def _open(self, spec: TextModelSpec, name: str | None, retry_s: float = _RETRY_S) -> None:
        """Open a model, the configured one where `name` is None; on failure again after `retry_s`."""
        try:
            encoder = await asyncio.to_thread(self._opener, spec)
            found = encoder.fingerprint.name
            if name is not None and found != name:
                raise InvalidInput(f"{spec.model!r} is now {found}: its files or its software changed")
        except WeftError as error:
            self._tasks.pop(name or "", None)
            self._failures[name or ""] = error.message
            log.error("text model %s cannot be opened: %s", name or spec.model, error.message)
            self._start_opening(spec, name, retry_s)
            return
        except BaseException:
            self._tasks.pop(name or "", None)
            raise
        self._tasks.pop(name or "", None)
        self._failures.pop(name or "", None)
        if name is None:
            self._configured = found
        if found not in self._models:
            self._models[found] = _Model(spec, self._cached(encoder))
            log.info("text model %s is open: %s", found, encoder.fingerprint)

    def _cached(self, encoder: TextEncoder) -> CachedEncoder:
        cache = self._settings.cache
        return CachedEncoder(
            encoder,
            self._opened.store,
            memory_bytes=cache.memory_bytes,
            ttl_s=cache.ttl_s,
            enabled=cache.enabled,
            max_waiting_texts=self._limits.max_waiting_texts,
        )

    def _model(self, wanted: str | None) -> _Model:
        """The model of that name; None: the one search answers with, else the configured one."""
        if wanted is None:
            for name in (model_named(self._view, ACTIVE), self._configured):
                if name in self._models:
                    return self._models[name]
            reason = self._failures.get("", "it is being opened")
            raise Unavailable(f"text model {self._spec.model!r} is not available: {reason}")
        if wanted in self._models:
            return self._models[wanted]
        if wanted == self._spec.model or wanted.removeprefix("sentence-transformers/") == self._spec.model:
            return self._model(self._configured)
        if wanted in self._failures or wanted in self._tasks:
            raise Unavailable(
                f"text model {wanted!r} is not available: {self._failures.get(wanted, 'opening')}"
            )
        raise UnknownTextModel(
            f"no text model {wanted!r}: this service answers for {self._spec.model!r}", param="model"
        )

    # --------------------------------------------------------------------------------------------- answering

    async def embed(self, query: EmbedQuery) -> EmbedAnswer | WeftError:
        """Vectors of the texts, in order."""
        try:
            model = self._model(query.model)
            self._check_dimensions(query.dimensions, model)
            found = await model.cached.aanswer(
                query.texts,
                query.prompt,
                truncate=query.truncate,
                urgent=len(query.texts) <= _URGENT_TEXTS,
            )
        except WeftError as error:
            return error
        vectors = found.vectors
        if query.dimensions is not None and query.dimensions != vectors.shape[1]:
            vectors = shortened(vectors, query.dimensions)
        window = model.fingerprint.max_tokens
        truncated = int(np.count_nonzero(found.tokens > window)) if window else 0
        return EmbedAnswer(
            vectors, found.tokens, found.hits, truncated, model.fingerprint.model, model.fingerprint.name
        )

    async def rerank(self, query: RerankQuery) -> RerankAnswer | WeftError:
        """Documents by their cosine to the query."""
        try:
            model = self._model(None)
            asked, documents = await asyncio.gather(
                model.cached.aanswer([query.query], self._limits.query_prompt, urgent=True),
                model.cached.aanswer(query.documents, urgent=len(query.documents) <= _URGENT_TEXTS),
            )
        except WeftError as error:
            return error
        order, scores = by_cosine(asked.vectors[0], documents.vectors, query.top_n)
        tokens = np.concatenate([asked.tokens, documents.tokens])
        return RerankAnswer(
            tuple(order.tolist()),
            tuple(scores.tolist()),
            int(tokens[tokens > 0].sum()),
            model.fingerprint.name,
        )

    async def model(self) -> TextModelInfo | WeftError:
        """The configured model."""
        if self._configured is None:
            reason = self._failures.get("", "it is being opened")
            return Unavailable(f"text model {self._spec.model!r} is not available: {reason}")
        model = self._models[self._configured]
        fingerprint = model.fingerprint
        return TextModelInfo(
            fingerprint.name,
            fingerprint.model,
            fingerprint.dimensions,
            fingerprint.max_tokens,
            spec_value(model.spec, fingerprint),
        )

    def _check_dimensions(self, dimensions: int | None, model: _Model) -> None:
        own = model.fingerprint.dimensions
        allowed = [d for d in self._limits.matryoshka_dimensions if d <= own]
        if dimensions is None or dimensions == own or dimensions in allowed:
            return
        choice = f"allowed are {', '.join(map(str, [*allowed, own]))}" if allowed else f"it has {own}"
        raise InvalidInput(
            f"text model {model.fingerprint.model!r} gives no vectors of {dimensions} dimensions: {choice}",
            param="dimensions",
        )

    # ---------------------------------------------------------------------------------------------- the cache

    async def cache_statistics(self) -> dict[str, Any]:
        """Of every model of this replica; plain JSON."""
        models = dict(self._models)
        found = await asyncio.to_thread(
            lambda: {name: model.cached.statistics().as_dict() for name, model in models.items()}
        )
        return {
            "replica": self._follower.follower_id,
            "degraded": self._opened.degraded,
            "models": found,
        }

    async def invalidate(self, what: CacheInvalidation) -> int | WeftError:
        """Drop entries of this replica and of the store behind it; returns how many the store had."""
        try:
            return await asyncio.to_thread(self._invalidate, what)
        except WeftError as error:
            return error

    def _invalidate(self, what: CacheInvalidation) -> int:
        if what.texts:
            return self._model(None).cached.invalidate(list(what.texts))
        dropped, store = 0, self._opened.store
        for name, model in self._models.items():
            if what.everything or what.model in (name, model.fingerprint.model):
                dropped += model.cached.invalidate()
        if store is not None:
            # Entries of models that are not open here.
            dropped += store.clear(None if what.everything else what.model)
        return dropped

    async def status(self) -> dict[str, Any]:
        return {
            "replica": self._follower.follower_id,
            "version": self._follower.version,
            "model": self._configured,
            "models": list(self._models),
            "failures": dict(self._failures),
            "cache": None if self._opened.store is None else self._opened.store.kind,
            "cache_degraded": self._opened.degraded,
        }

    def check_health(self) -> None:
        """Called by Serve; raises to be replaced."""
        if not self._follower.alive:
            raise RuntimeError("the text embedder no longer follows the feed")
