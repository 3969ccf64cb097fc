"""Adapters on disk: loading, swapping, and a working set that moves through a thousand of them.

- `load`: a PEFT folder to host memory (checked on the way), host memory to a slot; beside PEFT's
  `load_adapter` of the same folders into a model that holds more and more of them.
- `swap`: from the activation of another version to the first token made with it, the file never read before,
  while other requests are decoded; beside PEFT's `hotswap_adapter` alone.
- `thousand`: 1,000 adapters on disk, 16 rows, requests drawn from a working set of 100 of which one is
  exchanged every 20 requests; memory for 128.

python -m benchmarks.adapters
"""

from __future__ import annotations

import os

# As the service's replica has it, see deployments/app.py.
os.environ |= {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "5000"}

import random
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import save_file

from benchmarks.language_models import (
    TARGETS,
    VOCABULARY,
    Answer,
    ask,
    chosen,
    random_adapter,
    random_llama,
    word_tokenizer,
    words,
)
from benchmarks.report import percentiles, spread, write
from models.adapters import AdapterStore
from models.language_model.base_model import BaseModel
from models.language_model.engine import Engine, EngineLimits
from models.language_model.lora import LoraSlots
from models.language_model.protocol import GenerationRequest, Sampling
from models.language_model.resident_adapters import ResidentAdapters

RANK, ROWS, SLOTS = 8, 16, 32
LOADS, SWAPS = 30, 20
ON_DISK, WORKING_SET, RESIDENT = 1_000, 100, 128
REQUESTS, EXCHANGE_EVERY = 1_000, 20
PROMPT, NEW = 24, 8


def write_peft(folder: Path, seed: int, model: Any) -> Path:
    """An adapter as PEFT saves it, without PEFT's seconds of setting up a model for each."""
    weights = random_adapter(model, str(seed), seed, RANK)
    tensors = {}
    for module, (a, b) in weights.modules.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    config.inference_mode = True
    config.save_pretrained(folder)
    return folder


@contextmanager
def engine_of(store: AdapterStore, base: BaseModel, resident: int) -> Iterator[Engine]:
    """An engine that leaves the model as it was: the next one wraps its layers anew."""
    slots = LoraSlots(base.model, base.spec.linears, num_slots=SLOTS, max_rank=RANK)
    residents = ResidentAdapters(store.load, max_count=resident, max_bytes=8 << 30)
    limits = EngineLimits(max_batch=ROWS, max_queued=4096)
    engine = Engine(base, limits=limits, lora=slots, residents=residents)
    try:
        yield engine
    finally:
        engine.close()
        residents.close()
        slots.close()


def load(store: AdapterStore, digests: list[str], folders: list[Path], base: BaseModel) -> dict[str, Any]:
    slots = LoraSlots(base.model, base.spec.linears, num_slots=SLOTS, max_rank=RANK)
    to_memory, to_slot, peft_ms = [], [], []
    for digest in digests[:LOADS]:
        begun = time.perf_counter()
        weights = store.load(digest)
        read = time.perf_counter()
        slots.put(weights)
        to_memory.append((read - begun) * 1e3)
        to_slot.append((time.perf_counter() - read) * 1e3)
    slots.close()
    peft = PeftModel.from_pretrained(random_llama(), str(folders[0]), adapter_name="a0")
    for n, folder in enumerate(folders[1:LOADS], 1):
        begun = time.perf_counter()
        peft.load_adapter(str(folder), adapter_name=f"a{n}")
        peft_ms.append((time.perf_counter() - begun) * 1e3)
    return {
        "bytes": store.info(digests[0]).size_bytes,
        "disk_to_memory_ms": spread(to_memory),
        "memory_to_slot_ms": spread(to_slot),
        "peft_load_adapter_ms": spread(peft_ms),
    }


