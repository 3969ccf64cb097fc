"""The running service over HTTP, beside the limits of its own stack, in one run.

    python -m benchmarks.service

Endpoints take turns for several rounds; every ratio is between neighbours of the same round.
  livez        the ingress answers without asking anybody: the ceiling of proxy, ingress and client together
  two hops     an empty application of the same shape (ingress, deployment, deployment), plain handle calls
  two hops, coalesced   the same with the batching that Weft's ingress uses
  recommendations       10 items with reasons
Then writes (one at a time, 32 at a time, bulk) and how long after its acknowledgement a write can be read.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import httpx

from benchmarks.http_load import LoadResult, get, load, post
from benchmarks.report import percentiles, spread, write

ROUNDS, SECONDS = 5, 4.0
CONNECTIONS = (1, 32)


def noop_application() -> Any:
    """Ingress -> Middle -> Leaf, each doing nothing."""
    from fastapi import FastAPI
    from ray import serve
    from ray.serve.handle import DeploymentHandle
    from starlette.responses import Response

    from deployments.coalescing import Coalescer

    api = FastAPI()
    options = {"ray_actor_options": {"num_cpus": 0.1}, "max_ongoing_requests": 512}

    @serve.deployment(**options)
    class Leaf:
        async def answer(self, items: list[int]) -> list[int]:
            return items

    @serve.deployment(**options)
    class Middle:
        def __init__(self, leaf: DeploymentHandle) -> None:
            self.leaf = leaf

        async def answer(self, items: list[int]) -> list[int]:
            return await self.leaf.answer.remote(items)

    @serve.deployment(**options)
    @serve.ingress(api)
    class NoopIngress:
        def __init__(self, middle: DeploymentHandle) -> None:
            async def send(items: list[int]) -> list[int]:
                return await middle.answer.remote(items)

            self.middle, self.coalescer = middle, Coalescer(send)

        @api.get("/plain")
        async def plain(self) -> Response:
            await self.middle.answer.remote([1])
            return Response(b"{}", media_type="application/json")

        @api.get("/coalesced")
        async def coalesced(self) -> Response:
            await self.coalescer.call(1)
            return Response(b"{}", media_type="application/json")

    return NoopIngress.bind(Middle.bind(Leaf.bind()))


def reads(host: str, port: int, recommendations: Sequence[str]) -> dict[str, Any]:
    endpoints = {
        "livez": [get("/livez")],
        "two_hops": [get("/noop/plain")],
        "two_hops_coalesced": [get("/noop/coalesced")],
        "recommendations": [get(path) for path in recommendations],
    }
    figures: dict[str, Any] = {}
    for connections in CONNECTIONS:
        found: dict[str, list[LoadResult]] = {name: [] for name in endpoints}
        for round_ in range(ROUNDS + 1):
            for name, requests in endpoints.items():
                result = load(host, port, requests, connections=connections, seconds=SECONDS)
                if round_:  # the first warms up
                    found[name].append(result)
        ours = found.pop("recommendations")
        figures[f"{connections}_connections"] = {
            "recommendations": _summary(ours),
            **{name: _summary(results) for name, results in found.items()},
            "rate_over": {
                name: spread([a.rate / b.rate for a, b in zip(ours, results, strict=True)])
                for name, results in found.items()
            },
            "p50_over": {
                name: spread([a.p50_ms / b.p50_ms for a, b in zip(ours, results, strict=True)])
                for name, results in found.items()
            },
        }
    return figures


def _summary(results: Sequence[LoadResult]) -> dict[str, Any]:
    return {
        "per_s": spread([r.rate for r in results]),
        "p50_ms": spread([r.p50_ms for r in results]),
        "p99_ms": spread([r.p99_ms for r in results]),
        "errors": sum(r.errors for r in results),
    }


def writes(host: str, port: int, users: Sequence[str], items: Sequence[str]) -> dict[str, Any]:
    """Writes per second, and from acknowledgement to the first read that shows the write."""
    rng = random.Random(0)
    figures: dict[str, Any] = {}

    def rating() -> dict[str, object]:
        return {
            "user_id": rng.choice(users),
            "item_id": rng.choice(items),
            "value": rng.randint(1, 10) / 2,
            "timestamp": rng.randint(1, 2**31),  # never what is there already: each is a change
        }

    for connections in CONNECTIONS:
        requests = [post("/v1/ratings", rating()) for _ in range(30_000)]
        found = [
            load(host, port, requests, connections=connections, seconds=SECONDS) for _ in range(ROUNDS + 1)
        ]
        figures[f"single_{connections}_connections"] = _summary(found[1:])
    with httpx.Client(base_url=f"http://{host}:{port}", timeout=30, trust_env=False) as http:
        bulk = []
        for n in range(8):
            pairs = rng.sample(range(len(users) * len(items)), 5000)
            rows = [
                {
                    **rating(),
                    "user_id": users[p % len(users)],
                    "item_id": items[p // len(users)],
                    "timestamp": n + 1,
                }
                for p in pairs
            ]
            start = time.perf_counter()
            http.post("/v1/ratings", json={"ratings": rows}).raise_for_status()
            bulk.append(5000 / (time.perf_counter() - start))
        figures["bulk_ratings_per_s"] = spread(bulk)
        after_write, without = [], []
        path = f"/v1/users/{users[0]}"
        for _ in range(300):
            token = http.post("/v1/ratings", json=rating()).raise_for_status().json()["version"]
            start = time.perf_counter()
            http.get(path, headers={"x-weft-min-version": token}).raise_for_status()
            after_write.append((time.perf_counter() - start) * 1e3)
            start = time.perf_counter()
            http.get(path).raise_for_status()
            without.append((time.perf_counter() - start) * 1e3)
    figures["read_at_the_written_version_after_ack_ms"] = percentiles(after_write)
    figures["same_read_without_waiting_ms"] = percentiles(without)
    return figures


def main() -> None:
    from deployments.cli import prepare
    from deployments.launcher import running
    from deployments.settings import Settings

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WEFT_DATA_DIR"] = folder
        settings = Settings()
        prepare(settings, None)
        start = time.perf_counter()
        with running(settings):
            ready = time.perf_counter() - start
            from ray import serve

            serve.run(noop_application(), name="noop", route_prefix="/noop")
            with httpx.Client(base_url=settings.url, trust_env=False) as http:
                users = [u["user_id"] for u in http.get("/v1/users?limit=900").json()["users"]]
                items = [i["item_id"] for i in http.get("/v1/items?limit=1000").json()["items"]]
            paths = [f"/v1/users/{user}/recommendations?n=10" for user in users]
            figures: dict[str, Any] = {"start_s": round(ready, 1), "catalogue": {"users": 900, "items": 1200}}
            figures |= reads(settings.http.host, settings.http.port, paths)
            figures["writes"] = writes(settings.http.host, settings.http.port, users, items)
            write("service", figures)


if __name__ == "__main__":
    main()
