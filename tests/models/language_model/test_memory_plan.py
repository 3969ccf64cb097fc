"""What is said about the memory of a GPU when a language model is opened."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models.language_model.kv_cache import KVCache
from models.language_model.memory_plan import MemoryPlan, bytes_per_token, plan_memory, say_what_fits
from tests.models.language_model.tiny_models import make_model

GIB = 1 << 30


class FakeCuda:
    """A GPU of 24 GiB: others hold 4, this process 2, and torch half a one that it does not use."""

    def __init__(self, fraction: float) -> None:
        self.fraction = fraction

    def mem_get_info(self, device: Any) -> tuple[int, int]:
        return 24 * GIB - 4 * GIB - 5 * GIB // 2, 24 * GIB

    def memory_allocated(self, device: Any) -> int:
        return 2 * GIB

    def memory_reserved(self, device: Any) -> int:
        return 5 * GIB // 2

    def get_per_process_memory_fraction(self, device: Any) -> float:
        return self.fraction


def base(device: str) -> Any:
    model = make_model()
    return SimpleNamespace(device=torch.device(device), dtype=torch.bfloat16, model=model)


def test_a_token_takes_what_the_cache_reserves_for_it() -> None:
    model = make_model()
    config = model.config
    cache = KVCache(config.num_hidden_layers, max_rows=1, max_tokens=64)
    heads, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    for layer in cache.row_layers:
        layer.reserve(torch.zeros(1, heads, 1, width), 1, 64)
    assert cache.nbytes == 64 * bytes_per_token(config, torch.float32)


@pytest.mark.parametrize(
    ("fraction", "free"),
    [
        (0.5, 12 * GIB - 2 * GIB),  # the share ends first
        (1.0, 24 * GIB - 4 * GIB - 2 * GIB),  # what others hold
        (0.05, 0),  # the weights alone are beyond the share
    ],
)
def test_what_is_free_is_within_the_share_and_beside_the_others(fraction: float, free: int) -> None:
    plan = plan_memory(base("cuda"), 256, FakeCuda(fraction))
    assert plan is not None and plan.free_bytes == free
    assert plan.full_rows == free // (256 * plan.bytes_per_token)


def test_a_cpu_has_no_plan() -> None:
    assert plan_memory(base("cpu"), 256) is None


@pytest.mark.parametrize(("rows", "level"), [(4, logging.INFO), (3, logging.WARNING), (0, logging.WARNING)])
def test_a_batch_that_does_not_fit_is_a_warning(
    rows: int, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    plan = MemoryPlan(bytes_per_token=1024, free_bytes=rows * 100 * 1024 + 5, window=100)
    with caplog.at_level(logging.INFO):
        say_what_fits(plan, 4)
    (record,) = caplog.records
    assert record.levelno == level
    assert f"{rows} of 4 rows can have all of their 100 tokens" in record.message
