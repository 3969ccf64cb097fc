"""Who may join the batch next: a queue in order, past those whose adapters are not here yet."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from graph.errors import InvalidInput, OutOfMemory, UnknownAdapter, WeftError

from .batch import Sequence
from .memory_recovery import drop_idle, is_out_of_memory

if TYPE_CHECKING:
    from .lora import LoraSlots
    from .prefix_cache import PrefixCache
    from .resident_adapters import ResidentAdapters

_logger = logging.getLogger(__name__)
_MAX_OVERTAKEN = 64  # by requests with adapters, while waiting for a slot


class Admission:
    """The engine's queue and the adapters of those in the batch. For the engine's thread only.

    A request chooses its adapters anew each time it is tried, so what it runs with was active when it joined.
    While its adapters load, others join. One that waits for a slot lets others with adapters pass
    only so often: slots then fall idle and it gets one.
    """

    def __init__(
        self, lora: LoraSlots | None, residents: ResidentAdapters | None, prefix_cache: PrefixCache | None
    ) -> None:
        self._lora, self._residents, self._prefix_cache = lora, residents, prefix_cache
        self.waiting: list[Sequence] = []
        self.loads_ended = 0
        """Counted up when loads may have ended; only ever compared."""
        self._releases = 0
        self.puts = 0
        """Counted up whenever slots may have changed."""

    def next(self) -> tuple[Sequence, WeftError | None] | None:
        """Take the next one out: with its slots held, or with why it fails. None: nobody can join now."""
        state = self.loads_ended + self._releases
        passed: list[Sequence] = []  # those that wait for a slot
        for place, sequence in enumerate(self.waiting):
            blocked = any(other.overtaken >= _MAX_OVERTAKEN for other in passed)
            if sequence.waits_since == state:
                if sequence.waits_for_slot:
                    passed.append(sequence)
                continue
            error: WeftError | None = None
            try:
                if not self._acquire(sequence, blocked):
                    # A load that ended meanwhile makes this state an old one, and it is tried again.
                    sequence.waits_since = -1 if sequence.barred else state
                    if sequence.waits_for_slot:
                        passed.append(sequence)
                    continue
            except WeftError as failure:
                error = failure
            except Exception as failure:
                if is_out_of_memory(failure):
                    error = OutOfMemory("memory does not suffice for the request's adapters; try again later")
                    del self.waiting[place]
                    return sequence, error
                _logger.exception("request %s: its adapters could not be chosen", sequence.request.request_id)
                error = WeftError(f"choosing adapters failed: {type(failure).__name__}; see the server's log")
            del self.waiting[place]
            if sequence.digests and error is None:
                for other in passed:
                    other.overtaken += 1
            return sequence, error
        return None

    def _acquire(self, sequence: Sequence, blocked: bool) -> bool:
        """Choose its adapters and hold their slots. False: not now."""
        sequence.waits_for_slot = sequence.barred = False
        if not sequence.admitted and not self._choose(sequence):
            return False
        digests = sequence.digests
        if not digests:
            return True
        if blocked:
            sequence.barred = True
            return False
        lora, residents = self._lora, self._residents
        assert lora is not None and residents is not None
        if not sequence.admitted:
            try:
                self._pin_residents(sequence)
            except KeyError:  # dropped by another load since it was ready
                return False
        held: list[str] = []
        try:
            for digest in digests:
                if not self._put(lora, residents, digest):
                    break
                lora.pin(digest)
                held.append(digest)
        except BaseException:
            self._unpin(sequence, held)
            raise
        if len(held) < len(digests):
            self._unpin(sequence, held)
            sequence.waits_for_slot = True
            return False
        return True

    def _choose(self, sequence: Sequence) -> bool:
        """Set `choice` to adapters that are all in memory. False: some are still loading."""
        while True:
            choice = sequence.request.choose(dict(sequence.failed))
            sequence.choice = choice
            digests = sequence.digests
            if not digests:
                return True
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
            answers = {digest: residents.request(digest) for digest in digests}
            errors = {d: answer.message for d, answer in answers.items() if isinstance(answer, WeftError)}
            if not errors:
                return all(answer == "ready" for answer in answers.values())
            sequence.failed.update(errors)

    def _pin_residents(self, sequence: Sequence) -> None:
        assert self._residents is not None
        pinned: list[str] = []
        try:
            for digest in sequence.digests:
                self._residents.pin(digest)
                pinned.append(digest)
        except BaseException:
            for digest in pinned:
                self._residents.unpin(digest)
            raise

    def _put(self, lora: LoraSlots, residents: ResidentAdapters, digest: str) -> bool:
        self.puts += 1
        if lora.holds(digest):
            return True
        while True:
            try:
                return lora.put(residents.get(digest))
            except KeyError as error:
                raise UnknownAdapter(f"adapter {digest} was deleted while the request waited") from error
            except Exception as error:
                if not is_out_of_memory(error) or not drop_idle(self._prefix_cache, lora, residents):
                    raise

    def _unpin(self, sequence: Sequence, held: list[str]) -> None:
        """Undo an attempt. One that was admitted before keeps its adapters in host memory."""
        assert self._lora is not None and self._residents is not None
        for digest in held:
            self._lora.unpin(digest)
        if not sequence.admitted:
            for digest in sequence.digests:
                self._residents.unpin(digest)

    def release_slots(self, sequence: Sequence) -> None:
        """It lost its row but comes back: its adapters stay in host memory."""
        for digest in sequence.digests:
            assert self._lora is not None
            self._lora.unpin(digest)
        self._releases += 1

    def release_residents(self, sequence: Sequence) -> None:
        """It will not come back."""
        for digest in sequence.digests:
            assert self._residents is not None
            self._residents.unpin(digest)

    def put_back(self, sequence: Sequence) -> None:
        """Queue it again before all that never had a row, in the order of admission."""
        sequence.waits_since = -1
        place = sum(1 for other in self.waiting if other.admitted and other.order < sequence.order)
        self.waiting.insert(place, sequence)
