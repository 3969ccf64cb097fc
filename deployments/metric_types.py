"""Counters, gauges and histograms as plain numbers of this process; `metrics_export` hands them to Ray.

Counting takes a microsecond or less and needs no Ray, so that hot paths, threads and tests without a cluster
count alike. Thread-safe. Labels are given by position, in the order of the metric's `labels`.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable
from itertools import pairwise
from typing import ClassVar, NamedTuple, TypeAlias

Labels: TypeAlias = tuple[str, ...]

MAX_SERIES = 1_000
"""Of one metric. What comes beyond is counted under `OTHER`: a label that is not as bounded as it should be
must not fill the memory of whoever collects it."""
OTHER = "other"


class Metric:
    """What every kind has: a name with its unit, a sentence, labels, and who measures it."""

    kind: ClassVar[str]

    def __init__(
        self, name: str, description: str, labels: Labels = (), *, parts: Iterable[str] = ()
    ) -> None:
        """`parts`: the deployments whose replicas measure it."""
        self.name, self.description, self.labels = name, description, labels
        self.parts = tuple(parts)
        self._lock = threading.Lock()
        self._series: set[Labels] = set()

    def _known(self, labels: Labels) -> Labels:
        """The series that these labels are counted under. The lock is held."""
        if labels in self._series:
            return labels
        if len(labels) != len(self.labels) or not all(isinstance(value, str) for value in labels):
            raise ValueError(f"{self.name} has the labels {self.labels}, not {labels!r}")
        if len(self._series) >= MAX_SERIES:
            return (OTHER,) * len(labels)
        self._series.add(labels)
        return labels


class Counter(Metric):
    """A total that grows."""

    kind = "counter"

    def __init__(
        self, name: str, description: str, labels: Labels = (), *, parts: Iterable[str] = ()
    ) -> None:
        super().__init__(name, description, labels, parts=parts)
        self._totals: dict[Labels, float] = {}
        self._followed: dict[Labels, float] = {}

    def inc(self, *labels: str, by: float = 1.0) -> None:
        with self._lock:
            series = self._known(labels)
            self._totals[series] = self._totals.get(series, 0.0) + by

    def follow(self, total: float, *labels: str) -> None:
        """Take over a total that is counted elsewhere; one below that of the last time has begun anew."""
        with self._lock:
            series = self._known(labels)
            before = self._followed.get(series, 0.0)
            self._followed[series] = total
            grown = total - before if total >= before else total
            self._totals[series] = self._totals.get(series, 0.0) + grown

    def values(self) -> dict[Labels, float]:
        """Totals since the process began."""
        with self._lock:
            return dict(self._totals)


class Gauge(Metric):
    """A value that comes and goes."""

    kind = "gauge"

    def __init__(
        self, name: str, description: str, labels: Labels = (), *, parts: Iterable[str] = ()
    ) -> None:
        super().__init__(name, description, labels, parts=parts)
        self._values: dict[Labels, float] = {}

    def set(self, value: float, *labels: str) -> None:
        with self._lock:
            self._values[self._known(labels)] = value

    def only(self, *labels: str) -> None:
        """One for these labels, zero for all that were set before: what of several is the case."""
        with self._lock:
            for series in self._values:
                self._values[series] = 0.0
            self._values[self._known(labels)] = 1.0

    def keep(self, first_labels: Iterable[str]) -> None:
        """Forget series whose first label is none of these: what they were about is gone."""
        kept = frozenset(first_labels)
        with self._lock:
            self._values = {labels: value for labels, value in self._values.items() if labels[0] in kept}

    def values(self) -> dict[Labels, float]:
        with self._lock:
            return dict(self._values)


class Distribution(NamedTuple):
    """Observations of a series: so many in each bucket, the last of which is what is beyond all bounds."""

    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        return sum(self.counts)


class Histogram(Metric):
    """Observations by size. A bucket holds what is at most its bound and above the one before it."""

    kind = "histogram"

    def __init__(
        self,
        name: str,
        description: str,
        labels: Labels = (),
        *,
        bounds: tuple[float, ...],
        parts: Iterable[str] = (),
    ) -> None:
        """Raises ValueError for bounds that are not positive and ascending."""
        super().__init__(name, description, labels, parts=parts)
        if not bounds or bounds[0] <= 0 or any(low >= high for low, high in pairwise(bounds)):
            raise ValueError(f"{name}: bounds are positive and ascend, not {bounds}")
        self.bounds = bounds
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}

    def observe(self, value: float, *labels: str) -> None:
        with self._lock:
            series = self._known(labels)
            counts = self._counts.get(series)
            if counts is None:
                counts = self._counts[series] = [0] * (len(self.bounds) + 1)
            counts[bisect_left(self.bounds, value)] += 1
            self._sums[series] = self._sums.get(series, 0.0) + value

    def values(self) -> dict[Labels, Distribution]:
        """What was observed since the process began."""
        with self._lock:
            return {
                series: Distribution(tuple(counts), self._sums[series])
                for series, counts in self._counts.items()
            }
