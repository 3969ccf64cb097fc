"""Where `weft run` lets Ray export metrics."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.launcher import local_environment, metrics_port
from graph.errors import Conflict
from tests.deployments.local_state import make_settings


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield int(holder.getsockname()[1])


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_port_that_was_chosen_is_taken_or_refused(tmp_path: Path, taken: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = int(probe.getsockname()[1])
    assert metrics_port(make_settings(tmp_path, metrics={"port": free})) == free
    holder = rf"in use by .*\(pid {os.getpid()}\).*WEFT_METRICS__PORT"
    with pytest.raises(Conflict, match=holder):
        metrics_port(make_settings(tmp_path, metrics={"port": taken}))
    with pytest.raises(Conflict, match="the service itself"):
        metrics_port(make_settings(tmp_path, http={"port": free}, metrics={"port": free}))


def test_without_a_choice_it_is_the_next_port_or_a_free_one(tmp_path: Path, taken: int) -> None:
    found = metrics_port(make_settings(tmp_path, http={"port": taken - 1}))
    assert found not in (taken, taken - 1)
    assert is_free(found)
    last = metrics_port(make_settings(tmp_path, http={"port": 65535}))
    assert last < 65535
    following = metrics_port(make_settings(tmp_path, http={"port": taken}))
    assert following == taken + 1 or not is_free(taken + 1)


def test_ray_reports_as_often_as_the_parts_do_and_on_loopback(tmp_path: Path) -> None:
    found = local_environment(make_settings(tmp_path, metrics={"interval_s": 2.5}))
    assert found["RAY_metrics_report_interval_ms"] == "2500"
    assert found["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
