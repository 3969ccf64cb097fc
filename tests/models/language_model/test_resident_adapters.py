"""Background loading, bounds, pins and remembered errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch

from graph.errors import InvalidAdapter, OutOfMemory, Unavailable, WeftError
from models.language_model.lora_weights import AdapterWeights
from models.language_model.resident_adapters import ResidentAdapters


def weights(digest: str, nbytes: int = 10) -> AdapterWeights:
    return AdapterWeights(digest, 1, {"m": (torch.zeros(1, 1), torch.zeros(1, 1))}, nbytes)


def wait(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until, "the condition did not come true in time"
        threading.Event().wait(0.001)


def load(residents: ResidentAdapters, digest: str) -> None:
    assert residents.request(digest) == "loading"
    wait(lambda: residents.statistics()["loading"] == 0)


def open_residents(
    load: Callable[[str], AdapterWeights] = weights,
    max_count: int = 2,
    max_bytes: int = 1000,
    **options: object,
) -> ResidentAdapters:
    return ResidentAdapters(load, max_count=max_count, max_bytes=max_bytes, **options)  # type: ignore[arg-type]


def test_loads_once_and_wakes_the_waiting() -> None:
    gate, changed = threading.Event(), threading.Event()
    calls: list[str] = []

    def slow(digest: str) -> AdapterWeights:
        calls.append(digest)
        assert gate.wait(10)
        return weights(digest)

    residents = open_residents(slow, on_change=changed.set)
    assert residents.request("a") == residents.request("a") == "loading"
    assert residents.resident() == () and not changed.is_set()  # no lock is held by the load
    gate.set()
    assert changed.wait(10)
    assert residents.request("a") == "ready" and residents.get("a").digest == "a"
    assert calls == ["a"]
    counts = residents.statistics()
    assert (counts["loads"], counts["misses"], counts["hits"], counts["resident_bytes"]) == (1, 1, 1, 10)
    residents.close()


def test_least_recently_used_go_by_count_and_by_bytes() -> None:
    residents = open_residents(lambda digest: weights(digest, 700 if digest == "big" else 200))
    load(residents, "a")
    load(residents, "b")
    assert residents.request("a") == "ready"
    load(residents, "c")
    assert residents.resident() == ("a", "c")
    load(residents, "big")
    assert residents.resident() == ("c", "big")
    residents.pin("c")
    load(residents, "d")
    assert residents.resident() == ("c", "d")
    assert residents.evict_idle() == 200 and residents.resident() == ("c",)
    assert residents.statistics()["evictions"] == 4
    residents.close()


def test_too_many_bytes_push_others_out_but_not_the_one_just_loaded() -> None:
    residents = open_residents(lambda digest: weights(digest, 600), max_count=9)
    load(residents, "a")
    load(residents, "b")
    assert residents.resident() == ("b",)
    residents.close()


def test_pinned_ones_stay_beyond_the_bounds_until_they_are_unpinned() -> None:
    residents = open_residents(max_count=1)
    for digest in ("a", "b", "c"):
        load(residents, digest)
        residents.pin(digest)
    residents.pin("a")
    assert residents.resident() == ("b", "c", "a")
    residents.unpin("a")
    assert residents.resident() == ("b", "c", "a")  # still pinned once
    residents.unpin("b")
    assert residents.resident() == ("c", "a")
    residents.unpin("a")
    assert residents.resident() == ("c",)
    with pytest.raises(KeyError):
        residents.unpin("a")
    with pytest.raises(KeyError):
        residents.pin("a")
    with pytest.raises(KeyError):
        residents.get("a")
    residents.close()


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (InvalidAdapter("damaged"), InvalidAdapter),
        (FileNotFoundError(2, "No such file"), Unavailable),
        (MemoryError(), OutOfMemory),
        (ZeroDivisionError(), Unavailable),
    ],
)
def test_errors_are_typed_and_remembered_for_a_second(
    raised: Exception, kind: type[WeftError], caplog: pytest.LogCaptureFixture
) -> None:
    now, calls = [100.0], []

    def fail(digest: str) -> AdapterWeights:
        calls.append(digest)
        if len(calls) == 1:
            raise raised
        return weights(digest)

    residents = open_residents(fail, clock=lambda: now[0])
    load(residents, "a")
    for moment in (100.0, 100.9):
        now[0] = moment
        answer = residents.request("a")
        assert type(answer) is kind
    assert calls == ["a"] and residents.statistics()["failures"] == 1
    assert [r.levelname for r in caplog.records if "its requests fall back" in r.getMessage()] == ["WARNING"]
    now[0] = 101.1
    load(residents, "a")
    assert residents.request("a") == "ready"
    residents.close()


def test_forgetting_drops_what_is_there_and_what_is_loading() -> None:
    gate = threading.Event()
    gate.set()
    ended: list[None] = []

    def gated(digest: str) -> AdapterWeights:
        assert gate.wait(10)
        return weights(digest)

    residents = open_residents(gated, on_change=lambda: ended.append(None))
    load(residents, "a")
    residents.pin("a")
    held = residents.get("a")
    residents.forget("a")
    assert residents.resident() == () and held.digest == "a"
    residents.unpin("a")
    gate.clear()
    assert residents.request("b") == "loading"
    residents.forget("b")
    gate.set()
    wait(lambda: len(ended) == 2)
    assert residents.resident() == () and residents.statistics()["resident_bytes"] == 0
    residents.close()


def test_closed_ones_load_nothing_more() -> None:
    residents = open_residents()
    load(residents, "a")
    residents.close()
    assert residents.request("a") == "ready"
    assert isinstance(residents.request("b"), Unavailable)
