"""The table of metrics: documented, named as Prometheus has it, with labels that take few values."""

from __future__ import annotations

import re
import warnings
from collections import Counter as Count
from pathlib import Path

import pytest

from deployments import metrics
from deployments.metric_types import Counter, Histogram, Metric
from deployments.metrics import METRICS, metrics_markdown

with warnings.catch_warnings():
    # Ray Serve 2.60 defines its schemas in a way that pydantic will no longer take some day.
    warnings.simplefilter("ignore")
    from deployments import app

UNITS = ("_seconds", "_bytes", "_total")
WITHOUT_UNIT = {  # numbers of things, versions and states
    *("weft_waiting_requests", "weft_commit_group_writes", "weft_store_up", "weft_head_version"),
    "weft_writer_epoch",
    *("weft_graph_rows", "weft_replica_version", "weft_item_vectors_version", "weft_encoder_info"),
    *("weft_cache_breaker_open", "weft_texts_without_vector", "weft_engine_rows", "weft_adapters_resident"),
}
LABELS = {
    *("method", "route", "status", "part", "outcome", "kind", "digest", "model", "tier", "source"),
    *("state", "event"),
}


def test_every_metric_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert metrics_markdown() in page


def test_names_in_the_text_around_the_table_exist() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:ray_)?(weft_[a-z_]+[a-z])", page)) - {"weft_metrics", "weft_log"}
    known = {metric.name for metric in METRICS}
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in named} <= known
    assert known <= named


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_and_units_are_those_of_prometheus(metric: Metric) -> None:
    assert re.fullmatch(r"weft_[a-z]+(_[a-z]+)*", metric.name)
    assert metric.name.endswith("_total") == isinstance(metric, Counter)
    assert metric.name.endswith(UNITS) != (metric.name in WITHOUT_UNIT)
    assert set(metric.labels) <= LABELS
    assert metric.description.endswith(".")
    assert "|" not in metric.description
    if isinstance(metric, Histogram):
        assert metric.bounds == (metrics.SECONDS if metric.name.endswith("_seconds") else metrics.SIZES)


def test_no_name_is_there_twice_and_none_is_missing_from_the_table() -> None:
    assert max(Count(metric.name for metric in METRICS).values()) == 1
    assert {id(m) for m in vars(metrics).values() if isinstance(m, Metric)} == {id(m) for m in METRICS}


def test_who_measures_a_metric_is_a_deployment() -> None:
    deployed = {value.name for name, value in vars(app).items() if name.endswith("Deployment")}
    assert {part for metric in METRICS for part in metric.parts} == deployed | {metrics.STATE}
    assert all(metric.parts for metric in METRICS)
