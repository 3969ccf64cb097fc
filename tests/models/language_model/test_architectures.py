"""What is served and what is refused, and with which words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from graph.errors import InvalidInput
from models.language_model.architectures import ARCHITECTURES, check_architecture

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"factor": 2.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


def config(kind: str, **fields: Any) -> Any:
    return CONFIGS[kind](**{**SIZES, "architectures": [ARCHITECTURES[kind]], **fields})


def rope(kind: str, **fields: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **fields}}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        rope("linear", factor=2.0),
        rope("yarn", factor=2.0, original_max_position_embeddings=32),
        rope("llama3", original_max_position_embeddings=32, **LLAMA3),
    ],
    ids=["plain", "linear", "yarn", "llama3"],
)
def test_served(kind: str, fields: dict[str, Any]) -> None:
    check_architecture(config(kind, **fields))
    check_architecture(config(kind, **fields, num_key_value_heads=4, tie_word_embeddings=True))
    check_architecture(config(kind, architectures=None), ARCHITECTURES[kind])


REFUSED = {
    "dynamic": (config("llama", **rope("dynamic", factor=2.0)), "rotary scaling 'dynamic'"),
    "longrope": (
        config("llama", **rope("longrope", original_max_position_embeddings=32, **LONG)),
        "rotary scaling 'longrope'",
    ),
    "old spelling": (
        config("llama", rope_scaling={"type": "dynamic", "factor": 2.0}),
        "rotary scaling 'dynamic'",
    ),
    "windows": (config("qwen2", use_sliding_window=True, max_window_layers=1), "sliding_attention"),
    "windows in no layer": (config("qwen3", use_sliding_window=True, max_window_layers=9), "sliding windows"),
    "quantised": (config("llama", quantization_config={"quant_method": "gptq", "bits": 4}), "quantised"),
    "none named": (config("llama", architectures=None), "names no architecture"),
    "two named": (config("llama", architectures=["LlamaForCausalLM", "Qwen2ForCausalLM"]), "not served"),
    "no head": (config("llama", architectures=["LlamaModel"]), "LlamaModel"),
    "another class": (config("qwen2", architectures=["LlamaForCausalLM"]), "model type 'qwen2'"),
    # transformers loads the class of the model type, whatever the configuration says.
    "another type": (
        MistralConfig(**SIZES, architectures=["LlamaForCausalLM"]),
        "model type 'mistral'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    given, words = REFUSED[name]
    with pytest.raises(InvalidInput, match=words) as caught:
        check_architecture(given)
    assert caught.value.param == "model"


def test_the_class_in_memory_counts() -> None:
    with pytest.raises(InvalidInput, match="PeftModelForCausalLM"):
        check_architecture(config("llama"), "PeftModelForCausalLM")


def test_rotary_scaling_of_each_kind_of_layer_counts() -> None:
    nested = SimpleNamespace(
        architectures=["Qwen3ForCausalLM"],
        model_type="qwen3",
        rope_parameters={"full_attention": {"rope_type": "yarn"}, "other": {"rope_type": "dynamic"}},
    )
    with pytest.raises(InvalidInput, match="dynamic"):
        check_architecture(nested)
