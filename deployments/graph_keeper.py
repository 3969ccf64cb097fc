"""Looks after the graph state: starts it, replaces it when it hangs, and changes encoder generations."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence

import ray
from ray._private.state import actors
from ray.exceptions import RayError

from deployments import metrics
from deployments.encoder_pointers import ACTIVE, CANDIDATE, SCOPE
from deployments.generations import load_generation
from deployments.graph_client import ACTOR_NAME, NAMESPACE, RemoteGraphState, start_graph_state
from deployments.graph_state import FollowerReport
from deployments.messages import EncoderInfo
from deployments.settings import Settings
from graph.errors import Conflict, Corrupt, InvalidInput, Unavailable, UnknownEncoder, WeftError
from graph.schema import PutPointer, WriteRequest, WriteResult

log = logging.getLogger(__name__)

ACTIVATION_TIMEOUT_S = 120.0
_POLL_S = 0.05


class GraphKeeper:
    """One replica. Construction blocks until the graph state has recovered."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        start_graph_state(settings)
        self._state = RemoteGraphState()
        self._changing = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None
        self.replaced = 0

    async def start(self) -> None:
        self._watch = asyncio.create_task(self._watch_writer())

    def check_health(self) -> None:
        """Called by Serve; raises to be replaced."""
        if self._watch is not None and self._watch.done():
            raise RuntimeError("the watchdog of the graph state has stopped")

    def measure(self) -> None:
        """Set the metrics that are not counted as they happen. Thread-safe."""
        metrics.WRITERS_REPLACED.follow(self.replaced)

    async def status(self) -> dict[str, int]:
        return {"writers_replaced": self.replaced}

    # ----------------------------------------------------------------------------------------- the watchdog

    async def _watch_writer(self) -> None:
        """Ray restarts a process that died, but not one that no longer runs: that one is killed here."""
        limits = self._settings.graph_state
        missed, incarnation = 0, await asyncio.to_thread(self._incarnation)
        while True:
            await asyncio.sleep(limits.ping_interval_s)
            try:
                await asyncio.wait_for(self._state.ping(), limits.ping_interval_s)
                missed = 0
            except TimeoutError:
                found = await asyncio.to_thread(self._incarnation)
                # Calls hang while Ray brings the actor up, and killing it then would start that over: only
                # pings that one living incarnation leaves unanswered count.
                missed = missed + 1 if found is not None and found == incarnation else 0
                incarnation = found
                log.warning("the graph state does not answer: %d of %d pings", missed, limits.missed_pings)
            except Unavailable:
                # Restarting by itself, or gone for good: then there is nothing to restart.
                missed = 0
                await asyncio.to_thread(self._start_if_gone)
            if missed >= limits.missed_pings:
                log.error("the graph state hangs: replacing it")
                await asyncio.to_thread(self._kill)
                self.replaced += 1
                missed = 0
                await self._recovered(time.monotonic() + 60.0)

    def _start_if_gone(self) -> None:
        try:
            ray.get_actor(ACTOR_NAME, namespace=NAMESPACE)
        except ValueError:
            log.error("the graph state is gone: starting it again")
            try:
                start_graph_state(self._settings)
            except (RayError, WeftError) as error:
                # As long as its store does not answer, say; the next unanswered ping leads here again.
                log.error("the graph state could not be started: %s", error)

    @staticmethod
    def _incarnation() -> tuple[str, int] | None:
        """Which actor is alive and how often it was restarted; None while there is none or it is starting."""
        try:
            actor = ray.get_actor(ACTOR_NAME, namespace=NAMESPACE)
        except ValueError:
            return None
        # Ray's public way to ask needs the dashboard's server, which does not run here.
        found = actors(actor._actor_id.hex())
        return (found["ActorID"], found["NumRestarts"]) if found.get("State") == "ALIVE" else None

    @staticmethod
    def _kill() -> None:
        try:
            ray.kill(ray.get_actor(ACTOR_NAME, namespace=NAMESPACE), no_restart=False)
        except ValueError:
            log.info("the graph state was gone before it could be killed")

    async def _recovered(self, deadline: float) -> None:
        """Wait for the new incarnation: pinging it while it recovers would get it killed too."""
        while time.monotonic() < deadline:
            try:
                await asyncio.wait_for(self._state.ping(), 1.0)
                return
            except (Unavailable, TimeoutError):
                await asyncio.sleep(_POLL_S)

    # ----------------------------------------------------------------------------------- encoder generations

    async def encoders(self) -> list[EncoderInfo] | WeftError:
        """Every encoder in the data directory, in no particular order."""
        try:
            status = await self._state.status()
        except Unavailable as error:
            return error
        pointers = status["encoders"]
        folder = self._settings.encoder_dir
        found: list[EncoderInfo] = []
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            try:
                checkpoint = await asyncio.to_thread(load_generation, folder, path.name)
            except WeftError as error:
                log.warning("%s is no encoder: %s", path, error.message)
                continue
            # In this order: after an activation both pointers name the same encoder.
            state = {pointers[CANDIDATE]: "candidate", pointers[ACTIVE]: "active"}.get(path.name, "available")
            found.append(EncoderInfo(path.name, state, checkpoint.parameters.dim, checkpoint.metadata))
        return found

    async def activate(self, digest: str) -> WriteResult | WeftError:
        """Candidate, until every replica has built it; then active, until every replica answers with it."""
        if self._changing.locked():
            return Conflict("another encoder is being activated: wait for it")
        async with self._changing:
            try:
                return await self._activate(digest)
            except WeftError as error:
                return error

    async def _activate(self, digest: str) -> WriteResult:
        if "/" in digest or digest.startswith("."):
            raise UnknownEncoder(f"no encoder {digest[:80]!r}")
        path = self._settings.encoder_dir / digest
        if not path.is_dir():
            raise UnknownEncoder(
                f"no encoder {digest[:80]!r} in {self._settings.encoder_dir}: see GET /v1/encoders"
            )
        try:
            # Refuse a damaged one before any replica is asked.
            await asyncio.to_thread(load_generation, self._settings.encoder_dir, digest)
        except Corrupt as error:
            raise InvalidInput(error.message, param="digest") from error
        candidate = await self._point(CANDIDATE, digest)
        deadline = time.monotonic() + ACTIVATION_TIMEOUT_S
        try:
            while not self._everywhere(
                loaded := [r for r in await self._reports(candidate.version) if digest in r.generations]
            ):
                if any(digest in r.failed for r in await self._reports(candidate.version)):
                    raise InvalidInput(f"encoder {digest} cannot be loaded: see the log", param="digest")
                if time.monotonic() > deadline:
                    raise Unavailable(
                        f"encoder {digest} was ready on {len(loaded)} replicas only; nothing changed"
                    )
                await asyncio.sleep(_POLL_S)
        except WeftError:
            await self._withdraw_candidate()
            raise
        result = await self._point(ACTIVE, digest)
        # It is active; a replica that lags beyond the deadline answers with the old one a little longer.
        while not self._everywhere(await self._reports(result.version)):
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(_POLL_S)
        return result

    async def _withdraw_candidate(self) -> None:
        try:
            await self._point(CANDIDATE, None)
        except WeftError as error:
            # Replicas hold a generation too many until the next activation; what failed before matters more.
            log.warning("the candidate could not be withdrawn: %s", error.message)

    async def _reports(self, version: int) -> list[FollowerReport]:
        """What followers say that have applied `version`: older reports know nothing of what it changed."""
        return [r for r in await self._state.reports() if r.version >= version]

    def _everywhere(self, reports: Sequence[FollowerReport]) -> bool:
        """Whether as many replicas reported as are configured, of either kind."""
        kinds = Counter(r.kind for r in reports)
        settings = self._settings
        return (
            kinds["graph_encoder"] >= settings.graph_encoder.num_replicas
            and kinds["retriever"] >= settings.retriever.num_replicas
        )

    async def _point(self, name: str, digest: str | None) -> WriteResult:
        pointer = PutPointer(SCOPE, name, {"digest": digest})
        (outcome,) = await self._state.write([WriteRequest((pointer,))])
        if isinstance(outcome, WeftError):
            raise outcome
        return outcome
