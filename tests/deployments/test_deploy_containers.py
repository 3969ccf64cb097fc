"""deploy/kuberay.yaml and the Dockerfile: they agree with what starts Weft elsewhere, and with the code."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
import warnings
from typing import Any

import yaml

with warnings.catch_warnings():
    # Ray Serve 2.60 defines its schemas in a way that pydantic will no longer take some day.
    warnings.simplefilter("ignore")
    from ray.serve.schema import ServeDeploySchema

    from deployments.app import claimed_cpus
from deployments.ray_environment import EVERY_NODE
from tests.deployments.deploy_files import GPU, LOCAL, OF_INSTALLATIONS, ROOT, built_from, load, settings_of

# --------------------------------------------------------------------------------------------------- KubeRay


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "deploy" / "kuberay.yaml").read_text(encoding="utf-8")))


def manifest(kind: str, name: str) -> dict[str, Any]:
    (found,) = (m for m in manifests() if (m["kind"], m["metadata"]["name"]) == (kind, name))
    return found


def groups() -> dict[str, dict[str, Any]]:
    """Pods of the cluster by their group; the head's is `head`."""
    cluster = manifest("RayService", "weft")["spec"]["rayClusterConfig"]
    return {"head": cluster["headGroupSpec"]} | {g["groupName"]: g for g in cluster["workerGroupSpecs"]}


def container(group: dict[str, Any]) -> dict[str, Any]:
    (found,) = group["template"]["spec"]["containers"]
    return dict(found)


def test_kuberay_deploys_the_same_configuration() -> None:
    embedded = yaml.safe_load(manifest("RayService", "weft")["spec"]["serveConfigV2"])
    assert ServeDeploySchema.model_validate(embedded)
    assert embedded == load(GPU)


def test_pods_have_the_environment_of_nodes_and_secrets_by_reference() -> None:
    for group in groups().values():
        plain = {e["name"]: e["value"] for e in container(group)["env"] if "value" in e}
        assert plain == EVERY_NODE | OF_INSTALLATIONS
        secret = {e["name"]: e["valueFrom"] for e in container(group)["env"] if "value" not in e}
        assert set(secret) == {"WEFT_STORE__URL", "WEFT_CACHE__URL"}
        assert all(source.keys() == {"secretKeyRef"} for source in secret.values())
        (mount,) = container(group)["volumeMounts"]
        assert mount["mountPath"] == OF_INSTALLATIONS["WEFT_DATA_DIR"]
        (volume,) = group["template"]["spec"]["volumes"]
        claim = manifest("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_kuberay_s_cluster_has_the_same_shape() -> None:
    found = groups()
    assert found["head"]["rayStartParams"]["num-cpus"] == "0"
    (written,) = shlex.split(found["cpu-worker"]["rayStartParams"]["resources"])
    assert json.loads(written) == json.loads(OF_INSTALLATIONS["WEFT_GRAPH_STATE__RESOURCES"])
    assert "resources" not in found["gpu-worker"]["rayStartParams"]
    gpu = found["gpu-worker"]
    assert str(gpu["maxReplicas"]) == OF_INSTALLATIONS["WEFT_CLUSTER__MAX_GPU_NODES"]
    cards = container(gpu)["resources"]["limits"]["nvidia.com/gpu"]
    assert str(cards) == OF_INSTALLATIONS["WEFT_CLUSTER__GPUS_PER_NODE"]
    assert claimed_cpus(settings_of(load(GPU))) <= int(gpu["rayStartParams"]["num-cpus"])
    for name in ("head", "cpu-worker"):
        assert "nvidia.com/gpu" not in container(found[name])["resources"]["limits"]
    for group in found.values():
        assert group["template"]["metadata"]["labels"]["app"] == "weft"  # what the network policy goes by
        assert group["template"]["spec"]["securityContext"]["runAsNonRoot"] is True
        assert group["template"]["spec"]["enableServiceLinks"] is False


def test_ray_s_state_has_a_redis_of_its_own_and_calls_need_a_token() -> None:
    spec = manifest("RayService", "weft")["spec"]
    cluster = spec["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token"}
    options = cluster["gcsFaultToleranceOptions"]
    host = re.fullmatch(r"redis://([a-z-]+):6379", options["redisAddress"])
    assert host is not None
    assert options["redisPassword"]["valueFrom"].keys() == {"secretKeyRef"}
    for name in ("weft-gcs-redis", "weft-cache-redis"):
        assert manifest("Service", name)["spec"]["selector"] == {"app": name}
    assert host[1] == "weft-gcs-redis"
    # A second cluster beside the first would have a second writer.
    assert spec["upgradeStrategy"] == {"type": "None"}
    installed = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    assert installed is not None and cluster["rayVersion"] == installed[1]


def test_no_file_holds_a_password() -> None:
    names = ("cluster.yaml", "deploy/kuberay.yaml", "deploy/node.env", "Dockerfile", LOCAL, GPU)
    for name in names:
        text = (ROOT / name).read_text(encoding="utf-8")
        found = re.findall(r"://[^\s/'\"@]*:([^\s/'\"@]+)@", text)
        assert set(found) <= {"PASSWORD"}, name
        assert not re.search(r"(AKIA|BEGIN [A-Z ]*PRIVATE KEY|hf_[A-Za-z0-9]{20})", text), name
    for document in manifests():
        assert document["kind"] != "Secret"


# ------------------------------------------------------------------------------------------------- the image


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments), lines put together and comments left out."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    joined = text.replace("\\\n", " ").splitlines()
    found = [line.strip().partition(" ") for line in joined if line.strip()]
    return [(name, arguments.strip()) for name, _, arguments in found]


def test_the_image_is_built_from_what_the_package_needs() -> None:
    copied = [a.split()[:-1] for name, a in instructions() if name == "COPY" and "--from" not in a]
    assert {source for sources in copied for source in sources} == built_from()
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in ignored if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == built_from()


def test_the_image_installs_and_runs_as_nobody_special() -> None:
    found = instructions()
    assert {name for name, _ in found} <= {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "CMD"}
    arguments = dict(a.partition("=")[::2] for name, a in found if name == "ARG")
    assert set(arguments) == {"PYTHON_VERSION", "TORCH_INDEX"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    # Of the versions that `requires-python` allows.
    assert project["requires-python"] == ">=3.11,<3.13" and arguments["PYTHON_VERSION"] in ("3.11", "3.12")
    runs = [a for name, a in found if name == "RUN"]
    for run in runs:
        subprocess.run(["sh", "-nc", run], check=True)
    assert "--constraint constraints.txt" in runs[0] and '--extra-index-url "${TORCH_INDEX}"' in runs[0]
    after = [name for name, _ in found]
    users = [a for name, a in found if name == "USER"]
    assert users == ["1000"] and "--uid 1000" in runs[1]
    assert after.index("USER") > max(place for place, name in enumerate(after) if name in ("RUN", "COPY"))
    ((command, *_),) = (json.loads(a) for name, a in found if name == "CMD")
    assert command in project["scripts"]
    pod = groups()["head"]["template"]["spec"]["securityContext"]
    assert str(pod["runAsUser"]) == users[0]
