"""int8 weights for the linear layers of a language model.

Weights are symmetric, with one scale for each output channel. On a CPU that multiplies int8 exactly, inputs
become int8 as well, each token with a scale of its own: the vector-wise scheme of LLM.int8, without its
outliers (Dettmers et al. 2022, https://arxiv.org/abs/2208.07339). What a row gets then depends on no other
row, to the last bit; one scale for the whole batch would not give that. Elsewhere weights are dequantised for
each product, which saves memory but no time.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LARGEST = 127
"""Of the int8 values used; -128 is not, so that the range is symmetric."""

log = logging.getLogger(__name__)


def quantize_int8(model: PreTrainedModel) -> None:
    """Replace the linear layers of a causal language model of transformers, in place, by `Int8Linear`.

    The output embedding (`lm_head`) keeps its weight: it decides between near logits, and is often the input
    embedding itself. Cast the model and move it to its device before. Raises ValueError when the model has no
    linear layer left to quantise.
    """
    head = model.get_output_embeddings()
    linears = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    ]
    if not linears:
        raise ValueError(f"{type(model).__name__} has no linear layers; was it quantised before?")
    if next(model.parameters()).is_cpu and not multiplies_exactly():
        log.warning(
            "this CPU has no exact int8 products: int8 weights save memory, but make generation slower"
        )
    for name, _ in linears:
        # One at a time, so that no more than one layer is there twice.
        parent, _, last = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, last, Int8Linear(getattr(owner, last)))


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, for inference."""

    weight: Tensor
    """[out, in] int8."""
    scale: Tensor
    """[out] float32: what one step of `weight` is worth."""
    bias: Tensor | None
    """[out], in the dtype of the linear layer."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        with torch.inference_mode(False), torch.no_grad():
            weight, scale = _to_int8(linear.weight.detach())
            self.register_buffer("weight", weight)
            self.register_buffer("scale", scale.squeeze(1))
            self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out], in the dtype of x."""
        if not x.is_cpu or not multiplies_exactly():
            # Scaled before the product, which might leave the range of float16, and in float32, rounded once.
            weight = torch.empty_like(self.weight, dtype=x.dtype)
            torch.mul(self.weight, self.scale.unsqueeze(1), out=weight)
            return functional.linear(x, weight, self.bias)
        x8, step = _to_int8(x.reshape(-1, self.in_features))
        y = (torch._int_mm(x8, self.weight.t()) * step).mul_(self.scale)
        if self.bias is not None:
            y.add_(self.bias)
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )


@functools.cache
def multiplies_exactly() -> bool:
    """Whether int8 products on this CPU are summed without saturating.

    They are where it has instructions for them (VNNI). Without, oneDNN adds pairs of products in 16 bits, and
    large values come out wrong.
    """
    large = torch.full((16, 64), LARGEST, dtype=torch.int8)
    exact = LARGEST * LARGEST * large.shape[1]
    return all(
        bool((torch._int_mm(large[:rows], sign * large.t()) == sign * exact).all())
        for rows in (1, 16)
        for sign in (1, -1)
    )


def _to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """[n, d] to int8 [n, d] and the step of each row, float32 [n, 1]. A row that is not finite has no finite
    step, so that what is computed from it is not finite either.
    """
    x = x.float()
    step = x.abs().amax(1, keepdim=True).mul_(1 / LARGEST).clamp_min_(torch.finfo(torch.float32).tiny)
    return x.div(step).round_().to(torch.int8), step
