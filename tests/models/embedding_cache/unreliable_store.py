"""A store that fails, and lets its entries be damaged, on request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from models.embedding_cache.memory_store import MemoryStore
from models.embedding_cache.store import StoreUnavailable


class UnreliableStore(MemoryStore):
    """Attributes: `failing`, asked before every call; `gets`, `puts`: sizes of the batches so far.

    `gate` blocks writes while it is cleared, `read_gate` reads; `writing` counts writes that wait there.
    """

    def __init__(self, clock: Callable[[], float], failing: Callable[[], bool] = lambda: False) -> None:
        super().__init__(clock)
        self.failing = failing
        self.gets: list[int] = []
        self.puts: list[int] = []
        self.gate, self.read_gate = threading.Event(), threading.Event()
        self.gate.set()
        self.read_gate.set()
        self.writing = self.reading = 0

    def get_many(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        self.gets.append(len(keys))
        self._check()
        found = super().get_many(namespace, keys)
        self.reading += 1
        self.read_gate.wait(20)
        self.reading -= 1
        return found

    def put_many(
        self, namespace: str, keys: Sequence[bytes], values: Sequence[bytes], ttl_s: float | None
    ) -> None:
        self.puts.append(len(keys))
        self._check()
        self.writing += 1
        self.gate.wait(20)
        self.writing -= 1
        super().put_many(namespace, keys, values, ttl_s)

    def clear(self, namespace: str | None = None) -> int:
        self._check()
        return super().clear(namespace)

    def change(self, namespace: str, change: Callable[[dict[bytes, bytes]], dict[bytes, bytes]]) -> None:
        """Put other values under the namespace's keys."""
        held = {entry.key: entry.value for entry in self.entries(namespace)}
        changed = change(dict(held))
        keys = [key for key in held if changed[key] != held[key]]
        MemoryStore.put_many(self, namespace, keys, [changed[key] for key in keys], None)

    def _check(self) -> None:
        if self.failing():
            raise StoreUnavailable("the store does not answer")
