"""The API keys as an ingress replica knows them: rows of the feed, in memory, never older than promised."""

from __future__ import annotations

import time
from pathlib import Path

from deployments import metrics
from deployments.following import Follower
from deployments.graph_client import GraphStateClient
from deployments.ingress.access import Caller
from graph.api_keys import opens, split_key
from graph.errors import Unauthenticated, Unavailable
from graph.schema import ChangeSet
from graph.view import GraphView

_QUESTIONS_PER_LAG = 4
_WAIT_S = 5.0  # a writer that died is back before


class KeyRing:
    """Follows the keys. What it does not know to be level with the feed it does not answer from."""

    def __init__(self, source: GraphStateClient, snapshot_dir: Path, max_lag_s: float) -> None:
        self._view = GraphView()
        self._max_lag_s = max_lag_s
        self._follower = Follower(
            "ingress",
            self,
            source,
            snapshot_dir,
            frozenset(("api_key",)),
            tail_timeout_s=max_lag_s / _QUESTIONS_PER_LAG,
        )

    async def start(self) -> None:
        """Load the keys, waiting for the graph state if need be, and follow them from then on."""
        await self._follower.start()

    async def stop(self) -> None:
        await self._follower.stop()

    @property
    def alive(self) -> bool:
        return self._follower.alive

    def measure(self) -> None:
        """Set the metric of how far behind the keys may be. Thread-safe."""
        metrics.KEYS_LAG.set(self._follower.lag_s)

    def __len__(self) -> int:
        return sum(1 for _ in self._view.api_keys())

    async def caller(self, key: str) -> Caller:
        """Whose key it is. O(1).

        Raises Unauthenticated for what opens nothing, whatever the reason, and Unavailable when the feed has
        not been heard of for `max_lag_s`, and not for some seconds more: a key may have been revoked.
        """
        if not await self._follower.level(self._max_lag_s, _WAIT_S):
            raise Unavailable(
                f"keys cannot be checked: the feed was last heard of {self._follower.lag_s:.1f} s ago"
            )
        parts = split_key(key)
        if parts is not None:
            found = self._view.api_key(parts[0])
            if opens(found, parts[1], time.time()) and found is not None:
                return Caller(found.role, found.key_id, found.user_id or None)
        raise Unauthenticated("the API key is not valid: it may have been revoked, or have expired")

    async def wait_for(self, version: int) -> None:
        await self._follower.wait_for(version, _WAIT_S)

    # ------------------------------------------------------------------------------- what the follower calls

    async def load(self, view: GraphView) -> None:
        self._view = view

    async def apply(self, changes: ChangeSet) -> None:
        self._view.apply(changes)

    def generations(self) -> tuple[str, ...]:
        return ()

    def failed(self) -> tuple[str, ...]:
        return ()
