"""Adapters as PEFT writes them, against the weights that PEFT makes of them; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from graph.errors import InvalidAdapter, UnknownAdapter
from models.language_model.base_spec import BaseModelSpec
from models.language_model.lora_config import canonical_config, parse_config
from models.language_model.lora_weights import read_adapter

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Q, DEEP = "model.layers.{}.self_attn.q_proj", "model.layers.1.mlp.down_proj"


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=12, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=32, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def spec() -> BaseModelSpec:
    linears = {
        name: (module.in_features, module.out_features)
        for name, module in llama().named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    return BaseModelSpec("Tiny-Llama", "0" * 64, linears)


@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's call
@pytest.mark.parametrize(
    "options",
    [
        {"r": 3, "lora_alpha": 8, "target_modules": ALL},
        {"r": 4, "lora_alpha": 7, "target_modules": ["q_proj", "lm_head"], "use_rslora": True},
        # layers.1 is not layers.10 or layers.11
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ALL,
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, "^model.layers.10.mlp.up_proj$": 6, "k_proj": 1},
            "alpha_pattern": {"layers.1": 99, "mlp.down_proj": 5, "layers.11.self_attn.q_proj": 3.5},
        },
        {
            "r": 4,
            "target_modules": r".*layers\.(1|3)\..*_proj",
            "use_rslora": True,
            "rank_pattern": {"o_proj": 5},
        },
    ],
)
def test_every_delta_is_what_peft_computes(
    spec: BaseModelSpec, tmp_path: Path, options: dict[str, Any]
) -> None:
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options)
    model = peft.get_peft_model(llama(), config)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    weights = read_adapter(tmp_path, spec, "d", max_rank=8)
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    assert set(weights.modules) == set(layers)
    for name, layer in layers.items():
        a, b = weights.modules[name]
        assert a.is_contiguous() and b.is_contiguous()
        torch.testing.assert_close(b.float() @ a.float(), layer.get_delta_weight("default"))
    assert weights.rank == max(layer.r["default"] for layer in layers.values())
    assert weights.nbytes == sum(t.nbytes for pair in weights.modules.values() for t in pair)

    # The canonical configuration says the same, to us and to PEFT.
    parsed = parse_config((tmp_path / "adapter_config.json").read_bytes())
    ranks = {name: a.shape[0] for name, (a, _) in weights.modules.items()}
    (tmp_path / "adapter_config.json").write_bytes(canonical_config(parsed, ranks))
    again = read_adapter(tmp_path, spec, "d", max_rank=8)
    for name, (_, b) in weights.modules.items():
        assert torch.equal(again.modules[name][1], b)
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path)
    for name, layer in layers.items():
        mine = loaded.get_submodule(f"base_model.model.{name}")
        torch.testing.assert_close(mine.get_delta_weight("default"), layer.get_delta_weight("default"))


def write(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    """An adapter on one module, with changes."""
    folder.mkdir(parents=True, exist_ok=True)
    if tensors is None:
        key = f"base_model.model.{DEEP}"
        tensors = {f"{key}.lora_A.weight": torch.ones(2, 24), f"{key}.lora_B.weight": torch.ones(16, 2)}
    save_file(tensors, folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["down_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"bias": "all"}, {"lora_bias": True},
        {"trainable_token_indices": [1]}, {"fan_in_fan_out": True}, {"layer_replication": [[0, 2]]},
        {"megatron_config": {"x": 1}}, {"peft_type": "IA3"}, {"peft_type": None},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"}, {"r": 3}, {"r": 0}, {"r": True}, {"r": 2.0}, {"lora_alpha": "4"},
        {"lora_alpha": 0}, {"lora_alpha": 10**400}, {"rank_pattern": {"down_proj": 3}},
        {"rank_pattern": {"(a+)+$": 2}}, {"rank_pattern": [1]}, {"target_modules": ["q_proj"]},
        {"target_modules": ["own_proj"]}, {"base_model_name_or_path": "/models/Tiny-Llama-2"},
        {"use_rslora": 1}, {"alpha_pattern": {"down_proj": float("nan")}}, {"target_parameters": ["x"]},
    ],
    ids=repr,
)  # fmt: skip
def test_configurations_that_are_refused(spec: BaseModelSpec, tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(InvalidAdapter):
        read_adapter(write(tmp_path, **config), spec, "d", max_rank=8)


def test_what_changes_nothing_is_ignored(spec: BaseModelSpec, tmp_path: Path) -> None:
    for name in ("tiny-llama", "/somewhere/TINY-LLAMA/", "", None):
        folder = write(tmp_path, base_model_name_or_path=name, lora_dropout=0.3, use_dora=False, new={"a": 1})
        assert read_adapter(folder, spec, "d", max_rank=2).rank == 2


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"r": 1, "r": 2}', "[" * 100_000, '{"r": ' + "9" * 5000 + "}", "\ufeff{}", "1"]
)
def test_configurations_that_are_no_json_object(text: str) -> None:
    with pytest.raises(InvalidAdapter):
        parse_config(text.encode())
    with pytest.raises(InvalidAdapter):
        parse_config(b'{"r": "\xff"}')
    with pytest.raises(InvalidAdapter):
        parse_config(b" " * (1 << 21))


ONE, TWO = "base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight"


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {ONE.format(DEEP): torch.ones(2, 24)},
        {ONE.format(DEEP): torch.ones(2, 24), TWO.format(Q.format(1)): torch.ones(16, 2)},
        {ONE.format(DEEP): torch.ones(2, 23), TWO.format(DEEP): torch.ones(16, 2)},
        {ONE.format(DEEP): torch.ones(2, 24), TWO.format(DEEP): torch.ones(2, 16)},
        {ONE.format(DEEP): torch.ones(2, 24), TWO.format(DEEP): torch.ones(16, 2, 1)},
        {ONE.format(DEEP): torch.ones(0, 24), TWO.format(DEEP): torch.ones(16, 0)},
        {ONE.format(DEEP): torch.ones(2, 24), TWO.format(DEEP): torch.ones(16, 2).double()},
        {ONE.format(DEEP): torch.ones(2, 24), TWO.format(DEEP): torch.ones(16, 2).int()},
        {ONE.format(DEEP): torch.ones(2, 24), TWO.format(DEEP): torch.full((16, 2), torch.nan)},
        {ONE.format(DEEP): torch.full((2, 24), torch.inf), TWO.format(DEEP): torch.ones(16, 2)},
        {ONE.format(DEEP): torch.ones(2, 24), TWO.format(DEEP): torch.full((16, 2), 60_000.0)},
        {ONE.format("x." + DEEP): torch.ones(2, 24), TWO.format("x." + DEEP): torch.ones(16, 2)},
        {f"base_model.model.{DEEP}.lora_embedding_A": torch.ones(2, 24)},
        {f"base_model.model.{DEEP}.lora_magnitude_vector": torch.ones(16)},
    ],
)
def test_tensors_that_are_refused(
    spec: BaseModelSpec, tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(InvalidAdapter):
        read_adapter(write(tmp_path, tensors), spec, "d", max_rank=8)


def test_layers_of_the_base_model_are_refused_with_a_way_out(spec: BaseModelSpec, tmp_path: Path) -> None:
    tensors = {
        ONE.format(DEEP): torch.ones(2, 24),
        TWO.format(DEEP): torch.ones(16, 2),
        "base_model.model.lm_head.base_layer.weight": torch.ones(32, 16),
    }
    with pytest.raises(InvalidAdapter, match="save_embedding_layers=False"):
        read_adapter(write(tmp_path, tensors), spec, "d", max_rank=8)


def test_bounds_and_missing_files(spec: BaseModelSpec, tmp_path: Path) -> None:
    folder = write(tmp_path)
    assert read_adapter(folder, None, "d", max_rank=2).digest == "d"
    with pytest.raises(InvalidAdapter, match="rank 2"):
        read_adapter(folder, spec, "d", max_rank=1)
    with pytest.raises(InvalidAdapter, match="bytes"):
        read_adapter(folder, spec, "d", max_rank=8, max_bytes=100)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UnknownAdapter):
        read_adapter(folder, spec, "d", max_rank=8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_scaled_without_loss(
    spec: BaseModelSpec, tmp_path: Path, dtype: torch.dtype
) -> None:
    made = {ONE.format(DEEP): torch.randn(2, 24).to(dtype), TWO.format(DEEP): torch.randn(16, 2).to(dtype)}
    for alpha, kept in ((4, dtype), (3, torch.float32)):
        _, b = read_adapter(write(tmp_path, made, lora_alpha=alpha), spec, "d", max_rank=8).modules[DEEP]
        assert b.dtype == kept
        assert torch.equal(b.float(), made[TWO.format(DEEP)].float() * (alpha / 2))
    assert save(load_file(tmp_path / "adapter_model.safetensors")) == save(made)
