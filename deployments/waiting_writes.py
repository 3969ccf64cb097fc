"""Writes in line for the writer, as one call brought them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from deployments.write_metrics import Outcome
from graph.schema import WriteRequest


@dataclass(slots=True)
class WaitingWrites:
    """They go to the store together, perhaps with those of other calls; `done` has an outcome for each."""

    requests: list[WriteRequest]
    ids: str  # of the HTTP requests they are for
    since: float = field(default_factory=time.perf_counter)
    done: asyncio.Future[list[Outcome]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    @property
    def num_operations(self) -> int:
        return sum(len(request.operations) for request in self.requests)
