"""Texts never seen before through `SentenceTransformerEncoder` and plain `SentenceTransformer.encode`.

Both run in turn, one batch of texts at a time, over texts of log-uniform length. The plain side has the
library's defaults in float32: sorted by characters, 32 texts per batch.

Tried and left out, as CPU time of one thread on an AVX512-BF16 machine: weights packed for oneDNN with GELU
fused (3%), eager instead of fused attention (3% in bfloat16, slower in float32). bfloat16 matrix products ran
at 2.1 times the float32 rate and are 70% of the time: that is the bound.

python -m benchmarks.text_encoder
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import csv
import math
import random
import time
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from benchmarks.report import shared_data, spread, write
from models.text_encoder.model_files import SHIPPED_MODEL, model_folder
from models.text_encoder.sentence_transformer import SentenceTransformerEncoder

TEXTS_PER_ROUND = 200
ROUNDS = 5
MIN_TOKENS, MAX_TOKENS = 16, 250
WORDS_PER_TOKEN = 0.5  # titles of films and books are rich in names, digits and punctuation


def catalogue() -> list[str]:
    """A line per film and book: title and genres, title and authors."""
    with (shared_data("ml-latest-small") / "movies.csv").open(encoding="utf-8") as file:
        films = [f"{row['title']}. {row['genres'].replace('|', ', ')}." for row in csv.DictReader(file)]
    with (shared_data("goodbooks-10k") / "books.csv").open(encoding="utf-8") as file:
        books = [f"{row['title']}, by {row['authors']}." for row in csv.DictReader(file)]
    return films + books


def mixed_lengths(lines: list[str], count: int, seed: int) -> list[str]:
    """Lines run together and cut at lengths that are log-uniform between the two bounds, roughly."""
    draw = random.Random(seed)
    texts = []
    for _ in range(count):
        tokens = math.exp(draw.uniform(math.log(MIN_TOKENS), math.log(MAX_TOKENS)))
        words: list[str] = []
        while len(words) < tokens * WORDS_PER_TOKEN:
            words += draw.choice(lines).split()
        texts.append(" ".join(words[: max(1, round(tokens * WORDS_PER_TOKEN))]))
    return texts


def seconds(encode: Any, texts: list[str]) -> tuple[float, np.ndarray]:
    started = time.perf_counter()
    vectors = encode(texts)
    return time.perf_counter() - started, vectors


def measure() -> dict[str, Any]:
    plain = SentenceTransformer(str(model_folder(SHIPPED_MODEL)), device="cpu", local_files_only=True)
    sides = {"plain_float32": plain.encode} | {
        f"weft_{dtype}": SentenceTransformerEncoder(SHIPPED_MODEL, device="cpu", dtype=dtype).encode
        for dtype in ("float32", "bfloat16")
    }
    lines = catalogue()
    for encode in sides.values():
        encode(mixed_lengths(lines, 40, seed=1000))
    taken: dict[str, list[float]] = {name: [] for name in sides}
    cosines: dict[str, list[np.ndarray]] = {name: [] for name in sides}
    tokens: list[int] = []
    for round_ in range(ROUNDS):
        texts = mixed_lengths(lines, TEXTS_PER_ROUND, seed=round_)
        tokens += [len(ids) for ids in plain.tokenizer(texts, truncation=True)["input_ids"]]
        found = {}
        for name in random.Random(round_).sample(sorted(sides), len(sides)):
            elapsed, found[name] = seconds(sides[name], texts)
            taken[name].append(elapsed)
        for name, vectors in found.items():
            cosines[name].append((vectors * found["plain_float32"]).sum(axis=1, dtype=np.float64))
    return {
        "model": SHIPPED_MODEL,
        "texts_per_round": TEXTS_PER_ROUND,
        "threads": torch.get_num_threads(),
        "load_average_at_end": os.getloadavg()[0],
        "tokens": {f"p{q}": int(np.percentile(tokens, q)) for q in (0, 10, 50, 90, 100)},
        "texts_per_s": {name: spread([TEXTS_PER_ROUND / s for s in taken[name]]) for name in sides},
        "times_plain": {
            name: spread([p / s for p, s in zip(taken["plain_float32"], taken[name], strict=True)])
            for name in sides
            if name != "plain_float32"
        },
        "cosine_to_plain": {
            name: {"mean": float(np.concatenate(found).mean()), "min": float(np.concatenate(found).min())}
            for name, found in cosines.items()
            if name != "plain_float32"
        },
    }


if __name__ == "__main__":
    write("text_encoder", measure())
