"""Slots against PEFT row by row, blends against merged weights, slot operations against dense deltas."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel

from graph.errors import InvalidAdapter
from models.language_model.lora import LoraSlots
from models.language_model.lora_weights import AdapterWeights
from models.language_model.protocol import AdapterPart
from tests.models.language_model.adapter_files import (
    ALL_LINEARS,
    ATTENTION,
    MLP,
    linears_of,
    peft_model,
    tiny_llama,
    tiny_qwen2,
    tiny_qwen3,
    weights_of,
)

VARIANTS = (
    {"rank": 4, "alpha": 8, "targets": ALL_LINEARS},
    {"rank": 2, "alpha": 3, "targets": ATTENTION},
    {"rank": 8, "alpha": 16, "targets": MLP, "rslora": True},
    {"rank": 1, "alpha": 1, "targets": ("q_proj", "lm_head")},
)


@torch.inference_mode()
def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    found: Tensor = model(input_ids=tokens, use_cache=False).logits
    return found


def open_slots(model: PreTrainedModel, num_slots: int = 4, max_rank: int = 8) -> LoraSlots:
    return LoraSlots(model, linears_of(model), num_slots=num_slots, max_rank=max_rank)


def random_weights(
    digest: str, shapes: dict[str, tuple[int, int]], rank: int = 2, seed: int = 0
) -> AdapterWeights:
    generator = torch.Generator().manual_seed(seed)
    modules = {
        name: (
            torch.randn(rank, inputs, generator=generator),
            torch.randn(outputs, rank, generator=generator),
        )
        for name, (inputs, outputs) in shapes.items()
    }
    return AdapterWeights(digest, rank, modules, sum(a.nbytes + b.nbytes for a, b in modules.values()))


def part(digest: str, weight: float = 1.0) -> tuple[AdapterPart, ...]:
    return (AdapterPart(digest, weight),)


@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen2, tiny_qwen3])
@pytest.mark.parametrize("length", [1, 9])
def test_each_row_of_a_mixed_batch_equals_peft(make: object, length: int) -> None:
    model = make(seed=3)  # type: ignore[operator]
    base = copy.deepcopy(model)
    slots = open_slots(model)
    tokens = torch.randint(0, 128, (6, length), generator=torch.Generator().manual_seed(1))
    oracles = [peft_model(base, seed=i, **options) for i, options in enumerate(VARIANTS)]  # type: ignore[arg-type]
    for i, oracle in enumerate(oracles):
        assert slots.put(weights_of(oracle, f"d{i}"))
    rows: list[tuple[AdapterPart, ...]] = [part("d0"), (), part("d2"), part("d1"), part("d3"), part("d2")]
    slots.set_rows(rows)
    mixed = logits(model, tokens)
    plain = logits(base, tokens)
    for i, parts in enumerate(rows):
        if parts:
            expected = logits(oracles[int(parts[0].digest[1])], tokens)[i]
            assert (expected - plain[i]).abs().max() > 0.05  # the adapter does something
            torch.testing.assert_close(mixed[i], expected, atol=2e-5, rtol=1e-4)
        else:
            assert torch.equal(mixed[i], plain[i])
    for i, oracle in enumerate(oracles):  # all rows alike
        slots.set_rows([part(f"d{i}")] * 6)
        torch.testing.assert_close(logits(model, tokens), logits(oracle, tokens), atol=2e-5, rtol=1e-4)


def test_without_adapters_the_model_is_the_unwrapped_one_bit_for_bit() -> None:
    model = tiny_llama()
    base = copy.deepcopy(model)
    tokens = torch.arange(12).view(3, 4)
    slots = open_slots(model)
    assert slots.put(weights_of(peft_model(base), "d"))
    slots.set_rows([part("d")] * 3)
    assert not torch.equal(logits(model, tokens), logits(base, tokens))
    slots.set_rows([(), ()])
    assert torch.equal(logits(model, tokens), logits(base, tokens))
    slots.set_rows([part("d")] * 3)
    slots.close()
    assert [name for name, _ in model.named_modules()] == [name for name, _ in base.named_modules()]
    assert torch.equal(logits(model, tokens), logits(base, tokens))


@pytest.mark.parametrize("num_rows", [1, 3])
def test_blends_equal_merged_weights(num_rows: int) -> None:
    model = tiny_llama(seed=5)
    base = copy.deepcopy(model)
    adapters = [
        weights_of(peft_model(base, seed=i, **options), f"d{i}")  # type: ignore[arg-type]
        for i, options in enumerate(VARIANTS)
    ]
    slots = open_slots(model)
    for weights in adapters:
        slots.put(weights)
    blend = {0: 0.3, 1: -0.5, 2: 0.7, 3: 0.0}
    merged = copy.deepcopy(base)
    for i, weight in blend.items():
        for name, (a, b) in adapters[i].modules.items():
            merged.get_submodule(name).weight += weight * b @ a
    parts = tuple(AdapterPart(f"d{i}", weight) for i, weight in blend.items())
    rows = [parts, part("d1"), ()][:num_rows]
    slots.set_rows(rows)
    tokens = torch.arange(5 * num_rows).view(num_rows, 5)
    torch.testing.assert_close(logits(model, tokens)[0], logits(merged, tokens)[0], atol=2e-5, rtol=1e-4)
    slots.set_rows([part("d0", 0.0)] * num_rows)
    assert torch.equal(logits(model, tokens), logits(base, tokens))


class _Two(nn.Module):
    """Two linears that show their term alone."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 5, bias=False), nn.Linear(4, 2, bias=False)
        self.requires_grad_(False)
        for linear in (self.one, self.two):
            linear.weight.zero_()


