"""The cache of embeddings beside what else one would use, in front of one Redis of its own, in one run.

    python -m benchmarks.cache [--texts 10000] [--rounds 5]

Texts are lines of film and book catalogues, run together and cut to log-uniform lengths; vectors are those of
all-MiniLM-L6-v2 (d = 384), computed once.

warm reads    text to float32 array, in batches of 1,000, all texts there. Every round takes the sides in
              another order; each reads all texts at least once and for half a second. Ratios are between
              neighbours of a round. `benchmarks.cache_sides` says how each is used and what `ceiling` is.
a thousand    new texts through the real model: alone, in front of an empty Redis, with 80% of them there,
              again in the same process, and in a new process. Seconds until the answer.
memory        what Redis says before and after the texts were written.
single-flight threads that ask one new text at the same moment, and how often it was encoded.

Where a warm read without the tier in this process spends its time, by hand and at best 2.1 us a text (the
median of a run is 3.4): digest 0.55, commands and answers 0.45, decoding and checksum 0.28, widening to
float32 0.13, bookkeeping 0.3, waiting for the server the rest; the parts are from timings of their own.
Commands of 500 keys let the digests of one half run while the server answers the other: 11% less than one
command of 1,000; of 125 to 334 no better, and more work for the client. Tried and left out: BLAKE2b in place
of SHA-256 (as fast at 290 characters), a Unix socket (as fast as loopback), torch to widen (0.05 in place of
0.13, for a module that needs nothing but numpy).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import redis

from benchmarks.cache_sides import (
    CEILING_SETTINGS,
    Ceiling,
    KnownVectors,
    LangChainSide,
    PickleSide,
    RedisVLSide,
    Side,
    WeftSide,
)
from benchmarks.report import percentiles, spread, write
from benchmarks.text_encoder import catalogue, mixed_lengths
from models.embedding_cache.cached_encoder import CachedEncoder
from models.embedding_cache.redis_store import RedisStore
from models.embedding_cache.sqlite_store import SQLiteStore
from models.text_encoder.opening import TextModelSpec, open_encoder
from models.text_encoder.protocol import Encoded, Float32, TextEncoder
from tests.models.embedding_cache.redis_server import RedisServer, redis_server

BATCH = 1000
SECONDS_PER_SIDE = 0.5
CEILING_CALLS = 200
MODEL_TEXTS, MODEL_ROUNDS, HIT_SHARE = 1000, 3, 0.8
THREADS, NEW_TEXTS = 100, 10
PEERS = ("get_pickle", "redisvl_mget", "redisvl_get", "langchain")
WEFT = ("weft_redis", "weft_memory", "weft_sqlite")


def distinct_texts(count: int, seed: int) -> list[str]:
    return list(dict.fromkeys(mixed_lengths(catalogue(), count * 101 // 100 + 10, seed)))[:count]


def batches(texts: Sequence[str]) -> list[Sequence[str]]:
    return [texts[at : at + BATCH] for at in range(0, len(texts), BATCH)]


def one_turn(side: Side, texts: Sequence[str]) -> list[float]:
    """Seconds of every batch."""
    spent: list[float] = []
    until = time.perf_counter() + SECONDS_PER_SIDE
    while not spent or time.perf_counter() < until:
        for batch in batches(texts):
            start = time.perf_counter()
            side.read(batch)
            spent.append(time.perf_counter() - start)
    return spent


def check(name: str, side: Side, texts: Sequence[str], vectors: Float32) -> None:
    """Every side gives back the vectors; those of ours as float16 holds them."""
    want = vectors.astype(np.float16).astype(np.float32) if name in WEFT else vectors
    found = np.concatenate([side.read(batch) for batch in batches(texts)])
    if not np.array_equal(found, want):
        raise SystemExit(f"{name} reads other vectors than were written")


def fill(server: RedisServer, db: int, texts: Sequence[str], write_all: Any) -> dict[str, float]:
    """Bytes per entry: of the server's growth, and of MEMORY USAGE."""
    with redis.Redis(port=server.port, db=db) as client:
        before = client.info("memory")["used_memory"]
        write_all(texts)
        used = client.info("memory")["used_memory"] - before
        sample = [client.randomkey() for _ in range(500)]
        sizes = [client.memory_usage(key, samples=0) for key in sample]
    return {
        "used_memory_bytes": used,
        "used_memory_per_entry": round(used / len(texts), 1),
        "memory_usage_per_key": round(float(np.mean(sizes)), 1),
    }


