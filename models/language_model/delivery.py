"""From sampled tokens to what a listener hears."""

from __future__ import annotations

import logging
import time
from typing import Any

from models.language_model.batch import Sequence
from models.language_model.protocol import Event, Finished, FinishReason, Piece, TokenLogprob
from models.language_model.sampling import SampledToken

_logger = logging.getLogger(__name__)


def add_token(
    sequence: Sequence, token: SampledToken, tokenizer: Any, eos_token_ids: frozenset[int]
) -> FinishReason | None:
    """Take the next token of an answer and tell the text it makes certain.

    Returns the reason if it is the last one.

    The token that ends an answer counts as one of its tokens, but is in no `Piece`.
    """
    sequence.tokens.append(token.token_id)
    if sequence.first_token_at is None:
        sequence.first_token_at = time.monotonic()
    sampling = sequence.request.sampling
    if token.token_id in eos_token_ids and not sampling.ignore_eos:
        return "stop"
    sequence.held_ids.append(token.token_id)
    if token.logprob is not None:
        top = tuple((tokenizer.decode([i]), i, logprob) for i, logprob in token.top)
        sequence.held_logprobs.append(
            TokenLogprob(tokenizer.decode([token.token_id]), token.token_id, token.logprob, top)
        )
    text = sequence.text.push(token.token_id)
    if text:
        _tell_piece(sequence, text)
    if sequence.text.stopped:
        return "stop"
    return "length" if sequence.num_new >= sequence.max_new_tokens else None


def finish(sequence: Sequence, reason: FinishReason) -> None:
    """Tell the rest of the text, and the end."""
    text = "" if reason == "cancelled" else sequence.text.flush()
    if text or (sequence.held_ids and reason != "cancelled"):
        _tell_piece(sequence, text)
    first = sequence.first_token_at
    tell(
        sequence,
        Finished(
            reason,
            prompt_tokens=len(sequence.prompt.tokens),
            completion_tokens=sequence.num_new,
            first_token_ms=0.0 if first is None else 1e3 * (first - sequence.submitted),
            latency_ms=1e3 * (time.monotonic() - sequence.submitted),
        ),
    )


def _tell_piece(sequence: Sequence, text: str) -> None:
    piece = Piece(text, tuple(sequence.held_ids), tuple(sequence.held_logprobs))
    sequence.held_ids.clear()
    sequence.held_logprobs.clear()
    tell(sequence, piece)


def tell(sequence: Sequence, event: Event) -> None:
    """Call the listener. One that raises hears nothing more, and its request is cancelled."""
    if sequence.deaf:
        return
    try:
        sequence.listener(event)
    except Exception:
        _logger.exception("request %s: its listener failed; it is cancelled", sequence.request.request_id)
        sequence.deaf = True
        sequence.cancel()