SHAPES = {"one": (3, 5), "two": (4, 2)}
POOL = [
    random_weights(f"a{i}", {n: SHAPES[n] for n in names}, rank, seed=i)
    for i, (names, rank) in enumerate(
        [(("one", "two"), 1), (("one",), 4), (("two",), 2), (("one", "two"), 3), (("one",), 1)]
    )
]
_weights = st.sampled_from([1.0, 1.0, 0.5, -2.0, 0.0])
_operations = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 4)),
        st.tuples(st.just("pin"), st.integers(0, 4)),
        st.tuples(st.just("unpin"), st.integers(0, 4)),
        st.tuples(st.just("drop"), st.just(0)),
        st.tuples(
            st.just("rows"),
            st.lists(st.lists(st.tuples(st.integers(0, 4), _weights), max_size=3), min_size=1, max_size=3),
        ),
    ),
    max_size=25,
)


def _delta(rows: Sequence[Sequence[AdapterPart]], name: str, x: Tensor) -> Tensor:
    y = torch.zeros(*x.shape[:2], SHAPES[name][1])
    for i, parts in enumerate(rows):
        for p in parts:
            a, b = next(w.modules for w in POOL if w.digest == p.digest).get(name, (None, None))
            if a is not None and b is not None:
                y[i] += p.weight * x[i] @ (b @ a).t()
    return y


@settings(deadline=None, max_examples=150)
@given(_operations, st.integers(1, 3))
def test_any_order_of_slot_operations_equals_dense_deltas(
    operations: list[tuple[str, object]], num_slots: int
) -> None:
    model = _Two()
    slots = LoraSlots(model, SHAPES, num_slots=num_slots, max_rank=4)
    order: list[str] = []  # least recently used first
    pins: dict[str, int] = {}
    for kind, value in operations:
        if kind == "rows":
            rows = [
                [AdapterPart(f"a{i}", w) for i, w in parts if f"a{i}" in order]
                for parts in value  # type: ignore[attr-defined]
            ]
            slots.set_rows(rows)
            for name, (inputs, _) in SHAPES.items():
                x = torch.randn(len(rows), 2, inputs)
                expected = _delta(rows, name, x)
                torch.testing.assert_close(model.get_submodule(name)(x), expected, atol=1e-4, rtol=1e-4)
            continue
        digest = f"a{value}"
        if kind == "put":
            free = [d for d in order if d not in pins]
            fits = digest in order or len(order) < num_slots or bool(free)
            assert slots.put(POOL[value]) is fits  # type: ignore[call-overload]
            if fits:
                if digest in order:
                    order.remove(digest)
                elif len(order) == num_slots:
                    order.remove(free[0])
                order.append(digest)
        elif kind == "pin" and digest in order:
            slots.pin(digest)
            pins[digest] = pins.get(digest, 0) + 1
            order.remove(digest)
            order.append(digest)
        elif kind == "unpin" and digest in pins:
            slots.unpin(digest)
            pins[digest] -= 1
            if not pins[digest]:
                del pins[digest]
        elif kind == "drop":
            assert slots.drop_idle() == len([d for d in order if d not in pins])
            order = [d for d in order if d in pins]
        assert slots.in_slots() == tuple(order)


