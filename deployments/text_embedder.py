"""The text embedder deployment: text models behind the embedding cache."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deployments import metrics
from deployments.cache_metrics import measure_cache, observe_slice
from deployments.embedding_cache import open_cache
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
from deployments.slow_calls import noted
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
from models.embedding_cache.opening import Opened
from models.reranking import by_cosine
from models.text_encoder.matryoshka import shortened
from models.text_encoder.opening import TextModelSpec, open_encoder
from models.text_encoder.protocol import Fingerprint, TextEncoder

log = logging.getLogger(__name__)

_CONFIGURED = ""  # in place of a name: the model of the settings, whose name is known once it is open
_URGENT_TEXTS, _URGENT_CHARS = 8, 8_192
"""Calls of so few short texts are somebody waiting: they overtake bulk work between two slices."""
_SLICE_TEXTS = 32
"""An urgent text waits for so many others at most: as few as keep the model's batches full."""
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
        self._failures: dict[str, str] = {}  # why a model is not there, by name or _CONFIGURED
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._leaving: set[str] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._view = GraphView()
        self._follower = Follower(
            "text_embedder", self, source, settings.snapshot_dir, frozenset(("pointer",))
        )

    async def start(self) -> None:
        """Open cache and model; returns when both were tried."""
        self._opened = await asyncio.to_thread(open_cache, self._settings)
        # Before following: most of the time it is the one that the feed names, and opened twice otherwise.
        await self._open(self._spec, _CONFIGURED)
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
        return tuple(name for name in self._failures if name != _CONFIGURED)

    async def _follow_models(self) -> None:
        """Open what something reads and is not here, let go of what nobody reads any more."""
        wanted = models_in_use(self._view, self._settings.encoder_dir)
        for name in wanted:
            spec = remembered_spec(self._view, name, self._spec)
            if name not in self._models and name not in self._tasks and spec is not None:
                self._start_opening(spec, name)
        for name in {*self._tasks, *self._failures} - {*wanted, _CONFIGURED}:
            if task := self._tasks.pop(name, None):
                task.cancel()
            self._failures.pop(name, None)
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

    def _start_opening(self, spec: TextModelSpec, name: str, delay_s: float = 0.0) -> None:
        async def later() -> None:
            await asyncio.sleep(delay_s)
            await self._open(spec, name, min(max(_RETRY_S, 2 * delay_s), _MAX_RETRY_S))

        self._tasks[name] = asyncio.create_task(later())

    async def _open(self, spec: TextModelSpec, name: str, retry_s: float | None = None) -> None:
        """Open a model, the configured one or one by name; on failure again after `retry_s`."""
        try:
            encoder = await asyncio.to_thread(self._opener, spec)
            found = encoder.fingerprint.name
            if name not in (_CONFIGURED, found):
                raise InvalidInput(f"{spec.model!r} is now {found}: its files or its software changed")
        except Exception as error:
            # The replica goes on with what it has; calls and /readyz say why this model is not among it.
            defect = not isinstance(error, WeftError)
            reason = f"unexpected {type(error).__name__}, see the log" if defect else str(error)
            log.error("text model %s cannot be opened: %s", name or spec.model, error, exc_info=defect)
            self._failures[name] = reason
            self._start_opening(spec, name, _RETRY_S if retry_s is None else retry_s)
            return
        self._tasks.pop(name, None)
        self._failures.pop(name, None)
        if name == _CONFIGURED:
            self._configured = found
        if found in self._models:
            await asyncio.to_thread(encoder.close)
        else:
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
            slice_texts=_SLICE_TEXTS,
            on_slice=observe_slice,
        )

    def _model(self, wanted: str | None) -> _Model:
        """The model of that name; None: the one search answers with, else the configured one."""
        if wanted is None:
            for name in (model_named(self._view, ACTIVE), self._configured):
                if name in self._models:
                    return self._models[name]
            raise self._absence(self._spec.model, _CONFIGURED)
        if wanted in self._models:
            return self._models[wanted]
        if wanted in self._known_as():
            if self._configured is None:
                raise self._absence(wanted, _CONFIGURED)
            return self._models[self._configured]
        if wanted in self._failures or wanted in self._tasks:
            raise self._absence(wanted, wanted)
        raise UnknownTextModel(
            f"no text model {wanted!r}: this service answers for {self._spec.model!r}", param="model"
        )

    def _absence(self, model: str, name: str) -> Unavailable:
        """Why a model is not there."""
        reason = self._failures.get(name, "it is being opened")
        return Unavailable(f"text model {model!r} is not available: {reason}")

    def _known_as(self) -> set[str]:
        """What callers may call the configured model besides its fingerprint's name."""
        names = {self._spec.model}
        if self._configured is not None:
            names.add(self._models[self._configured].fingerprint.public_model)
        return names

    # --------------------------------------------------------------------------------------------- answering

    @noted
    async def embed(self, query: EmbedQuery) -> EmbedAnswer | WeftError:
        """Vectors of the texts, in order."""
        try:
            model = self._model(query.model)
            self._check_dimensions(query.dimensions, model)
            found = await model.cached.aanswer(
                query.texts,
                query.prompt,
                truncate=query.truncate,
                urgent=_urgent(query.texts),
            )
        except WeftError as error:
            return error
        vectors = found.vectors
        if query.dimensions is not None and query.dimensions != vectors.shape[1]:
            vectors = shortened(vectors, query.dimensions)
        window = model.fingerprint.max_tokens
        truncated = int(np.count_nonzero(found.tokens > window)) if window else 0
        return EmbedAnswer(
            vectors,
            found.tokens,
            found.hits,
            truncated,
            model.fingerprint.public_model,
            model.fingerprint.name,
        )

    @noted
    async def rerank(self, query: RerankQuery) -> RerankAnswer | WeftError:
        """Documents by their cosine to the query."""
        try:
            model = self._model(None)
            asked, documents = await asyncio.gather(
                model.cached.aanswer([query.query], self._limits.query_prompt, urgent=True),
                model.cached.aanswer(query.documents, urgent=_urgent(query.documents)),
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
            return self._absence(self._spec.model, _CONFIGURED)
        model = self._models[self._configured]
        return TextModelInfo(model.fingerprint.name, spec_value(model.spec, model.fingerprint))

    def _check_dimensions(self, dimensions: int | None, model: _Model) -> None:
        own = model.fingerprint.dimensions
        allowed = [d for d in self._limits.matryoshka_dimensions if d <= own]
        if dimensions is None or dimensions == own or dimensions in allowed:
            return
        choice = f"allowed are {', '.join(map(str, [*allowed, own]))}" if allowed else f"it has {own}"
        name = model.fingerprint.public_model
        raise InvalidInput(
            f"text model {name!r} gives no vectors of {dimensions} dimensions: {choice}", param="dimensions"
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
        """Drop entries of this replica and of the store behind it; returns how many there were."""
        models = list(self._models.values())
        try:
            return await asyncio.to_thread(self._invalidate, what, models)
        except WeftError as error:
            return error

    def _invalidate(self, what: CacheInvalidation, models: list[_Model]) -> int:
        dropped, store = 0, self._opened.store
        for model in models:
            fingerprint = model.fingerprint
            if what.texts:
                # Under the prompts that this service embeds with; others belong to their callers.
                for prompt in dict.fromkeys((None, self._limits.query_prompt)):
                    dropped += model.cached.invalidate(list(what.texts), prompt)
            elif what.everything or what.model in (fingerprint.name, fingerprint.public_model):
                dropped += model.cached.invalidate()
        if store is not None and not what.texts:
            # Entries of models that are not open here.
            dropped += store.clear(None if what.everything else what.model)
        return dropped

    def measure(self) -> None:
        """Set the metrics that are not counted as they happen. Thread-safe."""
        self._follower.measure()
        statistics = [model.cached.statistics(of_store=False) for model in tuple(self._models.values())]
        for found in statistics:
            measure_cache(found)
        models = [found.namespace for found in statistics]
        metrics.CACHE_MEMORY.keep(models)
        metrics.BREAKER_OPEN.keep(models)
        metrics.WAITING.set(sum(found.waiting for found in statistics), "text_embedder")

    async def status(self) -> dict[str, Any]:
        return {
            "replica": self._follower.follower_id,
            "version": self._follower.version,
            "model": self._configured,
            "models": list(self._models),
            "failures": dict(self._failures),
            "cache": None if self._opened.store is None else self._opened.store.kind,
            "cache_degraded": self._opened.degraded or self._breaker(),
        }

    def _breaker(self) -> str | None:
        """Why the store is not asked at the moment, if so."""
        if any(model.cached.breaker_state == "open" for model in self._models.values()):
            return "the cache's store does not answer; it is asked again every second"
        return None

    def check_health(self) -> None:
        """Called by Serve; raises to be replaced."""
        if not self._follower.alive:
            raise RuntimeError("the text embedder no longer follows the feed")


def _urgent(texts: Sequence[str]) -> bool:
    return len(texts) <= _URGENT_TEXTS and sum(map(len, texts)) <= _URGENT_CHARS
