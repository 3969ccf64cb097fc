"""Which files beside the store its pointers name."""

from __future__ import annotations

import pytest

from deployments.named_files import named_files
from graph.errors import Corrupt
from graph.schema import Pointer
from models.adapter_pointers import AdapterArm, encode_state

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def test_active_encoder_and_adapters_are_named_and_others_are_not() -> None:
    pointers = [
        Pointer("encoder", "active", {"digest": "0123456789abcdef"}, 1),
        Pointer("encoder", "candidate", {"digest": "fedcba9876543210"}, 2),
        Pointer("adapter.user", "ada", encode_state([AdapterArm("v1", A)], [], "activate"), 3),
        Pointer(
            "adapter.domain",
            "films",
            encode_state([AdapterArm("v1", A), AdapterArm("v2", B)], [AdapterArm("v0", C)], "activate"),
            4,
        ),
        Pointer("adapter.global", "default", encode_state([], [AdapterArm("v0", C)], "deactivate"), 5),
        Pointer("adapter_version", "user/ada/v0", {"digest": C}, 6),
        Pointer("text_model", "active", {"model": "words"}, 7),
    ]
    assert named_files(pointers) == {
        "encoders/0123456789abcdef": "the active encoder",
        f"adapters/{A}": "active for domain/films",
        f"adapters/{B}": "active for domain/films",
    }
    assert named_files([Pointer("encoder", "active", {"digest": None}, 1)]) == {}
    assert named_files([]) == {}


def test_a_pointer_that_is_none_is_corrupt() -> None:
    with pytest.raises(Corrupt):
        named_files([Pointer("adapter.user", "ada", {"arms": "?"}, 1)])