def warm_reads(
    server: RedisServer, folder: Path, encoder: KnownVectors, texts: Sequence[str], rounds: int
) -> dict[str, Any]:
    urls = [f"{server.url}/{db}" for db in range(6)]
    sides: dict[str, Side] = {
        "weft_redis": WeftSide(encoder, RedisStore(urls[0]), memory_bytes=0),
        "get_pickle": PickleSide(encoder, urls[1]),
        "redisvl_mget": RedisVLSide(encoder, urls[2], batched=True),
        "langchain": LangChainSide(encoder, urls[3]),
    }
    memory = {}
    for db, (name, side) in enumerate(sides.items()):
        memory[name.removesuffix("_mget")] = fill(server, db, texts, side.fill)
    sides["redisvl_get"] = RedisVLSide(encoder, urls[2], batched=False)
    sides["weft_memory"] = WeftSide(encoder, RedisStore(urls[0]), memory_bytes=64 << 20)
    sides["weft_sqlite"] = WeftSide(encoder, SQLiteStore(folder / "cache.sqlite"), memory_bytes=0)
    sides["weft_sqlite"].fill(texts)
    with redis.Redis.from_url(urls[0]) as client:
        key = client.randomkey()
        ceiling = Ceiling(server.port, 5, len(texts), BATCH, len(key), client.strlen(key))
    ceiling.fill()
    encoder.asked = 0
    vectors = encoder.encode(texts)
    for name, side in sides.items():
        check(name, side, texts, vectors)

    spent: dict[str, list[float]] = {name: [] for name in sides}
    speed: dict[str, list[float]] = {name: [] for name in (*sides, *CEILING_SETTINGS)}
    for round_ in range(rounds):
        for name in random.Random(round_).sample(sorted(speed), len(speed)):
            if name in sides:
                taken = one_turn(sides[name], texts)
                spent[name] += taken
                speed[name].append(len(texts) / len(batches(texts)) / float(np.median(taken)))
            else:
                speed[name].append(ceiling.vectors_per_s(name, CEILING_CALLS))
    for name, side in sides.items():
        check(name, side, texts, vectors)
    if encoder.asked != len(texts):
        raise SystemExit(f"{encoder.asked - len(texts)} texts were encoded anew; all were to be hits")

    best = max(CEILING_SETTINGS, key=lambda setting: float(np.median(speed[setting])))
    speed["ceiling"] = [max(each) for each in zip(*(speed[name] for name in CEILING_SETTINGS), strict=True)]
    return {
        "texts": len(texts),
        "batch": BATCH,
        "text_characters": {f"p{q}": int(np.percentile([len(t) for t in texts], q)) for q in (0, 50, 100)},
        "vectors_per_s": {name: spread(speed[name]) for name in (*sides, "ceiling")},
        "batch_ms": {name: percentiles(np.asarray(spent[name]) * 1e3) for name in sides},
        "ceiling_of": {name: spread(speed[name]) for name in CEILING_SETTINGS} | {"best": best},
        "times": {
            name: {
                other: spread([a / b for a, b in zip(speed[name], speed[other], strict=True)])
                for other in (*PEERS, "ceiling")
            }
            for name in WEFT
        },
        "memory": memory,
    }


def through_a_new_process(url: str, texts: Sequence[str]) -> tuple[float, int]:
    """Seconds and hits of the first call; opening the model is not part of it."""
    cache = CachedEncoder(open_encoder(TextModelSpec()), RedisStore(url))
    start = time.perf_counter()
    answer = cache.answer(texts)
    return time.perf_counter() - start, answer.hits


