"""The store without a service: import, single and grouped commits, and a start from a snapshot.

    python -m benchmarks.store

The limit of a durable commit is one write and fsync of a page; it is measured beside the commits.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import percentiles, shared_data, spread, write
from graph.datasets import MovieLensDataset, Rejects
from graph.schema import PutRating, WriteRequest
from graph.snapshot import newest_snapshot, write_snapshot
from graph.store import GraphStore
from graph.writer import GraphWriter

COMMITS = 500
ROUNDS = 5


def fsync_us(folder: Path) -> list[float]:
    """One 4 KiB append and fsync at a time."""
    times, page = [], bytes(4096)
    with (folder / "probe").open("wb", buffering=0) as file:
        for _ in range(COMMITS):
            start = time.perf_counter()
            file.write(page)
            os.fsync(file.fileno())
            times.append((time.perf_counter() - start) * 1e6)
    return times


def measure(folder: Path) -> dict[str, Any]:
    store = GraphStore(folder / "weft.sqlite")
    writer = GraphWriter(store)
    start = time.perf_counter()
    with Rejects() as rejects:
        records = MovieLensDataset(shared_data("ml-latest-small")).load(rejects)
    parsed = time.perf_counter() - start
    for operations in records.batches():
        writer.commit([WriteRequest(operations)])
    imported = time.perf_counter() - start
    users = [user.user_id for user in writer.view.users()]
    items = [item.item_id for item in writer.view.items()]

    single, grouped = [], []
    for n in range(COMMITS):
        start = time.perf_counter()
        writer.commit([WriteRequest((PutRating(users[n % len(users)], items[n], 3.0, n + 1),))])
        single.append((time.perf_counter() - start) * 1e6)
    for n in range(COMMITS // 5):
        group = [
            WriteRequest((PutRating(users[(n + k) % len(users)], items[n * 32 + k], 2.0, n + 1),))
            for k in range(32)
        ]
        start = time.perf_counter()
        writer.commit(group)
        grouped.append((time.perf_counter() - start) * 1e6 / len(group))

    write_snapshot(folder / "snapshots", writer.view.contents())
    from_snapshot, from_store, ratios = [], [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        GraphWriter(store, newest_snapshot(folder / "snapshots", store.store_id))
        from_snapshot.append(time.perf_counter() - start)
        start = time.perf_counter()
        GraphWriter(store)
        from_store.append(time.perf_counter() - start)
        ratios.append(from_store[-1] / from_snapshot[-1])
    by_user, by_item = writer.view.rating_bytes
    ratings = writer.view.num_ratings
    return {
        "ratings": ratings,
        "parse_s": round(parsed, 3),
        "import_s": round(imported, 3),
        "fsync_us": percentiles(fsync_us(folder)),
        "single_commit_us": percentiles(single),
        "commit_of_32_us_per_write": percentiles(grouped),
        "bytes_per_rating": {
            "view_by_user": round(by_user / ratings, 2),
            "view_by_item": round(by_item / ratings, 2),
            "store": round((folder / "weft.sqlite").stat().st_size / ratings, 1),
        },
        "start_from_snapshot_s": spread(from_snapshot),
        "start_from_store_s": spread(from_store),
        "store_over_snapshot": spread(ratios),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        write("store", measure(Path(name)))
