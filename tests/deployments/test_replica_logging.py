"""A replica's warnings are written when they happen, also where Serve holds its own lines back."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from logging.handlers import MemoryHandler

import pytest

from deployments.replica_logging import configure_logging

NAMES = ("ray.serve", "deployments", "graph", "models", "weft")


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_a_warning_is_written_at_once_and_through_the_same_filters() -> None:
    written = io.StringIO()
    target = logging.StreamHandler(written)
    target.setFormatter(logging.Formatter("%(replica)s %(message)s"))
    held_back = MemoryHandler(1_000, target=target)

    def name_replica(record: logging.LogRecord) -> bool:
        record.replica = "replica-7"
        return True

    held_back.addFilter(name_replica)
    logging.getLogger("ray.serve").handlers = [held_back]
    configure_logging()
    logging.getLogger("models.language_model").warning("the files are gone")
    assert written.getvalue() == "replica-7 the files are gone\n"
    logging.getLogger("ray.serve").warning("a line of Serve's own")
    assert len(held_back.buffer) == 1


def test_without_serve_lines_go_on_upwards() -> None:
    logging.getLogger("ray.serve").handlers = []
    configure_logging()
    assert logging.getLogger("models").propagate
