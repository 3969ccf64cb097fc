"""A graph state on SQLite whose cluster gets a second node; prints who refuses what, in a process of its own.

`python -m tests.cluster.second_node`, with the settings in the environment.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import Any

from deployments.settings import Settings
from graph.errors import InvalidInput

_DIED_S = 60.0


def main() -> None:
    settings = Settings()
    folder = tempfile.mkdtemp(prefix="weft-")
    # Before Ray is imported, which reads them then.
    os.environ["RAY_TMPDIR"] = folder
    os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)
    try:
        print(json.dumps(_refusals(settings)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _refusals(settings: Settings) -> dict[str, str]:
    import ray
    from ray.cluster_utils import Cluster
    from ray.exceptions import ActorDiedError, ActorUnavailableError

    from deployments.app import build
    from deployments.graph_client import ACTOR_NAME, NAMESPACE, start_graph_state

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    ray.init(cluster.address, namespace="weft", log_to_driver=False, logging_level="ERROR")
    try:
        build(settings)
        start_graph_state(settings)
        actor = ray.get_actor(ACTOR_NAME, namespace=NAMESPACE)
        cluster.add_node(num_cpus=4)
        found = {
            "build": _refused(lambda: build(settings)),
            "start": _refused(lambda: start_graph_state(settings)),
            "running": ray.get(actor.status.remote())["store_id"],
        }
        ray.kill(actor, no_restart=False)
        deadline = time.monotonic() + _DIED_S
        while time.monotonic() < deadline:
            try:
                ray.get(actor.ping.remote(), timeout=10)
                time.sleep(0.1)  # the kill has not reached it
            except ActorDiedError as error:
                return found | {"restart": str(error)}
            except ActorUnavailableError:
                time.sleep(0.1)
        return found | {"restart": "it lives"}
    finally:
        ray.shutdown()
        cluster.shutdown()


def _refused(call: Callable[[], Any]) -> str:
    try:
        call()
    except InvalidInput as error:
        return f"{error.param}: {error.message}"
    return "not refused"


if __name__ == "__main__":
    main()
