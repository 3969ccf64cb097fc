"""Texts that wait for the encoder, and the one thread that takes them to it slice by slice."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from graph.errors import Overloaded, Unavailable
from models.embedding_cache.flights import Flight, Flights, Places

Slice: TypeAlias = list[tuple[Flight, Places]]


class EncodeQueue:
    """Texts of all calls in common slices: urgent ones first, the others a slice in turn for each call.

    The texts of a call go by length, since a slice of similar lengths costs the encoder least.

    Args:
        flights: whose lock guards the queue too.
        encode: settles every text of a slice, and raises nothing.
        slice_texts: taken at a time; an urgent text waits for one such slice at most.
        max_waiting_texts: more than these are refused, urgent ones counted by themselves; a call that finds
            the queue empty may bring any number.
    """

    def __init__(
        self, flights: Flights, encode: Callable[[Slice], None], slice_texts: int, max_waiting_texts: int
    ) -> None:
        if slice_texts < 1 or max_waiting_texts < 1:
            raise ValueError("slice_texts and max_waiting_texts must be at least 1")
        self._flights, self._encode = flights, encode
        self._slice_texts, self._max_waiting_texts = slice_texts, max_waiting_texts
        self._changed = threading.Condition(flights.lock)
        self._urgent: deque[tuple[Flight, Places]] = deque()
        self._others: deque[tuple[Flight, Places]] = deque()
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def waiting(self) -> int:
        """Texts that wait. The lock is held."""
        return _count(self._urgent) + _count(self._others)

    def put(self, flight: Flight, places: Places) -> None:
        """Queue texts of a flight. The lock is held. Raises Overloaded, Unavailable once closed."""
        if self._closed:
            raise Unavailable("the text encoder is closed")
        places = places[~flight.started[places]]
        urgent = flight.urgent[places]
        for queue, some in ((self._urgent, places[urgent]), (self._others, places[~urgent])):
            if not len(some):
                continue
            waiting = _count(queue)
            if waiting and waiting + len(some) > self._max_waiting_texts:
                raise Overloaded(
                    f"{waiting} texts wait for the text model and {len(some)} more would pass the limit of "
                    f"{self._max_waiting_texts}; try again later"
                )
        flight.queued_at = time.monotonic()
        self._append(self._urgent, flight, places[urgent])
        self._append(self._others, flight, places[~urgent])
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="text-encoder", daemon=True)
            self._thread.start()
        self._changed.notify()

    def hasten(self, flight: Flight, places: Places) -> None:
        """Texts of a flight are urgent now, queued already or not. The lock is held."""
        places = places[~(flight.urgent[places] | flight.started[places] | flight.settled[places])]
        flight.urgent[places] = True
        if any(queued is flight for queued, _ in self._others):
            self._append(self._urgent, flight, places)

    def close(self) -> None:
        """Refuse what waits and what comes; what the encoder has is finished."""
        with self._flights.lock:
            self._closed = True
            for flight, places in (*self._urgent, *self._others):
                left = places[~flight.started[places]]
                flight.started[left] = True
                flight.fail(left, Unavailable("the text encoder was closed"))
                self._flights.release(flight, left)
                self._flights.tell(flight)
            self._urgent.clear()
            self._others.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _append(self, queue: deque[tuple[Flight, Places]], flight: Flight, places: Places) -> None:
        if len(places):
            lengths = [len(flight.texts[place]) for place in places.tolist()]
            queue.append((flight, places[np.argsort(lengths, kind="stable")]))

    def _work(self) -> None:
        while True:
            with self._flights.lock:
                taken = self._take(self._urgent) or self._take(self._others)
                while not taken and not self._closed:
                    self._changed.wait()
                    taken = self._take(self._urgent) or self._take(self._others)
            if not taken:
                return
            self._encode(taken)

    def _take(self, queue: deque[tuple[Flight, Places]]) -> Slice:
        """Up to a slice of texts under one prompt; a call with more to come goes to the end of the queue."""
        taken: Slice = []
        room = self._slice_texts
        while queue and room:
            flight, places = queue[0]
            if taken and flight.prompt != taken[0][0].prompt:
                break
            queue.popleft()
            places = places[~flight.started[places]]
            now, later = np.sort(places[:room]), places[room:]
            if len(later):
                queue.append((flight, later))
            if len(now):
                flight.started[now] = True
                taken.append((flight, now))
                room -= len(now)
        return taken


def _count(queue: deque[tuple[Flight, Places]]) -> int:
    return sum(int(np.count_nonzero(~flight.started[places])) for flight, places in queue)