def swap(store: AdapterStore, digests: list[str], folders: list[Path], base: BaseModel) -> dict[str, Any]:
    with engine_of(store, base, RESIDENT) as engine:
        draw = random.Random(3)
        stop = threading.Event()

        def others() -> None:
            while not stop.is_set():
                ask(engine, [prompt(draw)] * 8, [NEW] * 8, [digests[0]] * 8)

        background = threading.Thread(target=others)
        background.start()
        swaps, known = [], []
        for digest in digests[LOADS : LOADS + SWAPS]:
            for times in (swaps, known):
                answers, _ = ask(engine, [prompt(draw)], [1], [digest])
                times.append(answers[0].first_s * 1e3)
        stop.set()
        background.join()
    peft = PeftModel.from_pretrained(random_llama(), str(folders[0]), adapter_name="default")
    hot = []
    for folder in folders[1 : SWAPS + 1]:
        begun = time.perf_counter()
        hotswap_adapter(peft, str(folder), adapter_name="default", torch_device="cpu")
        hot.append((time.perf_counter() - begun) * 1e3)
    return {
        "first_token_new_adapter_ms": spread(swaps),
        "first_token_same_adapter_again_ms": spread(known),
        "peft_hotswap_alone_ms": spread(hot),
    }


def thousand(store: AdapterStore, digests: list[str], base: BaseModel) -> dict[str, Any]:
    """Requests come as earlier ones end: twice the rows are always asked for."""
    with engine_of(store, base, RESIDENT) as engine:
        draw = random.Random(5)
        working = draw.sample(digests, WORKING_SET)
        room = threading.Semaphore(2 * ROWS)
        answers: list[Answer] = []
        begun = time.perf_counter()
        for n in range(REQUESTS):
            if n % EXCHANGE_EVERY == 0:
                working[draw.randrange(WORKING_SET)] = draw.choice(digests)
            room.acquire()
            answer = Answer(started=time.perf_counter())

            def hear(event: Any, answer: Answer = answer) -> None:
                answer.hear(event)
                if answer.done.is_set():
                    room.release()

            request = GenerationRequest(
                request_id=str(n),
                prompt=words(prompt(draw)),
                sampling=Sampling(max_tokens=NEW, temperature=0.0, ignore_eos=True),
                choose=chosen(draw.choice(working)),
            )
            engine.submit(request, hear)
            answers.append(answer)
        for answer in answers:
            answer.done.wait()
            if answer.failed:
                raise SystemExit(f"a request failed: {answer.failed}")
        taken = time.perf_counter() - begun
        counted = {k: v for k, v in engine.status()["adapters"].items() if k != "in_slots"}
    settled = [a.total_s * 1e3 for a in answers[WORKING_SET * 3 :]]
    return {
        "on_disk": len(digests),
        "working_set": WORKING_SET,
        "resident": RESIDENT,
        "requests": REQUESTS,
        "hit_rate": round(1 - counted["loads"] / REQUESTS, 3),
        "requests_per_s": round(REQUESTS / taken, 1),
        "latency_ms": percentiles([a.total_s * 1e3 for a in answers]),
        "latency_settled_ms": percentiles(settled),
        "adapters": counted,
    }


def prompt(draw: random.Random) -> list[int]:
    return [draw.randrange(2, VOCABULARY) for _ in range(PROMPT)]


def measure() -> dict[str, Any]:
    model = random_llama()
    base = BaseModel.of(model, word_tokenizer(), name="llama-30m")
    with tempfile.TemporaryDirectory(dir=os.environ.get("WEFT_BENCH_DIR")) as name:
        root = Path(name)
        store = AdapterStore(root / "adapters", root / "inbox", base.spec, max_rank=64, max_bytes=1 << 30)
        folders = [write_peft(root / "inbox" / f"a{n:04d}", n, model) for n in range(ON_DISK)]
        begun = time.perf_counter()
        digests = [store.import_folder(folder.name).digest for folder in folders]
        imported_s = time.perf_counter() - begun
        figures = {
            "threads": torch.get_num_threads(),
            "import_ms_each": round(imported_s / ON_DISK * 1e3, 2),
            "load": load(store, digests, folders, base),
            "swap": swap(store, digests, folders, base),
            "thousand": thousand(store, digests, base),
            "load_average_at_end": os.getloadavg()[0],
        }
    return figures


if __name__ == "__main__":
    write("adapters", measure())
