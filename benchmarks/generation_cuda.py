"""Decoding on a CUDA card: tokens and requests per second of a 1B-class random Llama in bfloat16.

With no, 1, 16 and 64 different adapters, at 1, 16 and 64 rows, beside the bound that the card's memory sets:
a decoding step has to read every weight once, so it takes at least weights / bandwidth, with the bandwidth
measured by copying a gigabyte on the same card. Needs torch, transformers and peft alone.

Has not been run: no CUDA machine was at hand. `--tiny` runs the script itself on any machine.

python -m benchmarks.generation_cuda
"""

from __future__ import annotations

import random
import sys
from typing import Any

import torch

from benchmarks.language_models import VOCABULARY, ask, random_adapter, random_llama, word_tokenizer
from benchmarks.report import spread, write
from models.language_model.base_model import BaseModel
from models.language_model.engine import Engine, EngineLimits
from models.language_model.lora import LoraSlots
from models.language_model.resident_adapters import ResidentAdapters

RANK, PROMPT, NEW, ROUNDS = 16, 64, 128, 5
ROWS = (1, 16, 64)
ADAPTERS = (0, 1, 16, 64)


def bandwidth_gb_s(device: torch.device) -> float:
    """Bytes read and written per second when a gigabyte is copied, the best of ten."""
    source = torch.empty(1 << 28, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(10):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3)
    return 2 * source.nbytes / best / 1e9


def measure(tiny: bool) -> dict[str, Any]:
    if not tiny and not torch.cuda.is_available():
        raise SystemExit("no CUDA device: --tiny runs the script itself with a small model on the CPU")
    device = torch.device("cpu" if tiny else "cuda")
    model = random_llama() if tiny else random_llama(2048, 16, 8192, 32, 8)
    model = model.to(device, torch.float32 if tiny else torch.bfloat16)
    base = BaseModel.of(model, word_tokenizer(), name="llama-1b")
    most = max(ADAPTERS) if not tiny else 4
    adapters = {f"a{n}": random_adapter(model, f"a{n}", n, RANK) for n in range(most)}
    slots = LoraSlots(base.model, base.spec.linears, num_slots=most, max_rank=RANK)
    residents = ResidentAdapters(adapters.__getitem__, max_count=most, max_bytes=8 << 30)
    engine = Engine(
        base, limits=EngineLimits(max_batch=max(ROWS), max_queued=1024), lora=slots, residents=residents
    )
    weights = sum(p.nbytes for p in model.parameters())
    bound = None if tiny else bandwidth_gb_s(device)
    found = []
    for rows in ROWS if not tiny else (1, 4):
        for count in ADAPTERS if not tiny else (0, 1, 4):
            if count > rows:
                continue
            names = [f"a{n % count}" if count else None for n in range(rows)]
            rates = []
            for round_ in range(-1, ROUNDS if not tiny else 1):
                draw = random.Random(round_)
                prompts = [[draw.randrange(2, VOCABULARY) for _ in range(PROMPT)] for _ in range(rows)]
                answers, taken = ask(engine, prompts, [NEW] * rows, names)
                decode_s = taken - max(answer.first_s for answer in answers)
                if round_ >= 0:
                    rates.append((rows * (NEW - 1) / decode_s, rows / taken))
            decoded = spread([rate for rate, _ in rates])
            entry: dict[str, Any] = {
                "rows": rows,
                "adapters": count,
                "decode_tokens_per_s": decoded,
                "requests_per_s": spread([rate for _, rate in rates]),
            }
            if bound is not None:
                entry["fraction_of_bound"] = round(decoded["median"] / rows * weights / bound / 1e9, 3)
            found.append(entry)
    status = engine.status()
    engine.close()
    return {
        "device": torch.cuda.get_device_name() if not tiny else "cpu (tiny)",
        "parameters": sum(p.numel() for p in model.parameters()),
        "weight_bytes": weights,
        "bandwidth_gb_s": bound,
        "cuda_graphs": status.get("cuda_graphs"),
        "results": found,
    }


if __name__ == "__main__":
    if "--tiny" in sys.argv:
        print(measure(tiny=True))
    else:
        write("generation_cuda", measure(tiny=False))
