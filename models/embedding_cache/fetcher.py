"""Brings texts that are on their way: from the store, else from the encoder, and keeps what came."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from graph.errors import InvalidInput, Unavailable
from models.embedding_cache.codec import Numbers, VectorCodec
from models.embedding_cache.encode_queue import EncodeQueue, Slice
from models.embedding_cache.flights import Flight, Flights, Places
from models.embedding_cache.memory_tier import MemoryTier
from models.embedding_cache.store_access import StoreAccess
from models.text_encoder.protocol import Float32, Int32, TextEncoder

_STORE_RECHECK_S = 3600.0
"""An entry read from the store is looked up there again after this long: how old it is the store keeps to
itself, and memory must not prolong its life by more."""


class Fetcher:
    """Whatever happens to a flight handed to `look_up`, all of it settles or is left by everybody.

    Args:
        encoder: called on one thread.
        codec: of entries.
        memory: None: no such tier.
        store: None: no such tier.
        flights: whose lock guards the counters too.
        ttl_s: of entries in both tiers.
        slice_texts: encoded at a time.
        max_waiting_texts: waiting for the encoder.
        on_slice: told of each slice, see `CachedEncoder`.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        codec: VectorCodec,
        memory: MemoryTier | None,
        store: StoreAccess | None,
        flights: Flights,
        ttl_s: float | None,
        slice_texts: int,
        max_waiting_texts: int,
        on_slice: Callable[[float, float], None] | None = None,
    ) -> None:
        self._on_slice = on_slice
        self._encoder, self._codec, self._memory, self._store = encoder, codec, memory, store
        self._flights, self._ttl_s = flights, ttl_s
        self.queue = EncodeQueue(flights, self._encode_slice, slice_texts, max_waiting_texts)
        self.encoded = self.damaged = self.unstorable = 0

    def look_up(self, flight: Flight) -> None:
        """Read the store for a flight and queue what it does not have. May block for as long as the store."""
        left = np.arange(len(flight.texts))
        try:
            if self._store is not None and flight.kept:
                rows, tokens, found, damaged = self._codec.decode_rows(
                    flight.keys, self._store.read(flight.keys)
                )
                had, left = np.flatnonzero(found), np.flatnonzero(~found)
                ttl_s = None if self._ttl_s is None else min(self._ttl_s, _STORE_RECHECK_S)
                with self._flights.lock:
                    self.damaged += damaged
                    if len(had):
                        flight.from_store[had] = True
                        self._land(flight, had, rows, tokens, ttl_s)
                        self._flights.release(flight, had)
            if len(left):
                with self._flights.lock:
                    self.queue.put(flight, left)
        except BaseException as error:
            self._fail([(flight, left)], error)

    def _land(
        self, flight: Flight, places: Places, rows: Numbers, tokens: Int32, ttl_s: float | None
    ) -> None:
        """Numbers came: keep them in memory and tell who waits. The lock is held."""
        flight.land(places, rows, tokens)
        if self._memory is not None and flight.kept:
            fresh = np.asarray(
                [not flight.stale[place] and place not in flight.exact for place in places.tolist()], np.bool_
            )
            names = [flight.names[place] for place in places[fresh].tolist()]
            self._memory.put_many(names, rows[fresh], tokens[fresh], ttl_s)
        self._flights.tell(flight)

    def _encode_slice(self, taken: Slice) -> None:
        """Encode texts of several flights at once; every one settles. Runs on the queue's thread alone."""
        texts = [flight.texts[place] for flight, places in taken for place in places.tolist()]
        began = time.monotonic()
        try:
            vectors, tokens = self._encoder.encode_counted(texts, taken[0][0].prompt)
            if self._on_slice is not None:
                first = min(flight.queued_at for flight, _ in taken)
                self._on_slice(began - first, time.monotonic() - began)
            if vectors.shape != (len(texts), self._codec.dimensions) or tokens.shape != (len(texts),):
                raise Unavailable(
                    f"the text model answered {len(texts)} texts with vectors of shape {vectors.shape}; its "
                    f"fingerprint says {self._codec.dimensions} dimensions"
                )
            start = 0
            for flight, places in taken:
                stop = start + len(places)
                self._keep(flight, places, vectors[start:stop], tokens[start:stop])
                start = stop
        except InvalidInput as error:
            if len(texts) == 1:
                self._fail(taken, error)
                return
            for flight, places in taken:  # one text that the model refuses must not fail the others
                for place in places:
                    self._encode_slice([(flight, place[None])])
        except BaseException as error:
            self._fail(taken, error)

    def _keep(self, flight: Flight, places: Places, vectors: Float32, tokens: Int32) -> None:
        """Vectors came from the encoder: settle them and hand them to the store."""
        if not flight.kept:
            with self._flights.lock:
                self.encoded += len(places)
                self._land(flight, places, vectors, tokens, None)
            return
        storable = self._codec.storable(vectors)
        rows = self._codec.narrow(np.where(storable[:, None], vectors, np.float32(0)))
        kept = places[storable]
        all_keys = list(flight.keys)
        keys = [all_keys[place] for place in kept.tolist()]
        values = self._codec.encode_many(keys, vectors[storable], tokens[storable])
        with self._flights.lock:
            self.encoded += len(places)
            self.unstorable += len(places) - len(kept)
            for at in np.flatnonzero(~storable).tolist():
                flight.exact[int(places[at])] = vectors[at].copy()
            self._land(flight, places, rows, tokens, self._ttl_s)
            # Until the store has them they stay in the air, where the next call finds them.
            flies_on = self._store is not None and self._store.write_soon(
                keys,
                values,
                current=lambda: (~flight.stale[kept]).tolist(),
                written=lambda: self._release(flight, kept),
            )
            self._flights.release(flight, places[~storable] if flies_on else places)

    def _release(self, flight: Flight, places: Places) -> None:
        with self._flights.lock:
            self._flights.release(flight, places)

    def _fail(self, taken: Slice, error: BaseException) -> None:
        with self._flights.lock:
            for flight, places in taken:
                left = places[~flight.settled[places]]
                flight.fail(left, error)
                self._flights.release(flight, left)
                self._flights.tell(flight)
