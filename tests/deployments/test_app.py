"""The application as it is built from settings: the language model's replicas, and claims of CPUs."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

with warnings.catch_warnings():
    # Ray Serve 2.60 defines its schemas in a way that pydantic will no longer take some day.
    warnings.simplefilter("ignore")
    from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

    from deployments import app, graph_client
    from deployments.app import build, claimed_cpus
    from deployments.settings import Settings
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


def test_the_key_of_commands_stays_with_them(tmp_path: Path) -> None:
    """Ray keeps what replicas are given."""
    given = [part.init_args[0] for part in deployments(tmp_path, api_key="weft_0.secret").values()]
    assert len(given) >= 7
    assert all(isinstance(settings, Settings) and settings.api_key is None for settings in given)


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


# ------------------------------------------------------------------------------------------------------ GPUs


def test_who_claims_no_gpu_sees_none(tmp_path: Path) -> None:
    """Ray shows all GPUs of a node to those that claim none."""
    for name, part in deployments(tmp_path).items():
        environment = part.ray_actor_options.get("runtime_env", {}).get("env_vars", {})
        assert not part.ray_actor_options.get("num_gpus")
        if name in ("GraphEncoder", "Retriever", "TextEmbedder", "LanguageModel"):
            assert environment["CUDA_VISIBLE_DEVICES"] == ""


def test_claims_of_gpus_reach_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "ray", Cluster(True, gpus=1))
    hashing = {"backend": "hashing", "model": "hashing"}
    found = deployments(tmp_path, graph_encoder={"num_gpus": 0.1}, text_embedder=hashing | {"num_gpus": 0.2})
    claims = {name: part.ray_actor_options.get("num_gpus") for name, part in found.items()}
    assert {name: gpus for name, gpus in claims.items() if gpus} == {
        "GraphEncoder": 0.1,
        "TextEmbedder": 0.2,
        "LanguageModel": 0.7,
    }
    # Ray says which GPU it is.
    environment = found["LanguageModel"].ray_actor_options["runtime_env"]["env_vars"]
    assert "CUDA_VISIBLE_DEVICES" not in environment


def test_gpus_that_are_not_there_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "ray", Cluster(True))
    with pytest.raises(InvalidInput, match="the cluster has no GPU"):
        build(make_settings(tmp_path, graph_encoder={"num_gpus": 0.1}))
    with pytest.raises(InvalidInput, match="device is cuda"):
        build(make_settings(tmp_path, language_model={"device": "cuda"}))


def test_a_replica_keeps_to_the_share_that_ray_gave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    capped: list[float] = []
    monkeypatch.setattr(app, "cap_memory", capped.append)
    for assigned in ({"CPU": 0.4, "GPU": 0.7}, {"CPU": 0.4}):
        context = SimpleNamespace(get_assigned_resources=lambda given=assigned: given)
        monkeypatch.setattr(app, "ray", SimpleNamespace(get_runtime_context=lambda given=context: given))
        app._keep_to_gpu_share()
    assert capped == [0.7]


# --------------------------------------------------------------------------------------------- several nodes


class Cluster:
    """As much of Ray as tells about nodes."""

    def __init__(self, *alive: bool, **resources: float) -> None:
        named = {("GPU" if name == "gpus" else name): float(amount) for name, amount in resources.items()}
        self._nodes = [
            {"NodeID": str(n), "Alive": there, "Resources": {"CPU": 2.0} | named}
            for n, there in enumerate(alive)
        ]

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return self._nodes


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


def test_the_graph_state_waits_for_no_resource_that_no_node_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {"graph_state": {"resources": {"graph_state": 1}}}
    monkeypatch.setattr(app, "ray", Cluster(True))
    with pytest.raises(InvalidInput, match="claims 1 graph_state, and no node") as caught:
        build(make_settings(tmp_path, **wanted))
    assert caught.value.param == "graph_state.resources"
    assert build(make_settings(tmp_path, **wanted, cluster={"grows": True}))
    monkeypatch.setattr(app, "ray", Cluster(True, graph_state=1))
    assert build(make_settings(tmp_path, **wanted))


def test_the_graph_state_claims_its_resources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps it on nodes that have them."""
    claimed: dict[str, Any] = {}
    actor = SimpleNamespace(ping=SimpleNamespace(remote=lambda: None))

    class Ray(Cluster):
        def get_actor(self, *_: Any, **__: Any) -> Any:
            raise ValueError("there is none")

        def get(self, *_: Any, **__: Any) -> None: ...

        def remote(self, _: type) -> Any:
            def options(**given: Any) -> Any:
                claimed.update(given)
                return SimpleNamespace(remote=lambda *_: actor)

            return SimpleNamespace(options=options)

    monkeypatch.setattr(graph_client, "ray", Ray(True, graph_state=1))
    graph_client.start_graph_state(make_settings(tmp_path, graph_state={"resources": {"graph_state": 1}}))
    assert claimed["resources"] == {"graph_state": 1}
    graph_client.start_graph_state(make_settings(tmp_path))
    assert claimed["resources"] == {}
