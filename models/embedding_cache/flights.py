"""Texts on their way from store or encoder, and the calls that wait for them: each text flies once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from models.embedding_cache.codec import Bools, Numbers
from models.text_encoder.protocol import Float32, Int32

Places: TypeAlias = npt.NDArray[np.int64]


class Waiter:
    """A call that needs texts of some flights.

    Args:
        notify: called once from any thread, with the lock of the flights held, when all of them are there.
    """

    def __init__(self, notify: Callable[[], None]) -> None:
        self.needs: list[tuple[Flight, Places]] = []
        self._notify: Callable[[], None] | None = notify

    def look(self) -> None:
        """Notify if everything is there."""
        if self._notify is not None and all(flight.settled[places].all() for flight, places in self.needs):
            notify, self._notify = self._notify, None
            notify()


class Flight:
    """Different texts under one prompt that one call set out for. Guarded by the lock of `Flights`.

    Attributes:
        names: of the texts in the table of flights and in the memory tier.
        kept: whether what is encoded becomes entries.
        rows: numbers [m, d] as entries hold them, where settled.
        exact: vectors that no entry can hold, by place.
        from_store: [m] the store had it.
        started: [m] the encoder has it, or nobody wants it any more.
        stale: [m] invalidated since; nobody may find it afterwards.
        queued_at: when texts of it were last put in line for the encoder, in seconds of `time.monotonic`.
    """

    def __init__(
        self,
        texts: Sequence[str],
        prompt: str | None,
        names: Sequence[Hashable],
        keys: Sequence[bytes],
        *,
        kept: bool,
        urgent: bool,
    ) -> None:
        count = len(texts)
        self.texts, self.prompt, self.names, self.keys, self.kept = texts, prompt, names, keys, kept
        self.rows: Any = None
        self.tokens: Int32 = np.full(count, -1, np.int32)
        self.exact: dict[int, Float32] = {}
        self.errors: dict[int, BaseException] = {}
        self.settled, self.from_store, self.started, self.stale = np.zeros((4, count), np.bool_)
        self.urgent: Bools = np.full(count, urgent)
        self.waiters: list[Waiter] = []
        self.queued_at = 0.0
        self._places: dict[Hashable, int] | None = None

    def place(self, name: Hashable) -> int:
        if self._places is None:
            self._places = {each: place for place, each in enumerate(self.names)}
        return self._places[name]

    def land(self, places: Places, rows: Numbers, tokens: Int32) -> None:
        """Numbers of some texts have come."""
        if len(places) == len(self.texts):
            self.rows, self.tokens = rows, tokens  # places ascend
        else:
            if self.rows is None:
                self.rows = np.empty((len(self.texts), rows.shape[1]), rows.dtype)
            self.rows[places], self.tokens[places] = rows, tokens
        self.settled[places] = True

    def fail(self, places: Places, error: BaseException) -> None:
        self.errors.update(dict.fromkeys(places.tolist(), error))
        self.settled[places] = True


class Flights:
    """Which texts are on their way. Whoever reads or changes a flight holds `lock`."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._table: dict[Hashable, Flight] = {}

    def __len__(self) -> int:
        return len(self._table)

    def find(self, names: Sequence[Hashable]) -> dict[Flight, list[int]]:
        """Flights that have some of the texts, with where in `names` these are."""
        found: dict[Flight, list[int]] = {}
        if self._table:
            for at, flight in enumerate(map(self._table.get, names)):
                if flight is not None:
                    found.setdefault(flight, []).append(at)
        return found

    def add(self, flight: Flight) -> None:
        self._table.update(dict.fromkeys(flight.names, flight))

    def join(self, waiter: Waiter, flight: Flight, places: Places) -> None:
        waiter.needs.append((flight, places))
        flight.waiters.append(waiter)

    def tell(self, flight: Flight) -> None:
        """Something of the flight settled."""
        for waiter in flight.waiters:
            waiter.look()

    def release(self, flight: Flight, places: Places) -> None:
        """These texts can be found elsewhere now, or will not come: let the next call set out anew."""
        for place in places.tolist():
            if self._table.get(flight.names[place]) is flight:
                del self._table[flight.names[place]]

    def leave(self, waiter: Waiter) -> None:
        """The call was cancelled: what nobody else wants and nobody began is not encoded."""
        for flight, _ in waiter.needs:
            flight.waiters.remove(waiter)
            unwanted = ~(flight.settled | flight.started)
            for other in flight.waiters:
                for needed, places in other.needs:
                    if needed is flight:
                        unwanted[places] = False
            flight.started |= unwanted
            flight.stale |= unwanted  # no longer found here, so that `invalidate` would miss them
            self.release(flight, np.flatnonzero(unwanted))

    def invalidate(self, names: Sequence[Hashable] | None) -> None:
        """What flies under these names (None: all) answers those who wait for it, and is not kept."""
        if names is None:
            for flight in self._table.values():
                flight.stale[:] = True
            self._table.clear()
            return
        for name in names:
            found = self._table.pop(name, None)
            if found is not None:
                found.stale[found.place(name)] = True
