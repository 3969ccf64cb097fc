"""Which models the engine decodes exactly, and why it refuses the others."""

from __future__ import annotations

from typing import Any

from graph.errors import InvalidInput

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Shown by tests to give `generate`'s greedy output token for token, whatever else is in the batch."""

# Of these a position's rotation depends on nothing but the position. "dynamic" and "longrope" look at the
# longest sequence of the batch: a row would change with its neighbours.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def check_architecture(config: Any) -> None:
    """Raise InvalidInput, with a sentence, for a configuration whose rows the engine cannot keep apart.

    `config` is a configuration of transformers.
    """
    named = tuple(config.architectures or ())
    if len(named) != 1 or named[0] not in ARCHITECTURES:
        what = ", ".join(named) or f"a model of type {config.model_type!r} that names no architecture"
        raise InvalidInput(
            f"{what} is not served: decoding it in mixed batches was not shown to be exact; served are "
            f"{', '.join(ARCHITECTURES)}",
            param="model",
        )
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if getattr(config, "use_sliding_window", False) or kinds:
        raise InvalidInput(
            f"{named[0]} with {', '.join(sorted(kinds)) or 'sliding windows'} is not served: every layer has "
            "to attend to the whole context",
            param="model",
        )
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in _ROPE_TYPES:
        raise InvalidInput(
            f"{named[0]} with rotary scaling {rope_type!r} is not served: a position would depend on the "
            f"longest sequence of the batch; served are {', '.join(_ROPE_TYPES)}",
            param="model",
        )
