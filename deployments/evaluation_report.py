"""`weft evaluate`: data from files, a table or JSON out. The measuring is `models.evaluation`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from rich.table import Table

from graph.datasets import Rejects
from graph.datasets.records import Dataset
from graph.errors import InvalidInput
from graph.schema import Item, User
from models.evaluation import Report, evaluate_protocol
from models.graph_encoder.training import Progress, TrainingConfig
from models.interactions import Interactions

PROTOCOLS = ("recommenders", "temporal")


def evaluate_dataset(
    dataset: Dataset,
    protocol: str,
    baselines: bool,
    seed: int,
    progress: Callable[[Progress], None],
) -> Report:
    """Split the data set's ratings by the protocol, train on one part and measure on the other."""
    if protocol not in PROTOCOLS:
        raise InvalidInput(f"protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}", param="protocol")
    with Rejects() as rejects:
        records = dataset.load(rejects)
    columns = records.ratings
    place = {item.item_id: n for n, item in enumerate(records.items)}
    items = [Item(n, i.item_id, i.title, i.tags, i.year, i.text, 1) for n, i in enumerate(records.items)]
    attributes = {user.user_id: user.attributes for user in records.users}
    users = [User(n, user_id, attributes.get(user_id, {}), 1) for n, user_id in enumerate(columns.user_ids)]
    places = np.array([place[item_id] for item_id in columns.item_ids], np.int64)
    ratings = Interactions(
        columns.users.astype(np.int64),
        places[columns.items],
        columns.values,
        columns.timestamps.astype(np.int64),
        len(users),
        len(items),
    )
    config = TrainingConfig(seed=seed)
    return evaluate_protocol(
        ratings, items, users, protocol, baselines=baselines, config=config, progress=progress
    )


def as_table(report: Report) -> Table:
    """One row per system; the best of each column is bold."""
    names = ("MAP", "nDCG", "precision", "recall")
    cutoffs = sorted(report.systems[0].metrics)
    headings = [f"{name}@{k}" for k in cutoffs for name in names]
    rows = [
        [
            getattr(system.metrics[k], field)
            for k in cutoffs
            for field in ("map", "ndcg", "precision", "recall")
        ]
        for system in report.systems
    ]
    best = np.max(np.array(rows), axis=0)
    recall = ", ".join(f"@{k} {value:.4f}" for k, value in report.candidate_recall.items())
    table = Table(
        "system",
        *headings,
        "seconds",
        title=f"{report.protocol}: {report.num_users:,} users, {report.num_train:,} ratings to learn from",
        caption=f"candidate recall of weft {recall}",
    )
    for system, row in zip(report.systems, rows, strict=True):
        cells = [f"[bold]{v:.4f}[/bold]" if v == b else f"{v:.4f}" for v, b in zip(row, best, strict=True)]
        table.add_row(system.system, *cells, f"{system.seconds:.1f}")
    return table
