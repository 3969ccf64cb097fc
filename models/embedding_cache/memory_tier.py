"""The tier in this process: vectors in one slab, found by a dictionary, bounded in bytes."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.embedding_cache.codec import Bools, Numbers
from models.text_encoder.protocol import Int32

_ENTRY_OVERHEAD = 4 + 8 + 1 + 32 + 8 + 72
"""Bytes of an entry besides key and numbers: tokens, expiry, mark, slot number, its place in the list of keys
and in the dictionary (24 to 72, as full as that happens to be)."""
_CLOCK_STEP = 1024


class Gathered(NamedTuple):
    """What `get_many` found."""

    found: Bools  # [n]
    rows: Numbers  # [hits, d] in the order of the keys that were found
    tokens: Int32  # [hits]


class MemoryTier:
    """Thread-safe. Evicts by CLOCK (Corbato 1968): an entry asked for since the hand came by stays a round.

    The slab is reserved whole and becomes memory page by page as slots are first used.

    Args:
        dimensions: of a vector.
        dtype: of the numbers as kept.
        max_bytes: of slots, keys and dictionary together; 0 keeps nothing.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        dimensions: int,
        dtype: npt.DTypeLike,
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes is {max_bytes}; it must not be negative")
        self._clock, self._max_bytes = clock, max_bytes
        self._lock = threading.Lock()
        self._slot_bytes = dimensions * np.dtype(dtype).itemsize + _ENTRY_OVERHEAD
        capacity = max_bytes // (self._slot_bytes + sys.getsizeof(0))
        self._rows: Any = np.empty((capacity, dimensions), dtype)
        self._tokens = np.empty(capacity, np.int32)
        self._expires_at = np.empty(capacity, np.float64)
        self._marked = np.zeros(capacity, np.bool_)
        self._keys: list[Hashable] = []  # by slot; None: the slot is free
        self._free: list[int] = []
        self._slots: dict[Hashable, int] = {}
        self._bytes = self._hand = 0
        self.evictions = 0
        self.puts = 0
        """Calls of `put_many` so far: unchanged means that what was not found is still not here."""

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def nbytes(self) -> int:
        """Of slots in use, keys and dictionary."""
        return self._bytes

    def get_many(self, keys: Sequence[Hashable]) -> Gathered:
        """Vectors of the keys that are here and have not expired."""
        with self._lock:
            slots = np.fromiter(map(self._slots.get, keys, repeat(-1)), np.int64, len(keys))
            found = slots >= 0
            hits = slots if found.all() else slots[found]
            if len(hits):
                stale = self._expires_at[hits] <= self._clock()
                if stale.any():
                    for slot in set(hits[stale].tolist()):
                        self._drop(slot)
                    found[np.flatnonzero(found)[stale]] = False
                    hits = hits[~stale]
                self._marked[hits] = True
            return Gathered(found, self._rows.take(hits, axis=0), self._tokens[hits])

    def put_many(self, keys: Sequence[Hashable], rows: Numbers, tokens: Int32, ttl_s: float | None) -> None:
        """Keep or replace entries; a batch beyond the budget leaves its last ones."""
        with self._lock:
            self.puts += 1
            slots = [self._slot_for(key) for key in keys]
            # A slot given away again within the batch belongs to the last key that got it.
            last = {slot: place for place, slot in enumerate(slots) if slot >= 0}
            at = np.fromiter(last.keys(), np.int64, len(last))
            places = np.fromiter(last.values(), np.int64, len(last))
            self._rows[at], self._tokens[at] = rows[places], tokens[places]
            self._expires_at[at] = np.inf if ttl_s is None else self._clock() + ttl_s

    def drop(self, keys: Iterable[Hashable]) -> int:
        """Drop entries; returns how many there were."""
        with self._lock:
            slots = {slot for key in keys if (slot := self._slots.get(key, -1)) >= 0}
            now = self._clock()
            dropped = sum(bool(self._expires_at[slot] > now) for slot in slots)
            for slot in slots:
                self._drop(slot)
            return dropped

    def clear(self) -> int:
        """Drop everything; returns how many entries there were."""
        with self._lock:
            used = np.fromiter(self._slots.values(), np.int64, len(self._slots))
            dropped = int(np.count_nonzero(self._expires_at[used] > self._clock()))
            self._slots.clear()
            self._keys.clear()
            self._free.clear()
            self._marked[:] = False
            self._bytes = self._hand = 0
            return dropped

    def _slot_for(self, key: Hashable) -> int:
        """The key's slot, new or not; -1 where it alone is beyond the budget."""
        slot = self._slots.get(key, -1)
        if slot >= 0:
            return slot
        size = self._slot_bytes + _key_bytes(key)
        if size > self._max_bytes:
            return -1
        while self._bytes + size > self._max_bytes:
            self._evict()
        if self._free:
            slot = self._free.pop()
            self._keys[slot] = key
        else:
            slot = len(self._keys)
            self._keys.append(key)
        self._slots[key] = slot
        self._marked[slot] = False
        self._bytes += size
        return slot

    def _evict(self) -> None:
        """Move the hand to an entry that was not asked for since it last came by, and drop that."""
        while True:
            start = self._hand if self._hand < len(self._keys) else 0
            window = self._marked[start : min(start + _CLOCK_STEP, len(self._keys))]
            cold = int(window.argmin())
            if window[cold]:
                cold = len(window)
            window[:cold] = False
            self._hand = start + cold
            if cold < len(window):
                slot, self._hand = self._hand, self._hand + 1
                if self._keys[slot] is not None:
                    self._drop(slot)
                    self.evictions += 1
                    return

    def _drop(self, slot: int) -> None:
        key = self._keys[slot]
        del self._slots[key]
        self._keys[slot] = None
        self._free.append(slot)
        self._marked[slot] = False
        self._bytes -= self._slot_bytes + _key_bytes(key)


def _key_bytes(key: Hashable) -> int:
    """Of the key's own objects; what it shares with other keys (a prompt) counts each time."""
    if isinstance(key, tuple):
        return sys.getsizeof(key) + sum(map(sys.getsizeof, key))
    return sys.getsizeof(key)
