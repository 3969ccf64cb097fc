"""Who may join the batch next: a queue in order, past those whose adapters are not here yet."""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from graph.errors import InvalidInput, OutOfMemory, UnknownAdapter, WeftError
from models.language_model.batch import Sequence, WaitsFor
from models.language_model.memory_recovery import is_out_of_memory

if TYPE_CHECKING:
    from models.language_model.lora import LoraSlots
    from models.language_model.resident_adapters import ResidentAdapters

_logger = logging.getLogger(__name__)
_MAX_OVERTAKEN = 64  # while waiting for a slot or for memory
_LOOK_AHEAD = 16  # requests whose adapters load while there is no row for them


class Admission:
    """The engine's queue and the adapters of those in the batch. For the engine's thread only.

    A request chooses its adapters anew each time it is tried, so what it runs with was active when it joined.
    While its adapters load, others join; only as many load at once as fit host memory twice over, so they do
    not push each other out before they are used. One that waits for a slot, or for memory for its adapters,
    lets others pass only so often: slots then fall idle, or memory, and it gets them.
    """

    def __init__(
        self,
        lora: LoraSlots | None,
        residents: ResidentAdapters | None,
        free_memory: Callable[[], bool],
    ) -> None:
        """`free_memory` gives up what no row needs, and answers False if there was nothing."""
        self._lora, self._residents, self._free_memory = lora, residents, free_memory
        self.waiting: list[Sequence] = []
        self.version = 0
        """Counted up when one who could not join may be able to now."""
        self.out_of_memory = 0
        self._max_loading = 0 if residents is None else max(1, residents.max_count // 2)
        self._collector: Sequence | None = None
        """The one request that holds the adapters of its blend that are here while the others load. Without
        it two parts could push each other out for ever."""

    def changed(self) -> None:
        """Who could not join is tried again."""
        self.version += 1

    def next(self, running: int, *, has_room: bool) -> tuple[Sequence, WeftError | None] | None:
        """Take the next one out: with its slots held, or with why it fails. None: nobody can join now.

        `running` requests have rows. Without room nobody joins, but the first ones' adapters begin to load.
        """
        version, seen = self.version, _Passed()
        for place, sequence in enumerate(self.waiting if has_room else self.waiting[:_LOOK_AHEAD]):
            error: WeftError | None = None
            if sequence.waits_since != version:
                try:
                    sequence.waits_for = self._acquire(sequence, seen, has_room)
                except Exception as failure:
                    if is_out_of_memory(failure) and running:
                        self.out_of_memory += 1
                        sequence.waits_for = "memory"
                    else:
                        sequence.waits_for = "nothing"
                        error = self._explain(sequence, failure)
                sequence.waits_since = version
            if sequence.waits_for != "nothing":
                if not sequence.admitted and sequence is not self._collector:
                    self.release_residents(sequence)
                seen.add(sequence)
                continue
            del self.waiting[place]
            if error is None:
                seen.overtake(bool(sequence.digests))
            if self._collector is sequence:
                self._collector = None
            return sequence, error
        return None

    def _explain(self, sequence: Sequence, failure: Exception) -> WeftError:
        if isinstance(failure, WeftError):
            return failure
        if is_out_of_memory(failure):
            self.out_of_memory += 1
            return OutOfMemory("memory does not suffice for the request's adapters; try again later")
        _logger.error(
            "request %s: its adapters could not be chosen", sequence.request.request_id, exc_info=failure
        )
        return WeftError(f"choosing adapters failed: {type(failure).__name__}; see the server's log")

    def _acquire(self, sequence: Sequence, seen: _Passed, has_room: bool) -> WaitsFor:
        """Choose its adapters and hold them, here and in slots."""
        if not sequence.admitted:
            while True:
                found = self._choose(sequence, seen.loading)
                if found != "ready":
                    return "load" if found == "loading" else "turn"
                if self._hold(sequence, sequence.digests):
                    break
                # Pushed out by another load, or deleted, since it was ready: ask again.
        digests = sequence.digests
        if not has_room:
            return "room"
        if seen.bars(bool(digests)):
            return "turn"
        lora = self._lora
        held: list[str] = []
        for digest in digests:
            assert lora is not None
            try:
                is_in = self._put(lora, sequence, digest)
            except BaseException:
                self._unpin_slots(held)
                raise
            if not is_in:
                self._unpin_slots(held)
                return "slot"
            lora.pin(digest)
            held.append(digest)
        return "nothing"

    def _choose(self, sequence: Sequence, loading: set[str]) -> Literal["ready", "loading", "later"]:
        """Set `choice`, and have its adapters loaded unless too many are `loading` already ("later")."""
        while True:
            choice = sequence.request.choose(dict(sequence.failed))
            sequence.choice = choice
            digests = sequence.digests
            if not digests:
                return "ready"
            lora, residents = self._lora, self._residents
            if lora is None or residents is None:
                raise InvalidInput(
                    "this model runs without adapters; leave adapter and blend out", param="adapter"
                )
            if len(digests) > lora.num_slots:
                raise InvalidInput(
                    f"the blend has {len(digests)} adapters; this model has {lora.num_slots} slots",
                    param="blend",
                )
            again = [digest for digest in digests if digest in sequence.failed]
            if again:
                raise UnknownAdapter(f"adapter {again[0]} cannot be loaded: {sequence.failed[again[0]]}")
            asked = [digest for digest in digests if digest not in sequence.weights]
            missing = {digest for digest in asked if not residents.holds(digest)}
            if missing - loading and loading and len(loading | missing) > self._max_loading:
                return "later"
            answers = {digest: residents.request(digest) for digest in asked}
            errors = {d: answer.message for d, answer in answers.items() if isinstance(answer, WeftError)}
            if errors:
                sequence.failed.update(errors)
                continue
            absent = [digest for digest, answer in answers.items() if answer == "loading"]
            if not absent:
                return "ready"
            if len(digests) > 1 and self._collector in (None, sequence):
                self._collector = sequence
                self._hold(sequence, [digest for digest in digests if digest not in absent])
            return "loading"

    def _hold(self, sequence: Sequence, digests: Rows[str]) -> bool:
        """Pin these adapters for it, and no others. False: one of them is gone."""
        residents, weights = self._residents, sequence.weights
        for digest in [digest for digest in weights if digest not in digests]:
            assert residents is not None
            del weights[digest]
            residents.unpin(digest)
        for digest in [digest for digest in digests if digest not in weights]:
            assert residents is not None
            try:
                residents.pin(digest)
            except KeyError:
                return False
            try:
                weights[digest] = residents.get(digest)
            except KeyError:
                residents.unpin(digest)
                return False
        return True

    def _put(self, lora: LoraSlots, sequence: Sequence, digest: str) -> bool:
        while True:
            try:
                return lora.put(sequence.weights[digest])
            except Exception as error:
                if not is_out_of_memory(error) or not self._free_memory():
                    raise

    def _unpin_slots(self, digests: Rows[str]) -> None:
        for digest in digests:
            assert self._lora is not None
            self._lora.unpin(digest)

    def release_slots(self, sequence: Sequence) -> None:
        """It lost its row; its adapters stay in host memory, for it may come back."""
        self._unpin_slots(sequence.digests)
        self.changed()

    def release_residents(self, sequence: Sequence) -> None:
        """It will not come back, or not before it has chosen anew."""
        self._hold(sequence, ())
        if self._collector is sequence:
            self._collector = None

    def remove(self, sequence: Sequence) -> None:
        """It was cancelled before it had a row."""
        self.waiting.remove(sequence)
        self.changed()

    def put_back(self, sequence: Sequence) -> None:
        """Queue it again before all that never had a row, in the order of admission."""
        sequence.waits_since = -1
        place = sum(1 for other in self.waiting if other.admitted and other.order < sequence.order)
        self.waiting.insert(place, sequence)


@dataclass
class _Passed:
    """Those before a request in the queue that cannot join now."""

    loading: set[str] = field(default_factory=set)
    """Digests they wait for."""
    held_up: list[Sequence] = field(default_factory=list)
    """Those whose adapters are here, but have no slot."""

    def add(self, sequence: Sequence) -> None:
        if sequence.waits_for == "load":
            self.loading.update(sequence.digests)
        elif sequence.waits_for in ("slot", "memory"):
            self.held_up.append(sequence)

    def overtake(self, with_adapters: bool) -> None:
        """One joins before them."""
        for sequence in self.held_up:
            if with_adapters or sequence.waits_for == "memory":
                sequence.overtaken += 1

    def bars(self, with_adapters: bool) -> bool:
        """Whether one of them was overtaken so often that the next one may not. It is in nobody's way who
        needs no slot, unless it waits for memory.
        """
        return any(
            s.overtaken >= _MAX_OVERTAKEN and (with_adapters or s.waits_for == "memory") for s in self.held_up
        )
