"""LoRA adapters of different users in one batch (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

A linear that some adapter targets answers `base(x) + sum_k w_k x A_k^T B_k^T`, with the parts k of the row.
Adapters lie in slots, stacked for each linear; what the rows of a batch need of them is gathered when the
batch changes, not at every step. A blend is its parts one behind the other along the rank, weights multiplied
into B, which is exact.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from graph.errors import InvalidAdapter
from models.language_model.lora_weights import AdapterWeights
from models.language_model.protocol import AdapterPart

# An engine alternates between the rows that decode and those whose prompt is read.
_CACHED_BATCHES = 2


class LoraSlots:
    """Adapters on the model's device, and which rows of the coming forward passes use them.

    Linears are wrapped at the first adapter that targets them. For one thread, the one that runs the model;
    `in_slots`, `holds` and `nbytes` may be read from others.
    """

    def __init__(
        self,
        model: nn.Module,
        linears: Mapping[str, tuple[int, int]],
        *,
        num_slots: int,
        max_rank: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """`linears`: full module name to (in_features, out_features). A linear's own weight is never looked
        at, so it may be quantised. Device and dtype are those of the model's first floating parameter, unless
        given.
        """
        if num_slots < 1 or max_rank < 1:
            raise ValueError(f"num_slots is {num_slots}, max_rank {max_rank}; both must be from 1")
        first = next((p for p in model.parameters() if p.is_floating_point()), None)
        if first is None and (device is None or dtype is None):
            raise ValueError("the model has no floating parameter; give device and dtype of its activations")
        self.num_slots, self.max_rank = num_slots, max_rank
        self._device = device if device is not None or first is None else first.device
        self._dtype = dtype if dtype is not None or first is None else first.dtype
        self._model, self._linears = model, dict(linears)
        self._wrapped: dict[str, _LoraLinear] = {}
        self._stacks: dict[str, _Stack] = {}
        self._slots: dict[str, _Slot] = {}  # by digest, least recently used first
        self._free = list(range(num_slots))
        self._pins: dict[str, int] = {}
        self._batches: OrderedDict[_Rows, _Batch] = OrderedDict()
        self._active: _Batch | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the slots on the device, without what is gathered for batches."""
        return sum(stack.a.nbytes + stack.b.nbytes for stack in list(self._stacks.values()))

    def in_slots(self) -> tuple[str, ...]:
        """Digests, the most recently used last."""
        return tuple(self._slots)

    def holds(self, digest: str) -> bool:
        return digest in self._slots

    def put(self, weights: AdapterWeights) -> bool:
        """Copy an adapter into a slot, if it is in none; whether it is in one now.

        Takes a free slot, or that of the least recently used adapter that is not pinned; False when all are
        pinned. Raises InvalidAdapter for modules, shapes or ranks that the model or the slots do not have,
        and the device's own out-of-memory error; then the adapters that are still in slots are whole.
        """
        if weights.digest in self._slots:
            self._touch(weights.digest)
            return True
        self._check(weights)
        if not self._free and all(digest in self._pins for digest in self._slots):
            return False
        with ExitStack() as modes:
            _enter_plain_mode(modes)
            for name, (a, _) in weights.modules.items():
                self._make_room(name, a.shape[0])
            if not self._free:
                self._evict(next(digest for digest in self._slots if digest not in self._pins))
            index = self._free[-1]
            # The slot is taken last: if a copy fails, it is still free and its contents are never gathered.
            for name, stack in self._stacks.items():
                stack.write(index, weights.modules.get(name))
            self._free.pop()
            self._slots[weights.digest] = _Slot(
                index, {n: a.shape[0] for n, (a, _) in weights.modules.items()}
            )
        return True

    def pin(self, digest: str) -> None:
        """Keep an adapter in its slot until as many `unpin`. Raises KeyError if it is in none."""
        self._touch(digest)
        self._pins[digest] = self._pins.get(digest, 0) + 1

    def unpin(self, digest: str) -> None:
        """Raises KeyError if it is not pinned."""
        self._pins[digest] -= 1
        if not self._pins[digest]:
            del self._pins[digest]

    def drop_idle(self) -> int:
        """Empty the slots that are not pinned, and forget gathered batches; how many adapters went.

        Memory of slots stays allocated while any adapter is left, and is given back when none is.
        """
        idle = [digest for digest in self._slots if digest not in self._pins]
        for digest in idle:
            self._evict(digest)
        self._batches.clear()
        if not self._slots:
            self._stacks.clear()
        return len(idle)

    def set_rows(self, rows: Sequence[Sequence[AdapterPart]]) -> None:
        """Row i of the coming forward passes, over inputs [n, q, in], uses the parts `rows[i]`, if any.

        Without any parts the model computes exactly what it does unwrapped, for any number of rows. Raises
        KeyError for an adapter that is in no slot, and the device's own out-of-memory error; the rows set
        before then hold on.
        """
        key: _Rows = tuple(tuple((part.digest, part.weight) for part in parts) for parts in rows)
        if self._active is not None and key == self._active.rows:
            return
        if not any(key):
            self._activate(None)
            return
        batch = self._batches.get(key)
        if batch is None:
            while len(self._batches) >= _CACHED_BATCHES:
                self._batches.popitem(last=False)
            batch = self._gather(key)
            self._batches[key] = batch
        self._batches.move_to_end(key)
        self._activate(batch)

    def close(self) -> None:
        """Put the model's own linears back, and free all slots."""
        for name, wrapper in self._wrapped.items():
            _replace(self._model, name, wrapper, wrapper.base)
        self._wrapped.clear()
        self._stacks.clear()
        self._batches.clear()
        self._slots.clear()
        self._pins.clear()
        self._free = list(range(self.num_slots))
        self._active = None

    def _check(self, weights: AdapterWeights) -> None:
        for name, (a, b) in weights.modules.items():
            shape = self._linears.get(name)
            if shape is None:
                raise InvalidAdapter(f"the base model has no linear layer {name[:200]!r}")
            rank = a.shape[0]
            if not 1 <= rank <= self.max_rank:
                raise InvalidAdapter(f"{name} has rank {rank}; slots take 1 to {self.max_rank}")
            if tuple(a.shape) != (rank, shape[0]) or tuple(b.shape) != (shape[1], rank):
                raise InvalidAdapter(
                    f"{name}: A is {list(a.shape)} and B {list(b.shape)}; the base model's layer takes "
                    f"[{rank}, {shape[0]}] and [{shape[1]}, {rank}]"
                )

    def _make_room(self, name: str, rank: int) -> None:
        """Wrap a linear and let its stack take `rank`."""
        if name not in self._wrapped:
            wrapper = _LoraLinear(self._model.get_submodule(name))
            _replace(self._model, name, wrapper.base, wrapper)
            self._wrapped[name] = wrapper
        stack = self._stacks.get(name)
        if stack is not None and stack.a.shape[1] >= rank:
            return
        inputs, outputs = self._linears[name]
        # One slot more, always zero, for rows that use no adapter.
        a = torch.zeros(self.num_slots + 1, rank, inputs, device=self._device, dtype=self._dtype)
        b = torch.zeros(self.num_slots + 1, rank, outputs, device=self._device, dtype=self._dtype)
        if stack is not None:
            a[:, : stack.a.shape[1]], b[:, : stack.b.shape[1]] = stack.a, stack.b
        self._stacks[name] = _Stack(a, b)

    def _touch(self, digest: str) -> None:
        self._slots[digest] = self._slots.pop(digest)

    def _evict(self, digest: str) -> None:
        self._free.append(self._slots.pop(digest).index)
        for rows in [rows for rows, batch in self._batches.items() if digest in batch.digests]:
            del self._batches[rows]
        if self._active is not None and digest in self._active.digests:
            # Its terms may be views of the slot. The next forward pass fails rather than use another's.
            self._active = None
            for wrapper in self._wrapped.values():
                wrapper.term = _NO_ROWS

    def _gather(self, rows: _Rows) -> _Batch:
        digests = frozenset(digest for parts in rows for digest, _ in parts)
        slots = {digest: self._slots[digest] for digest in digests}
        names = {name for slot in slots.values() for name in slot.ranks}
        alike = rows[:1] if all(parts == rows[0] for parts in rows) else rows
        num_parts = max(len(parts) for parts in alike)
        indices = [[slots[d].index for d, _ in p] + [self.num_slots] * (num_parts - len(p)) for p in alike]
        factors = [[w for _, w in p] + [0.0] * (num_parts - len(p)) for p in alike]
        terms: dict[str, _Term] = {}
        with ExitStack() as modes:
            _enter_plain_mode(modes)
            index = torch.tensor(indices, device=self._device).flatten()
            factor = torch.tensor(factors, dtype=torch.float32, device=self._device)[:, :, None, None]
            is_plain = all(w == 1 for parts in alike for _, w in parts)
            for name in names:
                rank = max(slot.ranks.get(name, 0) for slot in slots.values())
                stack = self._stacks[name]
                if len(alike) == num_parts == 1 and is_plain:
                    a, b = stack.a[indices[0][0], None, :rank], stack.b[indices[0][0], None, :rank]
                else:
                    a, b = stack.a[:, :rank].index_select(0, index), stack.b[:, :rank].index_select(0, index)
                    a = a.view(-1, num_parts, *a.shape[1:])
                    b = b.view(-1, num_parts, *b.shape[1:])
                    if not is_plain:
                        b = (b * factor).to(self._dtype)  # multiplied in float32
                    a, b = a.flatten(1, 2), b.flatten(1, 2)
                if len(alike) == 1:
                    terms[name] = _Term(len(rows), a[0].t(), b[0], is_shared=True)
                else:
                    terms[name] = _Term(len(rows), a.transpose(1, 2), b, is_shared=False)
        return _Batch(rows, digests, terms)

    def _activate(self, batch: _Batch | None) -> None:
        self._active = batch
        for name, wrapper in self._wrapped.items():
            wrapper.term = None if batch is None else batch.terms.get(name)


