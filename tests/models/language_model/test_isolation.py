"""A row's answer does not depend on its neighbours: other adapters, blends, shared beginnings."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from graph.errors import InvalidAdapter, InvalidInput, UnknownAdapter
from models.language_model.engine import Engine, EngineLimits
from models.language_model.lora import LoraSlots
from models.language_model.lora_weights import AdapterWeights
from models.language_model.prefix_cache import PrefixCache
from models.language_model.protocol import AdapterChoice, AdapterPart, GenerationRequest, Sampling
from models.language_model.resident_adapters import ResidentAdapters

from .tiny_models import make_base, make_model, make_tokenizer, submit

NUM_ADAPTERS = 6


def linears_of(model: Any) -> dict[str, tuple[int, int]]:
    return {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "layers" in name
    }


LINEARS = linears_of(make_model())


def load(digest: str) -> AdapterWeights:
    """Adapter `aN`: random, of rank N + 1. Raises InvalidAdapter for other names."""
    if not digest.startswith("a"):
        raise InvalidAdapter(f"{digest} is damaged")
    # A generator of its own: adapters load on several threads.
    chance = torch.Generator().manual_seed(int(digest[1:]) + 100)
    rank = int(digest[1:]) + 1
    modules = {
        name: (
            torch.randn(rank, inputs, generator=chance) * 0.3,
            torch.randn(outputs, rank, generator=chance) * 0.3,
        )
        for name, (inputs, outputs) in LINEARS.items()
    }
    return AdapterWeights(digest, rank, modules, sum(a.nbytes + b.nbytes for a, b in modules.values()))


def open_engine(slots: int, cached: bool, max_batch: int = 4) -> tuple[Engine, LoraSlots, ResidentAdapters]:
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
