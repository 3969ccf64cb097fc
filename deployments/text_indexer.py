"""The text indexer deployment: gives every item and memory its text vector, in the background.

It follows the feed like any replica, knows which nodes wait for a vector under which model, asks the text
embedder and writes the answers as changes of their own. So a text embedder that is away delays vectors and
nothing else, and whatever was missed is found again after any restart: what waits is derived from the store.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Protocol, TypeAlias

from deployments import metrics
from deployments.following import Follower
from deployments.graph_client import GraphStateClient
from deployments.messages import EmbedAnswer, EmbedQuery, TextModelInfo
from deployments.settings import Settings
from deployments.text_models import ACTIVE, CANDIDATE, SPECS, model_named, models_in_use, put_model
from graph.errors import Conflict, InvalidInput, NotYet, Unavailable, WeftError
from graph.node_text import item_text, memory_text, text_digest
from graph.schema import (
    MAX_ROWS_PER_WRITE,
    ChangeSet,
    DeleteTextVector,
    Operation,
    PutPointer,
    PutTextVector,
    TextKind,
    WriteRequest,
)
from graph.text_vectors import packed
from graph.view import GraphView

log = logging.getLogger(__name__)

Node: TypeAlias = tuple[TextKind, int]
"""Kind and row."""

_SWITCH = "switch"  # in place of a model's name: what keeps one model from taking over from another
_KINDS: tuple[TextKind, ...] = ("item", "memory")
_CATCH_UP_S = 10.0
_LOOK_AGAIN_S = 5.0
"""How often the embedder is asked for its model while nothing waits: it may be another after a redeploy."""
_MAX_RETRY_S = 10.0
_REFUSED_AGAIN_S = 600.0
"""How often texts that a model refused are put to it again: what refused may have been mended."""
_MAX_REFUSED_SHARE = 0.01
"""A candidate that refuses more of the texts than this does not take over."""
_MAX_REFUSED_IN_A_ROW = 16
"""After so many refusals without an answer it is more likely the model that is wrong than the texts."""
_GRACE_S = 10.0
"""Vectors of a model that was replaced stay this long: queries embedded with it are still on their way."""


class EmbedderClient(Protocol):
    """The calls of the text embedder that the indexer makes; errors are raised."""

    async def models(self) -> list[TextModelInfo]:
        """The configured model of every replica that has one open; raises when none has."""
        ...

    async def embed(self, query: EmbedQuery) -> EmbedAnswer: ...


@dataclass(slots=True)
class _Batch:
    """Texts on their way to one model, and what became of them."""

    name: str
    texts: dict[Node, str]
    vectors: dict[Node, bytes] = field(default_factory=dict)
    refused: dict[Node, str] = field(default_factory=dict)


class TextIndexer:
    """One replica for the whole service."""

    def __init__(self, settings: Settings, source: GraphStateClient, embedder: EmbedderClient) -> None:
        self._settings = settings
        self._limits = settings.text_indexer
        self._source = source
        self._embedder = embedder
        self._view = GraphView()
        self._waiting: dict[str, dict[Node, None]] = {}  # by model, in order of arrival
        self._refused: dict[str, dict[Node, str]] = {}  # texts that a model will never take, and why
        self._failures: dict[str, str] = {}  # why a model gives no vectors, by name; "": no model at all
        self._unused_since: dict[str, float] = {}
        self._looked = -_LOOK_AGAIN_S
        self._asked_refused = time.monotonic()
        self._moved = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._follower = Follower(
            "text_indexer",
            self,
            source,
            settings.snapshot_dir,
            frozenset(("item", "memory", "text_vector", "pointer")),
        )

    async def start(self) -> None:
        """Load, then work from then on."""
        await self._follower.start()
        self._worker = asyncio.create_task(self._work())

    async def stop(self) -> None:
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
        await self._follower.stop()

    def check_health(self) -> None:
        """Called by Serve; raises to be replaced."""
        if not self._follower.alive or self._worker is None or self._worker.done():
            raise RuntimeError("the text indexer has stopped")

    async def wait_for(self, version: int, timeout_s: float) -> bool:
        """Long-poll: whether this replica reached `version` in time."""
        return await self._follower.wait_for(version, timeout_s)

    def measure(self) -> None:
        """Set the metrics that are not counted as they happen. Thread-safe."""
        self._follower.measure()
        metrics.TEXTS_WITHOUT_VECTOR.set(self._num_waiting())

    def _num_waiting(self) -> int:
        return max(map(len, tuple(self._waiting.values())), default=self._num_texts())

    async def status(self) -> dict[str, Any]:
        """How many nodes wait under which model, and why."""
        return {
            "replica": self._follower.follower_id,
            "version": self._follower.version,
            "active": model_named(self._view, ACTIVE),
            "candidate": model_named(self._view, CANDIDATE),
            "waiting": self._num_waiting(),
            "models": {
                name: {
                    "vectors": sum(len(self._view.text_vectors(kind, name)) for kind in _KINDS),
                    "waiting": len(waiting),
                    "refused": len(self._refused.get(name, ())),
                    "failure": self._failures.get(name),
                }
                for name, waiting in self._waiting.items()
            },
            "refused": max(map(len, self._refused.values()), default=0),
            "failure": self._failures.get("") or self._failures.get(_SWITCH),
        }

    # --------------------------------------------------------------------------------------- being a replica

    async def load(self, view: GraphView) -> None:
        self._view = view
        self._waiting, self._refused = {}, {}
        self._follow_models()
        self._moved.set()

    async def apply(self, changes: ChangeSet) -> None:
        self._view.apply(changes)
        if changes.pointers:
            self._follow_models()
        texts: list[Node] = [("item", item.row) for item in changes.items]
        texts += [("memory", memory.row) for memory in changes.memories]
        for refused in self._refused.values():
            for node in texts:
                refused.pop(node, None)
        for name in self._waiting:
            for node in texts:
                self._consider(name, node)
            for vector in changes.text_vectors:
                if vector.model == name:
                    self._consider(name, (vector.kind, vector.row))
        self._moved.set()

    def generations(self) -> tuple[str, ...]:
        return tuple(self._waiting)

    def failed(self) -> tuple[str, ...]:
        return ()

    def _follow_models(self) -> None:
        """Keep a list of what waits for every model in use, and for no other."""
        used = models_in_use(self._view, self._settings.encoder_dir)
        self._waiting = {
            name: self._waiting[name] if name in self._waiting else self._all_waiting(name) for name in used
        }
        self._refused = {name: nodes for name, nodes in self._refused.items() if name in used}

    def _all_waiting(self, name: str) -> dict[Node, None]:
        return {(kind, row): None for kind in _KINDS for row in self._view.waiting_texts(kind, name).tolist()}

    def _consider(self, name: str, node: Node) -> None:
        """Put a node on the list of a model, or take it off."""
        text = self._text(node)
        kind, row = node
        if text is None or self._view.text_vectors(kind, name).digest(row) == text_digest(text):
            self._waiting[name].pop(node, None)
        elif node not in self._refused.get(name, ()):
            self._waiting[name][node] = None

    def _text(self, node: Node) -> str | None:
        """The text of a live node."""
        kind, row = node
        if kind == "item":
            item = self._view.item_at(row)
            return None if item is None else item_text(item)
        memory = self._view.memory_at(row)
        return None if memory is None else memory_text(memory)

    def _node_id(self, node: Node) -> str | None:
        kind, row = node
        if kind == "item":
            item = self._view.item_at(row)
            return None if item is None else item.item_id
        memory = self._view.memory_at(row)
        return None if memory is None else memory.memory_id

    def _num_texts(self) -> int:
        return self._view.num_items + self._view.num_memories

    # ------------------------------------------------------------------------------------------------ working

    async def _work(self) -> None:
        pause = self._limits.retry_s
        while True:
            # Cleared before looking: what changes meanwhile is seen the next time round.
            self._moved.clear()
            progress = await self._round()
            if progress:
                pause = self._limits.retry_s
            elif self._failures:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _MAX_RETRY_S)
            else:
                await self._something_changes()

    async def _something_changes(self) -> None:
        try:
            async with asyncio.timeout(_LOOK_AGAIN_S):
                await self._moved.wait()
        except TimeoutError:
            return

    async def _round(self) -> bool:
        """One step for every model that has something to do; whether any of them got on."""
        progress = False
        kept = ("", _SWITCH)
        self._failures = {n: f for n, f in self._failures.items() if n in kept or self._waiting.get(n)}
        now = time.monotonic()
        if now - self._looked >= _LOOK_AGAIN_S or model_named(self._view, ACTIVE) is None:
            progress |= await self._attempt("", self._settle_models)
        if now - self._asked_refused >= _REFUSED_AGAIN_S:
            self._asked_refused = now
            self._put_refused_again()
        for name in tuple(self._waiting):
            if self._waiting.get(name):
                progress |= await self._attempt(name, partial(self._embed_some, name))
        return progress | await self._attempt(_SWITCH, self._finish_change)

    async def _attempt(self, name: str, step: Callable[[], Awaitable[bool]]) -> bool:
        """Run a step; a failure is remembered under `name`, logged when it is a new one, and tried again."""
        try:
            progress = await step()
        except WeftError as error:
            if self._failures.get(name) != error.message:
                log.warning("text vectors: %s: %s", name or "no text model", error.message)
            self._failures[name] = error.message
            return False
        if self._failures.pop(name, None) is not None:
            log.info("text vectors: %s goes on", name or "the text model")
        return progress

    async def _settle_models(self) -> bool:
        """Point the feed at the configured model: at once if there is none yet, else as the candidate."""
        found = await self._embedder.models()
        self._looked = time.monotonic()
        names = sorted({info.name for info in found})
        if len(names) > 1:
            # During a redeploy for a moment, with different hardware for ever: neither may move the pointers.
            raise Conflict(
                f"replicas of the text embedder have different models, {' and '.join(names)}: the one in use "
                "stays; on different hardware set text_embedder.dtype"
            )
        info = found[0]
        active, candidate = model_named(self._view, ACTIVE), model_named(self._view, CANDIDATE)
        wanted = None if info.name == active else info.name
        if active is not None and candidate == wanted:
            return False
        log.info("text model %s: active is %s, candidate was %s", info.name, active, candidate)
        pointer = put_model(ACTIVE, info.name) if active is None else put_model(CANDIDATE, wanted)
        await self._write([PutPointer(SPECS, info.name, info.spec), pointer])
        return True

    def _put_refused_again(self) -> None:
        for name, nodes in self._refused.items():
            again, self._refused[name] = list(nodes), {}
            for node in again:
                self._consider(name, node)

    async def _embed_some(self, name: str) -> bool:
        nodes = list(islice(self._waiting[name], self._limits.batch_texts))
        batch = _Batch(name, {node: text for node in nodes if (text := self._text(node)) is not None})
        try:
            await self._embed(batch, list(batch.texts))
        finally:
            # Also what was found before a failure is kept, and what failed goes to the end of the line.
            await self._keep(batch, nodes)
        return True

    async def _keep(self, batch: _Batch, nodes: Sequence[Node]) -> None:
        operations: list[Operation] = []
        for node, vector in batch.vectors.items():
            node_id = self._node_id(node)
            if node_id is not None:
                digest = text_digest(batch.texts[node])
                operations.append(PutTextVector(node[0], node_id, batch.name, digest, vector))
        if operations:
            await self._write(operations)
        if batch.name not in self._waiting:
            return  # withdrawn meanwhile
        for node, reason in batch.refused.items():
            log.warning("model %r refuses the text of %s %r: %s", batch.name, node[0], node[1], reason)
            self._refused.setdefault(batch.name, {})[node] = reason
        for node in nodes:
            # Also those that vanished, and those whose text changed on the way.
            if self._waiting[batch.name].pop(node, 0) is None:
                self._consider(batch.name, node)

    async def _embed(self, batch: _Batch, nodes: list[Node]) -> None:
        """Fill `batch.vectors`; of texts that the model refuses, find out which."""
        if not nodes:
            return
        texts = tuple(batch.texts[node] for node in nodes)
        try:
            answer = await self._embedder.embed(EmbedQuery(texts, model=batch.name))
        except InvalidInput as error:
            if len(nodes) > 1:
                middle = len(nodes) // 2
                await self._embed(batch, nodes[:middle])
                await self._embed(batch, nodes[middle:])
                return
            batch.refused[nodes[0]] = error.message
            if not batch.vectors and len(batch.refused) >= _MAX_REFUSED_IN_A_ROW:
                raise Unavailable(f"the model refuses one text after another: {error.message}") from error
            return
        for node, vector in zip(nodes, answer.vectors, strict=True):
            try:
                batch.vectors[node] = packed(vector)
            except InvalidInput as error:
                batch.refused[node] = error.message

    async def _finish_change(self) -> bool:
        """Make a complete candidate the active model, and drop vectors that nothing reads any more."""
        active, candidate = model_named(self._view, ACTIVE), model_named(self._view, CANDIDATE)
        if candidate is not None and not self._waiting.get(candidate, True):
            refused = len(self._refused.get(candidate, ()))
            texts = self._num_texts()
            if refused > _MAX_REFUSED_SHARE * texts:
                raise Conflict(
                    f"text model {candidate} refuses {refused} of {texts} texts: {active} stays in use"
                )
            log.info("text model %s answers from now on, in place of %s", candidate, active)
            await self._write([put_model(ACTIVE, candidate), put_model(CANDIDATE, None)])
            return True
        return await self._drop_unused()

    async def _drop_unused(self) -> bool:
        now = time.monotonic()
        unused = {m for kind in _KINDS for m in self._view.text_models(kind)} - set(self._waiting)
        self._unused_since = {name: self._unused_since.get(name, now) for name in unused}
        for name, since in self._unused_since.items():
            if now - since >= _GRACE_S:
                rows = [(k, r) for k in _KINDS for r in self._view.text_vectors(k, name).rows().tolist()]
                log.info("dropping %d vectors of text model %s, which nothing uses", len(rows), name)
                await self._write([DeleteTextVector(k, r, name) for k, r in rows[:MAX_ROWS_PER_WRITE]])
                return True
        return False

    async def _write(self, operations: Sequence[Operation]) -> None:
        """Write, and wait until this replica's own view has it; raises what the write was refused with.

        Repeating a write of vectors or pointers changes nothing, so it needs no idempotency key.
        """
        (outcome,) = await self._source.write([WriteRequest(tuple(operations))])
        if isinstance(outcome, WeftError):
            raise outcome
        if not await self._follower.wait_for(outcome.version, _CATCH_UP_S):
            raise NotYet(f"the text indexer has not reached version {outcome.version}")
