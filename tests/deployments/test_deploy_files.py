"""Configurations of Serve, the environment of nodes and cluster.yaml: they load and agree with the code."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

with warnings.catch_warnings():
    # Ray Serve 2.60 defines its schemas in a way that pydantic will no longer take some day.
    warnings.simplefilter("ignore")
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config
    from ray.scripts.scripts import start as ray_start
    from ray.serve.schema import ServeDeploySchema

    from deployments.app import claimed_cpus
from deployments.gpu_claims import check_gpus, gpu_claims
from deployments.launcher import proxy_environment
from deployments.ray_environment import EVERY_NODE
from deployments.settings import Settings
from graph.errors import InvalidInput
from tests.deployments.deploy_files import GPU, LOCAL, OF_INSTALLATIONS, ROOT, built_from, load, settings_of

NODE_FILE = "~/weft/deploy/node.env"


@pytest.fixture(autouse=True)
def no_settings_of_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("WEFT_", "REDIS_"))]:
        monkeypatch.delenv(name)


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    """Every leaf by its path."""
    if isinstance(tree, dict):
        return {k: v for name, inner in tree.items() for k, v in flat(inner, f"{path}.{name}").items()}
    if isinstance(tree, list):
        return {k: v for place, inner in enumerate(tree) for k, v in flat(inner, f"{path}[{place}]").items()}
    return {path.removeprefix("."): tree}


# ----------------------------------------------------------------------------------- configurations of Serve


@pytest.mark.parametrize("name", [LOCAL, GPU])
def test_serve_and_the_settings_take_the_configuration(name: str) -> None:
    config = load(name)
    deploy = ServeDeploySchema.model_validate(config)
    (application,) = deploy.applications
    assert (application.import_path, application.args) == (
        "deployments.app:build",
        config["applications"][0]["args"],
    )
    assert deploy.http_options.host is not None
    assert settings_of(config).may_listen_on(deploy.http_options.host)


def test_the_configurations_differ_in_nothing_else() -> None:
    local, gpu = flat(load(LOCAL)), flat(load(GPU))
    assert {path for path in local.keys() | gpu.keys() if local.get(path) != gpu.get(path)} == {
        "proxy_location",
        "http_options.host",
        "applications[0].args.auth",
        "applications[0].args.graph_encoder.device",
        "applications[0].args.graph_encoder.num_gpus",
        "applications[0].args.graph_encoder.num_cpus",
        "applications[0].args.text_embedder.device",
        "applications[0].args.text_embedder.num_gpus",
        "applications[0].args.text_embedder.num_cpus",
        "applications[0].args.text_embedder.num_threads",
        "applications[0].args.language_model.device",
        "applications[0].args.language_model.num_gpus",
        "applications[0].args.language_model.num_cpus",
        "applications[0].args.language_model.num_threads",
        "applications[0].args.language_model.max_batch",
        "applications[0].args.retriever.num_cpus",
        "applications[0].args.ingress.num_cpus",
    }


def test_no_secret_is_in_a_configuration() -> None:
    for name in (LOCAL, GPU):
        settings = settings_of(load(name))
        groups = [settings.store.url, settings.cache.url]
        groups += [settings.text_embedder.api_key, settings.language_model.api_key]
        assert groups == [None] * 4


def test_the_parts_fit_one_card() -> None:
    settings = settings_of(load(GPU))
    one = [{"Alive": True, "Resources": {"GPU": 1.0}}]
    claims = {claim.name: claim.num_gpus for claim in gpu_claims(settings, one)}
    assert claims == {"graph_encoder": 0.1, "text_embedder": 0.2, "language_model": 0.7}
    check_gpus(settings, one)
    with pytest.raises(InvalidInput):
        check_gpus(settings, [{"Alive": True, "Resources": {"CPU": 8.0}}])
    devices = {settings.graph_encoder.device, settings.text_embedder.device, settings.language_model.device}
    assert devices == {"cuda"}  # a card that does not work is an error, not a slow service


# ---------------------------------------------------------------------------------- the environment of nodes


def node_environment() -> dict[str, str]:
    """What deploy/node.env adds to a shell's environment."""
    script = (
        f"set -a; . {shlex.quote(str(ROOT / 'deploy' / 'node.env'))}; set +a;"
        f" {shlex.quote(sys.executable)} -c 'import json, os; print(json.dumps(dict(os.environ)))'"
    )
    done = subprocess.run(["bash", "-ec", script], env={}, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    found: dict[str, str] = json.loads(done.stdout)
    return {name: value for name, value in found.items() if name.startswith(("RAY_", "WEFT_"))}


def test_nodes_have_what_the_launcher_sets(tmp_path: Path) -> None:
    assert EVERY_NODE.items() <= proxy_environment(tmp_path, 8000).items()
    # Everything else that the launcher sets concerns one machine: paths, ports, and how fast it stops.
    alone = proxy_environment(tmp_path, 8000).keys() - EVERY_NODE.keys()
    assert all(name.startswith("RAY_SERVE_HAPROXY_") or "FALLBACK_PROXY" in name for name in alone)
    both = ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED")
    assert [EVERY_NODE[name] for name in both] == ["1", "1"]
    assert node_environment() == EVERY_NODE | {"RAY_AUTH_MODE": "token"} | OF_INSTALLATIONS


def test_the_environment_of_nodes_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in node_environment().items():
        monkeypatch.setenv(name, value)
    settings = settings_of(load(GPU))
    assert settings.data_dir == Path("/mnt/weft")
    assert settings.graph_state.resources == {"graph_state": 1}
    assert (settings.cluster.grows, settings.cluster.max_gpu_nodes, settings.cluster.gpus_per_node) == (
        True,
        2,
        1,
    )
    check_gpus(settings, [])  # before any node is there


# ---------------------------------------------------------------------------------------------- cluster.yaml


def ray_start_of(commands: list[str]) -> tuple[str, dict[str, Any]]:
    """(what runs before `ray start`, its options as Ray reads them)."""
    (command,) = (command for command in commands if "ray start" in command)
    before, _, after = command.partition("ray start")
    arguments = shlex.split(after.replace("$RAY_HEAD_IP", "10.0.0.7"))
    return before, ray_start.make_context("ray start", arguments).params


def test_ray_takes_the_cluster() -> None:
    config = prepare_config(load("cluster.yaml"))
    validate_config(config)
    with pytest.raises(jsonschema.ValidationError):
        validate_config(config | {"worker_nodes_of_old": {}})


def test_nodes_start_ray_with_its_environment_and_the_token() -> None:
    config = load("cluster.yaml")
    head_before, head = ray_start_of(config["head_start_ray_commands"])
    worker_before, worker = ray_start_of(config["worker_start_ray_commands"])
    for before in (head_before, worker_before):
        exported = before[before.index("set -a") : before.index("set +a")]
        assert [part.strip() for part in exported.split(";")[1:-1]] == [
            f". {NODE_FILE}",
            ". ~/.weft-secrets.env",
        ]
    assert head["head"] and head["port"] not in (None, 6379)
    assert worker["address"] == f"10.0.0.7:{head['port']}"
    assert head["dashboard_host"] == "127.0.0.1"
    mounts = config["file_mounts"]
    assert mounts["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert mounts["/home/ubuntu/.weft-secrets.env"].startswith("~/")
    home = f"/home/{config['auth']['ssh_user']}"
    assert mounts[f"{home}/weft/deploy"] == "deploy" and NODE_FILE.startswith("~/weft/deploy/")


def test_everything_the_package_is_built_from_is_copied() -> None:
    mounts = load("cluster.yaml")["file_mounts"]
    copied = {path.removeprefix("/home/ubuntu/weft/"): local for path, local in mounts.items()}
    for name in built_from():
        assert copied[name] == name
        assert (ROOT / name).exists()


def test_what_runs_on_which_node() -> None:
    config = load("cluster.yaml")
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
    ((resource, amount),) = Settings.model_validate(
        {"graph_state": {"resources": json.loads(OF_INSTALLATIONS["WEFT_GRAPH_STATE__RESOURCES"])}}
    ).graph_state.resources.items()
    holders = {name for name, kind in types.items() if kind["resources"].get(resource, 0) >= amount}
    assert holders == {"cpu_worker"}
    assert types["cpu_worker"]["min_workers"] >= 1  # or the writer waits for a node nobody asks for
    gpu = types["gpu_worker"]
    assert str(gpu["max_workers"]) == OF_INSTALLATIONS["WEFT_CLUSTER__MAX_GPU_NODES"]
    assert str(gpu["resources"]["GPU"]) == OF_INSTALLATIONS["WEFT_CLUSTER__GPUS_PER_NODE"]
    # Wherever the rest runs, what needs the card finds CPUs beside it.
    assert claimed_cpus(settings_of(load(GPU))) <= gpu["resources"]["CPU"]
    assert sum(kind.get("max_workers", 0) for kind in types.values()) <= config["max_workers"]


def test_commands_of_nodes_are_shell() -> None:
    config = load("cluster.yaml")
    commands = [c for name, value in config.items() if name.endswith("_commands") for c in value]
    assert len(commands) >= 12
    for command in commands:
        subprocess.run(["bash", "-nc", command], check=True)
    assert any("/mnt/weft" in command and "mount -t nfs4" in command for command in commands)