_Rows = tuple[tuple[tuple[str, float], ...], ...]


@dataclass(frozen=True)
class _Slot:
    index: int
    ranks: Mapping[str, int]  # of the modules the adapter targets


@dataclass(frozen=True)
class _Stack:
    """A and B of one linear in all slots, zero beyond an adapter's rank."""

    a: Tensor  # [slots + 1, rank, in]
    b: Tensor  # [slots + 1, rank, out]

    def write(self, index: int, pair: tuple[Tensor, Tensor] | None) -> None:
        rank = 0
        if pair is not None:
            rank = pair[0].shape[0]
            self.a[index, :rank].copy_(pair[0])
            self.b[index, :rank].copy_(pair[1].t())
        self.a[index, rank:].zero_()
        self.b[index, rank:].zero_()


@dataclass(frozen=True)
class _Term:
    """What is added to one linear: x A B, with A [in, R] and B [R, out], one for all rows or one for each."""

    num_rows: int
    a: Tensor
    b: Tensor
    is_shared: bool


@dataclass(frozen=True)
class _Batch:
    rows: _Rows
    digests: frozenset[str]
    terms: Mapping[str, _Term] = field(repr=False)


_NO_ROWS = _Term(-1, torch.empty(0), torch.empty(0), is_shared=True)


