"""Continuous batching: requests join and leave at every step. One thread owns model, cache and adapters."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence as Rows
from typing import TYPE_CHECKING

import torch

from graph.errors import OutOfMemory, Overloaded, TextTooLong, Unavailable, WeftError

from .admission import Admission
from .batch import Batch, Sequence
from .delivery import add_token, finish, tell
from .engine_limits import EngineLimits
from .engine_status import describe
from .forward import Forward
from .kv_cache import KVCache
from .memory_recovery import MAX_EVICTIONS, drop_idle, is_out_of_memory
from .prefix_cache import PrefixCache
from .prompt import encode_prompt
from .protocol import (
    AdapterPart,
    Admitted,
    Failed,
    FinishReason,
    GenerationRequest,
    LanguageBackend,
    Listener,
    Ticket,
)
from .sampling import NOT_FINITE, RowSampler, SampledToken, sample
from .text_stream import TextStream

if TYPE_CHECKING:
    from .base_model import BaseModel
    from .lora import LoraSlots
    from .resident_adapters import ResidentAdapters

__all__ = ["Engine", "EngineLimits"]

_logger = logging.getLogger(__name__)
_POLL_S = 0.005  # until requests whose adapters are loading are looked at again
_CALM_STEPS = 32  # without a lack of memory, until the batch may grow by one again


class Engine(LanguageBackend):
    """Generates with one base model and many adapters, all requests in one batch.

    Each turn: who was cancelled leaves, who can joins, the rows that decode take a step, and at most
    `prefill_chunk_tokens` prompt tokens are read, oldest request first. So a long prompt delays the others by
    one chunk a step. A row's length advances only after its step succeeded; a step that fails for want of
    memory is repeated with less: first without prefix cache, then without idle adapters, then without the
    youngest row, which is read again later.

    Thread-safe; the thread starts here and ends with `close`.
    """

    def __init__(
        self,
        base: BaseModel,
        *,
        limits: EngineLimits,
        lora: LoraSlots | None = None,
        residents: ResidentAdapters | None = None,
        prefix_cache: PrefixCache | None = None,
    ) -> None:
        self._base, self._limits = base, limits
        self._lora, self._residents, self._prefix_cache = lora, residents, prefix_cache
        self._window = min(base.max_tokens, limits.max_context_tokens or base.max_tokens)
        config = base.model.config
        self._vocab_size: int = config.vocab_size
        self._cache = KVCache(config.num_hidden_layers, max_rows=limits.max_batch, max_tokens=self._window)
        self._batch = Batch(self._cache)
        self._admission = Admission(lora, residents, prefix_cache)
        self._forward = Forward(base.model, self._cache, torch.device(base.device), base.dtype)
        self._lora_rows: tuple[int, list[tuple[AdapterPart, ...]]] | None = None
        self._max_rows = limits.max_batch
        self._calm_steps = 0
        self._orders = self._steps = self._tokens = self._out_of_memory = 0

        self._changed = threading.Condition()
        self._incoming: list[Sequence] = []
        self._nudged = self._closing = False
        self._tried = 0.0
        self._thread = threading.Thread(target=self._run, name="weft-engine", daemon=True)
        self._thread.start()

    @property
    def model_name(self) -> str:
        return self._base.name

    @property
    def device(self) -> str:
        return str(self._base.device)

    def submit(self, request: GenerationRequest, listener: Listener) -> Ticket:
        """Queue a request. See LanguageBackend."""
        sampling = request.sampling
        prompt = encode_prompt(self._base.tokenizer, request.prompt)
        room = self._window - len(prompt.tokens)
        wanted = (
            min(self._limits.default_max_tokens, room) if sampling.max_tokens is None else sampling.max_tokens
        )
        if room < 1 or wanted > room:
            answer = "" if sampling.max_tokens is None else f" and max_tokens is {sampling.max_tokens}"
            raise TextTooLong(
                f"the prompt has {len(prompt.tokens)} tokens{answer}; together at most {self._window}"
                ", of which the answer takes at least one",
                param="max_tokens" if room >= 1 else "prompt",
            )
        sequence = Sequence(
            request,
            listener,
            prompt,
            wanted,
            RowSampler(sampling, prompt.tokens, self._vocab_size),
            TextStream(self._base.tokenizer, sampling.stop),
            self._nudge,
        )
        with self._changed:
            if self._closing:
                raise Unavailable("the language model is closed")
            if self._queued() >= self._limits.max_queued:
                raise Overloaded(f"{self._limits.max_queued} requests are queued already; try again later")
            self._incoming.append(sequence)
            self._changed.notify()
        return sequence

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, without special ones."""
        return len(self._base.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)

    def status(self) -> dict[str, object]:
        """Plain JSON for operators. Read while the engine runs: numbers may be of neighbouring steps."""
        return {
            **describe(self._base, self._lora, self._residents, self._prefix_cache),
            "device": self.device,
            "max_batch": self._limits.max_batch,
            "running": len(self._batch),
            "queued": self._queued(),
            "max_queued": self._limits.max_queued,
            "max_context_tokens": self._window,
            "tokens_generated": self._tokens,
            "steps": self._steps,
            "out_of_memory": self._out_of_memory,
            "kv_cache_bytes": self._cache.nbytes,
        }

    def close(self) -> None:
        """Fail what is queued or running with Unavailable and free the cache. Harmless when repeated."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # --- Other threads tell that something changed ---

    def _queued(self) -> int:
        return len(self._incoming) + len(self._admission.waiting)

    def _nudge(self) -> None:
        with self._changed:
            self._nudged = True
            self._changed.notify()

    # --- The engine's thread ---

    @torch.inference_mode()
    def _run(self) -> None:
        while self._wait():
            try:
                self._turn()
            except Exception as error:
                # Nothing above expected it: no request may hang for it, and the next ones may do better.
                _logger.exception("a turn of the engine failed")
                self._fail_all(WeftError(f"generation failed: {type(error).__name__}; see the server's log"))
        self._fail_all(Unavailable("the language model is closing"))
        self._cache.release()
        if self._prefix_cache is not None:
            self._prefix_cache.clear()

    def _wait(self) -> bool:
        """Sleep until there is something to do, and take what came in. False: the engine closes."""
        with self._changed:
            while not (self._closing or self._nudged or self._incoming or self._batch.rows):
                waiting = bool(self._admission.waiting)
                if not self._changed.wait(_POLL_S if waiting else None) and waiting:
                    break
            # Who was cancelled before it came in here is to be found as well.
            self._nudged = self._nudged or any(sequence.cancelled for sequence in self._incoming)
            self._admission.waiting += self._incoming
            self._incoming.clear()
            return not self._closing

    def _turn(self) -> None:
        self._drop_cancelled()
        self._admit()
        self._decode()
        self._drop_cancelled()
        self._prefill()

    def _drop_cancelled(self) -> None:
        if not self._nudged:
            return
        self._nudged = False  # first: who cancels from here on is found the next time
        for sequence in [s for s in self._admission.waiting if s.cancelled]:
            self._admission.waiting.remove(sequence)
            self._end(sequence, "cancelled")
        for sequence in [s for s in self._batch.rows if s.cancelled]:
            self._leave(sequence, "cancelled")

    def _admit(self) -> None:
        now = time.monotonic()
        if now - self._tried >= _POLL_S:  # loads may have ended
            self._tried = now
            self._admission.loads_ended += 1
        while len(self._batch) < self._max_rows and (found := self._admission.next()) is not None:
            sequence, error = found
            if error is not None:
                self._end(sequence, error)
                continue
            first, sequence.admitted = not sequence.admitted, True
            if first:
                self._orders += 1
                sequence.order = self._orders
            row = self._batch.add(sequence)
            sequence.length = self._copy_prefix(sequence, row)
            if first:
                assert sequence.choice is not None
                waited = 1e3 * (time.monotonic() - sequence.submitted)
                tell(
                    sequence, Admitted(sequence.choice, len(sequence.prompt.tokens), sequence.length, waited)
                )

    def _copy_prefix(self, sequence: Sequence, row: int) -> int:
        """Tokens taken from the prefix cache."""
        cache = self._prefix_cache
        if cache is None:
            return 0
        hit = cache.lookup(
            self._root(sequence), sequence.tokens, sequence.request.owner, sequence.prompt.shared_tokens
        )
        try:
            for place, block in enumerate(hit.blocks):
                self._cache.write(row, place * cache.block_tokens, block.layers)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._out_of_memory += 1
            cache.clear()
            return 0
        return hit.length

    def _keep_prefix(self, sequence: Sequence) -> None:
        cache = self._prefix_cache
        if cache is None:
            return
        row = self._batch.rows.index(sequence)
        prompt, owner = sequence.prompt, sequence.request.owner
        try:
            cache.insert(
                self._root(sequence),
                prompt.tokens,
                owner,
                prompt.shared_tokens,
                lambda start, end: self._cache.read(row, start, end),
            )
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._out_of_memory += 1
            cache.clear()

    def _root(self, sequence: Sequence) -> bytes:
        assert sequence.choice is not None
        return PrefixCache.root_key(self._base.digest, sequence.choice.parts)

    def _decode(self) -> None:
        while rows := self._batch.decoding:
            try:
                self._use_adapters(rows)
                sampled = sample(self._forward.decode(rows), [row.sampler for row in rows])
            except Exception as error:
                self._recover(error, rows)
                continue
            self._count_step()
            for row in rows:
                row.length += 1
            self._deliver(rows, sampled)
            return

    def _prefill(self) -> None:
        while group := self._prefill_group():
            width = min(max(row.pending for row in group), self._limits.prefill_chunk_tokens)
            done = [i for i, row in enumerate(group) if row.pending <= width]
            try:
                self._use_adapters(group)
                logits = self._forward.prefill(self._batch, group, width)
                sampled = []
                if logits is not None:
                    sampled = sample(logits[done], [group[i].sampler for i in done])
            except Exception as error:
                self._recover(error, group)
                continue
            self._count_step()
            for row in group:
                row.length += min(row.pending, width)
            ready = [group[i] for i in done]
            for row, token in zip(ready, sampled, strict=True):
                self._batch.start_decoding(row)
                if token.token_id != NOT_FINITE:
                    self._keep_prefix(row)
            self._deliver(ready, sampled)
            return

    def _prefill_group(self) -> list[Sequence]:
        """The oldest whose prompt is not read, and with it as many as fit one chunk."""
        chunk = self._limits.prefill_chunk_tokens
        group: list[Sequence] = []
        width = 0
        for row in sorted(self._batch.prefilling, key=lambda row: row.order):
            wider = max(width, min(row.pending, chunk))
            if group and wider * (len(group) + 1) > chunk:
                break
            group.append(row)
            width = wider
        return group

    def _use_adapters(self, rows: Rows[Sequence]) -> None:
        if self._lora is None:
            return
        parts = [row.choice.parts if row.choice is not None else () for row in rows]
        wanted = (self._admission.puts, parts)
        if wanted != self._lora_rows:
            self._lora_rows = None  # should it fail half way
            self._lora.set_rows(parts)
            self._lora_rows = wanted

    def _deliver(self, rows: Rows[Sequence], sampled: Rows[SampledToken]) -> None:
        base = self._base
        for row, token in zip(rows, sampled, strict=True):
            if token.token_id == NOT_FINITE:
                whose = f"adapter {row.choice.adapter}" if row.choice and row.choice.parts else "the model"
                self._leave(row, WeftError(f"{whose} gave numbers that are not finite"))
                continue
            self._tokens += 1
            reason = add_token(row, token, base.tokenizer, base.eos_token_ids)
            if reason is not None:
                self._leave(row, reason)

    def _count_step(self) -> None:
        self._steps += 1
        if self._max_rows < self._limits.max_batch:
            self._calm_steps += 1
            if self._calm_steps >= _CALM_STEPS:
                self._calm_steps = 0
                self._max_rows += 1

    # --- Ends and failures ---

    def _leave(self, sequence: Sequence, how: FinishReason | WeftError) -> None:
        """Free its row and tell its listener."""
        if isinstance(how, WeftError):
            # What it left may be NaN, which would reach the next one in this row through masked places.
            self._cache.clear_row(self._batch.rows.index(sequence))
            sequence.length = 0
        self._batch.remove(sequence)
        self._admission.release_slots(sequence)
        self._end(sequence, how)
        if not self._batch.rows:
            self._max_rows = self._limits.max_batch

    def _end(self, sequence: Sequence, how: FinishReason | WeftError) -> None:
        """It is in neither queue nor batch any more."""
        sequence.ended = True
        if sequence.admitted:
            self._admission.release_residents(sequence)
        if isinstance(how, WeftError):
            tell(sequence, Failed(how))
        else:
            finish(sequence, how)

    def _recover(self, error: Exception, rows: Rows[Sequence]) -> None:
        """Make the failed step of these rows worth repeating: with more memory, or without them."""
        self._lora_rows = None
        if not is_out_of_memory(error):
            _logger.error("a step of %d rows failed", len(rows), exc_info=error)
            for row in list(rows):
                self._leave(row, WeftError(f"the model failed: {type(error).__name__}; see the server's log"))
            return
        self._out_of_memory += 1
        if drop_idle(self._prefix_cache, self._lora, self._residents):
            return
        victim = self._batch.youngest()
        self._calm_steps = 0
        self._max_rows = max(1, len(self._batch) - 1)
        victim.evictions += 1
        if victim.evictions > MAX_EVICTIONS:
            self._leave(
                victim,
                OutOfMemory(
                    f"memory does not suffice for {len(victim.prompt.tokens)} prompt tokens and "
                    f"{victim.max_new_tokens} of answer; ask for less, or again when there is less to do"
                ),
            )
        else:
            _logger.warning("memory ran out: request %s is read again later", victim.request.request_id)
            self._batch.remove(victim)
            self._admission.release_slots(victim)
            victim.length = 0
            self._admission.put_back(victim)
        if not self._batch.rows:
            self._cache.release()

    def _fail_all(self, error: WeftError) -> None:
        """Also where batch and cache are no longer sound: both begin anew."""
        rows, self._batch.rows, self._batch.num_decoding = self._batch.rows, [], 0
        self._cache.release()
        self._lora_rows = None
        for sequence in rows:
            self._admission.release_slots(sequence)
            self._end(sequence, error)
        with self._changed:
            waiting = self._admission.waiting + self._incoming
            self._admission.waiting = []
            self._incoming.clear()
        for sequence in waiting:
            self._end(sequence, error)
