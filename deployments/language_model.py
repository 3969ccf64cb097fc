"""The language model deployment: generation with adapters, and the adapters themselves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any

from deployments.adapter_calls import AdapterCalls
from deployments.adapter_manager import AdapterManager
from deployments.adapter_versions import AdapterVersions, is_state, state_of
from deployments.audit_log import AuditLog
from deployments.context_fitting import ContextFitter, without_lines
from deployments.following import Follower
from deployments.generation_messages import Delta, Ended, GenerateAnswer, GenerateQuery, LanguageModelInfo
from deployments.generation_metrics import count_generation, measure_backend
from deployments.generation_run import GenerationRun, Mailbox, StreamEvent
from deployments.graph_client import GraphStateClient
from deployments.memory_messages import ContextCandidates, FittedContext
from deployments.opening_language_model import OpenedLanguageModel, Opener, open_language_model
from deployments.settings import Settings
from deployments.slow_calls import noted
from deployments.warm_adapters import WarmAdapters
from graph.errors import (
    InvalidInput,
    ModelUnavailable,
    NotFound,
    NotYet,
    UnknownAdapter,
    UnknownModel,
    WeftError,
)
from graph.schema import ChangeSet, Pointer
from graph.view import GraphView
from models.adapter_cascade import AdapterCascade
from models.adapter_pointers import parse_reference
from models.language_model.protocol import AdapterChoice, GenerationRequest, LanguageBackend, Listener, Ticket

log = logging.getLogger(__name__)

_START_WAIT_S = 60.0
"""The service starts without a model that takes longer to load; it joins when it is there."""
_STOP_WAIT_S = 5.0
"""For changes of adapters that were begun; what writes to a graph state that is gone would wait for long."""
_RETRY_S = 5.0
_MAX_RETRY_S = 60.0
_QUICK_CHARS = 2_000
"""Of a prompt that is read at once: a tokenizer takes about half a microsecond for each."""
_PAUSE_S = 0.02
"""Between two messages of a stream: a message costs more than a token, and nobody reads faster."""


class LanguageModel(AdapterCalls):
    """One replica. A model that cannot be opened does not keep it from starting: calls say why, and it is
    tried again.
    """

    def __init__(
        self, settings: Settings, source: GraphStateClient, opener: Opener = open_language_model
    ) -> None:
        super().__init__(self._manager_at)
        self._settings, self._source, self._opener = settings, source, opener
        self._limits = settings.language_model
        self._opened: OpenedLanguageModel | None = None
        self._manager: AdapterManager | None = None
        self._fitter: ContextFitter | None = None
        self._warm: WarmAdapters | None = None
        self._failure: str | None = "it is being opened"
        self._opening: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()
        self._mailbox = Mailbox()
        self._view = GraphView()
        self._versions = AdapterVersions(self._view)
        self._cascade = AdapterCascade(lambda: self._view)
        self._follower = Follower(
            "language_model", self, source, settings.snapshot_dir, frozenset(("pointer",))
        )
        self._audit = AuditLog(settings.audit, settings.audit_dir) if settings.audit.enabled else None
        self._known_as = {self._limits.model} - {""}

    async def start(self) -> None:
        """Load adapters' pointers and open the model; returns when it was tried, or takes long."""
        self._opening = asyncio.create_task(self._open())
        await self._follower.start()
        try:
            await asyncio.wait_for(self._tried.wait(), _START_WAIT_S)
        except TimeoutError:
            log.warning("the language model is still being opened; the service starts without it")

    async def stop(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        if self._warm is not None:
            await self._warm.stop()
        if self._manager is not None:
            try:
                await asyncio.wait_for(self._manager.stop(), _STOP_WAIT_S)
            except TimeoutError:
                log.warning("a change of adapters is given up: the replica stops")
        if self._opened is not None:
            await asyncio.to_thread(self._opened.close)
        await self._follower.stop()
        if self._audit is not None:
            await asyncio.to_thread(self._audit.close)

    def check_health(self) -> None:
        """Called by Serve; raises to be replaced."""
        if not self._follower.alive:
            raise RuntimeError("the language model no longer follows the feed")

    async def _open(self) -> None:
        pause = _RETRY_S
        while True:
            try:
                opened = await self._open_once()
            except Exception as error:
                # The rest of the service goes on without it; calls and /readyz say why.
                defect = not isinstance(error, WeftError)
                self._failure = f"unexpected {type(error).__name__}, see the log" if defect else str(error)
                log.error("the language model cannot be opened: %s", error, exc_info=defect)
                self._tried.set()
                await asyncio.sleep(pause)
                pause = min(2 * pause, _MAX_RETRY_S)
                continue
            break
        await self._begin(opened)
        self._tried.set()

    async def _open_once(self) -> OpenedLanguageModel:
        opening = asyncio.ensure_future(asyncio.to_thread(self._opener, self._settings))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            # The thread goes on: whatever it opens is for nobody.
            opening.add_done_callback(lambda done: done.exception() or done.result().close())
            raise

    async def _begin(self, opened: OpenedLanguageModel) -> None:
        backend, residents = opened.backend, opened.residents
        log.info("language model %s is open on %s", backend.model_name, backend.device)
        manager = AdapterManager(
            self._settings,
            self._source,
            self._follower,
            lambda: self._versions,
            opened.store,
            tuple if residents is None else residents.resident,
        )
        await manager.start()
        if residents is not None:
            folder = self._settings.adapter_dir
            self._warm = WarmAdapters(folder, residents, self._settings.adapters.warm_up)
        self._opened, self._manager, self._failure = opened, manager, None
        self._fitter = ContextFitter(backend)
        if self._warm is not None and self._follower.version >= 0:
            self._warm.start(self._versions)

    # --------------------------------------------------------------------------------------- being a replica

    async def load(self, view: GraphView) -> None:
        self._view, self._versions = view, AdapterVersions(view)
        if self._warm is not None:
            self._warm.start(self._versions)

    async def apply(self, changes: ChangeSet) -> None:
        self._view.apply(changes)
        if not changes.pointers:
            return
        gone = self._versions.apply(changes.pointers)
        residents = None if self._opened is None else self._opened.residents
        if residents is None:
            return
        for digest in gone:
            residents.forget(digest)
        if gone and self._manager is not None and any(pointer.deleted for pointer in changes.pointers):
            self._manager.clear(gone)  # a deleted version's files go with the call that deletes it
        present = set(residents.resident())
        for pointer in changes.pointers:
            for digest in _replacing(pointer, present):
                # Whoever asked for the old one will ask for the new one.
                residents.request(digest)

    def generations(self) -> tuple[str, ...]:
        return ()

    def failed(self) -> tuple[str, ...]:
        return ()

    async def wait_for(self, version: int, timeout_s: float) -> bool:
        """Long-poll: whether this replica reached `version` in time."""
        return await self._follower.wait_for(version, timeout_s)

    def _check_version(self, min_version: int) -> None:
        if self._follower.version < min_version:
            raise NotYet(f"the language model is at version {self._follower.version}, not yet {min_version}")

    def _model(self) -> OpenedLanguageModel:
        if self._opened is None:
            raise ModelUnavailable(f"the language model is not available: {self._failure}")
        return self._opened

    # --------------------------------------------------------------------------------------------- generating

    async def generate(self, query: GenerateQuery) -> GenerateAnswer | WeftError:
        """A whole answer. Cancelled with the call."""
        try:
            run = await self._submit(query)
        except WeftError as error:
            return error
        found = await run.answer()
        return self._as_asked(query, found) if isinstance(found, WeftError) else found

    async def stream(self, query: GenerateQuery) -> AsyncIterator[list[StreamEvent]]:
        """Started, Deltas and Ended, or a WeftError as the last; in lists of what came together.

        Cancelled when the iterator is closed.
        """
        try:
            run = await self._submit(query)
        except WeftError as error:
            yield [error]
            return
        try:
            while True:
                news = await run.events()
                last = news[-1]
                if isinstance(last, WeftError):
                    news[-1] = self._as_asked(query, last)
                yield news
                if isinstance(last, Ended | WeftError):
                    return
                if isinstance(last, Delta):
                    await run.pause(_PAUSE_S)
        finally:
            run.cancel()

    async def _submit(self, query: GenerateQuery) -> GenerationRun:
        self._check_version(query.min_version)
        model = self._limits.model if self._opened is None else self._opened.backend.model_name
        run = GenerationRun(query, model, self._limits.timeout_s, self._log)
        try:
            backend = self._model().backend
            adapter = self._reference(query, backend.model_name)
            if adapter is not None and query.blend:
                raise InvalidInput("give an adapter or a blend, not both", param="blend")
            choose = partial(self._cascade.choose, query.user_id, query.domain, adapter, query.blend)

            def chosen(failed: dict[str, str]) -> AdapterChoice:
                # First: the view may move on in between, and the answer must not claim more than it saw.
                run.version = self._follower.version
                return choose(failed)

            if query.context is not None and self._fitter is not None:
                run.context = await self._fitter.fit_beside(query, query.context)
            request = GenerationRequest(
                query.request_id,
                query.prompt,
                query.sampling,
                chosen,
                query.user_id,
                "" if run.context is None else run.context.text,
            )
            listener = partial(self._mailbox.post, run)
            try:
                run.accepted(await _submitted(backend, request, listener))
            except InvalidInput as error:
                if not request.context:
                    raise
                # Perhaps it is a stored text that this model cannot read, which is not the caller's doing.
                log.warning("request %s is answered without its context: %s", query.request_id, error.message)
                run.context = without_lines(run.context)
                run.accepted(await _submitted(backend, replace(request, context=""), listener))
        except WeftError as error:
            error = self._as_asked(query, error)
            run.refuse(error)
            raise error from None
        return run

    def _reference(self, query: GenerateQuery, model_name: str) -> str | None:
        """The adapter that a request names, be it as its model."""
        if query.model is None or query.model == model_name or query.model in self._known_as:
            return query.adapter
        if query.adapter is not None or query.blend:
            raise InvalidInput(
                f"model {query.model[:80]!r} is an adapter already: give no other beside it", param="model"
            )
        try:
            parse_reference(query.model)
        except (InvalidInput, NotFound) as error:
            raise UnknownModel(
                f"no model {query.model[:80]!r}: GET /v1/models lists what there is", param="model"
            ) from error
        return query.model

    @staticmethod
    def _as_asked(query: GenerateQuery, error: WeftError) -> WeftError:
        """An unknown adapter that was asked for as a model is an unknown model."""
        named = isinstance(error, UnknownAdapter) and query.adapter is None and not query.blend
        return UnknownModel(error.message, param="model") if named else error

    def _log(self, run: GenerationRun) -> None:
        count_generation(run)
        if self._audit is not None:
            device = "none" if self._opened is None else self._opened.backend.device
            self._audit.write(run.record(device, texts=self._settings.audit.texts))

    @noted
    async def fit_context(self, lines: ContextCandidates, max_tokens: int) -> FittedContext | WeftError:
        """The lines as a prompt with room for `max_tokens` of them would have them."""
        try:
            self._model()
        except WeftError as error:
            return error
        assert self._fitter is not None
        return await self._fitter.fit(lines, max_tokens)

    async def info(self) -> LanguageModelInfo | WeftError:
        """The base model, and the references of adapters that are active."""
        try:
            opened = self._model()
        except WeftError as error:
            return error
        names = sorted(f"{state.scope}/{state.name}" for state in self._versions.active())
        return LanguageModelInfo(opened.backend.model_name, tuple(names))

    def _manager_at(self, min_version: int) -> AdapterManager:
        self._check_version(min_version)
        self._model()
        assert self._manager is not None
        return self._manager

    # ------------------------------------------------------------------------------------------------- status

    def measure(self) -> None:
        """Set the metrics that are not counted as they happen. Thread-safe."""
        self._follower.measure()
        if self._opened is not None:
            measure_backend(self._opened.backend.status())

    async def status(self) -> dict[str, Any]:
        """Device, base model, slots, residents, queue and caches, as the backend tells them, and the rest."""
        opened = self._opened
        backend: dict[str, object] = {} if opened is None else opened.backend.status()
        return {
            **backend,
            "replica": self._follower.follower_id,
            "version": self._follower.version,
            "following": self._follower.alive and self._follower.connected,
            "open": opened is not None,
            "failure": self._failure,
            "active_adapters": sum(1 for _ in self._versions.active()),
            "audit": None if self._audit is None else self._audit.status(),
        }


async def _submitted(backend: LanguageBackend, request: GenerationRequest, listener: Listener) -> Ticket:
    """Submit a request, off the event loop where reading its prompt takes long."""
    prompt = request.prompt
    chars = len(prompt) if isinstance(prompt, str) else sum(len(turn.content) for turn in prompt)
    if chars + len(request.context) <= _QUICK_CHARS:
        return backend.submit(request, listener)
    submitting = asyncio.ensure_future(asyncio.to_thread(backend.submit, request, listener))
    try:
        return await asyncio.shield(submitting)
    except asyncio.CancelledError:
        submitting.add_done_callback(lambda done: done.exception() or done.result().cancel())
        raise


def _replacing(pointer: Pointer, resident: set[str]) -> list[str]:
    """Adapters that a pointer makes active in place of one that is in memory."""
    if pointer.deleted or not is_state(pointer):
        return []
    state = state_of(pointer)
    if not any(arm.digest in resident for arm in state.previous):
        return []
    return [arm.digest for arm in state.arms if arm.digest not in resident]
