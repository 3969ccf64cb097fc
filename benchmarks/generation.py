"""Decoding for many users at once: the engine against PEFT, against `generate`, and with a prefix cache.

A random 30M-class Llama in float32; every side sees the same prompts and makes the same number of tokens, in
turn within a round, in another order each round.

- `sixteen`: 16 requests of 32 prompt tokens and 64 new ones. Base alone: the same engine without adapters,
  and transformers' `generate`. Mixed: PEFT's `generate(adapter_names=...)`. In turn: PEFT's `set_adapter`,
  one request after the other.
- `ragged`: 64 requests of mixed lengths with 16 adapters through 16 rows, against `generate` without adapters
  on batches of 16 in order of arrival, which is padded and runs until its longest answer is done.
- `first_token`: a prompt of 512 tokens that the same user sent before, with and without the prefix cache.

python -m benchmarks.generation
"""

from __future__ import annotations

import os

# As the service's replica has it, see deployments/app.py.
os.environ |= {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "5000"}

import copy
import random
import time
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from benchmarks.language_models import (
    TARGETS,
    VOCABULARY,
    ask,
    random_adapter,
    random_llama,
    word_tokenizer,
)
from benchmarks.report import spread, write
from models.language_model.base_model import BaseModel
from models.language_model.engine import Engine, EngineLimits
from models.language_model.lora import LoraSlots
from models.language_model.lora_weights import AdapterWeights
from models.language_model.prefix_cache import PrefixCache
from models.language_model.resident_adapters import ResidentAdapters

ROWS, ADAPTERS, RANK = 16, 16, 8
PROMPT, NEW = 32, 64
RAGGED_REQUESTS = 64
PREFIX = 512
ROUNDS, RAGGED_ROUNDS = 3, 2


def engine_of(adapters: dict[str, AdapterWeights], prefix_cache: PrefixCache | None = None) -> Engine:
    base = BaseModel.of(random_llama(), word_tokenizer(), name="llama-30m")
    slots = LoraSlots(base.model, base.spec.linears, num_slots=ADAPTERS, max_rank=RANK)
    residents = ResidentAdapters(adapters.__getitem__, max_count=64, max_bytes=1 << 30)
    limits = EngineLimits(max_batch=ROWS, max_queued=1024)
    return Engine(base, limits=limits, lora=slots, residents=residents, prefix_cache=prefix_cache)


