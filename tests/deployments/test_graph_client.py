"""The way to the graph state where its store is away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayTaskError

import deployments.graph_keeper as keeper_module
from deployments import graph_client
from deployments.graph_keeper import GraphKeeper
from graph.errors import Unavailable
from tests.deployments.local_state import make_settings


class Actor:
    """An actor whose every method fails as Ray reports failures."""

    def __init__(self, cause: Exception) -> None:
        self._error = RayTaskError(
            "method", "traceback", cause, "title", 1, "127.0.0.1"
        ).as_instanceof_cause()

    def __getattr__(self, _method: str) -> Actor:
        return self

    def remote(self, *_: Any) -> Any:
        return self._answer()

    async def _answer(self) -> Any:
        raise self._error


@pytest.mark.parametrize(
    ("cause", "kind"), [(Unavailable("away"), Unavailable), (OSError("defect"), OSError)]
)
async def test_a_store_that_is_away_is_unavailable_and_a_defect_is_not(
    cause: Exception, kind: type[Exception]
) -> None:
    state = graph_client.RemoteGraphState()
    state._actor = Actor(cause)
    with pytest.raises(kind) as caught:
        await state.pointer_history("encoder", "active")
    assert isinstance(caught.value, RayTaskError) != (kind is Unavailable)


def test_a_graph_state_that_cannot_be_started_is_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise ValueError("no such actor")

    def away(_: object) -> None:
        raise Unavailable("the store does not answer")

    monkeypatch.setattr(keeper_module.ray, "get_actor", gone)
    monkeypatch.setattr(keeper_module, "start_graph_state", away)
    keeper = GraphKeeper.__new__(GraphKeeper)
    keeper._settings = make_settings(tmp_path)
    keeper._start_if_gone()
    assert "could not be started: the store does not answer" in caplog.text