class _LoraLinear(nn.Module):
    """A linear of the base model, with the low-rank term of each row added."""

    base: nn.Module
    term: _Term | None

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.term = None

    def forward(self, x: Tensor) -> Tensor:
        """[n, q, in] to [n, q, out]; RuntimeError if n is not the number of rows that were set."""
        y: Tensor = self.base(x)
        term = self.term
        if term is None:
            return y
        if x.shape[0] != term.num_rows:
            raise RuntimeError(
                f"{x.shape[0]} rows run, but set_rows was given {term.num_rows} (-1: an adapter was evicted)"
            )
        if term.is_shared:
            h = x.reshape(-1, x.shape[-1]) @ term.a
            return torch.addmm(y.reshape(-1, y.shape[-1]), h, term.b).view(y.shape)
        return torch.baddbmm(y, torch.bmm(x, term.a), term.b)


def _enter_plain_mode(modes: ExitStack) -> None:
    """Tensors made in inference mode could not be written to outside of it."""
    modes.enter_context(torch.inference_mode(False))
    modes.enter_context(torch.no_grad())


def _replace(model: nn.Module, name: str, old: nn.Module, new: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    owner = model.get_submodule(parent)
    if getattr(owner, last) is not old:
        raise RuntimeError(f"{name} was replaced by someone else; close what wraps it in reverse order")
    setattr(owner, last, new)
