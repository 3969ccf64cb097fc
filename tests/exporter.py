"""What Ray's exporter says of a running service, read as Prometheus reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.processes import wait_until
from tests.service import Service

PREFIX = "ray_"
# What Ray adds to the labels of every series.
FOREIGN_LABELS = {
    *("Component", "NodeAddress", "SessionName", "Version", "WorkerId", "JobId", "le"),
    *("otel_scope_name", "otel_scope_schema_url", "otel_scope_version"),
    *("deployment", "replica"),
}


class Scrape:
    """The exporter's text at one moment."""

    def __init__(self, text: str) -> None:
        self.families: dict[str, Metric] = {}
        for family in text_string_to_metric_families(text):
            self.families[family.name] = family

    def of(self, name: str, **labels: str) -> float:
        """Sum of the samples of that name, without the prefix, that have these labels; 0 if there is none."""
        return sum(
            sample.value
            for family in self.families.values()
            for sample in family.samples
            if sample.name == PREFIX + name and labels.items() <= sample.labels.items()
        )

    def ours(self) -> Iterator[Metric]:
        """Families of this service, not of Ray."""
        return (family for name, family in self.families.items() if name.startswith(f"{PREFIX}weft_"))


class Exporter:
    """The exporter of a service that `weft run` started."""

    def __init__(self, service: Service) -> None:
        found = re.search(r"Metrics for Prometheus: (http://\S+)", service.log)
        assert found is not None, "weft run prints where the metrics are"
        self.url = found[1]

    def scrape(self) -> Scrape:
        answer = httpx.get(self.url, timeout=20.0, trust_env=False)
        assert answer.status_code == 200
        return Scrape(answer.text)

    def at_rest(self, quiet_scrapes: int = 25) -> Scrape:
        """A scrape after which nothing is still on its way: requests and writes stand still for seconds."""
        seen: list[tuple[float, ...]] = []

        def still() -> Scrape | None:
            scrape = self.scrape()
            names = ("weft_requests_total", "weft_writes_total", "weft_first_token_seconds_count")
            seen.append(tuple(scrape.of(name) for name in names))
            recent = seen[-quiet_scrapes:]
            return scrape if len(recent) == quiet_scrapes and len(set(recent)) == 1 else None

        return wait_until(still, 60, "metrics at rest")
