"""int8 linears against float32 ones, in whole models and under adapters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.language_model import quantization
from models.language_model.base_model import BaseModel
from models.language_model.lora import LoraSlots
from models.language_model.protocol import AdapterPart
from models.language_model.quantization import Int8Linear, multiplies_exactly, quantize_int8
from tests.models.language_model.adapter_files import (
    ALL_LINEARS,
    linears_of,
    peft_model,
    tiny_llama,
    weights_of,
)
from tests.models.language_model.tiny_models import ARCHITECTURES, make_model, make_tokenizer


@pytest.fixture(params=["exact", "dequantised"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to multiply, whatever this CPU can do."""
    if request.param == "exact" and not multiplies_exactly():
        pytest.skip("this CPU has no exact int8 products")
    monkeypatch.setattr(quantization, "multiplies_exactly", lambda: request.param == "exact")
    return str(request.param)


def random_linear(inputs: int = 48, outputs: int = 40, *, bias: bool = False, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)


def error(found: Tensor, wanted: Tensor) -> float:
    """Relative, over all elements."""
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


@torch.inference_mode()
def logits(model: Any, tokens: Tensor) -> Tensor:
    found: Tensor = model(input_ids=tokens, use_cache=False).logits
    return found


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 3, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_linear(path: str, dtype: torch.dtype, rows: int, bias: bool) -> None:
    linear = random_linear(bias=bias)
    linear.weight.mul_(torch.logspace(-3, 2, 40).unsqueeze(1))  # channels of very different size
    x = torch.randn(rows, 2, 48)
    wanted = linear(x)
    found = Int8Linear(linear.to(dtype))(x.to(dtype))
    assert found.shape == wanted.shape and found.dtype == dtype
    largest = x.norm(dim=-1, keepdim=True) * linear.weight.float().norm(dim=1)
    if bias:
        largest += linear.bias.float().abs()
    assert bool(((found.float() - wanted).abs() < 0.006 * largest).all())


def test_weights_that_are_steps_of_the_scale_come_out_exactly(path: str) -> None:
    linear = random_linear(8, 3)
    steps = torch.tensor([[127, -127, 1, 0, 64, -3, 2, 5], [0] * 8, [-127, 0, 0, 0, 0, 0, 0, 1]])
    linear.weight.copy_(steps * torch.tensor([[0.5], [1.0], [4.0]]))
    x = torch.tensor([[127.0, 3, -5, 0, 1, 2, 9, -127], [0.0] * 8])
    assert torch.equal(Int8Linear(linear)(x), linear(x))


def test_a_row_gets_the_same_bits_in_any_batch() -> None:
    if not multiplies_exactly():
        pytest.skip("this CPU has no exact int8 products")
    linear = Int8Linear(random_linear(256, 200, bias=True))
    x = torch.randn(17, 1, 256)
    x[5] *= 1e4  # a loud neighbour
    together = linear(x)
    assert all(torch.equal(linear(x[i : i + 1])[0], together[i]) for i in range(17))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so_in_its_own_row(path: str, value: float) -> None:
    linear = Int8Linear(random_linear())
    x = torch.randn(3, 1, 48)
    wanted = linear(x)
    x[1, 0, 7] = value
    found = linear(x)
    assert not found[1].isfinite().any()
    assert torch.allclose(found[[0, 2]], wanted[[0, 2]], atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_answers_nearly_as_before(path: str, architecture: str) -> None:
    model = make_model(architecture)
    quantised = copy.deepcopy(model)
    quantize_int8(quantised)
    tokens = torch.randint(0, 256, (3, 40))
    found, wanted = logits(quantised, tokens), logits(model, tokens)
    assert 0 < error(found, wanted) < 0.08  # their large weights let errors grow
    assert float((found.argmax(-1) == wanted.argmax(-1)).float().mean()) > 0.8


def test_which_layers_and_how_many_bytes() -> None:
    model = make_model()
    before, head = model.get_memory_footprint(), model.lm_head.weight
    linears = [m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    weights, outputs = sum(m.weight.numel() for m in linears), sum(m.out_features for m in linears)
    quantize_int8(model)
    assert model.lm_head.weight is head
    assert sum(isinstance(m, Int8Linear) for m in model.modules()) == len(linears) == 14
    # Four bytes become one; each output channel gets a scale.
    assert before - model.get_memory_footprint() == 3 * weights - 4 * outputs


def test_twice_is_refused() -> None:
    model = make_model()
    quantize_int8(model)
    with pytest.raises(ValueError, match="quantised before"):
        quantize_int8(model)


def test_generate(path: str) -> None:
    model = make_model()
    base = BaseModel.of(model, make_tokenizer(), name="tiny", quantization="int8")
    prompt = torch.randint(0, 256, (1, 12))
    found = base.model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=10,
        min_new_tokens=10,
        do_sample=False,
    )
    assert found.shape == (1, 22)
    best = logits(model, found[:, :-1])[0, 11:].argmax(-1)  # without its cache of keys and values
    assert float((best == found[0, 12:]).float().mean()) > 0.8


def test_adapters_over_a_quantised_model(path: str) -> None:
    """What an adapter adds is not quantised: the difference to PEFT is no larger than that of the base."""
    base = tiny_llama()
    adapted = peft_model(base, rank=4, alpha=8, targets=ALL_LINEARS)
    linears, weights = linears_of(base), weights_of(adapted, "a")
    quantised = copy.deepcopy(base)
    quantize_int8(quantised)
    plain = logits(quantised, torch.arange(20).view(2, 10))
    slots = LoraSlots(quantised, linears, num_slots=2, max_rank=8)
    assert slots.put(weights)
    slots.set_rows([(AdapterPart("a"),), ()])
    tokens = torch.arange(20).view(2, 10)
    found = logits(quantised, tokens)
    assert error(found[0], logits(adapted, tokens)[0]) < 0.1
    assert error(found[0], plain[0]) > 0.2  # the adapter does something
    assert torch.allclose(found[1], plain[1], atol=1e-5)
    slots.close()
    assert torch.equal(logits(quantised, tokens), plain)


def test_a_cpu_that_saturates_is_found_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def saturating(x: Tensor, y: Tensor) -> Tensor:
        """Unsigned by signed, pairs added in 16 bits, as without VNNI."""
        products = (x.int() + 128).unsqueeze(2) * y.int().unsqueeze(0)
        pairs = products.view(x.shape[0], -1, 2, y.shape[1]).sum(2).clamp(-(2**15), 2**15 - 1)
        return (pairs.sum(1) - 128 * y.int().sum(0)).int()

    monkeypatch.setattr(torch, "_int_mm", saturating)
    monkeypatch.setattr(quantization, "multiplies_exactly", multiplies_exactly.__wrapped__)
    assert not quantization.multiplies_exactly()
    model = make_model()
    wanted = logits(model, torch.arange(10).view(1, 10))
    quantize_int8(model)
    assert "slower" in caplog.text
    assert error(logits(model, torch.arange(10).view(1, 10)), wanted) < 0.1
