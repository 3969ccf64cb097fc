"""Tiny random models, and adapters for them in PEFT's format, written by peft itself."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from models.language_model.lora_weights import AdapterWeights

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
ALL_LINEARS = ATTENTION + MLP


def _shape(seed: int, options: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(seed)
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 48,
        "vocab_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "initializer_range": 0.2,  # with the usual 0.02 greedy texts repeat one token
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return shape | options


def tiny_llama(seed: int = 0, **options: Any) -> LlamaForCausalLM:
    """Two layers, hidden size 32, grouped-query attention, 128 tokens; `options` go to the config."""
    return LlamaForCausalLM(LlamaConfig(**_shape(seed, options))).eval().requires_grad_(False)


def tiny_qwen2(seed: int = 0, **options: Any) -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM(Qwen2Config(**_shape(seed, options))).eval().requires_grad_(False)


def tiny_qwen3(seed: int = 0, **options: Any) -> Qwen3ForCausalLM:
    config = Qwen3Config(**_shape(seed, {"head_dim": 8} | options))
    return Qwen3ForCausalLM(config).eval().requires_grad_(False)


def linears_of(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Full names of the linear layers to (in_features, out_features), as `BaseModelSpec.linears`."""
    return {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }


def peft_model(
    model: PreTrainedModel,
    *,
    rank: int = 4,
    alpha: float = 8,
    rslora: bool = False,
    targets: Sequence[str] = ALL_LINEARS,
    seed: int = 0,
) -> PeftModel:
    """A copy of the model with a random adapter active, neither A nor B of which is zero."""
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft also computes with fractions
        use_rslora=rslora,
        target_modules=list(targets),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft 0.21 reads a property that transformers 5.23 calls deprecated.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        made = get_peft_model(copy.deepcopy(model), config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                values = torch.randn(parameter.shape, generator=generator) * 0.1
                parameter.copy_(values)
    return made.requires_grad_(False)


def write_adapter(folder: Path, model: PreTrainedModel, **options: Any) -> PeftModel:
    """Write `adapter_config.json` and `adapter_model.safetensors` with `save_pretrained`; see `peft_model`.

    Returns the model it was written from, as an oracle.
    """
    made = peft_model(model, **options)
    made.save_pretrained(str(folder), save_embedding_layers=False)  # not a whole lm_head
    return made


def weights_of(made: PeftModel, digest: str) -> AdapterWeights:
    """The active adapter as slots take it, from the modules themselves."""
    modules = {}
    for name, module in made.base_model.model.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            a = module.lora_A["default"].weight.detach().clone()
            b = module.lora_B["default"].weight.detach() * module.scaling["default"]
            modules[name] = (a, b.contiguous())
    nbytes = sum(a.nbytes + b.nbytes for a, b in modules.values())
    return AdapterWeights(digest, max(a.shape[0] for a, _ in modules.values()), modules, nbytes)
