"""A base model, its adapters, its caches and the engine over them, put together in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from graph.errors import InvalidInput, Unavailable
from models.adapter_cascade import AdapterCascade, MemoryPointers, PointerReader
from models.adapters import AdapterStore
from models.language_model.base_model import BaseModel, open_base_model
from models.language_model.engine import Engine
from models.language_model.engine_limits import EngineLimits
from models.language_model.generator import Generator
from models.language_model.lora import LoraSlots
from models.language_model.memory_plan import plan_memory, say_what_fits
from models.language_model.opening import LanguageModelSpec
from models.language_model.prefix_cache import PrefixCache
from models.language_model.resident_adapters import ResidentAdapters


@dataclass(frozen=True)
class AdapterPlaces:
    """Where adapters are, and how many at once. `inbox` is the one folder they are imported from."""

    root: Path
    inbox: Path
    slots: int = 32
    max_rank: int = 64
    max_adapter_bytes: int = 256 << 20
    max_resident: int = 512
    max_resident_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        for name in ("slots", "max_rank", "max_adapter_bytes", "max_resident", "max_resident_bytes"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} is {getattr(self, name)}; must be at least 1", param=name)

    def store(self, base: BaseModel | None) -> AdapterStore:
        """The store; without a base model only what needs none is checked. Raises Unavailable."""
        spec = None if base is None else base.spec
        try:
            return AdapterStore(
                self.root, self.inbox, spec, max_rank=self.max_rank, max_bytes=self.max_adapter_bytes
            )
        except OSError as error:
            raise Unavailable(
                f"the folder of adapters {self.root} cannot be used: {error.strerror or error}; give another"
            ) from error


@dataclass(frozen=True)
class OpenEngine:
    """An engine that runs, and what it was made of; no store and residents where it runs without adapters."""

    engine: Engine
    base: BaseModel
    store: AdapterStore | None = None
    residents: ResidentAdapters | None = None

    def close(self) -> None:
        """End the engine's thread and those that load adapters. Harmless when repeated."""
        self.engine.close()
        if self.residents is not None:
            self.residents.close()


@dataclass(frozen=True)
class EngineOptions:
    limits: EngineLimits = field(default_factory=EngineLimits)
    prefix_cache_bytes: int = 64 << 20


def open_engine(
    spec: LanguageModelSpec, adapters: AdapterPlaces | None = None, options: EngineOptions | None = None
) -> OpenEngine:
    """Load the base model and start its engine; without `adapters` every request runs on the base model.

    Blocks for as long as loading the weights takes. Raises what `open_base_model` raises, and Unavailable
    when the folder of adapters cannot be used.
    """
    options = options or EngineOptions()
    base = open_base_model(spec)
    limits = options.limits
    window = min(base.max_tokens, limits.max_context_tokens or base.max_tokens)
    if (plan := plan_memory(base, window)) is not None:
        say_what_fits(plan, limits.max_batch)
    cache = PrefixCache(options.prefix_cache_bytes) if options.prefix_cache_bytes else None
    if adapters is None:
        return OpenEngine(Engine(base, limits=options.limits, prefix_cache=cache), base)
    store = adapters.store(base)
    slots = LoraSlots(base.model, base.spec.linears, num_slots=adapters.slots, max_rank=adapters.max_rank)
    residents = ResidentAdapters(
        store.load, max_count=adapters.max_resident, max_bytes=adapters.max_resident_bytes
    )
    try:
        engine = Engine(base, limits=options.limits, lora=slots, residents=residents, prefix_cache=cache)
    except BaseException:
        residents.close()
        raise
    return OpenEngine(engine, base, store, residents)


class LocalGenerator(Generator):
    """A generator with an engine of its own, which it closes."""

    def __init__(self, opened: OpenEngine, pointers: Callable[[], PointerReader]) -> None:
        super().__init__(opened.engine, AdapterCascade(pointers))
        self.opened = opened

    def close(self) -> None:
        self.opened.close()


def open_generator(
    model: str,
    adapters: Path | str | None = None,
    pointers: Callable[[], PointerReader] | None = None,
    spec: LanguageModelSpec | None = None,
) -> LocalGenerator:
    """A generator for use without a service; close it, or use it as a context manager.

    `adapters` is a folder as `AdapterStore` keeps it; what lies in its `inbox` is imported with
    `generator.opened.store.import_folder`. `pointers` says which are active: the view of a graph, or
    `MemoryPointers`; without it a request names its adapter. `spec` has everything else about the model.
    """
    spec = LanguageModelSpec(model) if spec is None else replace(spec, model=model)
    places = None if adapters is None else AdapterPlaces(Path(adapters), Path(adapters) / "inbox")
    known = MemoryPointers()
    return LocalGenerator(open_engine(spec, places), pointers or (lambda: known))
