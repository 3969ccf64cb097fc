"""How long does the two-stage ranker take per user?

    python -m benchmarks.ranking [--seen 100] [--neighbours 200] [--items 1200 10000]

One thread, random vectors, a random item-item matrix with `--neighbours` entries per item, reasons on. Times
are per user and hold everything between the query and its answer: vectors, exclusions, item-item sums, the
cut and the reasons. `whole` scores the catalogue, as the ranker does by itself up to `EXHAUSTIVE_ITEMS`;
`candidates` searches first. Both run in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
import faiss
import numpy as np
import scipy.sparse

from benchmarks.report import write
from models.item_similarity import ItemSimilarity
from models.ranking import Ranker, RankQuery
from models.ranking_settings import RankingSettings


def random_similarity(size: int, neighbours: int, rng: np.random.Generator) -> ItemSimilarity:
    """`neighbours` entries in each target's column, at random places."""
    neighbours = min(neighbours, size - 1)
    # Steps from the diagonal in 1..size-1 never land on it; duplicates add up, which changes little.
    steps = rng.integers(1, size, (size, neighbours))
    rows = ((np.arange(size)[:, None] + steps) % size).ravel()
    columns = np.repeat(np.arange(size), neighbours)
    values = rng.random(len(rows), dtype=np.float32)
    return ItemSimilarity(scipy.sparse.coo_matrix((values, (rows, columns)), shape=(size, size)))


def build(items: int, dim: int, neighbours: int, rng: np.random.Generator) -> Ranker:
    ranker = Ranker(dim, random_similarity(items, neighbours, rng), RankingSettings(1.0))
    source, target = rng.standard_normal((2, items, dim), dtype=np.float32)
    rows = np.arange(items)
    ranker.upsert(rows, source, target, rng.standard_normal(items), rng.integers(0, 99, items), rows)
    return ranker


def per_user_ms(ranker: Ranker, queries: list[RankQuery], seconds: float) -> dict[str, float]:
    ranker.recommend(queries)
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 10:
        start = time.perf_counter()
        ranker.recommend(queries)
        times.append((time.perf_counter() - start) * 1e3 / len(queries))
    low, middle, high = np.percentile(times, [5, 50, 99])
    return {"p5": round(low, 4), "p50": round(middle, 4), "p99": round(high, 4), "rounds": len(times)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    parser.add_argument("--items", type=int, nargs="+", default=[1_200, 10_000, 100_000])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--seen", type=int, default=100, help="rated items per user, three quarters liked")
    parser.add_argument("--neighbours", type=int, default=200, help="item-item entries per item")
    parser.add_argument("--seconds", type=float, default=1.0, help="per measurement")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(options.seed)
    results = []
    for items in options.items:
        ranker = build(items, options.dim, options.neighbours, rng)
        for batch in options.batch:
            queries = [
                RankQuery(
                    rng.standard_normal(options.dim, dtype=np.float32),
                    rng.choice(items, options.seen, replace=False),
                    (rng.random(options.seen) < 0.75).astype(np.float32),
                )
                for _ in range(batch)
            ]
            row: dict[str, object] = {"items": items, "batch": batch}
            for path, limit in (("whole", items), ("candidates", 0)):
                ranker._exhaustive_items = limit
                row[path] = per_user_ms(ranker, queries, options.seconds)
            results.append(row)
            print(json.dumps(row), file=sys.stderr)
    sizes = {k: v for k, v in vars(options).items() if k != "out"}
    write("ranking", {"unit": "ms per user, one thread", "sizes": sizes, "results": results})


if __name__ == "__main__":
    main()