def test_an_overwritten_slot_does_not_answer_for_the_old_adapter() -> None:
    model = _Two()
    slots = LoraSlots(model, SHAPES, num_slots=1, max_rank=4)
    x = torch.randn(2, 1, 3)
    assert slots.put(POOL[0])
    slots.set_rows([part("a0"), ()])
    model.one(x)
    assert slots.put(POOL[1])  # a0 was not pinned
    with pytest.raises(RuntimeError, match="evicted"):
        model.one(x)
    with pytest.raises(KeyError):
        slots.set_rows([part("a0"), ()])
    rows = [part("a1"), ()]
    slots.set_rows(rows)
    torch.testing.assert_close(model.one(x), _delta(rows, "one", x))


def test_all_slots_pinned_and_wrong_rows() -> None:
    model = _Two()
    slots = LoraSlots(model, SHAPES, num_slots=1, max_rank=4)
    assert slots.put(POOL[0])
    slots.pin("a0")
    slots.pin("a0")
    slots.unpin("a0")
    assert not slots.put(POOL[1]) and slots.holds("a0") and slots.drop_idle() == 0
    slots.set_rows([part("a0")] * 2)
    with pytest.raises(RuntimeError, match="3 rows run"):
        model.one(torch.randn(3, 1, 3))
    slots.unpin("a0")
    with pytest.raises(KeyError):
        slots.unpin("a0")
    assert slots.nbytes > 0 and slots.drop_idle() == 1 and slots.nbytes == 0


def test_adapters_that_do_not_fit_are_refused_and_change_nothing() -> None:
    model = _Two()
    slots = LoraSlots(model, SHAPES, num_slots=1, max_rank=4)
    assert slots.put(POOL[0])
    for shapes, rank, match in [
        ({"three": (3, 5)}, 2, "three"),
        ({"one": (3, 6)}, 2, "takes"),
        ({"one": (4, 5)}, 2, "takes"),
        ({"one": (3, 5)}, 5, "slots take 1 to 4"),
    ]:
        with pytest.raises(InvalidAdapter, match=match):
            slots.put(random_weights("bad", shapes, rank))
    assert slots.in_slots() == ("a0",)


def test_adapters_in_other_dtypes_than_the_model() -> None:
    model = _Two().to(torch.bfloat16)
    slots = LoraSlots(model, SHAPES, num_slots=2, max_rank=4)
    assert slots.put(POOL[0]) and slots.put(POOL[3])
    x = torch.randn(2, 3, 4).to(torch.bfloat16)
    rows = [part("a0", 0.5), part("a3")]
    slots.set_rows(rows)
    y = model.two(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), _delta(rows, "two", x.float()), atol=0.2, rtol=0.05)


def test_nothing_is_left_of_a_larger_adapter_in_a_slot_used_again() -> None:
    model = _Two()
    slots = LoraSlots(model, SHAPES, num_slots=2, max_rank=4)
    assert slots.put(POOL[1]) and slots.put(POOL[3])
    slots.pin("a3")
    x = torch.randn(2, 1, 3)
    for weights in (POOL[0], POOL[2]):  # of smaller rank; not on this linear at all
        assert slots.put(weights)
        rows = [part(weights.digest), part("a3")]
        slots.set_rows(rows)
        torch.testing.assert_close(model.one(x), _delta(rows, "one", x), atol=1e-4, rtol=1e-4)
