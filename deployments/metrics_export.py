"""Hands a process' metrics to Ray, whose agent on each node exports them to Prometheus.

One thread per process does so at an interval. Requests only count in plain Python: a record in Ray costs
several times as much (docs/decisions/0015), and must not depend on whether the event loop has time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import ray
from ray.util import metrics as ray_metrics

from deployments.metric_types import Counter, Gauge, Histogram, Labels, Metric
from deployments.metrics import METRICS, STATE

log = logging.getLogger(__name__)

_PAUSE_EVERY, _PAUSE_S = 100, 0.0005
"""Records between two pauses: some hundred microseconds in which nobody else gets the interpreter."""


class Sink(Protocol):
    """Where the numbers go: `RayMetrics`, or a list in tests."""

    def record(self, metric: Metric, value: float, labels: Labels) -> None:
        """An increment of a counter, the value of a gauge, or one observation of a histogram."""
        ...


class RayMetrics:
    """Ray's counters, gauges and histograms, made when first recorded to.

    Every series carries `deployment` and `replica`, as Serve's own metrics do.
    """

    def __init__(self, deployment: str, replica: str) -> None:
        self._own = {"deployment": deployment, "replica": replica}
        self._made: dict[str, Any] = {}

    def record(self, metric: Metric, value: float, labels: Labels) -> None:
        made = self._made.get(metric.name)
        if made is None:
            made = self._made[metric.name] = self._make(metric)
        tags = dict(zip(metric.labels, labels, strict=True))
        if isinstance(metric, Counter):
            made.inc(value, tags)
        elif isinstance(metric, Gauge):
            made.set(value, tags)
        else:
            made.observe(value, tags)

    def _make(self, metric: Metric) -> Any:
        tags = (*self._own, *metric.labels)
        made: Any
        if isinstance(metric, Histogram):
            made = ray_metrics.Histogram(metric.name, metric.description, list(metric.bounds), tags)
        else:
            kind = ray_metrics.Counter if isinstance(metric, Counter) else ray_metrics.Gauge
            made = kind(metric.name, metric.description, tags)
        made.set_default_tags(self._own)
        return made


class MetricsExport:
    """Brings a sink level with the metrics of this process, again and again."""

    def __init__(self, measure: Callable[[], None], sink: Sink, interval_s: float) -> None:
        """`measure` sets what is not counted as it happens; it is called on this object's thread."""
        self._measure, self._sink, self._interval_s = measure, sink, interval_s
        self._sent: dict[str, dict[Labels, Any]] = {metric.name: {} for metric in METRICS}
        self._records = 0
        self._failing: set[str] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="weft-metrics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """What was counted since the last time is not handed over."""
        self._stopping.set()
        self._thread.join()

    def send(self) -> None:
        """Hand over what is new. Raises what the sink raises."""
        for metric in METRICS:
            sent = self._sent[metric.name]
            if isinstance(metric, Counter):
                self._push_counter(metric, sent)
            elif isinstance(metric, Histogram):
                self._push_histogram(metric, sent)
            elif isinstance(metric, Gauge):
                for labels, value in metric.values().items():
                    self._record(metric, value, labels)

    def _push_counter(self, metric: Counter, sent: dict[Labels, Any]) -> None:
        for labels, total in metric.values().items():
            if total > sent.get(labels, 0.0):
                self._record(metric, total - sent.get(labels, 0.0), labels)
            sent[labels] = total

    def _push_histogram(self, metric: Histogram, sent: dict[Labels, Any]) -> None:
        places = representatives(metric.bounds)
        for labels, found in metric.values().items():
            before = sent.get(labels) or (0,) * len(found.counts)
            for place, count, known in zip(places, found.counts, before, strict=True):
                for _ in range(count - known):
                    self._record(metric, place, labels)
            sent[labels] = found.counts

    def _record(self, metric: Metric, value: float, labels: Labels) -> None:
        self._sink.record(metric, value, labels)
        self._records += 1
        if self._records % _PAUSE_EVERY == 0:
            time.sleep(_PAUSE_S)

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            # Apart: what is counted goes out also where a part cannot be asked.
            self._attempt("measured", self._measure)
            self._attempt("handed over", self.send)

    def _attempt(self, what: str, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception:
            # The replica goes on without; once in the log, not at every interval.
            if what not in self._failing:
                log.exception("metrics are not %s", what)
            self._failing.add(what)
        else:
            self._failing.discard(what)


def representatives(bounds: tuple[float, ...]) -> tuple[float, ...]:
    """A value for each bucket, its middle.

    Ray's agent knows of an observation its bucket alone, and adds that bucket's middle to the sum; this is
    the same value, so nothing is lost on the way that would not be lost there.
    """
    lows = (0.0, *bounds[:-1])
    return (*((low + high) / 2 for low, high in zip(lows, bounds, strict=True)), 2 * bounds[-1])


def export_replica(measure: Callable[[], None], interval_s: float) -> None:
    """Begin to export this Serve replica's metrics. Without Ray, in local testing, nothing is exported."""
    if not ray.is_initialized():
        return
    from ray import serve  # not at the top: the graph state needs none of it

    context = serve.get_replica_context()
    MetricsExport(measure, RayMetrics(context.deployment, context.replica_tag), interval_s).start()


def export_graph_state(measure: Callable[[], None], interval_s: float) -> None:
    """Begin to export the metrics of the graph state actor, which is no replica of Serve's."""
    actor_id = ray.get_runtime_context().get_actor_id() or ""
    MetricsExport(measure, RayMetrics(STATE, actor_id[:12]), interval_s).start()
