"""Encoder generations of a replica: which are loaded, which is being built, which one answers.

The feed names encoders through two pointers: `candidate` is to be built beside the active one, `active` is
to answer. A replica reports what it can answer with; `deployments.graph_keeper` moves `active` only when
every replica has the candidate, so nobody is ever asked for an encoder it does not have.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Generic, TypeVar

from deployments import metrics
from deployments.encoder_pointers import ACTIVE, CANDIDATE, digest_of
from graph.errors import Corrupt, NotYet, Unavailable, WeftError
from graph.view import GraphView
from models.graph_encoder.checkpoint import Checkpoint, load_checkpoint

log = logging.getLogger(__name__)

G = TypeVar("G")

_RETRY_S = 5.0


def load_generation(folder: Path, digest: str) -> Checkpoint:
    """The encoder in `folder/digest`; raises Corrupt for one that is damaged or goes by another's name."""
    checkpoint = load_checkpoint(folder / digest)
    if not digest or not checkpoint.digest.startswith(digest):
        raise Corrupt(f"{folder / digest} holds encoder {checkpoint.digest[:16]}: give it that name")
    return checkpoint


class Generations(Generic[G]):
    """Loaded generations by digest. `build` makes one; it must leave it level with the replica's view."""

    def __init__(self, build: Callable[[str], Awaitable[G]]) -> None:
        self._build = build
        self._loaded: dict[str, G] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._failed: set[str] = set()
        self._wanted: str | None = None
        self._candidate: str | None = None
        self.active_digest: str | None = None

    @property
    def active(self) -> G | None:
        return None if self.active_digest is None else self._loaded.get(self.active_digest)

    def get(self, digest: str) -> G | None:
        return self._loaded.get(digest)

    def all(self) -> list[G]:
        return list(self._loaded.values())

    def awaits(self, digest: str) -> bool:
        """Whether that generation is being built."""
        return digest in self._tasks

    def absence(self) -> WeftError:
        """Why there is no active generation."""
        if self._wanted is None:
            return Unavailable("no encoder is active: train one with `weft train`")
        if self._wanted in self._failed:
            return Unavailable(f"encoder {self._wanted} cannot be loaded: see the log of this replica")
        return NotYet(f"encoder {self._wanted} is being loaded")

    def loaded(self) -> tuple[str, ...]:
        return tuple(self._loaded)

    def failed(self) -> tuple[str, ...]:
        return tuple(self._failed)

    def measure(self) -> None:
        """Set the metric of the encoder that answers. Thread-safe."""
        if self.active_digest is not None:
            metrics.ENCODER_ACTIVE.only(self.active_digest[:12])

    async def restart(self, view: GraphView) -> None:
        """Forget everything and build the active generation anew, then the candidate in the background."""
        for task in self._tasks.values():
            task.cancel()
        self._tasks, self._loaded, self._failed = {}, {}, set()
        self.active_digest = None
        self.follow(view)
        task = self._tasks.get(self._wanted or "")
        if task is not None:
            await task

    def follow(self, view: GraphView) -> None:
        """Act on the pointers as they stand: build what is missing, answer with what is active."""
        self._wanted = digest_of(view, ACTIVE)
        self._candidate = digest_of(view, CANDIDATE)
        for digest in (self._wanted, self._candidate):
            if digest and digest not in self._loaded and digest not in self._tasks:
                self._failed.discard(digest)
                self._tasks[digest] = asyncio.create_task(self._load(digest))
        self._flip()

    async def _load(self, digest: str) -> None:
        try:
            self._loaded[digest] = await self._build(digest)
        except Exception as error:
            # The replica goes on with what it has; whoever asked for this encoder reads it in the reports.
            self._failed.add(digest)
            defect = None if isinstance(error, WeftError) else error
            log.error("encoder %s cannot be used: %s", digest[:12], error, exc_info=defect)
            if digest == self._wanted:
                # Nothing else would ever try again: the directory may appear, a replica come back.
                asyncio.get_running_loop().call_later(_RETRY_S, self._retry, digest)
        else:
            log.info("encoder %s is loaded", digest[:12])
            self._failed.discard(digest)
            self._flip()
        finally:
            # After a restart the name belongs to another task.
            if self._tasks.get(digest) is asyncio.current_task():
                del self._tasks[digest]

    def _retry(self, digest: str) -> None:
        if digest == self._wanted and digest not in self._loaded and digest not in self._tasks:
            self._tasks[digest] = asyncio.create_task(self._load(digest))

    def _flip(self) -> None:
        if self._wanted is None or self._wanted not in self._loaded:
            return
        if self.active_digest != self._wanted:
            log.info("encoder %s answers from now on", self._wanted[:12])
        self.active_digest = self._wanted
        self._loaded = {d: g for d, g in self._loaded.items() if d in (self._wanted, self._candidate)}
