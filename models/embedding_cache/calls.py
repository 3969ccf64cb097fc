"""Calls of the cache: what memory has of a call's texts, which flights bring the others, and the answer."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from graph.errors import InvalidInput, WeftError
from models.embedding_cache.codec import VectorCodec, widen
from models.embedding_cache.encode_queue import EncodeQueue
from models.embedding_cache.flights import Flight, Flights, Places, Waiter
from models.embedding_cache.key import EntryKeys
from models.embedding_cache.memory_tier import MemoryTier
from models.text_encoder.protocol import Float32, Int32
from models.text_encoder.texts import checked_prompt, checked_texts

_LOG = logging.getLogger("weft.embedding_cache")


class Answer(NamedTuple):
    """Vectors of some texts in order, and how many of them the cache had."""

    vectors: Float32  # [n, d]
    tokens: Int32  # [n] of prompt and text before truncation; -1 where nobody knows
    hits: int


@dataclass(slots=True, eq=False)
class Call:
    """One call between asking and answering."""

    rows: Any  # [n, d] as entries hold them
    tokens: Int32  # [n]
    hits: int
    missing: Places  # [k] places in the call that memory did not have
    which: Places  # [k] the different text at such a place, 0 to u - 1
    waiter: Waiter
    flight: Flight | None = None
    parts: list[tuple[Flight, Places, Places]] = field(default_factory=list)
    """Flight, its places, and which of the different texts these are. The call's own comes first."""


class Calls:
    """Begins and finishes calls, and counts them.

    Args:
        namespace: for the log.
        keys: of entries.
        codec: of entries.
        memory: None: no such tier.
        flights: whose lock guards the counters too.
        queue: told which texts became urgent.
        kept: whether what is encoded becomes entries.
    """

    def __init__(
        self,
        namespace: str,
        keys: EntryKeys,
        codec: VectorCodec,
        memory: MemoryTier | None,
        flights: Flights,
        queue: EncodeQueue,
        *,
        kept: bool,
    ) -> None:
        self._namespace, self._keys, self._codec, self._memory = namespace, keys, codec, memory
        self._flights, self._queue, self._kept = flights, queue, kept
        self.lookups = self.memory_hits = self.store_hits = self.coalesced = self.misses = 0

    def begin(
        self, texts: Sequence[str], prompt: str | None, urgent: bool, notify: Callable[[], None]
    ) -> Call:
        """Take what memory has, and see to it that somebody sets out for the rest."""
        texts = _strings(texts)
        names, count = self.names(texts, prompt), len(texts)
        puts_before, waiter = 0, Waiter(notify)
        if self._memory is not None:
            puts_before = self._memory.puts
            found, rows, tokens = self._memory.get_many(names)
        else:
            found = np.zeros(count, np.bool_)
            rows, tokens = np.empty((0, self._codec.dimensions), self._codec.dtype), np.empty(0, np.int32)
        if len(rows) == count:
            return Call(rows, tokens, count, _NONE, _NONE, waiter)
        missing = np.flatnonzero(~found)
        wanted, wanted_texts, which = _different(names, texts, missing)
        try:
            keys = self._keys.on_demand(wanted_texts, prompt)
        except InvalidInput:
            checked_prompt(prompt, "")
            checked_texts(texts)  # names the text by its place in the call
            raise
        dtype = self._codec.dtype if self._kept else np.dtype(np.float32)
        call = Call(
            np.empty((count, self._codec.dimensions), dtype),
            np.empty(count, np.int32),
            len(rows),
            missing,
            which,
            waiter,
        )
        if len(rows):
            call.rows[found], call.tokens[found] = rows, tokens
        with self._flights.lock:
            self._set_out(call, wanted_texts, prompt, wanted, keys, urgent, puts_before)
            waiter.look()
        return call

    def finish(self, call: Call) -> Answer:
        """Put the answer together, count it, and raise what became of its flights."""
        failures: dict[int, BaseException] = {}
        exact: dict[int, Float32] = {}
        store_hits = coalesced = misses = 0
        if call.parts:
            count = 1 + max(int(which.max()) for _, _, which in call.parts)
            asked = np.bincount(call.which, minlength=count)
            rows: Any = None
            with self._flights.lock:
                for flight, places, which in call.parts:
                    flight.waiters.remove(call.waiter)
                    if flight is call.flight:
                        had = flight.from_store[places]
                        store_hits += int(asked[which[had]].sum())
                        misses += int(np.count_nonzero(~had))
                        coalesced += int((asked[which[~had]] - 1).sum())
                    else:
                        coalesced += int(asked[which].sum())
                    if flight.errors:
                        failures.update(_of_texts(flight.errors, places, which))
                    if flight.exact:
                        exact.update(_of_texts(flight.exact, places, which))
                    if flight.rows is None:
                        continue
                    if len(places) == len(call.rows) and flight is call.flight:
                        call.rows, call.tokens = flight.rows, flight.tokens.copy()  # widening makes a copy
                    else:
                        if rows is None:
                            rows = np.zeros((count, self._codec.dimensions), call.rows.dtype)
                            tokens = np.zeros(count, np.int32)
                        rows[which], tokens[which] = flight.rows[places], flight.tokens[places]
            if rows is not None:
                call.rows[call.missing], call.tokens[call.missing] = rows[call.which], tokens[call.which]
        total = len(call.rows)
        self._count(total, call.hits, store_hits, coalesced, misses)
        if failures:
            first = next(each for each in call.which.tolist() if each in failures)
            raise _fresh(failures[first]) from failures[first]
        vectors = widen(call.rows)
        for place, which in zip(call.missing.tolist(), call.which.tolist(), strict=True) if exact else ():
            if which in exact:
                vectors[place] = exact[which]
        return Answer(vectors, call.tokens, call.hits + store_hits)

    def names(self, texts: Sequence[str], prompt: str | None) -> Sequence[Hashable]:
        """What texts are called in this process: themselves, which spares a hit the digest."""
        effective = self._keys.effective_prompt(prompt)
        return texts if effective == self._keys.own_prompt else [(effective, text) for text in texts]

    def _set_out(
        self,
        call: Call,
        texts: Sequence[str],
        prompt: str | None,
        names: Sequence[Hashable],
        keys: Sequence[bytes],
        urgent: bool,
        puts_before: int,
    ) -> None:
        """Join flights that have a text, start one for the others. The lock is held."""
        joined = self._flights.find(names) if self._kept else {}
        own: Sequence[int] = range(len(names))
        if joined:
            elsewhere = {which for found in joined.values() for which in found}
            own = [which for which in own if which not in elsewhere]
        if own and self._memory is not None and self._memory.puts != puts_before:
            own = self._look_again(call, names, own)
        if own:
            everything = len(own) == len(names)
            flight = call.flight = Flight(
                texts if everything else [texts[which] for which in own],
                prompt,
                names if everything else [names[which] for which in own],
                keys if everything else [keys[which] for which in own],
                kept=self._kept,
                urgent=urgent,
            )
            if self._kept:
                self._flights.add(flight)
            places = np.arange(len(own))
            call.parts.append((flight, places, places if everything else np.asarray(own, np.int64)))
        for flight, wanted in joined.items():
            places = np.asarray([flight.place(names[which]) for which in wanted], np.int64)
            call.parts.append((flight, places, np.asarray(wanted, np.int64)))
            if urgent:
                self._queue.hasten(flight, places)
        for flight, places, _ in call.parts:
            self._flights.join(call.waiter, flight, places)

    def _look_again(self, call: Call, names: Sequence[Hashable], own: Sequence[int]) -> Sequence[int]:
        """A flight that landed since memory was asked has left its texts there."""
        assert self._memory is not None
        found, rows, tokens = self._memory.get_many([names[which] for which in own])
        if not len(rows):
            return own
        which = np.asarray(own, np.int64)
        landed = np.full(len(names), -1, np.int64)
        landed[which[found]] = np.arange(len(rows))
        at = landed[call.which]
        now = at >= 0
        call.rows[call.missing[now]], call.tokens[call.missing[now]] = rows[at[now]], tokens[at[now]]
        call.hits += int(np.count_nonzero(now))
        call.missing, call.which = call.missing[~now], call.which[~now]
        return [int(each) for each in which[~found]]

    def _count(self, total: int, memory_hits: int, store_hits: int, coalesced: int, misses: int) -> None:
        if not self._kept:
            return
        with self._flights.lock:
            self.lookups += total
            self.memory_hits += memory_hits
            self.store_hits += store_hits
            self.coalesced += coalesced
            self.misses += misses
        if total and _LOG.isEnabledFor(logging.INFO):
            hits = memory_hits + store_hits
            _LOG.info(
                "%s: %d texts, %d hits, %d misses (%.1f%% hits)",
                self._namespace, total, hits, total - hits, 100 * hits / total,
            )  # fmt: skip


