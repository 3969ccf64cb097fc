"""The cluster of cluster.yaml on this machine: every host in namespaces of its own, asked from outside.

`python -m tests.cluster.namespaces`, as root. It makes the nodes of cluster.yaml, a host with PostgreSQL and
Redis, and a client; starts Ray with the commands of the file, deploys serve_config.gpu.yaml, and visits the
service from the client. Then the node of the graph state is cut off, the client visits again, and the node
comes back with a graph state that has been replaced. GPUs are counted, not used: every model runs on the CPU.
What is not as in the files is listed below.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import hosts, servers
from tests.cluster.hosts import Host, Network
from tests.cluster.outside import DEADLINE_S
from tests.processes import wait_until
from tests.service import ROOT

CLUSTER = ROOT / "cluster.yaml"
CONFIG = ROOT / "serve_config.gpu.yaml"
READY_S = 180.0
RETURNED_S = 120.0
PORT = 8000

# What each host has for itself: Ray's sessions and addresses, HAProxy's configuration and sockets.
PRIVATE = ("/tmp/ray", "/tmp/haproxy-serve")
# In place of the file system that the cloud's nodes mount.
SHARED = "/mnt/weft"

# --- Not as in cluster.yaml -----------------------------------------------------------------------------
# There is no cloud to ask for machines, so no autoscaler, and every node is there before the deployment.
DROPPED = re.compile(r"--autoscaling-config=\S+")
# How many nodes of each type, and no smaller number of CPUs than the claims add up to.
NODES = {"cpu_worker": 2, "gpu_worker": 1}
# Ray takes up to 65 s to give up a node that is silent, which is long for a test.
QUICKER = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "2000"}
# --- Not as in serve_config.gpu.yaml ----------------------------------------------------------------------
# No CUDA here, which `auto` finds out, and models that load in seconds. Variables come before the file.
WITHOUT_CUDA = {
    "WEFT_GRAPH_ENCODER__DEVICE": "auto",
    "WEFT_TEXT_EMBEDDER__DEVICE": "auto",
    "WEFT_TEXT_EMBEDDER__BACKEND": "hashing",
    "WEFT_TEXT_EMBEDDER__MODEL": "hashing",
    "WEFT_LANGUAGE_MODEL__DEVICE": "auto",
    "WEFT_LANGUAGE_MODEL__NUM_THREADS": "1",
}

_FILL = """
import os, pathlib
from tests.small_store import make_small_store
store = make_small_store(pathlib.Path(os.environ["WEFT_DATA_DIR"]), os.environ["WEFT_STORE__URL"])
print(store.fans["space"][0])
"""
_ACTORS = """
import json, ray
from ray._private.state import actors
ray.init("auto", log_to_driver=False, logging_level="ERROR")
alive = [a for a in actors().values() if a["State"] == "ALIVE"]
print(json.dumps([[a["Name"] or a["ActorClassName"], a["Address"]["IPAddress"]] for a in alive]))
"""


def why_not() -> str | None:
    """What keeps this from running here; None if nothing does."""
    absent = [path.name for path in (CLUSTER, CONFIG) if not path.is_file()]
    if absent:
        return f"not there: {', '.join(absent)}"
    return hosts.why_not() or servers.why_not()


class Nodes:
    """The Ray nodes: a head and workers, started as cluster.yaml says."""

    def __init__(self, net: Network, shared: Path, secret_variables: dict[str, str]) -> None:
        self._file = yaml.safe_load(CLUSTER.read_text(encoding="utf-8"))
        self._secrets = secret_variables
        self._token = secrets.token_hex(32)
        mounts = {SHARED: shared}
        types = self._file["available_node_types"]
        head_type = self._file["head_node_type"]
        self.head = net.host("head", 10, PRIVATE, mounts)
        self.workers: dict[str, Host] = {}
        self._prepare(self.head)
        self._start(self.head, "head_start_ray_commands", types[head_type])
        with ThreadPoolExecutor(sum(NODES.values())) as pool:
            starting = []
            for kind in (kind for kind, number in NODES.items() for _ in range(number)):
                number = 1 + len(self.workers)
                host = net.host(f"{kind.replace('_', '-')}-{number}", 10 + number, PRIVATE, mounts)
                self.workers[host.address] = host
                self._prepare(host)
                starting.append(pool.submit(self._start, host, "worker_start_ray_commands", types[kind]))
        for started in starting:
            started.result()

    def environment(self) -> dict[str, str]:
        """What a login on a node finds; the rest is in the files that the start commands read."""
        binaries = Path(sys.executable).parent
        kept = {key: os.environ[key] for key in ("LANG", "OMP_NUM_THREADS") if key in os.environ}
        return (
            kept
            | QUICKER
            | WITHOUT_CUDA
            | {"PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        )

    def run(self, host: Host, command: str, timeout_s: float = 120.0) -> str:
        """Run a command with what the nodes' start commands read in its environment."""
        read = "set -a; . ~/weft/deploy/node.env; . ~/.weft-secrets.env; set +a"
        return host.run(["bash", "-c", f"{read}; {command}"], self.environment(), timeout_s).stdout

    def _prepare(self, host: Host) -> None:
        """What `file_mounts` brings to a node."""
        (host.home / "weft").symlink_to(ROOT)
        (host.home / ".ray").mkdir()
        (host.home / ".ray" / "auth_token").write_text(self._token, encoding="ascii")
        lines = [f"{name}='{value}'" for name, value in self._secrets.items()]
        (host.home / ".weft-secrets.env").write_text("\n".join(lines) + "\n", encoding="ascii")
        for path in (host.home / ".ray" / "auth_token", host.home / ".weft-secrets.env"):
            path.chmod(0o600)

    def _start(self, host: Host, commands: str, node_type: dict[str, Any]) -> None:
        # As Ray's launcher does: the head's address and the type's resources in the environment.
        variables = {
            "RAY_HEAD_IP": self.head.address,
            "RAY_OVERRIDE_RESOURCES": json.dumps(node_type["resources"]),
        }
        for command in self._file[commands]:
            host.run(["bash", "-c", DROPPED.sub("", command)], self.environment() | variables)


