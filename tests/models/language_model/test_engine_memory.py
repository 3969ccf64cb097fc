"""Memory runs out at random steps: who survives has lost nothing, who fails does so alone and typed."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from graph.errors import OutOfMemory
from models.language_model import kv_cache
from models.language_model.engine import Engine, EngineLimits
from models.language_model.lora import LoraSlots
from models.language_model.prefix_cache import PrefixCache
from models.language_model.protocol import (
    AdapterChoice,
    AdapterPart,
    Failed,
    GenerationRequest,
    Sampling,
)
from models.language_model.resident_adapters import ResidentAdapters
from tests.models.language_model.tiny_models import (
    Heard,
    generate,
    linears_of,
    make_adapter,
    make_base,
    make_model,
    make_tokenizer,
    submit,
)

TOKENIZER = make_tokenizer()
GREEDY = Sampling(temperature=0.0, max_tokens=15)


def lack_of_memory(chance: random.Random) -> Exception:
    """As CUDA says it, or as the CPU's allocator does."""
    if chance.random() < 0.5:
        return torch.OutOfMemoryError("CUDA out of memory")
    return RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory")


def is_whole(heard: Heard, expected: list[int]) -> bool:
    """It is as it would be alone, or failed typed after a part of that."""
    last = heard.wait().events[-1]
    if isinstance(last, Failed):
        assert isinstance(last.error, OutOfMemory)
        assert heard.ids == expected[: len(heard.ids)]
        return False
    assert heard.ids == expected
    return True


@pytest.mark.parametrize("seed", range(3))
def test_survivors_equal_generate(seed: int) -> None:
    model = make_model()
    chance = random.Random(seed)
    prompts = ["".join(chance.choices("abcdef ", k=chance.randrange(1, 50))) for _ in range(12)]
    expected = [generate(model, TOKENIZER, p, 15) for p in prompts]

    def fail(module: Any, args: Any) -> None:
        if chance.random() < 0.04:  # in the middle of a pass: some layers have written, others not
            raise lack_of_memory(chance)

    model.get_decoder().layers[1].register_forward_pre_hook(fail)
    engine = Engine(
        make_base(model, TOKENIZER),
        limits=EngineLimits(max_batch=4, prefill_chunk_tokens=16),
        prefix_cache=PrefixCache(1 << 20, block_tokens=8),
    )
    heard = [submit(engine, GenerationRequest("r", p, GREEDY)) for p in prompts]
    assert sum(is_whole(h, ids) for h, ids in zip(heard, expected, strict=True)) >= 10
    count = engine.status()["out_of_memory"]
    assert isinstance(count, int) and count > 0
    engine.close()


