"""Keys and values of a batch whose rows have each their own length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from models.language_model.memory_recovery import is_out_of_memory

_FIRST_TOKENS = 64  # capacity of a row to begin with
_EXACT_TOKENS = 16  # capacity is a multiple of it where memory is too short for doubling
_SPARE = 4  # so many times more room than needed is too much


@dataclass(frozen=True)
class StepPlan:
    """Where a forward pass writes and what it reads.

    Input i of the pass is row `rows[i]`. Its new keys and values go to the positions from `starts[i]`, as
    many as `counts[i]`; what its padding gives is not written. It sees positions [0, end).
    """

    rows: slice | Tensor
    """What attention reads: a view for neighbouring rows, else long [n]."""
    end: int
    write_rows: Tensor  # long [tokens]
    write_positions: Tensor  # long [tokens]
    source: tuple[Tensor, Tensor] | None
    """(input, place in it) of each token written; None for one token of each input (decoding)."""
    num_rows: int
    """Rows that must be there."""


class KVCache(Cache):
    """Preallocated keys and values, [rows, kv_heads, T, d] for each layer, as a cache of transformers'.

    Rows and T grow by doubling, up to the limits, each layer when it is written to, and by less where memory
    does not suffice for that; `shrink` gives room back. Nothing here knows how long a row is: the caller
    advances lengths only when a whole pass succeeded, so a pass that failed in any layer is repeated as if it
    had not been. What lies beyond a row's length is finite (zero, or an earlier row's): masked places weigh
    nothing, but nothing times NaN would be NaN.
    """

    def __init__(self, num_layers: int, *, max_rows: int, max_tokens: int) -> None:
        super().__init__(layers=[_RowLayer(self) for _ in range(num_layers)])
        self.max_rows, self.max_tokens = max_rows, max_tokens
        self.plan: StepPlan | None = None
        self.version = 0
        """Counted up whenever tensors are replaced: what knows their addresses is void."""

    @property
    def row_layers(self) -> list[_RowLayer]:
        return self.layers  # type: ignore[return-value]

    @property
    def nbytes(self) -> int:
        """Bytes reserved. On the CPU the system gives pages only when they are written."""
        return sum(t.nbytes for layer in self.row_layers for t in (layer.keys, layer.values) if t is not None)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy `length` positions of one row over another."""
        if not length:
            return  # such a row may have no place yet
        for layer in self.row_layers:
            if layer.keys is not None and layer.values is not None:
                layer.keys[target, :, :length] = layer.keys[source, :, :length]
                layer.values[target, :, :length] = layer.values[source, :, :length]

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchange two rows, as far as the longer of them reaches. Both must have a place: the one with the
        greater number was written to. Fails for no want of memory.
        """
        if not length:
            return
        spare: Tensor | None = None
        for layer in self.row_layers:
            for held in (layer.keys, layer.values):
                if held is None:
                    continue
                first, second = held[one, :, :length], held[other, :, :length]
                if spare is None:
                    spare = _spare_like(first)
                spare.copy_(first)
                first.copy_(second)
                second.copy_(spare)

    def clear_row(self, row: int) -> None:
        """Zeros: for a row that may hold NaN."""
        for layer in self.row_layers:
            if layer.keys is not None and layer.values is not None and row < layer.keys.shape[0]:
                layer.keys[row].zero_()
                layer.values[row].zero_()

    def read(self, row: int, start: int, end: int) -> list[tuple[Tensor, Tensor]]:
        """Copies of a row's keys and values for each layer, [kv_heads, end - start, d]."""
        read = []
        for layer in self.row_layers:
            assert layer.keys is not None and layer.values is not None
            read.append((layer.keys[row, :, start:end].clone(), layer.values[row, :, start:end].clone()))
        return read

    def write(self, row: int, start: int, states: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Put what `read` gave at the positions from `start`."""
        for layer, (keys, values) in zip(self.row_layers, states, strict=True):
            end = start + keys.shape[1]
            held_keys, held_values = layer.reserve(keys[None], row + 1, end)
            held_keys[row, :, start:end] = keys
            held_values[row, :, start:end] = values

    def reserve(self, rows: int, tokens: int) -> None:
        """Room for so many rows and positions in all layers that were written to before."""
        for layer in self.row_layers:
            if layer.keys is not None:
                layer.reserve(layer.keys, rows, tokens)

    def shrink(self, rows: int, tokens: int, *, hard: bool = False) -> int:
        """Give back room beyond `rows` and `tokens`. Returns the bytes.

        Only where there is several times too much of it, so that shrinking and growing in turn costs little;
        `hard` gives back all, as far as memory suffices for the smaller copies.
        """
        before = self.nbytes
        if not rows:
            return self.release()
        new_rows = rows if hard else _grown(0, rows, 1, self.max_rows)
        new_tokens = self.exact(tokens) if hard else _grown(0, tokens, _FIRST_TOKENS, self.max_tokens)
        for layer in self.row_layers:
            if layer.keys is None:
                continue
            held_rows, held_tokens = layer.keys.shape[0], layer.keys.shape[2]
            if not hard and _SPARE * new_rows * new_tokens > held_rows * held_tokens:
                continue
            try:
                layer.cut(min(held_rows, new_rows), min(held_tokens, new_tokens))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                break
        return before - self.nbytes

    def exact(self, tokens: int) -> int:
        """The smallest capacity of a row for so many positions."""
        return min(-(-tokens // _EXACT_TOKENS) * _EXACT_TOKENS, max(tokens, self.max_tokens))

    def release(self) -> int:
        """Give all memory back; no row is valid any more. Returns the bytes."""
        freed = self.nbytes
        self.version += 1
        for layer in self.row_layers:
            layer.keys = layer.values = None
        return freed


def _spare_like(row: Tensor) -> Tensor:
    """Room for a row of one layer; in host memory if there is none beside it."""
    try:
        return torch.empty_like(row)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return torch.empty(row.shape, dtype=row.dtype, device="cpu")


class _RowLayer(CacheLayerMixin):
    is_sliding = False

    def __init__(self, cache: KVCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.is_initialized = True  # by `reserve`, at the first write
        self._cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.reserve(key_states, key_states.shape[0], key_states.shape[2])

    def reserve(self, like: Tensor, rows: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Keys and values with room for so many rows and positions, heads, width and type as `like`."""
        keys, values = self.keys, self.values
        if keys is not None and values is not None and rows <= keys.shape[0] and tokens <= keys.shape[2]:
            return keys, values
        held_rows, held_tokens = (0, 0) if keys is None else (keys.shape[0], keys.shape[2])
        limits = self._cache
        new_rows = _grown(held_rows, rows, 1, limits.max_rows)
        new_tokens = _grown(held_tokens, tokens, _FIRST_TOKENS, limits.max_tokens)
        exact = max(held_rows, rows), max(held_tokens, limits.exact(tokens))
        try:
            return self._grow(like, new_rows, new_tokens)
        except Exception as error:
            if not is_out_of_memory(error) or exact == (new_rows, new_tokens):
                raise
        return self._grow(like, *exact)

    def _grow(self, like: Tensor, rows: int, tokens: int) -> tuple[Tensor, Tensor]:
        # Both at once or none: memory may not suffice for the second.
        new_keys = like.new_zeros(rows, like.shape[1], tokens, like.shape[3])
        new_values = torch.zeros_like(new_keys)
        if self.keys is not None and self.values is not None:
            held_rows, held_tokens = self.keys.shape[0], self.keys.shape[2]
            new_keys[:held_rows, :, :held_tokens] = self.keys
            new_values[:held_rows, :, :held_tokens] = self.values
        self._cache.version += 1
        self.keys, self.values = new_keys, new_values
        return new_keys, new_values

    def cut(self, rows: int, tokens: int) -> None:
        """Keep only the first rows and positions."""
        assert self.keys is not None and self.values is not None
        if (rows, tokens) == (self.keys.shape[0], self.keys.shape[2]):
            return
        keys = self.keys[:rows, :, :tokens].clone(memory_format=torch.contiguous_format)
        values = self.values[:rows, :, :tokens].clone(memory_format=torch.contiguous_format)
        self._cache.version += 1
        self.keys, self.values = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write new keys and values [n, kv_heads, q, d]; return all that the step may see."""
        plan = self._cache.plan
        assert plan is not None
        keys, values = self.reserve(key_states, plan.num_rows, plan.end)
        if plan.source is None:
            keys[plan.write_rows, :, plan.write_positions] = key_states[:, :, 0]
            values[plan.write_rows, :, plan.write_positions] = value_states[:, :, 0]
        else:
            which, place = plan.source
            keys[plan.write_rows, :, plan.write_positions] = key_states[which, :, place]
            values[plan.write_rows, :, plan.write_positions] = value_states[which, :, place]
        return keys[plan.rows, :, : plan.end], values[plan.rows, :, : plan.end]

    def get_seq_length(self) -> int:
        return 0  # rows differ; masks and positions are given explicitly

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        raise NotImplementedError("masks are given explicitly: rows have different lengths")

    def get_max_length(self) -> int:
        return self._cache.max_tokens


def _grown(held: int, needed: int, first: int, limit: int) -> int:
    size = max(held, first)
    while size < needed:
        size *= 2
    return max(min(size, limit), needed)
