"""Adapters in PEFT's layout for any model folder: random, and strong enough to show."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

MODULES = ("q_proj", "v_proj", "down_proj")


def write_adapter(folder: Path, model: Path, seed: int, rank: int = 4, scale: float = 0.4) -> Path:
    """`folder` with an adapter for the safetensors model in `model`, on three kinds of its linear layers."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    with safe_open(model / "model.safetensors", "pt") as weights:
        for name in weights.keys():  # noqa: SIM118  (no dictionary)
            module = name.removesuffix(".weight")
            if module.rpartition(".")[2] not in MODULES:
                continue
            wide, deep = weights.get_slice(name).get_shape()
            key = f"base_model.model.{module}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(rank, deep, generator=generator) * scale
            tensors[f"{key}.lora_B.weight"] = torch.randn(wide, rank, generator=generator) * scale
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(MODULES),
        "base_model_name_or_path": None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