def thousand_texts(server: RedisServer, encoder: Counting) -> dict[str, Any]:
    url = f"{server.url}/6"
    spent: dict[str, list[float]] = {}
    cosine = 1.0

    def timed(name: str, cached: Any, texts: Sequence[str]) -> Float32:
        start = time.perf_counter()
        vectors = cached.encode(texts)
        spent.setdefault(name, []).append(time.perf_counter() - start)
        return vectors

    for round_ in range(MODEL_ROUNDS):
        texts = distinct_texts(MODEL_TEXTS, seed=1000 + round_)
        dropped = random.Random(round_).sample(texts, round(len(texts) * (1 - HIT_SHARE)))
        with closing(RedisStore(url)) as store:
            with CachedEncoder(encoder, store) as cache:
                first = ("alone", "cold") if round_ % 2 else ("cold", "alone")
                found = {name: timed(name, encoder if name == "alone" else cache, texts) for name in first}
                cosine = min(cosine, float((found["alone"] * found["cold"]).sum(axis=1).min()))
                cache.flush()
                found["warm"] = timed("warm", cache, texts)
            with CachedEncoder(encoder, store) as cache:
                cache.invalidate(dropped)
                found["80% hits"] = timed("80% hits", cache, texts)
                cache.flush()
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            seconds, hits = process.submit(through_a_new_process, url, texts).result()
        spent.setdefault("after a restart", []).append(seconds)
        if hits != len(texts) or not np.array_equal(found["warm"], found["cold"]):
            raise SystemExit(f"{hits} hits of {len(texts)} after a restart, or other vectors warm than cold")
    return {
        "texts": MODEL_TEXTS,
        "seconds": {name: spread(values) for name, values in spent.items()},
        "times_alone": {
            name: spread([a / b for a, b in zip(spent["alone"], values, strict=True)])
            for name, values in spent.items()
            if name != "alone"
        },
        "smallest_cosine_to_alone": cosine,
    }


class Counting:
    """A TextEncoder that counts the texts it is asked, and outlives the caches in front of it."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder, self.fingerprint, self.encoded = encoder, encoder.fingerprint, 0

    def encode(self, texts: Sequence[str], prompt: str | None = None) -> Float32:
        return self.encode_counted(texts, prompt).vectors

    def encode_counted(
        self, texts: Sequence[str], prompt: str | None = None, *, truncate: bool = True
    ) -> Encoded:
        self.encoded += len(texts)
        return self._encoder.encode_counted(texts, prompt, truncate=truncate)

    def close(self) -> None: ...


def single_flight(server: RedisServer, encoder: Counting) -> dict[str, Any]:
    encoded = encoder.encoded
    spent: list[float] = []
    with (
        closing(RedisStore(f"{server.url}/7")) as store,
        CachedEncoder(encoder, store) as cache,
        ThreadPoolExecutor(THREADS) as threads,
    ):
        for text in distinct_texts(NEW_TEXTS, seed=5000):
            together = threading.Barrier(THREADS)

            def ask(text: str = text, together: threading.Barrier = together) -> bytes:
                together.wait()
                return cache.encode([text]).tobytes()

            start = time.perf_counter()
            answers = {each.result() for each in [threads.submit(ask) for _ in range(THREADS)]}
            spent.append((time.perf_counter() - start) * 1e3)
            if len(answers) != 1:
                raise SystemExit(f"{len(answers)} different answers for one text")
    return {
        "threads": THREADS,
        "new_texts": NEW_TEXTS,
        "texts_encoded": encoder.encoded - encoded,
        "all_answered_ms": spread(spent),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    parser.add_argument("--texts", type=int, default=10_000, help="of the warm reads")
    parser.add_argument("--rounds", type=int, default=5, help="of the warm reads")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    model = Counting(open_encoder(TextModelSpec()))
    texts = distinct_texts(options.texts, seed=0)
    known = KnownVectors(model.fingerprint, texts, model.encode(texts))
    with tempfile.TemporaryDirectory() as name, redis_server(Path(name) / "redis") as server:
        folder = Path(name)
        figures: dict[str, Any] = {
            "model": model.fingerprint.name,
            "redis": redis.Redis(port=server.port).info("server")["redis_version"],
        }
        for part, measure in {
            "warm_reads": lambda: warm_reads(server, folder, known, texts, options.rounds),
            "a_thousand_texts": lambda: thousand_texts(server, model),
            "single_flight": lambda: single_flight(server, model),
        }.items():
            figures[part] = measure()
            print(f"{part}: {json.dumps(figures[part])}", file=sys.stderr, flush=True)
    write("cache", figures | {"load_average": {"start": load, "end": os.getloadavg()[0]}})


if __name__ == "__main__":
    main()
