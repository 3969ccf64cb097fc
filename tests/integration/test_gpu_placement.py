"""Where Ray puts what claims GPUs, with GPUs that are logical only: stand-ins under the options of `build`.

Each cluster in a process of its own, for a process joins one Ray in its life.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.processes import wait_until
from tests.service import ROOT, answers, free_port, launch, launch_serve_run
from tests.small_store import SmallStore

pytestmark = pytest.mark.integration

_PLACE = '''
import json, os, sys, warnings
import ray

groups, gpus = json.loads(sys.argv[1]), int(sys.argv[2])
ray.init(address="local", num_cpus=16, num_gpus=gpus, include_dashboard=False, log_to_driver=False)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from deployments import app
    from deployments.settings import Settings
from graph.errors import InvalidInput

class StandIn:
    """In place of a replica: what Ray gave it, and the share it would keep to."""

    def told(self):
        shares = []
        app.cap_memory = shares.append
        app._keep_to_gpu_share()
        return {"ids": ray.get_gpu_ids(), "visible": os.environ.get("CUDA_VISIBLE_DEVICES"), "share": shares}

def parts(application, found):
    bound = application._bound_deployment
    if bound.name not in found:
        found[bound.name] = bound
        for argument in bound.init_args:
            if hasattr(argument, "_bound_deployment"):
                parts(argument, found)
    return found

try:
    application = app.build(Settings.model_validate(groups))
except InvalidInput as error:
    print(json.dumps({"refused": error.param}))
    sys.exit()
started = []
for name, part in parts(application, {}).items():
    for _ in range(part.num_replicas):
        started.append((name, ray.remote(StandIn).options(**part.ray_actor_options).remote()))
print(json.dumps([[name, ray.get(actor.told.remote(), timeout=120)] for name, actor in started]))
'''


def placed(folder: Path, gpus: int, groups: dict[str, Any]) -> Any:
    """[name, what it was told] of each replica on one node with so many logical GPUs; or what was refused."""
    settings = {"data_dir": str(folder), "cache": {"url": "memory://"}} | groups
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WEFT_", "RAY_", "CUDA_"))}
    done = subprocess.run(
        [sys.executable, "-c", _PLACE, json.dumps(settings), str(gpus)],
        cwd=ROOT,
        env=kept | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def shipped() -> dict[str, Any]:
    """The settings of serve_config.gpu.yaml."""
    config = yaml.safe_load((ROOT / "serve_config.gpu.yaml").read_text(encoding="utf-8"))
    args: dict[str, Any] = config["applications"][0]["args"]
    return args


def test_the_parts_of_the_configuration_share_one_gpu(tmp_path: Path) -> None:
    found = dict(placed(tmp_path, 1, shipped()))
    on_gpu = {name: told for name, told in found.items() if told["ids"]}
    assert {name: told["ids"] for name, told in on_gpu.items()} == {
        "GraphEncoder": [0],
        "TextEmbedder": [0],
        "LanguageModel": [0],
    }
    assert {name: told["share"] for name, told in on_gpu.items()} == {
        "GraphEncoder": [0.1],
        "TextEmbedder": [0.2],
        "LanguageModel": [0.7],
    }
    assert {told["visible"] for told in on_gpu.values()} == {"0"}
    # The rest sees none, though the node has one.
    assert found["Retriever"] == {"ids": [], "visible": "", "share": []}
    assert all(not told["share"] for name, told in found.items() if name not in on_gpu)


def test_a_second_gpu_is_a_change_of_numbers(tmp_path: Path) -> None:
    groups = shipped()
    groups["language_model"]["num_replicas"] = 2
    found = placed(tmp_path, 2, groups)
    language = [told for name, told in found if name == "LanguageModel"]
    assert sorted(told["ids"][0] for told in language) == [0, 1]
    assert sorted(told["visible"] for told in language) == ["0", "1"]
    assert [told["share"] for told in language] == [[0.7], [0.7]]
    others = [told["ids"] for name, told in found if name in ("GraphEncoder", "TextEmbedder")]
    assert all(len(ids) == 1 for ids in others)


def test_without_a_gpu_the_configuration_is_refused_at_once(tmp_path: Path) -> None:
    assert placed(tmp_path, 0, shipped()) == {"refused": "language_model.num_gpus"}


def test_the_configuration_serves_on_a_pretended_gpu(small_store: SmallStore, tmp_path: Path) -> None:
    """The shipped file under Serve itself, on the CPU: devices, address and keys are all that is changed."""
    config = yaml.safe_load((ROOT / "serve_config.gpu.yaml").read_text(encoding="utf-8"))
    config["http_options"] = {"host": "127.0.0.1", "port": free_port()}
    (application,) = config["applications"]
    application["args"]["auth"] = "off"
    for part in ("graph_encoder", "text_embedder", "language_model"):
        application["args"][part]["device"] = "auto"
    extra = {
        "RAY_OVERRIDE_RESOURCES": '{"CPU": 16, "GPU": 1, "graph_state": 1}',
        "WEFT_GRAPH_STATE__RESOURCES": '{"graph_state": 1}',
        "WEFT_LANGUAGE_MODEL__ENABLED": "true",
    }
    service = launch_serve_run(config, small_store.data_dir, tmp_path, **extra)
    try:
        wait_until(lambda: answers(service), 150, "start of serve run")
        wait_until(lambda: service.status()["language_model"].get("open"), 60, "the language model")
        with service.client() as client:
            assert client.recommend(small_store.fans["space"][0], n=1).recommendations
        service.interrupt()
        assert service.wait_for_exit() == 0
        service.assert_gone()
    except BaseException as error:
        error.add_note(service.logs())
        raise
    finally:
        service.sweep()


def test_weft_run_says_that_there_is_no_gpu(small_store: SmallStore, tmp_path: Path) -> None:
    extra = {"WEFT_GRAPH_ENCODER__NUM_GPUS": "1", "WEFT_GRAPH_ENCODER__NUM_REPLICAS": "64"}
    service = launch(small_store.data_dir, tmp_path, port=free_port(), extra=extra)
    try:
        assert service.wait_for_exit(120) == 1
        assert "graph_encoder has no place" in service.log
        service.assert_gone()
    except BaseException as error:
        error.add_note(service.logs())
        raise
    finally:
        service.sweep()
