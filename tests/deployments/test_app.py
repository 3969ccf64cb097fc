"""The application as it is built from settings: the language model's replicas, and claims of CPUs."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest

with warnings.catch_warnings():
    # Ray Serve 2.60 defines its schemas in a way that pydantic will no longer take some day.
    warnings.simplefilter("ignore")
    from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

    from deployments import app, graph_client
    from deployments.app import build, claimed_cpus
from graph.errors import InvalidInput
from tests.deployments.local_state import make_settings


def deployments(tmp_path: Path, **groups: Any) -> dict[str, Any]:
    """By name, everything that the application consists of."""
    found: dict[str, Any] = {}

    def walk(application: Any) -> None:
        bound = application._bound_deployment
        found[bound.name] = bound
        for argument in bound.init_args:
            if hasattr(argument, "_bound_deployment"):
                walk(argument)

    walk(build(make_settings(tmp_path, **groups)))
    return found


def test_a_user_stays_with_a_replica_and_has_two_others_when_it_is_full(tmp_path: Path) -> None:
    config = deployments(tmp_path, language_model={"num_replicas": 3})["LanguageModel"]._deployment_config
    assert (config.num_replicas, config.autoscaling_config) == (3, None)
    router = config.request_router_config
    assert router.get_request_router_class() is ConsistentHashRouter
    assert router.request_router_kwargs == {"num_fallback_replicas": 2}
    # What is beyond the batch waits in the engine, which knows when to refuse.
    assert config.max_ongoing_requests > 16 + 256


def test_replicas_are_added_by_the_length_of_the_queue(tmp_path: Path) -> None:
    groups = {"language_model": {"num_replicas": 1, "max_replicas": 4, "max_batch": 8}}
    scaling = deployments(tmp_path, **groups)["LanguageModel"]._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 4, 8)


def test_without_a_language_model_nothing_of_it_is_there(tmp_path: Path) -> None:
    assert "LanguageModel" not in deployments(tmp_path, language_model={"enabled": False})


@pytest.mark.parametrize(
    "groups",
    [
        {},
        {"language_model": {"num_replicas": 2}},
        {"language_model": {"enabled": False}},
        {
            "language_model": {"num_replicas": 1, "max_replicas": 5, "num_cpus": 1.5},
            "retriever": {"num_replicas": 3},
        },
    ],
)
def test_the_launcher_makes_room_for_every_claim(tmp_path: Path, groups: dict[str, Any]) -> None:
    settings = make_settings(tmp_path, **groups)
    wanted = settings.graph_state.num_cpus
    for part in deployments(tmp_path, **groups).values():
        scaling = part._deployment_config.autoscaling_config
        replicas = part.num_replicas if scaling is None else scaling.max_replicas
        wanted += (replicas or 1) * part.ray_actor_options["num_cpus"]
    assert math.isclose(claimed_cpus(settings), wanted)


# --------------------------------------------------------------------------------------------- several nodes


class Cluster:
    """As much of Ray as tells about nodes."""

    def __init__(self, *alive: bool) -> None:
        self._nodes = [{"NodeID": str(n), "Alive": there} for n, there in enumerate(alive)]

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return self._nodes

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}


def test_sqlite_is_refused_on_more_than_one_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "ray", Cluster(True, False, True))
    with pytest.raises(InvalidInput, match=r"2 nodes and the store is SQLite.*WEFT_STORE__URL") as caught:
        build(make_settings(tmp_path))
    assert caught.value.param == "store.url"


@pytest.mark.parametrize(
    ("nodes", "store"),
    [((True,), {}), ((True, False), {}), ((True, True), {"url": "postgresql://weft@db/weft"})],
)
def test_one_node_or_postgresql_is_fine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: tuple[bool, ...], store: dict[str, str]
) -> None:
    monkeypatch.setattr(app, "ray", Cluster(*nodes))
    assert build(make_settings(tmp_path, store=store))


def test_the_graph_state_does_not_start_on_a_second_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when Ray restarts it there by itself, long after the service began with one."""
    monkeypatch.setattr(graph_client, "ray", Cluster(True, True))
    for start in (graph_client.start_graph_state, graph_client.ClusterGraphState):
        with pytest.raises(InvalidInput, match="WEFT_STORE__URL"):
            start(make_settings(tmp_path))
    assert list(tmp_path.iterdir()) == []
