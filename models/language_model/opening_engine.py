"""A base model, its adapters, its caches and the engine over them, put together in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from graph.errors import UnknownAdapter
from models.adapter_cascade import AdapterCascade, MemoryPointers, PointerReader
from models.adapters import AdapterStore
from models.language_model.base_model import BaseModel, open_base_model
from models.language_model.engine import Engine
from models.language_model.engine_limits import EngineLimits
from models.language_model.generator import Generator
from models.language_model.lora import LoraSlots
from models.language_model.lora_weights import AdapterWeights
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

    def store(self, base: BaseModel | None) -> AdapterStore:
        """The store; without a base model only what needs none is checked."""
        spec = None if base is None else base.spec
        return AdapterStore(
            self.root, self.inbox, spec, max_rank=self.max_rank, max_bytes=self.max_adapter_bytes
        )


@dataclass(frozen=True)
class OpenEngine:
    """An engine that runs, and what it was made of."""

    engine: Engine
    base: BaseModel
    store: AdapterStore | None
    residents: ResidentAdapters


@dataclass(frozen=True)
class EngineOptions:
    limits: EngineLimits = field(default_factory=EngineLimits)
    prefix_cache_bytes: int = 64 << 20


def open_engine(
    spec: LanguageModelSpec, adapters: AdapterPlaces | None = None, options: EngineOptions | None = None
) -> OpenEngine:
    """Load the base model and start its engine; without `adapters` every request runs on the base model.

    Blocks for as long as loading the weights takes. Raises what `open_base_model` raises.
    """
    options = options or EngineOptions()
    base = open_base_model(spec)
    store = None if adapters is None else adapters.store(base)
    places = adapters or AdapterPlaces(Path(), Path())
    residents = ResidentAdapters(
        _no_adapters if store is None else store.load,
        max_count=places.max_resident,
        max_bytes=places.max_resident_bytes,
    )
    slots = LoraSlots(base.model, base.spec.linears, num_slots=places.slots, max_rank=places.max_rank)
    cache = PrefixCache(options.prefix_cache_bytes) if options.prefix_cache_bytes else None
    engine = Engine(base, limits=options.limits, lora=slots, residents=residents, prefix_cache=cache)
    return OpenEngine(engine, base, store, residents)


def open_generator(
    model: str,
    adapters: Path | str | None = None,
    pointers: Callable[[], PointerReader] | None = None,
    spec: LanguageModelSpec | None = None,
) -> Generator:
    """A generator for use without a service; close it, or use it as a context manager.

    `adapters` is a folder as `AdapterStore` keeps it; folders below its `inbox` can be imported. `pointers`
    says which are active, for example the view of a graph; without it a request names its adapter. `spec`
    has everything else about the model; its name is `model`.
    """
    spec = LanguageModelSpec(model=model) if spec is None else spec
    root = None if adapters is None else Path(adapters)
    opened = open_engine(spec, None if root is None else AdapterPlaces(root, root / "inbox"))
    known = MemoryPointers()
    return Generator(opened.engine, AdapterCascade(pointers or (lambda: known)))


def _no_adapters(digest: str) -> AdapterWeights:
    raise UnknownAdapter(f"there is no adapter {digest!r}: no folder of adapters was given")