_NONE: npt.NDArray[np.int64] = np.empty(0, np.int64)


def _strings(texts: Sequence[str]) -> list[str]:
    """The texts as a list. What is no string must not reach a dictionary."""
    listed = list(texts)
    if isinstance(texts, str) or not set(map(type, listed)) <= {str}:
        return checked_texts(texts)
    return listed


def _different(
    names: Sequence[Hashable], texts: Sequence[str], missing: Places
) -> tuple[Sequence[Hashable], Sequence[str], Places]:
    """Names and texts at the places `missing`, each once, and for every such place which of them it is."""
    if len(missing) < len(names):
        places = missing.tolist()
        names, texts = [names[place] for place in places], [texts[place] for place in places]
    firsts = dict(zip(reversed(names), range(len(names) - 1, -1, -1), strict=True))
    if len(firsts) == len(names):
        return names, texts, np.arange(len(names))
    order = sorted(firsts.values())
    number = {names[first]: which for which, first in enumerate(order)}
    which = np.asarray([number[name] for name in names], np.int64)
    return [names[first] for first in order], [texts[first] for first in order], which


def _of_texts(by_place: dict[int, Any], places: Places, which: Places) -> dict[int, Any]:
    return {
        text: by_place[place]
        for place, text in zip(places.tolist(), which.tolist(), strict=True)
        if place in by_place
    }


def _fresh(error: BaseException) -> BaseException:
    """An error that many calls raise needs a traceback for each."""
    return copy.copy(error) if isinstance(error, WeftError) else error
