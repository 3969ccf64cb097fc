"""`build(settings)`: the only place that wires deployments together.

HTTP -> Ingress -> Retriever -> GraphEncoder          recommendations
                -> TextEmbedder, then Retriever       search
                -> GraphState (actor)                 writes
GraphState -> change feed -> GraphEncoder, Retriever, TextEmbedder, TextIndexer
TextIndexer -> TextEmbedder, GraphState               text vectors of items and memories
GraphKeeper: starts and watches the GraphState, changes encoder generations
"""

# No postponed annotations in this module: Serve validates `args:` by the type of `build`'s parameter.

import asyncio
import gc
import os
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle

from deployments.graph_client import RemoteGraphState
from deployments.graph_encoder import GraphEncoder
from deployments.graph_keeper import GraphKeeper
from deployments.handles import EmbedderHandle, EncoderHandle
from deployments.ingress.application import create_app
from deployments.ingress.handle_backend import HandleBackend, Parts
from deployments.replica_logging import configure_logging
from deployments.retriever import Retriever
from deployments.settings import NOT_LOOPBACK, Settings, is_loopback
from deployments.text_embedder import TextEmbedder
from deployments.text_indexer import TextIndexer
from deployments.text_models import configured_spec
from graph.errors import InvalidInput

_HEALTH: dict[str, Any] = {"health_check_period_s": 5, "health_check_timeout_s": 15}


@serve.deployment(name="GraphKeeper", num_replicas=1, **_HEALTH)
class GraphKeeperDeployment(GraphKeeper):
    """Starts before all others: Serve constructs it and the rest wait for the actor it makes."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]
        configure_logging()
        await asyncio.to_thread(super().__init__, settings)
        await self.start()


@serve.deployment(name="GraphEncoder", **_HEALTH)
class GraphEncoderDeployment(GraphEncoder):
    """Every replica holds the whole graph."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]
        configure_logging()
        super().__init__(settings, RemoteGraphState())
        await self.start()
        _keep_what_was_loaded()

    async def __del__(self) -> None:
        await self.stop()


@serve.deployment(name="Retriever", **_HEALTH)
class RetrieverDeployment(Retriever):
    """Every replica holds all item vectors."""

    async def __init__(self, settings: Settings, encoder: DeploymentHandle) -> None:  # type: ignore[misc]
        configure_logging()
        super().__init__(settings, RemoteGraphState(), EncoderHandle(encoder))
        await self.start()
        _keep_what_was_loaded()

    async def __del__(self) -> None:
        await self.stop()


@serve.deployment(name="TextEmbedder", **_HEALTH)
class TextEmbedderDeployment(TextEmbedder):
    """Every replica holds the text model."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]
        configure_logging()
        super().__init__(settings, RemoteGraphState())
        await self.start()
        _keep_what_was_loaded()

    async def __del__(self) -> None:
        await self.stop()


@serve.deployment(name="TextIndexer", num_replicas=1, **_HEALTH)
class TextIndexerDeployment(TextIndexer):
    """One for the whole service."""

    async def __init__(self, settings: Settings, embedder: DeploymentHandle) -> None:  # type: ignore[misc]
        configure_logging()
        super().__init__(settings, RemoteGraphState(), EmbedderHandle(embedder))
        await self.start()

    async def __del__(self) -> None:
        await self.stop()


@serve.deployment(name="Ingress", **_HEALTH)
@serve.ingress()
class IngressDeployment:
    """HTTP."""

    async def __init__(  # type: ignore[misc]
        self,
        settings: Settings,
        encoder: DeploymentHandle,
        retriever: DeploymentHandle,
        embedder: DeploymentHandle,
        indexer: DeploymentHandle,
        keeper: DeploymentHandle,
    ) -> None:
        configure_logging()
        _check_bind_address()
        self._settings = settings
        state = RemoteGraphState()
        # The keeper answers once the graph state has recovered.
        await keeper.status.remote()
        store_id = str((await state.status())["store_id"])
        parts = Parts(encoder, retriever, embedder, indexer, keeper)
        self._backend = HandleBackend(settings, parts, state, store_id)

    def __serve_build_asgi_app__(self) -> Any:
        return create_app(
            lambda: self._backend, max_body_bytes=self._settings.http.max_body_bytes, loopback_only=True
        )


def _check_bind_address() -> None:
    """Refuse to answer anybody but this machine: `serve run` takes its address from a file, not from us."""
    client = _get_global_client(raise_if_no_controller_running=False)  # Serve has no public way to ask
    host = None if client is None else client.http_config.host
    if host is not None and not is_loopback(host):
        raise InvalidInput(NOT_LOOPBACK.format(host=host), param="http_options.host")


def _keep_what_was_loaded() -> None:
    """Take the graph out of garbage collection: it stays, and every full collection would walk it."""
    gc.collect()
    gc.freeze()


def _computing(num_cpus: float, num_threads: int | None = None) -> dict[str, Any]:
    """Actor options of a replica that computes: as many BLAS and OpenMP threads as CPUs it claims.

    Part of the process' environment from its start: libraries read it when they load, which in a worker that
    Ray keeps in stock has already happened. Threads beyond the CPUs make a batch four times slower.
    """
    threads = str(num_threads or max(1, int(num_cpus)))
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    # Passive: threads that spin at barriers take the cores from those that answer users.
    env_vars = dict.fromkeys(names, threads) | {"OMP_WAIT_POLICY": "PASSIVE"}
    return {"num_cpus": num_cpus, "runtime_env": {"env_vars": env_vars}}


def build(settings: Settings) -> Application:
    """The application, from settings that Serve validates out of `args:` in the configuration file."""
    keeper = GraphKeeperDeployment.options(  # type: ignore[attr-defined]
        ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=100
    ).bind(settings)
    limits = settings.graph_encoder
    encoder = GraphEncoderDeployment.options(  # type: ignore[attr-defined]
        num_replicas=limits.num_replicas,
        ray_actor_options=_computing(limits.num_cpus),
        max_ongoing_requests=limits.max_ongoing_requests,
    ).bind(settings)
    retriever = RetrieverDeployment.options(  # type: ignore[attr-defined]
        num_replicas=settings.retriever.num_replicas,
        ray_actor_options=_computing(settings.retriever.num_cpus),
        max_ongoing_requests=settings.retriever.max_ongoing_requests,
    ).bind(settings, encoder)
    limits = settings.text_embedder
    threads = configured_spec(limits, os.cpu_count() or 1).num_threads or 1
    embedder = TextEmbedderDeployment.options(  # type: ignore[attr-defined]
        num_replicas=limits.num_replicas,
        ray_actor_options=_computing(limits.num_cpus, threads),
        max_ongoing_requests=limits.max_ongoing_requests,
    ).bind(settings)
    indexer = TextIndexerDeployment.options(  # type: ignore[attr-defined]
        ray_actor_options={"num_cpus": settings.text_indexer.num_cpus}, max_ongoing_requests=100
    ).bind(settings, embedder)
    application: Application = IngressDeployment.options(  # type: ignore[attr-defined]
        num_replicas=settings.ingress.num_replicas,
        ray_actor_options={"num_cpus": settings.ingress.num_cpus},
        max_ongoing_requests=settings.ingress.max_ongoing_requests,
    ).bind(settings, encoder, retriever, embedder, indexer, keeper)
    return application
