"""A bounded, ageing, least-recently-used map from nodes to vectors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from torch import Tensor


class EmbeddingLru:
    """Not thread-safe. Reading an entry makes it the youngest in use; its age counts from `put`.

    Args:
        max_entries: entries kept at most; 0 keeps none.
        max_age_s: seconds after which an entry no longer counts; None for no limit.
        clock: monotonic seconds.
    """

    def __init__(self, max_entries: int, max_age_s: float | None, clock: Callable[[], float]) -> None:
        if max_entries < 0 or (max_age_s is not None and not max_age_s > 0):
            raise ValueError("max_entries must not be negative, max_age_s must be positive or None")
        self._max_entries, self._max_age_s, self._clock = max_entries, max_age_s, clock
        self._entries: OrderedDict[Hashable, tuple[Tensor, int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable, oldest_version: int) -> Tensor | None:
        """The vector, unless it is too old or was encoded before `oldest_version`."""
        found = self._entries.get(key)
        if found is None:
            return None
        vector, version, born = found
        expired = self._max_age_s is not None and self._clock() - born > self._max_age_s
        if version < oldest_version or expired:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return vector

    def put(self, key: Hashable, vector: Tensor, version: int) -> None:
        if self._max_entries:
            self._entries[key] = vector, version, self._clock()
            self._entries.move_to_end(key)
            if len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)

    def discard(self, key: Hashable) -> None:
        self._entries.pop(key, None)

    def clear(self) -> None:
        self._entries.clear()

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors, without the map's own."""
        return sum(vector.nbytes for vector, _, _ in self._entries.values())