@pytest.mark.parametrize("seed", range(3))
def test_with_adapters_and_prefix_cache_too(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is short for steps, slots, gathered adapters, the growth of rows and the prefix cache."""
    chance = random.Random(seed)
    is_short = threading.Event()

    def fail(probability: float) -> None:
        if is_short.is_set() and chance.random() < probability:
            raise lack_of_memory(chance)

    model = make_model()
    linears = linears_of(model)
    lora = LoraSlots(model, linears, num_slots=2, max_rank=8)
    residents = ResidentAdapters(lambda d: make_adapter(d, linears), max_count=3, max_bytes=1 << 24)
    for whose, name, probability in (
        (lora, "put", 0.3),
        (lora, "set_rows", 0.05),
        (kv_cache._RowLayer, "_grow", 0.2),
        (kv_cache.KVCache, "read", 0.2),
    ):
        whole = getattr(whose, name)

        def failing(*args: Any, whole: Any = whole, probability: float = probability) -> Any:
            fail(probability)
            return whole(*args)

        monkeypatch.setattr(whose, name, failing)
    model.get_decoder().layers[1].register_forward_pre_hook(lambda module, args: fail(0.03))
    engine = Engine(
        make_base(model, TOKENIZER),
        limits=EngineLimits(max_batch=4, prefill_chunk_tokens=16),
        lora=lora,
        residents=residents,
        prefix_cache=PrefixCache(1 << 20, block_tokens=8),
    )

    def ask(i: int) -> GenerationRequest:
        choice = AdapterChoice(() if i % 4 == 3 else (AdapterPart(f"a{i % 5}"),), "x", "user", "")
        prompt = "the same beginning for all " + "abc" * (i % 7)
        return GenerationRequest("r", prompt, GREEDY, lambda failed: choice)

    expected = [submit(engine, ask(i)).wait().ids for i in range(14)]
    is_short.set()
    heard = [submit(engine, ask(i)) for i in range(14)]
    assert sum(is_whole(h, ids) for h, ids in zip(heard, expected, strict=True)) >= 9
    is_short.clear()
    assert [submit(engine, ask(i)).wait().ids for i in range(14)] == expected
    engine.close()
    assert residents.statistics()["pinned"] == 0
    assert lora.drop_idle() > 0 and not lora.in_slots()
    residents.close()


def test_rows_that_do_not_fit_together_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that may have only so many bytes: taking a row away frees some, so the others go on."""
    model = make_model()
    prompts = [c * n for c, n in zip("abcdefgh", (120, 9, 60, 30, 100, 5, 20, 70), strict=True)]
    expected = [generate(model, TOKENIZER, p, 15) for p in prompts]
    whole, most, failures = kv_cache._RowLayer._grow, 250, 0

    def grow(layer: Any, like: Tensor, rows: int, tokens: int) -> tuple[Tensor, Tensor]:
        nonlocal failures
        if rows * tokens > most:
            failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(layer, like, rows, tokens)

    monkeypatch.setattr(kv_cache._RowLayer, "_grow", grow)
    engine = Engine(make_base(model, TOKENIZER), limits=EngineLimits(max_batch=4, prefill_chunk_tokens=32))
    heard = [submit(engine, GenerationRequest("r", p, GREEDY)) for p in prompts]
    assert [h.wait().ids for h in heard] == expected
    assert failures > 2
    engine.close()


def test_rows_are_cut_to_what_they_need_before_one_is_taken_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A long row left; two short ones come. They fit if the room of the long one goes."""
    model = make_model()
    whole = kv_cache._RowLayer._grow
    failures: list[tuple[int, int]] = []

    def grow(layer: Any, like: Tensor, rows: int, tokens: int) -> tuple[Tensor, Tensor]:
        if rows * tokens > 300:
            failures.append((rows, tokens))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(layer, like, rows, tokens)

    monkeypatch.setattr(kv_cache._RowLayer, "_grow", grow)
    engine = Engine(make_base(model, TOKENIZER), limits=EngineLimits(max_batch=4))
    middle = Heard()
    late: list[Heard] = []

    def ask(prompt: str, max_tokens: int) -> GenerationRequest:
        sampling = Sampling(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        return GenerationRequest("r", prompt, sampling)

    def listen(event: Any) -> None:
        middle(event)
        if first.ended.is_set() and not late:
            late.extend([submit(engine, ask("b", 6)), submit(engine, ask("c", 6))])

    first = Heard()
    engine.submit(ask("a" * 120, 3), first)
    engine.submit(ask("m" * 70, 14), listen)
    assert len(middle.wait().ids) == 14
    for heard, prompt in zip(late, "bc", strict=True):
        assert heard.wait().ids == submit(engine, ask(prompt, 6)).wait().ids
    assert (3, 128) in failures
    assert not [r for r in caplog.records if "read again" in r.message]
    engine.close()


def test_room_of_a_long_row_is_given_back() -> None:
    engine = Engine(make_base(make_model(), TOKENIZER), limits=EngineLimits(max_batch=4))
    held: list[Any] = []

    def ask(prompt: str, max_tokens: int) -> Heard:
        heard = Heard()

        def watch(event: Any) -> None:
            held.append(engine.status()["kv_cache_bytes"])
            heard(event)

        sampling = Sampling(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        engine.submit(GenerationRequest("r", prompt, sampling), watch)
        return heard

    heard = [ask("y" * 140, 9), ask("y" * 140, 9), ask("y" * 140, 9), ask("x", 50)]
    for h in heard:
        h.wait()
    assert max(held) >= 6 * held[-1] > 0  # three rows of 160 places or one of 64
    engine.close()
    assert engine.status()["kv_cache_bytes"] == 0


def test_one_that_alone_does_not_fit_fails() -> None:
    model = make_model()

    def fail(module: Any, args: Any, kwargs: Any) -> None:
        if kwargs["attention_mask"].shape[-1] > 60:
            raise torch.OutOfMemoryError("CUDA out of memory")

    expected = generate(model, TOKENIZER, "small", 10)
    model.get_decoder().layers[0].register_forward_pre_hook(fail, with_kwargs=True)
    engine = Engine(make_base(model, TOKENIZER), limits=EngineLimits())
    sampling = Sampling(temperature=0.0, max_tokens=10)
    large = submit(engine, GenerationRequest("r", "x" * 80, sampling))
    small = submit(engine, GenerationRequest("r", "small", sampling))
    assert isinstance(large.wait().error, OutOfMemory)
    assert small.wait().ids == expected
    engine.close()
