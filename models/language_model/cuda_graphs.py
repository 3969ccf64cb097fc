"""Decoding steps as CUDA graphs: one launch instead of hundreds, which is what small batches wait for.

A graph repeats the same kernels on the same addresses. So there is one for each bucket of rows (1, 2, 4, ...)
and of positions (128, 256, ...), over tensors that stay where they are: tokens and positions, which are
overwritten before each replay, and the rows of the cache, whose replacement voids all graphs. Weights never
move.

Only steps without adapters run this way. What rows with adapters use is gathered anew whenever the batch
changes, to new addresses: a graph would have to be captured for every composition of the batch, at the price
of several steps, and hold its gathered weights. Such steps run kernel by kernel.

None of this ran on a GPU yet: there the first replay of each graph is compared with the same step run kernel
by kernel, and graphs are given up if it differs. `StaticStep` is tested on the CPU.
"""

from __future__ import annotations

import logging
from collections import Counter

import torch
from torch import Tensor

from models.language_model.batch import Batch
from models.language_model.forward import Forward
from models.language_model.kv_cache import KVCache
from models.language_model.memory_recovery import is_out_of_memory

_logger = logging.getLogger(__name__)
_FIRST_TOKENS = 128  # the smallest bucket of positions
_CAPTURE_AFTER = 4  # steps of a bucket: shapes that a batch only passes through are not worth it
_REST = 1024  # steps without graphs after memory ran out for them


def bucket(size: int, first: int, limit: int) -> int:
    """The smallest of first, 2 first, 4 first, ... that is at least `size`; `limit` at most."""
    while first < size:
        first *= 2
    return min(first, limit)


class StaticStep:
    """A decoding step whose shapes and addresses depend on the bucket alone.

    Rows of the bucket beyond those that decode run too: their results are dropped, and what they write goes
    to the first place behind their tokens, which is written again before anybody reads it.
    """

    def __init__(self, forward: Forward, cache: KVCache, device: torch.device) -> None:
        self._forward, self._cache = forward, cache
        on_gpu = device.type == "cuda"
        # Tokens and positions, [2, rows]; filled here, copied there in one go.
        self._here = torch.zeros(2, cache.max_rows, dtype=torch.long, pin_memory=on_gpu)
        self._there = torch.zeros(2, cache.max_rows, dtype=torch.long, device=device)

    def shape(self, batch: Batch) -> tuple[int, int]:
        """(rows, positions) of the batch's bucket."""
        rows = bucket(batch.num_decoding, 1, self._cache.max_rows)
        longest = max(row.length for row in batch.rows[:rows])
        return rows, bucket(longest + 1, _FIRST_TOKENS, self._cache.max_tokens)

    def fill(self, batch: Batch, shape: tuple[int, int]) -> None:
        """Put the batch's tokens where the step reads them, and have room in the cache."""
        self._cache.reserve(*shape)
        rows, n = batch.rows[: shape[0]], batch.num_decoding
        tokens = [row.tokens[-1] for row in rows[:n]] + [0] * (shape[0] - n)
        lengths = [row.length for row in rows] + [0] * (shape[0] - len(rows))
        self._here[:, : shape[0]] = torch.tensor([tokens, lengths])
        self._there.copy_(self._here, non_blocking=True)

    def run(self, shape: tuple[int, int]) -> Tensor:
        """Logits [rows of the bucket, V]. Repeated without `fill` in between it gives the same."""
        rows, end = shape
        return self._forward.decode_at(self._there[0, :rows], self._there[1, :rows], end)


class DecodeGraphs:
    """Captured when a bucket has come often enough. For the engine's thread only."""

    def __init__(self, forward: Forward, cache: KVCache, device: torch.device) -> None:
        self._step, self._cache = StaticStep(forward, cache, device), cache
        self._graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._uses: Counter[tuple[int, int]] = Counter()
        self._version = -1
        self._rest = 0
        self.enabled = True

    @property
    def num_captured(self) -> int:
        return len(self._graphs)

    def drop(self) -> None:
        """Free all graphs; they are captured again when they are used again."""
        self._graphs.clear()
        self._uses.clear()

    def decode(self, batch: Batch) -> Tensor | None:
        """Logits [n, V] of the rows that decode; None: run this step kernel by kernel.

        The logits are valid until the next step.
        """
        if self._rest:
            self._rest -= 1
        if self._rest or not self.enabled:
            return None
        shape = self._step.shape(batch)
        self._uses[shape] += 1
        if self._uses[shape] < _CAPTURE_AFTER:
            return None
        try:
            return self._replay(batch, shape)
        except Exception as error:
            self.drop()
            if is_out_of_memory(error):
                self._rest = _REST
            else:
                _logger.warning("decoding goes on without CUDA graphs: one failed", exc_info=error)
                self.enabled = False
            return None

    def _replay(self, batch: Batch, shape: tuple[int, int]) -> Tensor:
        self._step.fill(batch, shape)
        if self._version != self._cache.version:
            self._graphs.clear()
            self._version = self._cache.version
        if shape not in self._graphs:
            self._graphs[shape] = self._capture(shape)
        graph, logits = self._graphs[shape]
        graph.replay()
        return logits[: batch.num_decoding]

    def _capture(self, shape: tuple[int, int]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        # Once outside of the graph, on a stream of its own: libraries allocate at their first use.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            expected = self._step.run(shape)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._graphs.values()))[0].pool() if self._graphs else None
        # Other threads may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            logits = self._step.run(shape)
        graph.replay()
        if not torch.allclose(logits.float(), expected.float(), rtol=1e-2, atol=1e-2, equal_nan=True):
            raise RuntimeError("a replayed graph gave other logits than the same step without it")
        return graph, logits
