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

import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import httpx

from benchmarks.http_load import LoadResult, load
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
        "livez": ["/livez"],
        "two_hops": ["/noop/plain"],
        "two_hops_coalesced": ["/noop/coalesced"],
        "recommendations": recommendations,
    }
    figures: dict[str, Any] = {}
    for connections in CONNECTIONS:
        found: dict[str, list[LoadResult]] = {name: [] for name in endpoints}
        for round_ in range(ROUNDS + 1):
            for name, paths in endpoints.items():
                result = load(host, port, paths, connections=connections, seconds=SECONDS)
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


async def writes(url: str, users: Sequence[str], items: Sequence[str]) -> dict[str, Any]:
    """Writes per second, and from acknowledgement to the first read that shows the write."""
    figures: dict[str, Any] = {}
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits, trust_env=False) as http:
        place = 0

        async def rate() -> tuple[str, float]:
            nonlocal place
            place += 1
            body = {
                "user_id": users[place % len(users)],
                "item_id": items[place * 7 % len(items)],
                "value": 0.5 + place % 10 / 2,
                "timestamp": place,
            }
            start = time.perf_counter()
            answer = (await http.post("/v1/ratings", json=body)).raise_for_status().json()
            return str(answer["version"]), time.perf_counter() - start

        async def writer(until: float) -> list[float]:
            times = []
            while time.perf_counter() < until:
                times.append((await rate())[1])
            return times

        for connections in CONNECTIONS:
            await writer(time.perf_counter() + 0.5)
            start = time.perf_counter()
            found = await asyncio.gather(*(writer(start + 5.0) for _ in range(connections)))
            times = [t for part in found for t in part]
            figures[f"single_{connections}_connections"] = {
                "per_s": round(len(times) / (time.perf_counter() - start)),
                "ms": percentiles([t * 1e3 for t in times]),
            }
        bulk = []
        for n in range(8):
            rows = [
                {
                    "user_id": users[k % len(users)],
                    "item_id": items[(k // len(users) + 31 * n) % len(items)],
                    "value": 0.5 + (k + n) % 10 / 2,
                    "timestamp": k + n + 1,
                }
                for k in range(5000)
            ]
            start = time.perf_counter()
            (await http.post("/v1/ratings", json={"ratings": rows})).raise_for_status()
            bulk.append(5000 / (time.perf_counter() - start))
        figures["bulk_ratings_per_s"] = spread(bulk)
        visible = []
        for _ in range(300):
            token, _ = await rate()
            acknowledged = time.perf_counter()
            headers = {"x-weft-min-version": token}
            (await http.get(f"/v1/users/{users[0]}", headers=headers)).raise_for_status()
            visible.append((time.perf_counter() - acknowledged) * 1e3)
        plain = []
        for _ in range(300):
            start = time.perf_counter()
            (await http.get(f"/v1/users/{users[1]}")).raise_for_status()
            plain.append((time.perf_counter() - start) * 1e3)
        figures["read_of_the_write_after_ack_ms"] = percentiles(visible)
        figures["same_read_without_a_write_ms"] = percentiles(plain)
    return figures


def main() -> None:
    from deployments.cli import prepare
    from deployments.launcher import running
    from deployments.settings import Settings

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
            figures["writes"] = asyncio.run(writes(settings.url, users, items))
            write("service", figures)


if __name__ == "__main__":
    main()
