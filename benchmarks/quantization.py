"""int8 weights against float32: speed, memory and perplexity on a CPU.

- `speed`: random Llamas, forward passes as an engine runs them: one token for each row (`decode`), and a
  prompt of 512 tokens (`prefill`). Sides run in turn within a round, in another order each round.
  `dequantised` is what a CPU without exact int8 products does.
- `perplexity`: of llama2.c's stories260K, a trained model of 260 thousand parameters, on the two stories
  printed with it and on 32 that the float32 model samples itself; and how often the likeliest token stays.

python -m benchmarks.quantization
"""

from __future__ import annotations

import os

# As the service's replica has it, see deployments/app.py.
os.environ |= {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "5000"}

import copy
import math
import random
import re
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from benchmarks.language_models import VOCABULARY, random_llama
from benchmarks.report import shared_data, spread, write
from models.language_model import quantization
from models.language_model.quantization import multiplies_exactly, quantize_int8
from tests.models.language_model.test_stories import read_model, read_tokenizer

SIZES: dict[str, dict[str, int]] = {
    "llama-30m": {},
    "llama-160m": {"hidden": 1024, "layers": 12, "intermediate": 2816, "heads": 16, "kv_heads": 16},
}
CONTEXT, STEPS = 64, 16
PREFILL = 512
ROUNDS = 7
SIDES = ("float32", "int8", "dequantised")


def run(model: Any, ids: Tensor, cache: DynamicCache) -> Tensor:
    logits: Tensor = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    return logits


@torch.inference_mode()
def decode(model: Any, rows: int, seed: int) -> float:
    """Seconds of one step, mean of 16."""
    torch.manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (rows, CONTEXT + STEPS))
    cache = DynamicCache(config=model.config)
    run(model, ids[:, :CONTEXT], cache)
    begun = time.perf_counter()
    for n in range(CONTEXT, CONTEXT + STEPS):
        run(model, ids[:, n : n + 1], cache)
    return (time.perf_counter() - begun) / STEPS


@torch.inference_mode()
def prefill(model: Any, seed: int) -> float:
    torch.manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (1, PREFILL))
    begun = time.perf_counter()
    run(model, ids, DynamicCache(config=model.config))
    return time.perf_counter() - begun


def quantised(model: Any) -> Any:
    found = copy.deepcopy(model)
    quantize_int8(found)
    return found


def as_side(side: str) -> Any:
    """A context in which int8 layers multiply as that side does."""
    return patch.object(quantization, "multiplies_exactly", lambda: side == "int8")


def speed(model: Any) -> dict[str, Any]:
    int8 = quantised(model)
    models = {"float32": model, "int8": int8, "dequantised": int8}
    loads: dict[str, Callable[[Any, int], float]] = {
        "decode_1": lambda m, seed: decode(m, 1, seed),
        "decode_16": lambda m, seed: decode(m, 16, seed),
        "prefill_512": prefill,
    }
    found: dict[str, Any] = {}
    for name, load in loads.items():
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        for round_ in range(-1, ROUNDS):
            for side in random.Random(round_).sample(SIDES, len(SIDES)):
                with as_side(side):
                    taken = load(models[side], round_ + 1)
                if round_ >= 0:
                    seconds[side].append(taken)
        found[name] = {
            "ms": {side: spread([s * 1e3 for s in values]) for side, values in seconds.items()},
            "times_float32": {
                side: spread([a / b for a, b in zip(seconds["float32"], seconds[side], strict=True)])
                for side in SIDES[1:]
            },
        }
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "mib": {
            "float32": round(model.get_memory_footprint() / 2**20, 1),
            "int8": round(int8.get_memory_footprint() / 2**20, 1),
        },
        **found,
    }


@torch.inference_mode()
def judged(model: Any, texts: list[Tensor]) -> tuple[list[float], list[Tensor]]:
    """Negative log likelihood of each token but the first, and the likeliest tokens, text by text."""
    losses, best = [], []
    for ids in texts:
        logits = model(ids[None], use_cache=False).logits[0, :-1]
        losses += functional.cross_entropy(logits, ids[1:], reduction="none").tolist()
        best.append(logits.argmax(-1))
    return losses, best


def perplexity() -> dict[str, Any]:
    folder = shared_data("stories260K")
    model = read_model(folder / "stories260K.bin")
    tokenizer = read_tokenizer(folder / "tok512.bin", model.config.vocab_size)
    page = (folder / "stories260K.md").read_text(encoding="utf-8")
    printed = [torch.tensor(tokenizer(t).input_ids) for t in re.findall(r"\n(Once upon.*?)\n```", page, re.S)]
    torch.manual_seed(7)
    sampled = model.generate(
        torch.full((32, 1), tokenizer.bos_token_id),
        attention_mask=torch.ones(32, 1, dtype=torch.long),
        max_new_tokens=256,
        min_new_tokens=256,
        do_sample=True,
        top_k=0,
        pad_token_id=0,
    )
    int8 = quantised(model)
    found: dict[str, Any] = {}
    for name, texts in {"printed": printed, "sampled": list(sampled)}.items():
        wanted = judged(model, texts)
        figures = {"float32": round(math.exp(sum(wanted[0]) / len(wanted[0])), 4)}
        agreement, excess = {}, {}
        for side in SIDES[1:]:
            with as_side(side):
                losses, best = judged(int8, texts)
            figures[side] = round(math.exp(sum(losses) / len(losses)), 4)
            same = [a == b for a, b in zip(torch.cat(best), torch.cat(wanted[1]), strict=True)]
            agreement[side] = round(sum(map(float, same)) / len(same), 4)
            excess[side] = float(f"{(sum(losses) - sum(wanted[0])) / len(losses):.3g}")
        found[name] = {
            "texts": len(texts),
            "tokens": len(wanted[0]),
            "perplexity": figures,
            "more_nats_per_token": excess,
            "same_best_token": agreement,
        }
    return found


def measure() -> dict[str, Any]:
    if not multiplies_exactly():
        raise SystemExit("this CPU has no exact int8 products")
    return {
        "threads": torch.get_num_threads(),
        "speed": {name: speed(random_llama(**sizes)) for name, sizes in SIZES.items()},
        "perplexity": perplexity(),
        "load_average_at_end": os.getloadavg()[0],
    }


if __name__ == "__main__":
    write("quantization", measure())
