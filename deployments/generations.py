"""Encoder generations of a replica: which are loaded, which is being built, which one answers.

The feed names encoders through two pointers: `candidate` is to be built beside the active one, `active` is
to answer. A replica reports what it can answer with; `deployments.graph_keeper` moves `active` only when
every replica has the candidate, so nobody is ever asked for an encoder it does not have.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from graph.errors import WeftError
from graph.view import GraphView

log = logging.getLogger(__name__)

SCOPE, ACTIVE, CANDIDATE = "encoder", "active", "candidate"

G = TypeVar("G")


def digest_of(view: GraphView, name: str) -> str | None:
    """Digest that the pointer `name` holds, if any."""
    pointer = view.pointer(SCOPE, name)
    digest = None if pointer is None else pointer.value.get("digest")
    return str(digest) if digest else None


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

    def loaded(self) -> tuple[str, ...]:
        return tuple(self._loaded)

    def failed(self) -> tuple[str, ...]:
        return tuple(self._failed)

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
        except WeftError as error:
            # The replica goes on with what it has; whoever asked for this encoder reads it in the reports.
            self._failed.add(digest)
            log.error("encoder %s cannot be used: %s", digest[:12], error.message)
        else:
            log.info("encoder %s is loaded", digest[:12])
            self._flip()
        finally:
            # After a restart the name belongs to another task.
            if self._tasks.get(digest) is asyncio.current_task():
                del self._tasks[digest]

    def _flip(self) -> None:
        if self._wanted is None or self._wanted not in self._loaded:
            return
        if self.active_digest != self._wanted:
            log.info("encoder %s answers from now on", self._wanted[:12])
        self.active_digest = self._wanted
        self._loaded = {d: g for d, g in self._loaded.items() if d in (self._wanted, self._candidate)}
