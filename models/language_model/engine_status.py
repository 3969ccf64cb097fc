"""What an engine was built of, as operators see it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.language_model.base_model import BaseModel
    from models.language_model.lora import LoraSlots
    from models.language_model.prefix_cache import PrefixCache
    from models.language_model.resident_adapters import ResidentAdapters


def describe(
    base: BaseModel,
    lora: LoraSlots | None,
    residents: ResidentAdapters | None,
    prefix_cache: PrefixCache | None,
) -> dict[str, object]:
    """Plain JSON: the base model, its adapters, its prefix cache."""
    adapters: dict[str, object] = {"slots": 0, "in_slots": []}
    if lora is not None:
        adapters = {"slots": lora.num_slots, "in_slots": list(lora.in_slots()), "slot_bytes": lora.nbytes}
    if residents is not None:
        adapters |= residents.statistics()
    prefix = {"bytes": 0, "max_bytes": 0, "hits": 0, "misses": 0, "hit_tokens": 0}
    return {
        "backend": "local",
        "model": base.name,
        "digest": base.digest,
        "dtype": str(base.dtype).removeprefix("torch."),
        "quantization": base.quantization,
        "adapters": adapters,
        "prefix_cache": prefix if prefix_cache is None else prefix_cache.statistics(),
    }
