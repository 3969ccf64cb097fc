"""What counting costs: a number in this process, a record in Ray, an observation in Ray's agent.

    python -m benchmarks.metrics

Ray's agent rebuilds histograms one observation after the other, so each of them costs there as well, whoever
recorded it. The last figures are of a whole request: `/livez` through the edge with and without its metrics.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import ray
from ray._private.telemetry.open_telemetry_metric_recorder import OpenTelemetryMetricRecorder
from ray.util import metrics as ray_metrics

from benchmarks.report import spread, write
from deployments import metrics
from deployments.ingress.application import create_app
from deployments.metric_types import Counter, Gauge, Histogram
from deployments.metrics_export import MetricsExport, RayMetrics, representatives

ROUNDS = 15
RECORDS = 5_000
REQUESTS = 3_000
LABELS = ("GET", "/v1/users/{user_id}/recommendations", "200")
KEYS = ("method", "route", "status")


def cost_us(record: Callable[[], object], number: int = RECORDS) -> dict[str, float]:
    """Microseconds of one, over rounds."""
    record()
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(number):
            record()
        found.append((time.perf_counter() - began) / number * 1e6)
    return spread(found)


def plain() -> dict[str, Any]:
    counter, gauge = Counter("bench_total", "", KEYS), Gauge("bench_gauge", "", KEYS)
    histogram = Histogram("bench_seconds", "", KEYS, bounds=metrics.SECONDS)
    return {
        "counter_inc_us": cost_us(lambda: counter.inc(*LABELS)),
        "gauge_set_us": cost_us(lambda: gauge.set(3.0, *LABELS)),
        "histogram_observe_us": cost_us(lambda: histogram.observe(0.004, *LABELS)),
    }


def in_ray() -> dict[str, Any]:
    """In a process that is part of a Ray cluster, with the tags that Serve's own metrics have."""
    tags = dict(zip(KEYS, LABELS, strict=True))
    own = {"deployment": "Ingress", "replica": "abcdefgh"}
    names = (*own, *KEYS)
    counter = ray_metrics.Counter("bench_ray_total", "", names)
    gauge = ray_metrics.Gauge("bench_ray_gauge", "", names)
    histogram = ray_metrics.Histogram("bench_ray_seconds", "", list(metrics.SECONDS), names)
    for metric in (counter, gauge, histogram):
        metric.set_default_tags(own)
    return {
        "counter_inc_us": cost_us(lambda: counter.inc(1.0, tags)),
        "gauge_set_us": cost_us(lambda: gauge.set(3.0, tags)),
        "histogram_observe_us": cost_us(lambda: histogram.observe(0.004, tags)),
    }


def in_the_agent() -> dict[str, Any]:
    """CPU of the code that Ray's agent runs for what a process exported: a report of many observations."""
    recorder = OpenTelemetryMetricRecorder()
    recorder.register_histogram_metric("bench_agent_seconds", "", list(metrics.SECONDS))
    recorder.register_counter_metric("bench_agent_total", "")
    tags = dict(zip(KEYS, LABELS, strict=True))
    counts = [0] * (len(metrics.SECONDS) + 1)
    counts[7] = 1_000
    found = []
    for _ in range(ROUNDS):
        began = time.thread_time()
        point = {"tags": tags, "bucket_counts": counts}
        recorder.record_histogram_aggregated_batch("bench_agent_seconds", [point])
        found.append((time.thread_time() - began) / 1_000 * 1e6)
    return {
        "histogram_observation_us": spread(found),
        "counter_report_us": cost_us(lambda: recorder.set_metric_value("bench_agent_total", tags, 1_000.0)),
    }


def handing_over() -> dict[str, Any]:
    """CPU of the exporting thread for each observation of a histogram that it hands to Ray."""
    export = MetricsExport(lambda: None, RayMetrics("bench", "bench"), 1.0)
    found = []
    place = representatives(metrics.REQUEST_DURATION.bounds)[6]
    for _ in range(ROUNDS):
        for _ in range(1_000):
            metrics.REQUEST_DURATION.observe(place, "GET", "/bench")
        began = time.thread_time()
        export.send()
        found.append((time.thread_time() - began) / 1_000 * 1e6)
    return {"histogram_observation_us": spread(found)}


class _NoBackend:
    store_id = "bench"


async def _requests(app: Any, number: int) -> float:
    """Microseconds of CPU for one."""
    scope = {"type": "http", "method": "GET", "path": "/livez", "query_string": b"", "headers": []}

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_message: Any) -> None:
        return

    began = time.process_time()
    for _ in range(number):
        await app(dict(scope), receive, send)
    return (time.process_time() - began) / number * 1e6


async def edge() -> dict[str, Any]:
    """`/livez`, the cheapest request there is, through the edge; in turn with its metrics and without."""
    app = create_app(lambda: _NoBackend())  # type: ignore[arg-type,return-value]
    counted, uncounted, difference = [], [], []
    for _ in range(ROUNDS):
        counted.append(await _requests(app, REQUESTS))
        with (
            mock.patch.object(metrics.REQUESTS, "inc", _nothing),
            mock.patch.object(metrics.REQUEST_DURATION, "observe", _nothing),
        ):
            uncounted.append(await _requests(app, REQUESTS))
        difference.append(counted[-1] - uncounted[-1])
    return {
        "livez_us": spread(counted),
        "livez_without_metrics_us": spread(uncounted),
        "metrics_us": spread(difference),
    }


def _nothing(*_: object, **__: object) -> None:
    return


def main() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    figures: dict[str, Any] = {"plain": plain(), "edge": asyncio.run(edge())}
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        figures |= {"ray": in_ray(), "handing_over": handing_over(), "agent": in_the_agent()}
    finally:
        ray.shutdown()
    records = ("counter_inc_us", "gauge_set_us", "histogram_observe_us")
    figures["ray_times_plain"] = {
        name: round(figures["ray"][name]["median"] / figures["plain"][name]["median"], 1) for name in records
    }
    write("metrics", figures)


if __name__ == "__main__":
    main()
