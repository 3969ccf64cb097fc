"""How the rest of the application reaches the graph state actor: by name, across its restarts."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError, RayTaskError

import graph
from deployments import request_ids
from deployments.graph_state import FollowerReport, GraphState, Outcome, Tail
from deployments.metrics_export import export_graph_state
from deployments.settings import Settings
from graph.errors import InvalidInput, OutcomeUnknown, SnapshotRequired, Unavailable
from graph.schema import ALL_KINDS, ChangeSet, Kind, Pointer, WriteRequest
from graph.store_backends import SQLite, backend_of

NAMESPACE = "weft"
ACTOR_NAME = "graph_state"
_RETRY_S = 0.1
_STATUS_TIMEOUT_S = 10.0
_RECOVERY_TIMEOUT_S = 300.0

log = logging.getLogger(__name__)


class GraphStateClient(Protocol):
    """The calls of `GraphState`, wherever it runs."""

    async def write(self, requests: list[WriteRequest]) -> list[Outcome]: ...

    async def tail(
        self, report: FollowerReport, kinds: frozenset[Kind] = ALL_KINDS, timeout_s: float = 10.0
    ) -> Tail: ...

    def changes_since(
        self, version: int, kinds: frozenset[Kind] = ALL_KINDS
    ) -> AsyncIterator[ChangeSet | SnapshotRequired]: ...

    async def forget(self, follower_id: str) -> None: ...

    async def reports(self) -> Sequence[FollowerReport]: ...

    async def pointer_history(self, scope: str, name: str) -> Sequence[Pointer]: ...

    async def status(self) -> dict[str, Any]: ...

    async def ping(self) -> int: ...

    async def close(self) -> None: ...


class RemoteGraphState:
    """The actor of that name. While it is away, calls raise Unavailable; the next one looks it up again.

    A call that raises Unavailable may have been executed.
    """

    def __init__(self) -> None:
        self._actor: Any = None

    async def write(self, requests: list[WriteRequest]) -> list[Outcome]:
        answer: list[Outcome] = await self._call("write", requests, request_ids.current())
        return answer

    async def write_through_restarts(self, requests: list[WriteRequest], timeout_s: float) -> list[Outcome]:
        """Like `write`, repeating while the actor is away; every request must carry an idempotency key.

        Raises OutcomeUnknown after `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return await asyncio.wait_for(self.write(requests), max(0.1, deadline - time.monotonic()))
            except (Unavailable, TimeoutError):
                if time.monotonic() + _RETRY_S >= deadline:
                    raise OutcomeUnknown(
                        "the graph state did not answer in time; whether the write happened is unknown: "
                        "repeat it with the same Idempotency-Key"
                    ) from None
            await asyncio.sleep(_RETRY_S)

    async def tail(
        self, report: FollowerReport, kinds: frozenset[Kind] = ALL_KINDS, timeout_s: float = 10.0
    ) -> Tail:
        answer: Tail = await self._call("tail", report, kinds, timeout_s)
        return answer

    async def changes_since(
        self, version: int, kinds: frozenset[Kind] = ALL_KINDS
    ) -> AsyncIterator[ChangeSet | SnapshotRequired]:
        try:
            stream = self._handle().changes_since.options(num_returns="streaming").remote(version, kinds)
            async for reference in stream:
                yield await reference
        except RayTaskError as error:
            _raise_if_away(error)
            raise
        except (ActorDiedError, ActorUnavailableError) as error:
            raise self._lost(error) from error

    async def forget(self, follower_id: str) -> None:
        await self._call("forget", follower_id)

    async def reports(self) -> Sequence[FollowerReport]:
        answer: Sequence[FollowerReport] = await self._call("reports")
        return answer

    async def pointer_history(self, scope: str, name: str) -> Sequence[Pointer]:
        answer: Sequence[Pointer] = await self._call("pointer_history", scope, name)
        return answer

    async def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = await self._call("status")
        return answer

    async def ping(self) -> int:
        answer: int = await self._call("ping")
        return answer

    async def close(self) -> None:
        await self._call("close")

    async def _call(self, method: str, *args: object) -> Any:
        try:
            return await getattr(self._handle(), method).remote(*args)
        except RayTaskError as error:
            _raise_if_away(error)
            raise  # a defect in the actor, not its absence
        except RayError as error:
            raise self._lost(error) from error

    def _handle(self) -> Any:
        if self._actor is None:
            try:
                self._actor = ray.get_actor(ACTOR_NAME, namespace=NAMESPACE)
            except ValueError:
                raise Unavailable("the graph state is not running yet") from None
        return self._actor

    def _lost(self, error: Exception) -> Unavailable:
        if isinstance(error, ActorDiedError):
            self._actor = None  # the next incarnation has another id
        return Unavailable(f"the graph state is restarting ({type(error).__name__})")


def _raise_if_away(error: RayTaskError) -> None:
    """Raise what the actor raised because its store does not answer."""
    if isinstance(error.cause, Unavailable):
        raise error.cause from error


def check_nodes(settings: Settings, nodes: Sequence[Mapping[str, Any]]) -> None:
    """Raise InvalidInput where the graph state cannot live on the nodes that `ray.nodes()` lists.

    With a SQLite store on several: wherever it starts anew it would open another file, or one that two
    nodes lock differently. With a claim that none meets and none will come to meet: Ray would wait for one.
    """
    alive = sum(bool(node["Alive"]) for node in nodes)
    if alive > 1 and isinstance(backend_of(settings.store_url), SQLite):
        raise InvalidInput(
            f"the Ray cluster has {alive} nodes and the store is SQLite, which serves one: set "
            "WEFT_STORE__URL to a PostgreSQL database, as in postgresql://USER:PASSWORD@HOST/DATABASE",
            param="store.url",
        )
    wanted = settings.graph_state.resources
    if not wanted or settings.cluster.grows:
        return
    there = [node["Resources"] for node in nodes if node["Alive"]]
    if not any(all(has.get(name, 0) >= amount for name, amount in wanted.items()) for has in there):
        claim = ", ".join(f"{amount:g} {name}" for name, amount in wanted.items())
        raise InvalidInput(
            f"the graph state claims {claim}, and no node of the cluster has it: start a node with it "
            "(ray start --resources), or leave WEFT_GRAPH_STATE__RESOURCES out",
            param="graph_state.resources",
        )


class ClusterGraphState(GraphState):
    """The actor. Wherever Ray starts it, also for the second time, it looks whether it may run there."""

    def __init__(self, settings: Settings, code_version: str = "") -> None:
        check_nodes(settings, ray.nodes())
        super().__init__(settings, code_version)
        export_graph_state(self.measure, settings.metrics.interval_s)


def code_version() -> str:
    """Digest of the code the actor runs: a redeploy with other code must not find the old actor."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    domain = sorted(Path(graph.__file__).parent.glob("*.py"))
    mine = (
        *("graph_client.py", "graph_state.py", "encoder_pointers.py"),
        *("settings.py", "setting_groups.py", "cluster_settings.py", "gpu_settings.py", "cache_address.py"),
        *("metrics.py", "metric_types.py", "metrics_export.py", "write_metrics.py", "waiting_writes.py"),
        *("replica_logging.py", "request_ids.py", "slow_calls.py"),
    )
    for path in (*(here / name for name in mine), *domain):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def start_graph_state(settings: Settings) -> None:
    """Make sure that the named actor runs with this code and these settings, replacing another.

    The only place that creates the actor. Blocks until it has recovered; raises what its start raised.
    """
    check_nodes(settings, ray.nodes())
    # What the actor reads, and no more: another setting must not cost a pause of all writes. JSON hides where
    # the store is.
    read = settings.model_dump_json(include={"data_dir", "store", "graph_state", "http", "metrics", "log"})
    known = code_version() + read + settings.store_url
    wanted = hashlib.sha256(known.encode()).hexdigest()[:16]
    if _usable(wanted):
        return
    actor = (
        ray.remote(ClusterGraphState)
        .options(
            name=ACTOR_NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=settings.graph_state.num_cpus,
            resources=settings.graph_state.resources,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=1_000,
        )
        .remote(settings, wanted)
    )
    ray.get(actor.ping.remote(), timeout=_RECOVERY_TIMEOUT_S)


def _usable(wanted: str) -> bool:
    """Whether the actor that is there runs `wanted` and takes writes; any other is ended."""
    try:
        actor = ray.get_actor(ACTOR_NAME, namespace=NAMESPACE)
    except ValueError:
        return False
    try:
        status = ray.get(actor.status.remote(), timeout=_STATUS_TIMEOUT_S)
        if status["code_version"] == wanted and not status["closed"]:
            return True
        ray.get(actor.close.remote(), timeout=_RECOVERY_TIMEOUT_S)
    except RayError as error:
        # Hung, broken or too old to ask: nothing is lost with it, the store has every acknowledged write.
        log.warning("the graph state that was there is replaced: %s", error)
    ray.kill(actor)
    return False