def deploy(nodes: Nodes) -> None:
    """`serve deploy`, and wait for the application to run; raises what Serve says of one that does not."""
    nodes.run(nodes.head, f"serve deploy {CONFIG}")

    def running() -> bool:
        status = yaml.safe_load(nodes.run(nodes.head, "serve status"))
        application = status["applications"].get("weft", {})
        assert application.get("status") not in ("DEPLOY_FAILED", "UNHEALTHY"), yaml.safe_dump(status)
        return application.get("status") == "RUNNING"

    try:
        wait_until(running, READY_S, "the application runs")
    except AssertionError as error:
        error.add_note(nodes.run(nodes.head, "serve status"))
        raise


def placement(nodes: Nodes) -> dict[str, set[str]]:
    """Hosts by the deployment or actor that they run, as Ray has it."""
    names = {nodes.head.address: nodes.head.name} | {a: host.name for a, host in nodes.workers.items()}
    found: dict[str, set[str]] = {}
    printed = nodes.run(nodes.head, f"python -c {shlex.quote(_ACTORS)}")
    for name, address in json.loads(printed.splitlines()[-1]):
        short = name.split("#")[1] if name.startswith("SERVE_REPLICA::") else name
        found.setdefault(short, set()).add(names[address])
    return found


def assert_placed(found: dict[str, set[str]]) -> None:
    """Writer and head as cluster.yaml has them, everything that shares the card on the node with the card."""
    (card,) = found["LanguageModel"]
    assert card.startswith("gpu-worker"), found
    assert found["GraphEncoder"] == found["TextEmbedder"] == {card}, found
    (state,) = found["graph_state"]
    assert state.startswith("cpu-worker"), found
    parts = ("GraphKeeper", "Retriever", "TextIndexer", "Ingress", "graph_state")
    assert not any("head" in found[part] for part in parts), found


class Client:
    """Somebody outside the cluster, who knows an address and a key."""

    def __init__(self, host: Host, api_key: str) -> None:
        self._host = host
        self._environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "OUTSIDE_KEY": api_key,
        }

    def do(self, node: Host, *arguments: str) -> str:
        """Run `tests.cluster.outside` against the service's port on a node; what it printed."""
        command = [sys.executable, "-m", "tests.cluster.outside", *arguments]
        environment = self._environment | {"OUTSIDE_URL": f"http://{node.address}:{PORT}"}
        return self._host.run(command, environment, DEADLINE_S + 60).stdout.rstrip()


