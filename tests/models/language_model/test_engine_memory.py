"""Memory runs out at random steps: who survives has lost nothing, who fails does so alone and typed."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from graph.errors import OutOfMemory
from models.language_model.engine import Engine, EngineLimits
from models.language_model.prefix_cache import PrefixCache
from models.language_model.protocol import Failed, GenerationRequest, Sampling

from .tiny_models import generate, make_base, make_model, make_tokenizer, submit


@pytest.mark.parametrize("seed", range(3))
def test_survivors_equal_generate(seed: int) -> None:
    model, tokenizer = make_model(), make_tokenizer()
    chance = random.Random(seed)
    prompts = ["".join(chance.choices("abcdef ", k=chance.randrange(1, 50))) for _ in range(12)]
    expected = [generate(model, tokenizer, p, 15) for p in prompts]

    def fail(module: Any, args: Any) -> None:
        if chance.random() < 0.04:  # in the middle of a pass: some layers have written, others not
            if chance.random() < 0.5:
                raise torch.OutOfMemoryError("CUDA out of memory")
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory")

    model.get_decoder().layers[1].register_forward_pre_hook(fail)
    engine = Engine(
        make_base(model, tokenizer),
        limits=EngineLimits(max_batch=4, prefill_chunk_tokens=16),
        prefix_cache=PrefixCache(1 << 20, block_tokens=8),
    )
    heard = [
        submit(engine, GenerationRequest("r", p, Sampling(temperature=0.0, max_tokens=15))) for p in prompts
    ]
    survived = 0
    for h, ids in zip(heard, expected, strict=True):
        last = h.wait().events[-1]
        if isinstance(last, Failed):
            assert isinstance(last.error, OutOfMemory)
            assert h.ids == ids[: len(h.ids)]
        else:
            assert h.ids == ids
            survived += 1
    assert survived >= 6
    count = engine.status()["out_of_memory"]
    assert isinstance(count, int) and count > 0
    engine.close()


def test_one_that_alone_does_not_fit_fails() -> None:
    model, tokenizer = make_model(), make_tokenizer()

    def fail(module: Any, args: Any, kwargs: Any) -> None:
        if kwargs["attention_mask"].shape[-1] > 60:
            raise torch.OutOfMemoryError("CUDA out of memory")

    expected = generate(model, tokenizer, "small", 10)
    model.get_decoder().layers[0].register_forward_pre_hook(fail, with_kwargs=True)
    engine = Engine(make_base(model, tokenizer), limits=EngineLimits())
    sampling = Sampling(temperature=0.0, max_tokens=10)
    large = submit(engine, GenerationRequest("r", "x" * 80, sampling))
    small = submit(engine, GenerationRequest("r", "small", sampling))
    assert isinstance(large.wait().error, OutOfMemory)
    assert small.wait().ids == expected
    engine.close()
