"""Continuous batching: requests join and leave at every step. One thread owns model, cache and adapters."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from collections.abc import Sequence as Rows
from typing import TYPE_CHECKING

import torch

from graph.errors import OutOfMemory, Overloaded, TextTooLong, Unavailable, WeftError
from models.language_model.admission import Admission
from models.language_model.batch import Batch, Sequence
from models.language_model.delivery import add_token, finish, tell
from models.language_model.engine_limits import EngineLimits
from models.language_model.engine_status import describe
from models.language_model.kv_cache import KVCache
from models.language_model.memory_recovery import MAX_LONE_EVICTIONS, drop_idle, give_back, is_out_of_memory
from models.language_model.model_steps import ModelSteps
from models.language_model.prefix_reuse import PrefixReuse
from models.language_model.prompt import count_tokens, encode_prompt, room_for_context
from models.language_model.protocol import (
    Admitted,
    Failed,
    FinishReason,
    GenerationRequest,
    LanguageBackend,
    Listener,
    Prompt,
    Ticket,
)
from models.language_model.sampling import NOT_FINITE, RowSampler, SampledToken
from models.language_model.text_stream import TextStream

if TYPE_CHECKING:
    from models.language_model.base_model import BaseModel
    from models.language_model.lora import LoraSlots
    from models.language_model.prefix_cache import PrefixCache
    from models.language_model.resident_adapters import ResidentAdapters

__all__ = ["Engine", "EngineLimits"]

_logger = logging.getLogger(__name__)
_MAX_NAMED = 64  # requests in one line of the log
_CALM_STEPS = 32  # without a lack of memory, until the batch may grow by one again


class Engine(LanguageBackend):
    """Generates with one base model and many adapters, all requests in one batch.

    Each turn: who was cancelled leaves, who can joins, the rows that decode take a step, and at most
    `prefill_chunk_tokens` prompt tokens are read, oldest request first. So a long prompt delays the others by
    one chunk a step. A row's length advances only after its step succeeded; a step that fails for want of
    memory is repeated with less: first without prefix cache, then without idle adapters, then with rows no
    longer than needed, then without the youngest row, which is read again later.

    Thread-safe; the thread starts here and ends with `close`. What was passed in stays the caller's to close,
    after this: `residents.on_change` is taken for as long as the engine runs.
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
        self._admission = Admission(lora, residents, self._free_memory)
        self._steps = ModelSteps(base, self._batch, lora)
        self._prefixes = PrefixReuse(base.digest, self._cache, prefix_cache)
        self._max_rows = limits.max_batch
        self._calm_steps = 0
        self._orders = self._num_steps = self._tokens = self._out_of_memory = 0

        self._changed = threading.Condition()
        self._incoming: list[Sequence] = []
        self._nudged = self._loaded = self._closing = False
        self._tried = 0  # the queue's version when it was looked through
        if residents is not None:
            residents.on_change = self._load_ended
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
        prompt = encode_prompt(self._base.tokenizer, request.prompt, request.context)
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
        """Tokens of a text inside of a prompt."""
        return count_tokens(self._base.tokenizer, text)

    def room_for_context(self, prompt: Prompt, max_tokens: int | None) -> int:
        default = self._limits.default_max_tokens
        return room_for_context(self._base.tokenizer, prompt, max_tokens, self._window, default)

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
            "steps": self._num_steps,
            "out_of_memory": (
                self._out_of_memory + self._admission.out_of_memory + self._prefixes.out_of_memory
            ),
            "kv_cache_bytes": self._cache.nbytes,
            "cuda_graphs": self._steps.num_graphs,
        }

    def close(self) -> None:
        """Fail what is queued or running with Unavailable and free the cache. Harmless when repeated."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        if self._residents is not None and self._residents.on_change == self._load_ended:
            self._residents.on_change = None

    # --- Other threads tell that something changed ---

    def _queued(self) -> int:
        return len(self._incoming) + len(self._admission.waiting)

    def _nudge(self) -> None:
        with self._changed:
            self._nudged = True
            self._changed.notify()

    def _load_ended(self) -> None:
        with self._changed:
            self._loaded = True
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
            while not (
                self._closing
                or self._nudged
                or self._loaded
                or self._incoming
                or self._batch.rows
                or (self._admission.waiting and self._admission.version != self._tried)
            ):
                self._changed.wait()
            if self._loaded:
                self._loaded = False
                self._admission.changed()
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
            self._admission.remove(sequence)
            self._end(sequence, "cancelled")
        for sequence in [s for s in self._batch.rows if s.cancelled]:
            self._leave(sequence, "cancelled")

    def _admit(self) -> None:
        admission, batch = self._admission, self._batch
        while True:
            self._tried = admission.version
            found = admission.next(len(batch), has_room=len(batch) < self._max_rows)
            if found is None:
                return
            sequence, error = found
            if error is not None:
                self._end(sequence, error)
                continue
            first, sequence.admitted = not sequence.admitted, True
            if first:
                self._orders += 1
                sequence.order = self._orders
            row = batch.add(sequence)
            sequence.length = self._prefixes.begin(sequence, row)
            if first:
                assert sequence.choice is not None
                waited = 1e3 * (time.monotonic() - sequence.submitted)
                tell(
                    sequence, Admitted(sequence.choice, len(sequence.prompt.tokens), sequence.length, waited)
                )

    def _decode(self) -> None:
        while rows := self._batch.decoding:
            try:
                sampled = self._steps.decode()
            except Exception as error:
                self._recover(error, rows)
                continue
            self._count_step()
            for row in rows:
                row.length += 1
            self._deliver(zip(rows, sampled, strict=True))
            return

    def _prefill(self) -> None:
        while group := self._batch.prefill_group(self._limits.prefill_chunk_tokens):
            width = min(max(row.pending for row in group), self._limits.prefill_chunk_tokens)
            try:
                sampled = self._steps.prefill(group, width)
            except Exception as error:
                self._recover(error, group)
                continue
            self._count_step()
            for row in group:
                row.length += min(row.pending, width)
            for row, token in sampled:
                self._batch.start_decoding(row)
                if token.token_id != NOT_FINITE:
                    self._prefixes.keep(row, self._batch.rows.index(row))
            self._deliver(sampled)
            return

    def _deliver(self, sampled: Iterable[tuple[Sequence, SampledToken]]) -> None:
        base = self._base
        for row, token in sampled:
            if token.token_id == NOT_FINITE:
                whose = f"adapter {row.choice.adapter}" if row.choice and row.choice.parts else "the model"
                self._leave(row, WeftError(f"{whose} gave numbers that are not finite"))
                continue
            self._tokens += 1
            reason = add_token(row, token, base.tokenizer, base.eos_token_ids)
            if reason is not None:
                self._leave(row, reason)

    def _count_step(self) -> None:
        self._num_steps += 1
        if self._max_rows < self._limits.max_batch:
            self._calm_steps += 1
            if self._calm_steps >= _CALM_STEPS:
                self._calm_steps = 0
                self._max_rows += 1
                self._admission.changed()

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
        if not self._steps.fixed_addresses:
            self._shrink_rows(hard=False)

    def _end(self, sequence: Sequence, how: FinishReason | WeftError) -> None:
        """It is in neither queue nor batch any more."""
        sequence.ended = True
        self._admission.release_residents(sequence)
        if isinstance(how, WeftError):
            tell(sequence, Failed(how))
        else:
            finish(sequence, how)

    def _recover(self, error: Exception, rows: Rows[Sequence]) -> None:
        """Make the failed step of these rows worth repeating: with more memory, or without them."""
        if not is_out_of_memory(error):
            named = ", ".join(row.request.request_id for row in rows[:_MAX_NAMED])
            _logger.error("a step of %d rows failed, for requests %s", len(rows), named, exc_info=error)
            for row in list(rows):
                self._leave(row, WeftError(f"the model failed: {type(error).__name__}; see the server's log"))
            return
        self._out_of_memory += 1
        if self._free_memory():
            return
        victim = self._batch.youngest()
        self._calm_steps = 0
        self._max_rows = max(1, len(self._batch) - 1)
        if len(self._batch) == 1:
            victim.lone_evictions += 1
        if victim.lone_evictions > MAX_LONE_EVICTIONS:
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

    def _free_memory(self) -> bool:
        """Give up what no row needs. False: there was nothing."""
        self._steps.drop_graphs()
        freed = drop_idle(self._prefix_cache, self._lora, self._residents) or self._shrink_rows(hard=True) > 0
        give_back()
        return freed

    def _shrink_rows(self, *, hard: bool) -> int:
        end = self._batch.end_of_step(self._limits.prefill_chunk_tokens)
        return self._cache.shrink(len(self._batch), end, hard=hard)

    def _fail_all(self, error: WeftError) -> None:
        """Also where batch and cache are no longer sound: both begin anew."""
        rows, self._batch.rows, self._batch.num_decoding = self._batch.rows, [], 0
        self._cache.release()
        for sequence in rows:
            self._admission.release_slots(sequence)
            self._end(sequence, error)
        with self._changed:
            waiting = self._admission.waiting + self._incoming
            self._admission.waiting = []
            self._incoming.clear()
        for sequence in waiting:
            self._end(sequence, error)