def peft_of(adapters: dict[str, AdapterWeights]) -> Any:
    """The same adapters as PEFT holds them; their scaling is folded into B."""
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS))
    names = list(adapters)
    model = get_peft_model(copy.deepcopy(random_llama()), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    for name, weights in adapters.items():
        for module, (a, b) in weights.modules.items():
            layer = model.base_model.model.get_submodule(module)
            layer.lora_A[name].weight.data.copy_(a)
            layer.lora_B[name].weight.data.copy_(b)
    model.requires_grad_(False)
    return model.eval()


def generated(model: Any, prompts: list[list[int]], new: int, **options: Any) -> float:
    """Seconds of transformers' greedy `generate` on a left-padded batch."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    begun = time.perf_counter()
    with torch.inference_mode():
        found = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            **options,
        )
    if found.shape[1] != longest + new:
        raise SystemExit("generate stopped early")
    return time.perf_counter() - begun


def random_prompts(draw: random.Random, lengths: list[int]) -> list[list[int]]:
    return [[draw.randrange(2, VOCABULARY) for _ in range(length)] for length in lengths]


def in_turns(sides: dict[str, Any], tokens: int, rounds: int = ROUNDS) -> dict[str, Any]:
    """Tokens per second of each side, and each side as a multiple of the first, round by round."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side(random.Random(-1))
    for round_ in range(rounds):
        for name in random.Random(round_).sample(sorted(sides), len(sides)):
            rates[name].append(tokens / sides[name](random.Random(round_)))
    first = next(iter(sides))
    return {
        "tokens_per_s": {name: spread(found) for name, found in rates.items()},
        "slots_times": {
            name: spread([a / b for a, b in zip(rates[first], found, strict=True)])
            for name, found in rates.items()
            if name != first
        },
    }


def sixteen(adapters: dict[str, AdapterWeights]) -> dict[str, Any]:
    engine = engine_of(adapters)
    peft, plain = peft_of(adapters), random_llama()
    names = list(adapters)

    def prompts(draw: random.Random) -> list[list[int]]:
        return random_prompts(draw, [PROMPT] * ROWS)

    def in_turn(draw: random.Random) -> float:
        taken = 0.0
        for name, prompt in zip(names, prompts(draw), strict=True):
            begun = time.perf_counter()
            peft.set_adapter(name)
            taken += time.perf_counter() - begun + generated(peft, [prompt], NEW)
        return taken

    sides = {
        "slots": lambda draw: ask(engine, prompts(draw), [NEW] * ROWS, names)[1],
        "engine_base": lambda draw: ask(engine, prompts(draw), [NEW] * ROWS, [None] * ROWS)[1],
        "generate_base": lambda draw: generated(plain, prompts(draw), NEW),
        "peft_mixed": lambda draw: generated(peft, prompts(draw), NEW, adapter_names=names),
        "peft_in_turn": in_turn,
    }
    found = in_turns(sides, ROWS * NEW)
    engine.close()
    return found


def ragged(adapters: dict[str, AdapterWeights], longest_prompt: int, longest_answer: int) -> dict[str, Any]:
    engine, plain = engine_of(adapters), random_llama()
    shape = random.Random(7)
    lengths = [shape.randint(8, longest_prompt) for _ in range(RAGGED_REQUESTS)]
    answers = [shape.randint(8, longest_answer) for _ in range(RAGGED_REQUESTS)]
    names = [shape.choice(list(adapters)) for _ in range(RAGGED_REQUESTS)]

    def static(draw: random.Random) -> float:
        prompts = random_prompts(draw, lengths)
        return sum(
            generated(plain, prompts[n : n + ROWS], max(answers[n : n + ROWS]))
            for n in range(0, RAGGED_REQUESTS, ROWS)
        )

    sides = {
        "slots": lambda draw: ask(engine, random_prompts(draw, lengths), answers, names)[1],
        "generate_static": static,
    }
    found = in_turns(sides, sum(answers), RAGGED_ROUNDS)
    engine.close()
    return found | {"prompt_tokens": [8, longest_prompt], "new_tokens": [8, longest_answer]}


def first_token(adapters: dict[str, AdapterWeights]) -> dict[str, Any]:
    """Milliseconds to the first token of a returning user's prompt."""
    engines = {"without": engine_of(adapters), "with": engine_of(adapters, PrefixCache(256 << 20))}
    name = next(iter(adapters))
    found: dict[str, list[float]] = {side: [] for side in engines}
    cached: list[int] = []
    for round_ in range(ROUNDS):
        draw = random.Random(round_)
        prefix = random_prompts(draw, [PREFIX])[0]
        question = random_prompts(draw, [16])[0]
        for side, engine in engines.items():
            ask(engine, [prefix + random_prompts(draw, [16])[0]], [1], [name], ["ada"])
            answers, _ = ask(engine, [prefix + question], [1], [name], ["ada"])
            found[side].append(answers[0].first_s * 1e3)
            if side == "with":
                cached.append(answers[0].cached)
    for engine in engines.values():
        engine.close()
    ratios = [a / b for a, b in zip(found["without"], found["with"], strict=True)]
    return {
        "prefix_tokens": PREFIX,
        "cached_tokens": spread(cached),
        "ms": {side: spread(values) for side, values in found.items()},
        "without_to_with": spread(ratios),
    }


def measure() -> dict[str, Any]:
    model = random_llama()
    adapters = {f"adapter{n}": random_adapter(model, f"adapter{n}", n, RANK) for n in range(ADAPTERS)}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "parameters": parameters,
        "rank": RANK,
        "threads": torch.get_num_threads(),
        "sixteen": sixteen(adapters),
        "ragged_short": ragged(adapters, 64, 96),
        "ragged_long": ragged(adapters, 256, 192),
        "first_token": first_token(adapters),
        "load_average_at_end": os.getloadavg()[0],
    }


if __name__ == "__main__":
    write("generation", measure())
