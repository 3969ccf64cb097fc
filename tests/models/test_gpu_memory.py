"""The cap on what a process may allocate of a GPU that it shares."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from graph.errors import InvalidInput
from models.gpu_memory import CONTEXT_BYTES, cap_memory

GIB = 1 << 30


class FakeCuda:
    """As much of `torch.cuda` as the cap uses, with one GPU."""

    def __init__(self, total: int = 24 * GIB, available: bool = True, error: Exception | None = None) -> None:
        self.total, self.available, self.error = total, available, error
        self.fractions: list[tuple[float, int]] = []

    def is_available(self) -> bool:
        return self.available

    def get_device_properties(self, device: int) -> SimpleNamespace:
        if self.error is not None:
            raise self.error
        assert device == 0  # Ray shows a replica its own GPU alone
        return SimpleNamespace(total_memory=self.total)

    def set_per_process_memory_fraction(self, fraction: float, device: int) -> None:
        self.fractions.append((fraction, device))


def test_shares_of_one_card_leave_room_for_what_cuda_takes_for_each_process() -> None:
    shares = (0.1, 0.2, 0.7)
    cuda = FakeCuda()
    allowed = [cap_memory(share, cuda) for share in shares]
    assert allowed == [int(share * 24 * GIB) - CONTEXT_BYTES for share in shares]
    assert [(round(fraction * 24 * GIB), device) for fraction, device in cuda.fractions] == [
        (bytes_, 0) for bytes_ in allowed
    ]
    assert sum(bytes_ or 0 for bytes_ in allowed) + len(shares) * CONTEXT_BYTES <= 24 * GIB


@pytest.mark.parametrize("share", [1.0, 2.0])
def test_whole_cards_are_not_capped(share: float) -> None:
    cuda = FakeCuda()
    assert cap_memory(share, cuda) is None
    assert cuda.fractions == []


def test_nothing_happens_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(available=False)
    assert cap_memory(0.5, cuda) is None
    assert cuda.fractions == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cap_memory(0.5) is None


def test_torch_is_what_is_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(total=16 * GIB)
    for name in ("is_available", "get_device_properties", "set_per_process_memory_fraction"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    assert cap_memory(0.25) == 4 * GIB - CONTEXT_BYTES
    assert len(fake.fractions) == 1


def test_a_card_that_does_not_work_is_left_to_the_models(caplog: pytest.LogCaptureFixture) -> None:
    cuda = FakeCuda(error=RuntimeError("no kernel image"))
    with caplog.at_level(logging.WARNING):
        assert cap_memory(0.5, cuda) is None
    assert "no kernel image" in caplog.text


def test_a_share_of_which_nothing_is_left_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"0\.01 of a GPU with 24576 MiB.*more than 0\.02") as caught:
        cap_memory(0.01, FakeCuda())
    assert caught.value.param == "num_gpus"


@pytest.mark.parametrize("share", [0.0, -0.5, float("nan")])
def test_a_share_is_above_zero(share: float) -> None:
    with pytest.raises(InvalidInput, match="above 0"):
        cap_memory(share, FakeCuda())
