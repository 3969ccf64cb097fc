"""From the numbers of a process to the records of Ray."""

from __future__ import annotations

import logging
import threading
from collections import Counter as Count
from collections.abc import Iterator
from typing import Any

import pytest
from ray._private.telemetry.open_telemetry_metric_recorder import OpenTelemetryMetricRecorder

from deployments import metrics, metrics_export
from deployments.metric_types import Counter, Gauge, Histogram, Labels, Metric
from deployments.metrics_export import MetricsExport, RayMetrics, representatives

BOUNDS = (0.001, 0.01, 0.1)


class Records:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.all: list[tuple[str, float, Labels]] = []

    def record(self, metric: Metric, value: float, labels: Labels) -> None:
        self.all.append((metric.name, value, labels))

    def taken(self) -> list[tuple[str, float, Labels]]:
        found, self.all = self.all, []
        return found


class World:
    def __init__(self) -> None:
        self.counter = Counter("c_total", "", ("x",))
        self.gauge = Gauge("g", "")
        self.histogram = Histogram("h_seconds", "", ("x",), bounds=BOUNDS)
        self.metrics = (self.counter, self.gauge, self.histogram)
        self.records = Records()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World()
    monkeypatch.setattr(metrics_export, "METRICS", world.metrics)
    yield world


def test_each_time_what_is_new_is_handed_over(world: World) -> None:
    export = MetricsExport(lambda: None, world.records, 1.0)
    world.counter.inc("a", by=3)
    world.gauge.set(5)
    for value in (0.0005, 0.02, 0.02, 7.0):
        world.histogram.observe(value, "a")
    export.send()
    low, middle, high = representatives(BOUNDS)[0], representatives(BOUNDS)[2], representatives(BOUNDS)[3]
    assert Count(world.records.taken()) == Count(
        {
            ("c_total", 3.0, ("a",)): 1,
            ("g", 5, ()): 1,
            ("h_seconds", low, ("a",)): 1,
            ("h_seconds", middle, ("a",)): 2,
            ("h_seconds", high, ("a",)): 1,
        }
    )
    export.send()
    # A gauge is said again: Ray forgets those that nobody mentions.
    assert world.records.taken() == [("g", 5, ())]
    world.counter.inc("a")
    world.counter.inc("b")
    world.histogram.observe(0.02, "b")
    export.send()
    assert Count(world.records.taken()) == Count(
        [("c_total", 1.0, ("a",)), ("c_total", 1.0, ("b",)), ("g", 5, ()), ("h_seconds", middle, ("b",))]
    )


def test_a_counter_of_zero_is_no_increment(world: World) -> None:
    """Ray refuses increments that are not above zero."""
    world.counter.inc("a", by=0)
    MetricsExport(lambda: None, world.records, 1.0).send()
    assert world.records.taken() == []


def test_representatives_are_the_middles_that_the_agent_adds_up() -> None:
    for metric in metrics.METRICS:
        if isinstance(metric, Histogram):
            agent = OpenTelemetryMetricRecorder()
            agent.register_histogram_metric(metric.name, "", list(metric.bounds))
            assert representatives(metric.bounds) == pytest.approx(
                agent.get_histogram_bucket_midpoints(metric.name)
            )


def test_the_thread_measures_before_it_sends_and_outlives_failures(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    measured, calls = threading.Event(), []

    def measure() -> None:
        calls.append(None)
        if len(calls) < 4:
            raise RuntimeError("the part is not there yet")
        world.gauge.set(len(calls))
        measured.set()

    world.counter.inc("a")
    with caplog.at_level(logging.ERROR):
        export = MetricsExport(measure, world.records, 0.01)
        export.start()
        assert measured.wait(10)
        export.stop()
    assert world.records.all[0] == ("c_total", 1.0, ("a",)), "what was counted went out all the same"
    assert [r.message for r in caplog.records] == ["metrics are not measured"], "once, not every time"
    assert not any(thread.name == "weft-metrics" for thread in threading.enumerate())


class FakeRay:
    """`ray.util.metrics`, as far as it is used."""

    def __init__(self) -> None:
        self.made: list[tuple[Any, ...]] = []
        self.records: list[tuple[Any, ...]] = []

    def __getattr__(self, kind: str) -> Any:
        def make(name: str, description: str, *more: Any) -> Any:
            self.made.append((kind, name, *more))
            return _FakeMetric(self.records, name)

        return make


class _FakeMetric:
    def __init__(self, records: list[tuple[Any, ...]], name: str) -> None:
        self._records, self._name, self._own = records, name, dict[str, str]()

    def set_default_tags(self, tags: dict[str, str]) -> None:
        self._own = tags

    def inc(self, value: float, tags: dict[str, str]) -> None:
        self._records.append((self._name, value, self._own | tags))

    set = observe = inc


def test_series_in_ray_say_whose_they_are(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay()
    monkeypatch.setattr(metrics_export, "ray_metrics", fake)
    sink = RayMetrics("Retriever", "abc")
    for _ in range(2):
        sink.record(world.counter, 2, ("v",))
    sink.record(world.gauge, 1, ())
    sink.record(world.histogram, 0.01, ("v",))
    tags = ("deployment", "replica")
    assert fake.made == [
        ("Counter", "c_total", (*tags, "x")),
        ("Gauge", "g", tags),
        ("Histogram", "h_seconds", list(BOUNDS), (*tags, "x")),
    ]
    own = {"deployment": "Retriever", "replica": "abc"}
    assert fake.records == [
        ("c_total", 2, own | {"x": "v"}),
        ("c_total", 2, own | {"x": "v"}),
        ("g", 1, own),
        ("h_seconds", 0.01, own | {"x": "v"}),
    ]


def test_without_ray_nothing_is_exported() -> None:
    metrics_export.export_replica(lambda: None, 1.0)
    assert not any(thread.name == "weft-metrics" for thread in threading.enumerate())
