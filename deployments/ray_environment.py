"""Variables that Ray has to find on every node before it starts, for it reads them when it is imported.

`weft run` sets them for its own node. Files that start nodes elsewhere (deploy/node.env, deploy/kuberay.yaml)
repeat them, and a test compares.
"""

from __future__ import annotations

EVERY_NODE: dict[str, str] = {
    # Both or neither: without the proxy, the optimised settings force a head-only Python proxy.
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # Many users with many items each in one answer: 27 with 1,000 reach gRPC's own limit of 4 MiB.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(128 << 20),
    # Replicas answer users: Ray would run them at nice 15, behind everything else on the machine.
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
