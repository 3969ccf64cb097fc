"""Conversations as token batches of like length, with a weight on every answer's tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from models.language_model.protocol import Message
from models.small_model.tokenizer import ASSISTANT, END, PAD, SYSTEM, USER

_ROLES = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
_IGNORED = -100


@dataclass(frozen=True)
class Batch:
    tokens: torch.Tensor  # [B, T] int64, padded on the right
    targets: torch.Tensor  # [B, T] int64: the next token where it is learned, else -100


@dataclass(frozen=True)
class Row:
    """Tokens, and which of them are learned."""

    tokens: npt.NDArray[np.int64]  # [T]
    learned: npt.NDArray[np.bool_]  # [T]


def encode_conversations(tokenizer: Any, conversations: Sequence[tuple[Message, ...]]) -> list[Row]:
    """The tokens that `models.language_model.prompt.encode_prompt` gives, and each answer's end.

    Contents are encoded apart from the control tokens around them, so that no content becomes one.
    """
    core = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    core.encode_special_tokens = True
    encoded = core.encode_batch(
        [message.content for messages in conversations for message in messages], add_special_tokens=False
    )
    contents = iter(encoded)
    found = []
    for messages in conversations:
        tokens: list[int] = []
        learned: list[bool] = []
        for message in messages:
            content = next(contents).ids
            tokens += [_ROLES[message.role], *content, END]
            is_answer = message.role == "assistant"
            learned += [False, *[is_answer] * len(content), is_answer]
        found.append(Row(np.array(tokens, np.int64), np.array(learned)))
    return found


def make_drill(rng: random.Random, vocab_size: int) -> Row:
    """Random tokens, then some runs of them again: what is learned is to copy, whatever it is.

    Attention that looks up what followed a token the last time it occurred (Olsson et al. 2022, "induction
    heads") comes about much sooner with such rows among the conversations.
    """
    first = [rng.randrange(len(_ROLES) + 2, vocab_size) for _ in range(rng.randint(8, 60))]
    tokens, learned = list(first), [False] * len(first)
    for _ in range(rng.randint(1, 5)):
        begin = rng.randrange(len(first) - 3)
        run = first[begin : begin + rng.randint(3, 24)]
        tokens += run
        # Where a run begins cannot be known.
        learned += [False, *[True] * (len(run) - 1)]
    return Row(np.array(tokens, np.int64), np.array(learned))


class Batcher:
    """Gathers rows until a batch of their length is full: at most `max_tokens`, padding included.

    Lengths are rounded up to sixteen, so that there are few shapes: kernels are made for each.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._waiting: dict[int, list[Row]] = {}

    def add(self, row: Row) -> Batch | None:
        """The batch that this row fills, if it does."""
        length = -(-len(row.tokens) // 16) * 16
        rows = self._waiting.setdefault(length, [])
        rows.append(row)
        if (len(rows) + 1) * length <= self._max_tokens:
            return None
        del self._waiting[length]
        return make_batch(rows, length)


def make_batch(rows: Sequence[Row], length: int) -> Batch:
    """Rows side by side, padded to `length` tokens."""
    tokens = np.full((len(rows), length), PAD, np.int64)
    targets = np.full((len(rows), length), _IGNORED, np.int64)
    for n, row in enumerate(rows):
        size = len(row.tokens)
        tokens[n, :size] = row.tokens
        targets[n, : size - 1] = np.where(row.learned[1:], row.tokens[1:], _IGNORED)
    return Batch(torch.from_numpy(tokens), torch.from_numpy(targets))
