"""A text encoder with a cache in front: what was encoded once is not encoded again."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from graph.errors import InvalidInput, Unavailable
from models.embedding_cache.calls import Answer, Call, Calls
from models.embedding_cache.circuit_breaker import CircuitBreaker
from models.embedding_cache.codec import DtypeName, VectorCodec
from models.embedding_cache.fetcher import Fetcher
from models.embedding_cache.flights import Flights
from models.embedding_cache.key import EntryKeys
from models.embedding_cache.memory_tier import MemoryTier
from models.embedding_cache.statistics import CacheStatistics
from models.embedding_cache.store import EmbeddingStore
from models.embedding_cache.store_access import StoreAccess
from models.text_encoder.protocol import Encoded, Fingerprint, Float32, Int32, TextEncoder
from models.text_encoder.texts import check_window, checked_texts

_MAX_WAITING_ENTRIES = 16_384


class CachedEncoder:
    """A text encoder whose vectors come from memory, a store or the encoder, the same to the last bit.

    Thread-safe, from any number of threads and event loops. One text is encoded once at a time, whoever asks
    for it; what fails or is cancelled is not kept. A store that does not answer costs time, never an answer.

    Args:
        encoder: computes what is not there, on one thread.
        store: where entries survive; None keeps them in this process alone. It stays open on `close`.
        memory_bytes: budget of the tier in this process; 0 does without.
        ttl_s: how long entries last; None for ever.
        enabled: False makes this the encoder itself. So does having neither store nor memory.
        slice_texts: encoded at a time; an urgent text overtakes others between slices.
        max_waiting_texts: waiting for the encoder; more are refused with Overloaded. A call that finds nobody
            waiting may bring any number.
        entry_dtype: of the numbers in entries and therefore of every answer's precision.
        clock: monotonic seconds.
        on_slice: told of each slice, on the encoder's thread: the seconds that the first of its calls was in
            line, and those that the encoder took. It must not raise.
        key_parameters: JSON values that enter the key of every entry.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        store: EmbeddingStore | None = None,
        *,
        memory_bytes: int = 64 << 20,
        ttl_s: float | None = 7 * 24 * 3600.0,
        enabled: bool = True,
        slice_texts: int = 64,
        max_waiting_texts: int = 8192,
        entry_dtype: DtypeName = "float16",
        clock: Callable[[], float] = time.monotonic,
        on_slice: Callable[[float, float], None] | None = None,
        **key_parameters: object,
    ) -> None:
        if ttl_s is not None and not ttl_s > 0:
            raise InvalidInput(f"ttl_s is {ttl_s}; it must be positive, or None for entries that stay")
        self._encoder, self._fingerprint = encoder, encoder.fingerprint
        self._keys = EntryKeys(self._fingerprint, key_parameters)
        self._codec = VectorCodec(self._fingerprint.dimensions, entry_dtype)
        self._ttl_s = ttl_s
        self._memory = (
            MemoryTier(self._codec.dimensions, self._codec.dtype, memory_bytes, clock)
            if enabled and memory_bytes
            else None
        )
        self._memory_max_bytes = memory_bytes
        self._store: StoreAccess | None = None
        if store is not None and enabled:
            breaker = CircuitBreaker(f"{store.kind} store at {store.location}", clock=clock)
            self._store = StoreAccess(store, self.namespace, breaker, ttl_s, _MAX_WAITING_ENTRIES)
        self._flights = Flights()
        self._fetcher = Fetcher(
            encoder,
            self._codec,
            self._memory,
            self._store,
            self._flights,
            ttl_s,
            slice_texts,
            max_waiting_texts,
            on_slice,
        )
        self._calls = Calls(
            self.namespace,
            self._keys,
            self._codec,
            self._memory,
            self._flights,
            self._fetcher.queue,
            kept=self.is_enabled(),
        )
        self._closed = False

    @property
    def fingerprint(self) -> Fingerprint:
        return self._fingerprint

    @property
    def namespace(self) -> str:
        """Of the entries in the store."""
        return self._fingerprint.name

    def is_enabled(self) -> bool:
        """Whether anything is kept."""
        return self._memory is not None or self._store is not None

    @property
    def breaker_state(self) -> str:
        """Of the breaker in front of the store: "closed", "open", "half-open"; "none" without a store."""
        return "none" if self._store is None else self._store.breaker.state

    def through_codec(self, vectors: Float32) -> Float32:
        """[n, d] What answers look like that hold these vectors of the encoder."""
        return self._codec.through_codec(vectors)

    def encode(self, texts: Sequence[str], prompt: str | None = None) -> Float32:
        """Vectors float32 [n, d] of texts, in order. Raises as the encoder does, and Overloaded."""
        return self.answer(texts, prompt).vectors

    def encode_counted(
        self, texts: Sequence[str], prompt: str | None = None, *, truncate: bool = True
    ) -> Encoded:
        """The same with token counts. Without `truncate`, TextTooLong for a text beyond the window."""
        vectors, tokens, _ = self.answer(texts, prompt, truncate=truncate)
        return Encoded(vectors, tokens)

    def answer(
        self, texts: Sequence[str], prompt: str | None = None, *, truncate: bool = True, urgent: bool = False
    ) -> Answer:
        """The same with the number of hits. An urgent call overtakes others at the encoder."""
        self._check_open()
        if not self.is_enabled():
            vectors, tokens = self._encoder.encode_counted(texts, prompt, truncate=truncate)
            with self._flights.lock:
                self._fetcher.encoded += len(vectors)
            return Answer(vectors, tokens, 0)
        there = threading.Event()
        call = self._calls.begin(texts, prompt, urgent, there.set)
        if call.flight is not None:
            self._fetcher.look_up(call.flight)
        if call.waiter.needs:
            try:
                there.wait()
            except BaseException:
                self._leave(call)
                raise
        answer = self._calls.finish(call)
        if not truncate and not self._within_window(answer.tokens):
            self._encoder.encode_counted(texts, prompt, truncate=False)
        return answer

    async def aencode(self, texts: Sequence[str], prompt: str | None = None) -> Float32:
        """`encode` that waits without blocking the event loop."""
        return (await self.aanswer(texts, prompt)).vectors

    async def aencode_counted(
        self, texts: Sequence[str], prompt: str | None = None, *, truncate: bool = True, urgent: bool = False
    ) -> Encoded:
        """`encode_counted` that waits without blocking the event loop."""
        vectors, tokens, _ = await self.aanswer(texts, prompt, truncate=truncate, urgent=urgent)
        return Encoded(vectors, tokens)

    async def aanswer(
        self, texts: Sequence[str], prompt: str | None = None, *, truncate: bool = True, urgent: bool = False
    ) -> Answer:
        """`answer` that waits without blocking the event loop.

        While the cache is off, texts of several calls still go to the encoder in common slices.
        """
        self._check_open()
        loop = asyncio.get_running_loop()
        there: asyncio.Future[None] = loop.create_future()

        def notify() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody is left who waits
                loop.call_soon_threadsafe(_resolve, there)

        call = self._calls.begin(texts, prompt, urgent, notify)
        if call.flight is not None:
            flight = call.flight
            if self._store is None:
                self._fetcher.look_up(flight)
            else:
                self._store.read_soon(lambda: self._fetcher.look_up(flight))
        if call.waiter.needs:
            try:
                await there
            except BaseException:
                self._leave(call)
                raise
        answer = self._calls.finish(call)
        if not truncate and not self._within_window(answer.tokens):
            await asyncio.to_thread(self._encoder.encode_counted, texts, prompt, truncate=False)
        return answer

    def invalidate(self, texts: Sequence[str] | None = None, prompt: str | None = None) -> int:
        """Drop the entries of texts, or (None) of the whole namespace whatever prompt and parameters.

        What is being encoded still answers those who wait for it and is not kept. Returns how many entries
        there were, by the tier that had more. Raises StoreUnavailable when the store may still have them.
        """
        keys, names = None, None
        if texts is None:
            if prompt is not None:
                raise InvalidInput(
                    "entries of a prompt cannot be told apart: give its texts too", param="prompt"
                )
        else:
            texts = list(dict.fromkeys(checked_texts(texts)))
            keys, names = self._keys.many(texts, prompt), self._calls.names(texts, prompt)
        held = 0
        with self._flights.lock:
            self._flights.invalidate(names)
            if self._memory is not None:
                held = self._memory.clear() if names is None else self._memory.drop(names)
        stored = 0 if self._store is None else self._store.delete(keys)
        return max(held, stored)

    async def ainvalidate(self, texts: Sequence[str] | None = None, prompt: str | None = None) -> int:
        """`invalidate` that waits without blocking the event loop."""
        return await asyncio.to_thread(self.invalidate, texts, prompt)

    def statistics(self, *, of_store: bool = True) -> CacheStatistics:
        """Asks the store, which may take as long as its timeout, unless `of_store` is False."""
        store, memory = self._store, self._memory
        held = store.statistics() if store is not None and of_store else None
        with self._flights.lock:
            return CacheStatistics(
                namespace=self.namespace,
                enabled=self.is_enabled(),
                ttl_s=self._ttl_s,
                lookups=self._calls.lookups,
                memory_hits=self._calls.memory_hits,
                store_hits=self._calls.store_hits,
                coalesced=self._calls.coalesced,
                misses=self._calls.misses,
                encoded=self._fetcher.encoded,
                waiting=self._fetcher.queue.waiting,
                damaged=self._fetcher.damaged,
                unstorable=self._fetcher.unstorable,
                store_errors=0 if store is None else store.errors,
                store_skipped=0 if store is None else store.breaker.skipped,
                writes_dropped=0 if store is None else store.writes_dropped,
                memory_entries=0 if memory is None else len(memory),
                memory_bytes=0 if memory is None else memory.nbytes,
                memory_max_bytes=self._memory_max_bytes,
                evictions=0 if memory is None else memory.evictions,
                breaker=self.breaker_state,
                store=held,
            )

    def flush(self) -> None:
        """Wait until the store has what was answered before."""
        if self._store is not None:
            self._store.flush()

    def close(self) -> None:
        """Refuse what waits and what comes, finish the slice at the encoder, write what is to be written.

        Closes the encoder. The store stays open.
        """
        self._closed = True
        self._fetcher.queue.close()
        if self._store is not None:
            self._store.close()
        self._encoder.close()

    async def aclose(self) -> None:
        """`close` that waits without blocking the event loop."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the text encoder is closed")

    def _leave(self, call: Call) -> None:
        with self._flights.lock:
            self._flights.leave(call.waiter)

    def _within_window(self, tokens: Int32) -> bool:
        """Whether all texts fit; False where the encoder has to say. Raises TextTooLong."""
        check_window(tokens, self._fingerprint.max_tokens)
        return bool((tokens >= 0).all())


def _resolve(there: asyncio.Future[None]) -> None:
    if not there.done():
        there.set_result(None)
