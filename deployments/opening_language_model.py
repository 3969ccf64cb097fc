"""Opens the language model of the settings, with its adapters and caches."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from deployments.adapter_manager import Store
from deployments.settings import Settings
from graph.errors import WeftError
from models.language_model.protocol import LanguageBackend
from models.small_model.folder import small_model_folder

if TYPE_CHECKING:
    from models.language_model.opening_engine import AdapterPlaces

_MAX_DEFAULT_THREADS = 4


class Residents(Protocol):
    """Adapters in memory; `models.language_model.resident_adapters.ResidentAdapters`."""

    def request(self, digest: str) -> Literal["ready", "loading"] | WeftError: ...

    def resident(self) -> tuple[str, ...]: ...

    def forget(self, digest: str) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class OpenedLanguageModel:
    """What a replica generates with. `residents` is None where another server holds the adapters."""

    backend: LanguageBackend
    store: Store
    residents: Residents | None = None

    def close(self) -> None:
        """What runs ends as Unavailable; waits for adapters that are being loaded."""
        self.backend.close()
        if self.residents is not None:
            self.residents.close()


Opener = Callable[[Settings], OpenedLanguageModel]


def num_threads(settings: Settings) -> int:
    """Threads of the model: as set, else the machine's cores, at most four."""
    return settings.language_model.num_threads or min(os.cpu_count() or 1, _MAX_DEFAULT_THREADS)


def open_language_model(settings: Settings) -> OpenedLanguageModel:
    """Open it; blocks for as long as loading the weights takes. Raises WeftError with the reason."""
    if settings.language_model.backend == "openai":
        return _open_remote(settings)
    return _open_local(settings)


def _open_local(settings: Settings) -> OpenedLanguageModel:
    # Here, and not at the top: torch and transformers take seconds to import, and the launcher needs neither.
    from models.language_model.engine_limits import EngineLimits
    from models.language_model.opening import LanguageModelSpec
    from models.language_model.opening_engine import EngineOptions, open_engine

    limits = settings.language_model
    spec = LanguageModelSpec(
        model=limits.model or str(small_model_folder()),
        device=limits.device,
        dtype=limits.dtype,
        quantization=limits.quantization,
        num_threads=num_threads(settings),
        allow_download=limits.allow_download,
        max_context_tokens=limits.max_context_tokens,
    )
    engine_limits = EngineLimits(
        max_batch=limits.max_batch,
        max_context_tokens=limits.max_context_tokens,
        default_max_tokens=limits.default_max_tokens,
        prefill_chunk_tokens=limits.prefill_chunk_tokens,
        max_queued=limits.max_queued_requests,
    )
    opened = open_engine(spec, _places(settings), EngineOptions(engine_limits, limits.prefix_cache_bytes))
    if opened.store is None:
        raise AssertionError("an engine with a folder of adapters has a store of them")
    return OpenedLanguageModel(opened.engine, opened.store, opened.residents)


def _open_remote(settings: Settings) -> OpenedLanguageModel:
    from models.language_model.openai_compatible import OpenAICompatibleModel
    from models.language_model.opening import LanguageModelSpec

    limits = settings.language_model
    spec = LanguageModelSpec(
        model=limits.model,
        backend="openai",
        url=limits.url,
        api_key=None if limits.api_key is None else limits.api_key.get_secret_value(),
        max_context_tokens=limits.max_context_tokens,
        timeout_s=limits.timeout_s,
    )
    backend = OpenAICompatibleModel(
        spec,
        max_running=limits.max_batch,
        max_queued=limits.max_queued_requests,
        adapter_names=limits.adapter_names,
    )
    return OpenedLanguageModel(backend, _places(settings).store(None))


def _places(settings: Settings) -> AdapterPlaces:
    from models.language_model.opening_engine import AdapterPlaces

    adapters = settings.adapters
    return AdapterPlaces(
        settings.adapter_dir,
        settings.adapter_inbox,
        slots=adapters.slots,
        max_rank=adapters.max_rank,
        max_adapter_bytes=adapters.max_adapter_bytes,
        max_resident=adapters.max_resident,
        max_resident_bytes=adapters.max_resident_bytes,
    )
