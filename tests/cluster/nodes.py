"""The application on a Ray cluster of several nodes of this machine, in a process of its own.

`python -m tests.cluster.nodes SOCKET WORKERS` starts a head node that takes no work and as many worker nodes,
all but the first with the resource that the graph state claims, deploys the application of the settings in
the environment, says "Ctrl-C stops it." when it answers, and does what `NodesClient` asks for until then. All
nodes have this machine's address; HAProxy runs on the head.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

import httpx

from deployments.launcher import proxy_environment
from deployments.settings import Settings
from tests.processes import NO_MARK, family

HEAD = "head"
GRAPH_STATE = "graph_state"  # the actor, and the resource of the workers that it may run on
CPUS_PER_WORKER = 16  # logical: claims are for placing, and the machine has what it has
_ANSWER_S = 60.0
_READY_S = 120.0


@dataclass(frozen=True, slots=True)
class Placed:
    """An actor that is alive, and the node it is on."""

    name: str  # of a replica: what it is a replica of
    node: str
    actor_id: str


class NodesClient:
    """What a test asks the process that holds the cluster."""

    def __init__(self, socket: Path) -> None:
        self._socket = str(socket)

    def actors(self) -> list[Placed]:
        """Every actor that Ray takes for alive."""
        return [Placed(*entry) for entry in self._ask("actors")]

    def replicas(self, deployment: str) -> list[Placed]:
        return [actor for actor in self.actors() if actor.name == deployment]

    def kill(self, node: str) -> None:
        """End all processes of a worker node at once, as when its machine goes down."""
        self._ask("kill", node)

    def _ask(self, *command: str) -> Any:
        with Client(self._socket, "AF_UNIX") as connection:
            connection.send(command)
            assert connection.poll(_ANSWER_S), f"{command}: no answer within {_ANSWER_S:g} s"
            answer = connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


def main(socket: str, workers: int) -> None:
    settings = Settings()
    folder = Path(tempfile.mkdtemp(prefix="weft-"))
    # Before Ray is imported, which reads them then.
    os.environ.update(proxy_environment(folder, settings.http.port))
    os.environ["RAY_TMPDIR"] = str(folder)  # the address that `ray.init()` finds by itself is not this one's
    os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)
    try:
        _serve(settings, socket, workers)
    except KeyboardInterrupt:
        pass
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _serve(settings: Settings, socket: str, workers: int) -> None:
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    from deployments.app import build

    head = {"num_cpus": 0, "include_dashboard": False, "node_name": HEAD}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = {
        f"worker-{n}": cluster.add_node(
            num_cpus=CPUS_PER_WORKER, node_name=f"worker-{n}", resources={GRAPH_STATE: 1} if n else {}
        )
        for n in range(workers)
    }
    ray.init(cluster.address, namespace="weft", log_to_driver=False, logging_level="ERROR")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        names = {node["NodeID"]: node["NodeName"] for node in ray.nodes()}
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": settings.http.host, "port": settings.http.port},
            logging_config={"enable_access_log": False},
        )
        serve.run(build(settings), name="weft", logging_config={"enable_access_log": False})
        _wait_until_ready(settings.url)
        with Listener(socket, "AF_UNIX") as listener:
            print("Ctrl-C stops it.", flush=True)
            while True:
                with listener.accept() as connection:
                    try:
                        connection.send(_obey(cluster, nodes, names, *connection.recv()))
                    except Exception as error:
                        connection.send(error)
    finally:
        ray.shutdown()
        cluster.shutdown()


def _obey(cluster: Any, nodes: dict[str, Any], names: dict[str, str], command: str, *arguments: str) -> Any:
    from ray._private.ray_constants import PROCESS_TYPE_RAYLET
    from ray._private.state import actors

    if command == "kill":
        node = nodes.pop(arguments[0])
        (raylet,) = node.all_processes[PROCESS_TYPE_RAYLET]
        # Removing a node ends what holds it together; its workers would notice, and go on until then.
        for process in family(raylet.process.pid, NO_MARK):
            os.kill(process.pid, signal.SIGKILL)
        cluster.remove_node(node, allow_graceful=False)
        return None
    assert command == "actors"
    return [
        (_short(entry), names[entry["Address"]["NodeID"]], actor_id)
        for actor_id, entry in actors().items()
        if entry["State"] == "ALIVE"
    ]


def _short(entry: dict[str, Any]) -> str:
    """SERVE_REPLICA::weft#GraphEncoder#7x is GraphEncoder; nameless actors go by their class."""
    name = entry["Name"] or entry["ActorClassName"]
    return name.split("#")[1] if name.startswith("SERVE_REPLICA::") else name


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + _READY_S
    last = "no answer"
    while time.monotonic() < deadline:
        try:
            answer = httpx.get(f"{url}/readyz", timeout=5.0, trust_env=False)
            if answer.status_code == 200:
                return
            last = answer.text
        except httpx.HTTPError as error:
            last = str(error)
        time.sleep(0.1)
    raise SystemExit(f"not ready within {_READY_S:g} s: {last}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
