"""Metrics of writes: what became of them, in which groups, and what the graph holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from deployments import metrics
from graph.errors import OutcomeUnknown, Overloaded, Unavailable, WeftError
from graph.schema import WriteResult
from graph.view import GraphView

Outcome: TypeAlias = WriteResult | WeftError

_AWAY = ("unavailable", "unknown")


def outcome_of(outcome: Outcome) -> str:
    """What became of a write, as `metrics.WRITES` has it."""
    if isinstance(outcome, WriteResult):
        return "replayed" if outcome.replayed else "changed" if outcome.changed else "unchanged"
    for kind, name in ((OutcomeUnknown, "unknown"), (Overloaded, "overloaded"), (Unavailable, "unavailable")):
        if isinstance(outcome, kind):
            return name
    return "refused"


def count_writes(outcomes: Sequence[Outcome]) -> list[str]:
    """Count them, and say what they were."""
    names = [outcome_of(outcome) for outcome in outcomes]
    for name in names:
        metrics.WRITES.inc(name)
    return names


def count_group(outcomes: Sequence[Outcome], took_s: float) -> None:
    """Writes that went to the store together."""
    names = count_writes(outcomes)
    metrics.COMMIT.observe(took_s)
    metrics.COMMIT_GROUP.observe(len(names))
    metrics.STORE_UP.set(0 if names and all(name in _AWAY for name in names) else 1)


def measure_rows(view: GraphView) -> None:
    """How much the graph holds. Thread-safe: what changes meanwhile may be in or not."""
    counts = (view.num_users, view.num_items, view.num_ratings, view.num_memories)
    for kind, count in zip(("user", "item", "rating", "memory"), counts, strict=True):
        metrics.NODES.set(count, kind)
