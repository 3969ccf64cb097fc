"""Texts as an encoder takes them: a sequence of strings that have a UTF-8 form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graph.errors import InvalidInput, TextTooLong
from models.text_encoder.protocol import Int32


def checked_texts(texts: Sequence[str]) -> list[str]:
    """The texts as a list.

    Raises InvalidInput for a single string (its characters would pass for texts), for anything that is no
    string, and for lone surrogates, which no tokenizer, key or file can hold.
    """
    if isinstance(texts, str):
        raise InvalidInput("texts is one string; pass a list of strings", param="texts")
    listed = list(texts)
    for place, text in enumerate(listed):
        if not isinstance(text, str):
            kind = type(text).__name__
            raise InvalidInput(f"text {place} is {kind}; every text must be a string", param="texts")
        _check_utf8(text, f"text {place}", "texts")
    return listed


def checked_prompt(prompt: str | None, own: str) -> str:
    """The prompt to use: the caller's, or the encoder's own when that is None. Raises InvalidInput."""
    chosen = own if prompt is None else prompt
    _check_utf8(chosen, "the prompt", "prompt")
    return chosen


def check_window(tokens: Int32, max_tokens: int) -> None:
    """Raise TextTooLong for the first text of more than `max_tokens` tokens; 0 is no limit."""
    beyond = np.flatnonzero(tokens > max_tokens)
    if max_tokens and len(beyond):
        place = int(beyond[0])
        raise TextTooLong(
            f"text {place} has {int(tokens[place])} tokens with prompt and special tokens, the model's window"
            f" is {max_tokens}; shorten the text or let it be truncated",
            param=f"texts[{place}]",
        )


def _check_utf8(text: str, what: str, param: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"{what} cannot be encoded as UTF-8: character {error.start} is the lone surrogate"
            f" U+{ord(text[error.start]):04X}; decode the text properly or drop that character",
            param=param,
        ) from None
