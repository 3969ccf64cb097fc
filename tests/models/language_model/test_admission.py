"""Who joins next: adapters that load, vanish or find no memory, and nobody who waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from graph.errors import OutOfMemory, UnknownAdapter, WeftError
from models.language_model.admission import Admission
from models.language_model.batch import Sequence
from models.language_model.lora import LoraSlots
from models.language_model.lora_weights import AdapterWeights
from models.language_model.prompt import EncodedPrompt
from models.language_model.protocol import AdapterChoice, AdapterPart, GenerationRequest, Sampling
from models.language_model.resident_adapters import ResidentAdapters
from models.language_model.sampling import RowSampler
from models.language_model.text_stream import TextStream
from tests.models.language_model.tiny_models import make_tokenizer

TOKENIZER = make_tokenizer()


def weights(digest: str) -> AdapterWeights:
    return AdapterWeights(digest, 1, {"0": (torch.zeros(1, 2), torch.zeros(2, 1))}, 16)


class Desk:
    """An admission with its adapters, and those it let in."""

    def __init__(self, slots: int = 2, max_count: int = 4, load: Any = weights) -> None:
        self.ended = threading.Semaphore(0)
        self.lora = LoraSlots(
            torch.nn.Sequential(torch.nn.Linear(2, 2)), {"0": (2, 2)}, num_slots=slots, max_rank=1
        )
        self.residents = ResidentAdapters(
            load, max_count=max_count, max_bytes=1 << 20, num_threads=1, on_change=self.ended.release
        )
        self.admission = Admission(self.lora, self.residents, lambda: self.lora.drop_idle() > 0)
        self.running: list[Sequence] = []

    def queue(self, *digests: str, choose: Any = None) -> Sequence:
        choice = AdapterChoice(tuple(AdapterPart(d) for d in digests), "x", "user", "")
        request = GenerationRequest("r", "x", Sampling(), choose or (lambda failed: choice))
        sequence = Sequence(
            request,
            lambda event: None,
            EncodedPrompt((1,), 0),
            1,
            RowSampler(Sampling(), (1,), 9),
            TextStream(TOKENIZER, ()),
            lambda: None,
        )
        self.admission.waiting.append(sequence)
        return sequence

    def next(self, has_room: bool = True) -> Sequence | WeftError | None:
        found = self.admission.next(len(self.running), has_room=has_room)
        if found is None:
            return None
        sequence, error = found
        if error is not None:
            self.admission.release_residents(sequence)
            return error
        sequence.admitted = True
        self.running.append(sequence)
        return sequence

    def join(self) -> Sequence | WeftError:
        """The next one, as soon as its adapters are here."""
        while (found := self.next()) is None:
            assert self.ended.acquire(timeout=10), "nobody joins, and nothing loads"
            self.admission.changed()
        return found

    def next_after(self, *digests: str) -> Sequence | WeftError | None:
        """The next one once another has queued."""
        self.queue(*digests)
        return self.next()

    def let_it_load(self, sequence: Sequence, waits_for: str) -> None:
        """Go on until it waits for something else than its adapters."""
        assert self.next() is None
        while sequence.waits_for == "load":
            assert self.ended.acquire(timeout=10)
            self.admission.changed()
            assert self.next() is None
        assert sequence.waits_for == waits_for

    def leave(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.admission.release_slots(sequence)
        self.admission.release_residents(sequence)


@pytest.fixture
def open_desk() -> Iterator[Callable[..., Desk]]:
    opened: list[Desk] = []

    def make(**options: Any) -> Desk:
        opened.append(Desk(**options))
        return opened[-1]

    yield make
    for desk in opened:
        for sequence in list(desk.running):
            desk.leave(sequence)
        assert desk.residents.statistics()["pinned"] == 0
        assert desk.lora.drop_idle() >= 0 and desk.lora.in_slots() == ()
        desk.residents.close()


def test_in_order_but_past_those_whose_adapters_load(open_desk: Callable[..., Desk]) -> None:
    gate = threading.Event()

    def slow(digest: str) -> AdapterWeights:
        assert gate.wait(10)
        return weights(digest)

    desk = open_desk(load=slow)
    adapted, plain = desk.queue("a"), desk.queue()
    assert desk.next() is plain and desk.next() is None
    gate.set()
    assert desk.join() is adapted


@pytest.mark.parametrize("when", ["pin", "get"])
def test_one_that_is_gone_before_it_is_held_is_asked_for_again(
    when: str, open_desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = open_desk()
    whole, left = getattr(desk.residents, when), [2]

    def forget_first(digest: str) -> Any:
        if left[0]:
            left[0] -= 1
            desk.residents.forget(digest)
        return whole(digest)

    monkeypatch.setattr(desk.residents, when, forget_first)
    sequence = desk.queue("a")
    assert desk.join() is sequence
    assert desk.residents.statistics()["loads"] == 3


def test_a_deleted_one_that_somebody_holds_is_put_into_a_slot_all_the_same(
    open_desk: Callable[..., Desk],
) -> None:
    desk = open_desk()
    sequence = desk.queue("a")
    assert desk.join() is sequence
    desk.running.remove(sequence)
    desk.admission.release_slots(sequence)  # as for want of memory
    desk.lora.drop_idle()
    desk.residents.forget("a")
    desk.admission.put_back(sequence)
    assert desk.join() is sequence and desk.lora.holds("a")


def test_a_blend_larger_than_host_memory_comes_together(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(max_count=1, slots=3)
    blends = [desk.queue("a", "b", "c"), desk.queue("c", "d"), desk.queue("a", "e")]
    for blend in blends:
        assert desk.join() is blend
        desk.leave(blend)
    assert desk.residents.statistics()["loads"] <= 12  # each time one of those that are missing stays


def test_the_blend_that_collects_may_be_cancelled(open_desk: Callable[..., Desk]) -> None:
    gate = threading.Event()

    def slow(digest: str) -> AdapterWeights:
        assert digest != "b" or gate.wait(10)
        return weights(digest)

    desk = open_desk(max_count=1, load=slow)
    first, second = desk.queue("a", "b"), desk.queue("c", "d")
    assert desk.next() is None
    assert desk.ended.acquire(timeout=10)
    desk.admission.changed()
    assert desk.next() is None and desk.residents.statistics()["pinned"] == 1
    desk.admission.remove(first)
    desk.admission.release_residents(first)
    gate.set()
    assert desk.join() is second


def test_only_as_many_load_at_once_as_are_kept(open_desk: Callable[..., Desk]) -> None:
    """So none is pushed out before its request joined: each is loaded once."""
    desk = open_desk(max_count=4, slots=2)
    waiting = [desk.queue(f"a{i}") for i in range(30)]
    for _ in waiting:
        assert desk.residents.statistics()["loading"] <= 2
        joined = desk.join()
        assert isinstance(joined, Sequence)
        desk.leave(joined)
    assert desk.residents.statistics()["loads"] == 30


def test_adapters_load_while_there_is_no_row(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk()
    sequence = desk.queue("a")
    assert desk.next(has_room=False) is None
    assert desk.ended.acquire(timeout=10)
    desk.admission.changed()
    assert desk.next(has_room=False) is None  # here, but there is no row
    assert desk.residents.statistics()["pinned"] == 0
    desk.admission.changed()
    assert desk.next() is sequence
    assert desk.residents.statistics()["loads"] == 1


def test_who_waits_for_a_slot_is_not_passed_for_ever(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(slots=1)
    desk.queue("a")
    first = desk.join()
    assert isinstance(first, Sequence)
    other = desk.queue("b")
    desk.let_it_load(other, "slot")
    passed = 0
    while (joined := desk.next_after("a")) is not None:  # the slot is never idle
        assert isinstance(joined, Sequence) and joined is not other
        passed += 1
        assert passed <= 64
        desk.leave(first)
        first = joined
    assert passed == 64
    plain = desk.queue()
    assert desk.next() is plain  # needs no slot
    for sequence in list(desk.running):
        desk.leave(sequence)
    assert desk.next() is other
    desk.leave(other)
    assert isinstance(desk.next(), Sequence)  # those that it held back


def test_without_memory_for_its_adapter_it_waits_while_others_run(
    open_desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = open_desk()
    plain = desk.queue()
    assert desk.next() is plain
    whole, memory = desk.lora.put, threading.Event()

    def put(adapter: AdapterWeights) -> bool:
        if not memory.is_set():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(adapter)

    monkeypatch.setattr(desk.lora, "put", put)
    sequence = desk.queue("a")
    desk.let_it_load(sequence, "memory")
    assert desk.next() is None and desk.admission.out_of_memory == 1
    for _ in range(64):  # others pass, but not for ever
        other = desk.queue()
        assert desk.next() is other
        desk.leave(other)
    barred = desk.queue()
    assert desk.next() is None
    memory.set()
    desk.leave(plain)
    assert desk.join() is sequence
    assert desk.next() is barred
    memory.clear()
    desk.leave(sequence), desk.leave(barred)
    desk.lora.drop_idle()
    desk.queue("a")
    assert isinstance(desk.join(), OutOfMemory)  # alone: no memory will come


def test_one_whose_turn_is_held_back_goes_on_when_the_other_is_cancelled(
    open_desk: Callable[..., Desk],
) -> None:
    desk = open_desk(slots=1)
    desk.queue("a")
    desk.join()
    other = desk.queue("b")
    desk.let_it_load(other, "slot")
    other.overtaken = 64
    held_back = desk.queue("a")
    assert desk.next() is None and held_back.waits_for == "turn"
    desk.admission.remove(other)
    assert desk.next() is held_back


def test_a_request_that_insists_on_what_is_gone_fails(open_desk: Callable[..., Desk]) -> None:
    def vanish(digest: str) -> AdapterWeights:
        raise UnknownAdapter("no such folder")

    desk = open_desk(load=vanish)
    desk.queue("a")
    assert isinstance(desk.join(), UnknownAdapter)
    choice = AdapterChoice((AdapterPart("a"),), "x", "user", "")
    fell = desk.queue(choose=lambda failed: AdapterChoice() if failed else choice)
    assert desk.join() is fell and fell.digests == ()
