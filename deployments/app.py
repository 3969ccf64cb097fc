"""`build(settings)`: the only place that wires deployments together.

HTTP -> Ingress -> Retriever -> GraphEncoder          recommendations
                -> TextEmbedder, then Retriever       search
                -> LanguageModel                      generation, adapters
                -> GraphState (actor)                 writes
GraphState -> change feed -> GraphEncoder, Retriever, TextEmbedder, TextIndexer, LanguageModel
TextIndexer -> TextEmbedder, GraphState               text vectors of items and memories
GraphKeeper: starts and watches the GraphState, changes encoder generations
"""

# No postponed annotations in this module: Serve validates `args:` by the type of `build`'s parameter.

import asyncio
import gc
import os
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.context import _get_global_client
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.handle import DeploymentHandle

from deployments.graph_client import RemoteGraphState
from deployments.graph_encoder import GraphEncoder
from deployments.graph_keeper import GraphKeeper
from deployments.handles import EmbedderHandle, EncoderHandle
from deployments.ingress.application import create_app
from deployments.ingress.handle_backend import HandleBackend, Parts
from deployments.language_model import LanguageModel
from deployments.opening_language_model import num_threads
from deployments.replica_logging import configure_logging
from deployments.retriever import Retriever
from deployments.settings import NOT_LOOPBACK, Settings, is_loopback
from deployments.text_embedder import TextEmbedder
from deployments.text_indexer import TextIndexer
from deployments.text_models import configured_spec
from graph.errors import InvalidInput

_OTHER_CALLS = 64
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


@serve.deployment(name="LanguageModel", graceful_shutdown_timeout_s=30, **_HEALTH)
class LanguageModelDeployment(LanguageModel):
    """Every replica holds the base model and the adapters its users need."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]
        configure_logging()
        super().__init__(settings, RemoteGraphState())
        await self.start()
        _keep_what_was_loaded()

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
        language_model: DeploymentHandle | None,
    ) -> None:
        configure_logging()
        _check_bind_address()
        self._settings = settings
        state = RemoteGraphState()
        # The keeper answers once the graph state has recovered.
        await keeper.status.remote()
        store_id = str((await state.status())["store_id"])
        parts = Parts(encoder, retriever, embedder, indexer, keeper, language_model)
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
    ).bind(settings, encoder, retriever, embedder, indexer, keeper, _language_model(settings))
    return application


def _language_model(settings: Settings) -> Application | None:
    """The language model, unless it is switched off.

    A user's requests go to the same replica, which has the user's adapter and prompts in memory; to one of
    two others when that one is full.
    """
    limits = settings.language_model
    if not limits.enabled:
        return None
    options: dict[str, Any] = {"num_replicas": limits.num_replicas}
    if limits.max_replicas is not None:
        options = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=limits.num_replicas,
                max_replicas=limits.max_replicas,
                target_ongoing_requests=limits.max_batch,
            )
        }
    actor_options = _computing(limits.num_cpus, num_threads(settings))
    if num_gpus := _gpus(settings):
        actor_options["num_gpus"] = num_gpus
    application: Application = LanguageModelDeployment.options(  # type: ignore[attr-defined]
        **options,
        ray_actor_options=actor_options,
        # The engine refuses what is too much, with a typed error; the rest are calls beside generation.
        max_ongoing_requests=limits.max_batch + limits.max_queued_requests + _OTHER_CALLS,
        request_router_config=RequestRouterConfig(
            request_router_class=ConsistentHashRouter,
            request_router_kwargs={"num_fallback_replicas": 2},
        ),
    ).bind(settings)
    return application


def _gpus(settings: Settings) -> float:
    """The share of a GPU that a replica claims: Ray hides GPUs from those that claim none."""
    limits = settings.language_model
    if limits.num_gpus is not None:
        return limits.num_gpus
    local = limits.backend == "local" and limits.device != "cpu"
    there = ray.cluster_resources().get("GPU", 0) if local and ray.is_initialized() else 0
    return min(1.0, there / (limits.max_replicas or limits.num_replicas))
