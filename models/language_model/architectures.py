"""Which models the engine decodes exactly, and why it refuses the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graph.errors import InvalidInput

ARCHITECTURES: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""Model type to class. Shown by tests to give `generate`'s greedy output token for token, whatever else is in
the batch."""

# Of these a position's rotation depends on nothing but the position. "dynamic" and "longrope" look at the
# longest sequence of the batch: a row would change with its neighbours.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def check_architecture(config: Any, architecture: str | None = None) -> None:
    """Raise InvalidInput, with a sentence, for a configuration whose rows the engine cannot keep apart.

    `config` is a configuration of transformers; `architecture` the name of the model's class, by default what
    the configuration names. The class that loads is that of the configuration's model type, so both count.
    """
    named = (architecture,) if architecture is not None else tuple(config.architectures or ())
    if len(named) != 1 or named[0] != ARCHITECTURES.get(config.model_type):
        what = ", ".join(named) or "a model that names no architecture"
        raise InvalidInput(
            f"{what} (model type {config.model_type!r}) is not served: decoding it in mixed batches was not "
            f"shown to be exact; served are {', '.join(ARCHITECTURES.values())}",
            param="model",
        )
    if getattr(config, "quantization_config", None):
        raise InvalidInput(
            f"{named[0]} with weights that are quantised already (quantization_config) is not served; give "
            'the original weights, and set quantization to "int8" for smaller ones',
            param="model",
        )
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if getattr(config, "use_sliding_window", False) or kinds:
        raise InvalidInput(
            f"{named[0]} with {', '.join(sorted(kinds)) or 'sliding windows'} is not served: every layer has "
            "to attend to the whole context",
            param="model",
        )
    for rope_type in _rope_types(config):
        if rope_type not in _ROPE_TYPES:
            raise InvalidInput(
                f"{named[0]} with rotary scaling {rope_type!r} is not served: a position would depend on the "
                f"longest sequence of the batch; served are {', '.join(_ROPE_TYPES)}",
                param="model",
            )


def _rope_types(config: Any) -> list[object]:
    """Of all layers: transformers also takes one mapping for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    each = [value for value in rope.values() if isinstance(value, Mapping)] or [rope]
    return [one.get("rope_type", one.get("type", "default")) for one in each]