def main() -> None:
    reason = why_not()
    if reason is not None:
        raise SystemExit(f"skipped: {reason}")
    folder = Path(tempfile.mkdtemp(prefix="weft-hosts-"))
    folder.chmod(0o755)  # PostgreSQL runs as a user of its own
    try:
        with hosts.network(folder) as net:
            run(net, folder)
    except BaseException as error:
        error.add_note(logs(folder))
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(net: Network, folder: Path) -> None:
    """Everything, from the first host to the last visit; says what it does and when."""
    began = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {what}", flush=True)

    store = net.host("store", 20)
    secret_variables = {
        "WEFT_STORE__URL": servers.start_postgres(store),
        "WEFT_CACHE__URL": servers.start_redis(store),
    }
    say(f"PostgreSQL and Redis on {store.address}")
    shared = folder / "shared"
    shared.mkdir()
    nodes = Nodes(net, shared, secret_variables)
    say(f"Ray on {nodes.head.address} (head), {', '.join(nodes.workers)}")
    fan = nodes.run(nodes.head, f"python -c {shlex.quote(_FILL)}").split()[-1]
    made = nodes.run(nodes.head, "weft keys create admin --json")
    api_key = json.loads(made[made.index("{") :])["key"]
    say("items, ratings, encoders and a key are in the store")
    deploy(nodes)
    say("the application runs")
    found = placement(nodes)
    assert_placed(found)
    for name, where in sorted(found.items()):
        print(f"{'':10}{name}: {', '.join(sorted(where))}")
    client = Client(net.host("client", 30), api_key)
    for node in (nodes.head, *nodes.workers.values()):
        if node is nodes.head or node.name in found["Ingress"]:
            client.do(node, "ready")
            print(client.do(node, "visit", fan))
            say(f"visited through {node.name}")

    # A command on a node finds the service that holds the store, and goes through it.
    listed = nodes.run(nodes.head, f"WEFT_API_KEY={api_key} weft keys list --json")
    (key,) = json.loads(listed[listed.index("[") :])
    assert (key["role"], key["key_id"]) == ("admin", api_key.partition(".")[0]), key

    (state,) = found["graph_state"]
    (lost,) = (host for host in nodes.workers.values() if host.name == state)
    lost.unplug()
    say(f"{lost.name} is off the network, and with it the graph state")
    print(client.do(nodes.head, "write"))
    client.do(nodes.head, "ready")
    print(client.do(nodes.head, "visit", fan))
    found = placement(nodes)
    assert_placed(found)
    assert found["graph_state"] != {lost.name}
    say(f"the graph state is on {', '.join(found['graph_state'])}; visited again")

    assert writers_on(lost), "the old one has heard of nothing"
    lost.plug_in()
    wait_until(lambda: not writers_on(lost), RETURNED_S, "end of the graph state that was replaced")
    say(f"{lost.name} is back, and its graph state has left")
    print(client.do(nodes.head, "write"))
    say("written again")


def writers_on(host: Host) -> list[str]:
    """Command lines of graph states that run on a host."""
    lines = host.run(["ps", "-e", "-o", "args"], {"PATH": os.environ["PATH"]}).stdout.splitlines()
    return [line for line in lines if "ClusterGraphState" in line]


def logs(folder: Path) -> str:
    """The end of what Ray's and Serve's processes logged on each host."""
    found = [p for p in folder.rglob("*") if p.match("logs/serve/*.log") or p.match("logs/worker-*.err")]
    parts = []
    for path in sorted(found, key=lambda p: p.stat().st_mtime)[-24:]:
        text = path.read_text(encoding="utf-8", errors="replace")
        if len(text.splitlines()) > 2:  # more than Ray's two lines of who it is
            parts.append(f"--- {path.relative_to(folder)}\n{text[-3000:]}")
    return "\n".join(parts)


if __name__ == "__main__":
    main()
