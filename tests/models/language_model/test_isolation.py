"""A row's answer does not depend on its neighbours: other adapters, blends, shared beginnings."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from graph.errors import InvalidInput, UnknownAdapter
from models.language_model.engine import Engine, EngineLimits
from models.language_model.lora import LoraSlots
from models.language_model.lora_weights import AdapterWeights
from models.language_model.prefix_cache import PrefixCache
from models.language_model.protocol import (
    AdapterChoice,
    AdapterPart,
    Failed,
    Finished,
    GenerationRequest,
    Sampling,
)
from models.language_model.resident_adapters import ResidentAdapters
from tests.models.language_model.tiny_models import (
    Heard,
    linears_of,
    make_adapter,
    make_base,
    make_model,
    make_tokenizer,
    submit,
)

NUM_ADAPTERS = 6


LINEARS = linears_of(make_model())


def load(digest: str) -> AdapterWeights:
    return make_adapter(digest, LINEARS)


def open_engine(
    slots: int, cached: bool, max_batch: int = 4, load: Any = load
) -> tuple[Engine, LoraSlots, ResidentAdapters]:
    model = make_model()
    lora = LoraSlots(model, LINEARS, num_slots=slots, max_rank=16)
    residents = ResidentAdapters(load, max_count=4, max_bytes=1 << 24)
    engine = Engine(
        make_base(model, make_tokenizer()),
        limits=EngineLimits(max_batch=max_batch, prefill_chunk_tokens=24),
        lora=lora,
        residents=residents,
        prefix_cache=PrefixCache(1 << 22, block_tokens=8) if cached else None,
    )
    return engine, lora, residents


@pytest.fixture(scope="module")
def alone() -> Iterator[Any]:
    engine, _, residents = open_engine(2, cached=False, max_batch=1)
    yield lambda request: submit(engine, request).wait().ids
    engine.close()
    residents.close()


def request_for(prompt: str, *parts: tuple[str, float], seed: int | None = None) -> GenerationRequest:
    choice = AdapterChoice(tuple(AdapterPart(d, w) for d, w in parts), "x", "user", "")
    sampling = Sampling(temperature=0.0 if seed is None else 1.0, seed=seed, max_tokens=10, ignore_eos=True)
    return GenerationRequest("r", prompt, sampling, lambda failed: choice)


@pytest.mark.parametrize("seed", range(3))
def test_neighbours_do_not_matter(seed: int, alone: Any) -> None:
    chance = random.Random(seed)
    requests = []
    for i in range(14):
        prompt = "a beginning that all share, " + "".join(chance.choices("abcd", k=chance.randrange(1, 20)))
        parts = [(f"a{n}", 1.0) for n in chance.sample(range(NUM_ADAPTERS), chance.choice([0, 1, 1, 1, 2]))]
        if len(parts) == 2:
            parts = [(digest, weight) for (digest, _), weight in zip(parts, (0.3, 0.7), strict=True)]
        requests.append(request_for(prompt, *parts, seed=i if i % 3 == 0 else None))
    expected = [alone(request) for request in requests]
    assert len({tuple(ids) for ids in expected}) > 8
    engine, lora, residents = open_engine(slots=3, cached=seed % 2 == 0)
    heard = [submit(engine, request) for request in requests]
    assert [h.wait().ids for h in heard] == expected
    engine.close()
    assert lora.drop_idle() > 0 and not lora.in_slots()  # nothing is left pinned
    assert residents.statistics()["pinned"] == 0
    residents.close()


def test_falling_down_past_what_cannot_be_loaded() -> None:
    engine, _, residents = open_engine(slots=2, cached=False)

    def choose(failed: dict[str, str]) -> AdapterChoice:
        return AdapterChoice((AdapterPart("a1" if "bad" in failed else "bad"),), "x", "user", str(failed))

    def insist(failed: dict[str, str]) -> AdapterChoice:
        return AdapterChoice((AdapterPart("bad"),), "x", "request", "")

    heard = submit(engine, GenerationRequest("r", "hello", Sampling(max_tokens=2), choose)).wait()
    assert heard.admitted.choice.digest == "a1" and "damaged" in heard.admitted.choice.why
    failed = submit(engine, GenerationRequest("r", "hello", Sampling(max_tokens=2), insist)).wait()
    assert isinstance(failed.error, UnknownAdapter)
    large = submit(engine, request_for("hello", ("a0", 1.0), ("a1", 1.0), ("a2", 1.0))).wait()
    assert isinstance(large.error, InvalidInput)
    assert engine.status()["running"] == 0
    engine.close()
    residents.close()


def test_an_adapter_that_is_deleted_while_it_runs_stays_to_the_end(alone: Any) -> None:
    engine, _, residents = open_engine(slots=2, cached=True)
    request = request_for("to the end", ("a2", 1.0))
    expected = alone(request)
    heard = []

    def forget_then_hear(event: Any) -> None:
        residents.forget("a2")  # at its admission and at every token
        heard[0](event)

    heard.append(Heard())
    engine.submit(request, forget_then_hear)
    assert heard[0].wait().ids == expected
    assert submit(engine, request).wait().ids == expected  # loaded again
    assert residents.statistics()["loads"] == 2
    engine.close()
    assert residents.statistics()["pinned"] == 0
    residents.close()


def test_closing_the_adapters_first_leaves_nobody_waiting() -> None:
    gate, began = threading.Event(), threading.Event()

    def slow(digest: str) -> AdapterWeights:
        began.set()
        assert gate.wait(20)
        return load(digest)

    engine, _, residents = open_engine(slots=2, cached=False, load=slow)
    heard = [submit(engine, request_for("hello", (f"a{i}", 1.0))) for i in range(5)]
    assert began.wait(20)
    closing = threading.Thread(target=residents.close)
    closing.start()
    gate.set()
    closing.join(20)
    ends = {type(h.wait().events[-1]) for h in heard}
    assert Failed in ends and ends <= {Failed, Finished}
    engine.close()
    assert residents.on_change is None
    residents.close()  # harmless, as is the engine's
    engine.close()
