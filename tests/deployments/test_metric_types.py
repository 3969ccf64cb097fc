"""Counting in plain Python, with the client library of Prometheus as the oracle of buckets."""

from __future__ import annotations

import threading

import numpy as np
import prometheus_client
import pytest

from deployments.metric_types import MAX_SERIES, OTHER, Counter, Gauge, Histogram


def test_a_gauge_forgets_what_is_gone() -> None:
    gauge = Gauge("weft_x", "x", ("model",))
    gauge.set(1.0, "old")
    gauge.set(2.0, "new")
    gauge.keep(["new", "newer"])
    assert gauge.values() == {("new",): 2.0}


def test_a_counter_adds_up_by_labels() -> None:
    counter = Counter("c_total", "", ("route", "status"))
    counter.inc("/a", "200")
    counter.inc("/a", "200", by=2)
    counter.inc("/b", "500")
    assert counter.values() == {("/a", "200"): 3, ("/b", "500"): 1}


def test_a_followed_total_goes_on_when_it_begins_anew() -> None:
    counter = Counter("c_total", "", ("model",))
    for total in (5, 5, 9, 2, 4):  # 2: the part was opened again
        counter.follow(total, "m")
    assert counter.values() == {("m",): 9 + 4}
    counter.follow(1, "other")
    assert counter.values()[("m",)] == 13


def test_of_several_only_one_is_the_case() -> None:
    gauge = Gauge("g", "", ("digest",))
    gauge.only("a")
    gauge.only("b")
    assert gauge.values() == {("a",): 0, ("b",): 1}
    gauge.set(7, "a")
    assert gauge.values() == {("a",): 7, ("b",): 1}


def test_buckets_are_those_of_prometheus() -> None:
    bounds = (0.001, 0.01, 0.1, 1.0)
    ours = Histogram("h_seconds", "", bounds=bounds)
    registry = prometheus_client.CollectorRegistry()
    theirs = prometheus_client.Histogram("h_seconds", "h", buckets=bounds, registry=registry)
    values = [*bounds, 0.0, 5.0, *np.random.default_rng(3).lognormal(-4, 3, 500).tolist()]
    for value in values:
        ours.observe(value)
        theirs.observe(value)
    found = ours.values()[()]
    (family,) = registry.collect()
    expected = {s.labels["le"]: s.value for s in family.samples if s.name.endswith("_bucket")}
    cumulated = np.cumsum(found.counts)
    assert [expected[str(bound)] for bound in bounds] == cumulated[:-1].tolist()
    assert expected["+Inf"] == cumulated[-1] == found.count == len(values)
    assert found.sum == pytest.approx(sum(values))


@pytest.mark.parametrize("bounds", [(), (0.0, 1.0), (2.0, 1.0), (1.0, 1.0)])
def test_bounds_that_are_none_are_refused(bounds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="ascend"):
        Histogram("h", "", bounds=bounds)


@pytest.mark.parametrize("labels", [(), ("a", "b"), (3,)])
def test_labels_that_are_not_those_of_the_metric_are_refused(labels: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="c_total has the labels"):
        Counter("c_total", "", ("route",)).inc(*labels)


def test_a_label_that_is_not_bounded_fills_no_memory() -> None:
    counter, histogram = Counter("c_total", "", ("x",)), Histogram("h", "", ("x",), bounds=(1.0,))
    for n in range(MAX_SERIES + 50):
        counter.inc(str(n))
        histogram.observe(0.5, str(n))
    assert len(counter.values()) == len(histogram.values()) == MAX_SERIES + 1
    assert counter.values()[(OTHER,)] == histogram.values()[(OTHER,)].count == 50
    counter.inc("0")
    assert counter.values()[("0",)] == 2


def test_threads_lose_no_count() -> None:
    counter, histogram = Counter("c_total", ""), Histogram("h", "", bounds=(1.0,))

    def work() -> None:
        for _ in range(5_000):
            counter.inc()
            histogram.observe(0.5)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.values()[()] == histogram.values()[()].count == 40_000
