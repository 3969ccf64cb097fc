"""`weft evaluate`: data from files, a table or JSON out.

The measuring is `models.evaluation` and `models.cold_start`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from rich.table import Table

from graph.datasets import Rejects
from graph.datasets.records import Dataset
from graph.errors import InvalidInput
from graph.schema import Item, User
from models.cold_start import ColdReport, ListMetrics, evaluate_cold
from models.evaluation import Report, evaluate_protocol
from models.graph_encoder.parameters import EncoderKind
from models.graph_encoder.training import Progress, TrainingConfig
from models.interactions import Interactions
from models.offline_service import embed_items
from models.text_encoder.protocol import TextEncoder

PROTOCOLS = ("recommenders", "temporal", "cold")


def evaluate_dataset(
    dataset: Dataset,
    protocol: str,
    baselines: bool,
    seed: int,
    progress: Callable[[Progress], None],
    text_encoder: TextEncoder | None = None,
    encoder: EncoderKind = "linear",
) -> Report | ColdReport:
    """Split the data set's ratings by the protocol, train on one part and measure on the other.

    With a text encoder the items' texts are embedded first and are Weft's features in place of hashed words;
    the protocol `cold` measures both. `baselines` says nothing to `cold`, which has popularity only.
    """
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
    config = TrainingConfig(encoder=encoder, seed=seed)
    vectors, text_model = None, None
    if text_encoder is not None:
        progress(Progress("embedding", 0, 1, f"{len(items):,} texts"))
        vectors, text_model = embed_items(items, text_encoder), text_encoder.fingerprint.name
    if protocol == "cold":
        return evaluate_cold(
            ratings,
            items,
            users,
            item_vectors=vectors,
            text_model=text_model,
            config=config,
            progress=progress,
        )
    return evaluate_protocol(
        ratings,
        items,
        users,
        protocol,  # type: ignore[arg-type]
        baselines=baselines,
        config=config,
        progress=progress,
        item_vectors=vectors,
        text_model=text_model,
    )


def as_table(report: Report | ColdReport) -> Table:
    """One row per system; the best of each column is bold."""
    return _cold_table(report) if isinstance(report, ColdReport) else _ranking_table(report)


def _cold_table(report: ColdReport) -> Table:
    """A section per bucket; the best of each column of a section is bold."""
    fields = ("ndcg_at_10", "recall_at_10", "recall_at_50")
    names = ("nDCG@10", "recall@10", "recall@50")
    table = Table(
        "training ratings",
        "system",
        *(f"{name}, {among}" for among in ("all", "own") for name in names),
        title=f"cold: {report.num_users:,} users, {report.num_train:,} ratings to learn from",
        caption="all: ranked among all items; own: among items with as many training ratings",
    )
    sections: list[tuple[str, list[tuple[ListMetrics | None, ...]]]] = [
        (
            f"{size.bucket}: {size.num_items:,} items, {size.num_test:,} tested",
            [(system.buckets[n].among_all, system.buckets[n].among_own) for system in report.systems],
        )
        for n, size in enumerate(report.sizes)
    ]
    sections.append(("all", [(system.overall, None) for system in report.systems]))
    for heading, rows in sections:
        values = np.array(
            [[np.nan if m is None else getattr(m, field) for m in row for field in fields] for row in rows],
            np.float64,
        )
        best = np.max(np.nan_to_num(values, nan=-1.0), axis=0)
        for n, (system, row) in enumerate(zip(report.systems, values, strict=True)):
            cells = [
                "-" if np.isnan(v) else f"[bold]{v:.4f}[/bold]" if v == b else f"{v:.4f}"
                for v, b in zip(row, best, strict=True)
            ]
            table.add_row("" if n else heading, system.system, *cells, end_section=n + 1 == len(values))
    return table


def _ranking_table(report: Report) -> Table:
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
