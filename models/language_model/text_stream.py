"""Tokens in, text out, as soon as it can be shown and not before."""

from __future__ import annotations

from typing import Any

_REPLACEMENT = "\ufffd"
_MAX_HELD = 3  # bytes of a character that is not complete: each may stand as one replacement character
_WINDOW_TOKENS = 24  # tokens that are decoded again with every push, at most in the ordinary case
_KEPT_TOKENS = 6  # of them, when older ones are let go


class TextStream:
    """Detokenises one answer while it is generated.

    What `push` and `flush` return, concatenated, is `tokenizer.decode(all_tokens, skip_special_tokens=True,
    clean_up_tokenization_spaces=False)`, cut where the stop text begins that is complete first (of several
    complete at one character: the longest). That holds however the text is divided into tokens. A replacement
    character is shown only for bytes that are no character, never for one whose bytes are still to come.

    One exception: a decoder with byte fallback (sentencepiece) replaces all of a run of byte tokens when any
    part of it is no UTF-8. Characters of the run that were shown already stay; those after them may be shown
    as characters or as replacement characters.

    Each push decodes a window of recent tokens, not the answer: O(1) for each token. Not thread-safe.
    """

    def __init__(self, tokenizer: Any, stop: tuple[str, ...] = ()) -> None:
        """`tokenizer` is one of transformers'."""
        self._tokenizer = tokenizer
        self._special = special_token_ids(tokenizer)
        self._stop = stop
        self._window: list[int] = []
        self._shown = ""  # of the window's text, what went on to the stop texts
        self._clean = 0  # tokens of the window whose text is all shown
        self._waiting = ""  # may be the beginning of a stop text
        self.stopped = False
        """A stop text was found; nothing more will be shown."""

    def push(self, token_id: int) -> str:
        """The text that this token makes certain; often a word, sometimes nothing. Special ones have none."""
        if self.stopped or token_id in self._special:
            return ""
        self._window.append(token_id)
        return self._release(self._new_text(), last=False)

    def flush(self) -> str:
        """The rest, at the end of the answer: also incomplete characters, as U+FFFD. Call it once."""
        if self.stopped:
            return ""
        text = self._decode(self._window)
        if not text.startswith(self._shown):
            text, self._shown = self._decode(self._window[self._clean :]), ""
        rest = text[len(self._shown) :]
        self._window, self._shown, self._clean = [], "", 0
        return self._release(rest, last=True)

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(
            token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _new_text(self) -> str:
        text = self._decode(self._window)
        if not text.startswith(self._shown):
            # Byte fallback: a new byte makes its run, shown as characters, invalid, for now or for good.
            if text.endswith(_REPLACEMENT) and len(self._window) - self._clean <= _MAX_HELD:
                return ""
            self._window, self._shown, self._clean = self._window[self._clean :], "", 0
            text = self._decode(self._window)
        held = 0
        while held < _MAX_HELD and text.endswith(_REPLACEMENT, 0, len(text) - held):
            held += 1
        certain = text[: len(text) - held]
        if len(certain) < len(self._shown):
            return ""
        new, self._shown = certain[len(self._shown) :], certain
        if held == 0:
            self._clean = len(self._window)
        if len(self._window) > _WINDOW_TOKENS:
            self._forget(text, held)
        return new

    def _forget(self, text: str, held: int) -> None:
        """Drop old tokens, where those that are left decode to the end of the same text by themselves.

        They do not if the cut goes through a character. A first token's space may be missing: it is shown.
        """
        for kept in range(_KEPT_TOKENS, _KEPT_TOKENS + 4):
            tail = self._decode(self._window[-kept:])
            # Garbage has no place to cut: there its end must agree, further than what is held back.
            same = text.endswith(tail) if held == 0 else tail[-_MAX_HELD - 1 :] == text[-_MAX_HELD - 1 :]
            if len(tail) > held and same:
                self._clean = max(0, self._clean - (len(self._window) - kept))
                self._window, self._shown = self._window[-kept:], tail[: len(tail) - held]
                return

    def _release(self, new: str, *, last: bool) -> str:
        """Text that can no longer become part of a stop text; sets `stopped` at the first complete."""
        if not self._stop:
            return new
        text = self._waiting + new
        found = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            self.stopped, self._waiting = True, ""
            return text[: min(found)[1]]
        waiting = 0 if last else max(_shared_end(text, stop) for stop in self._stop)
        self._waiting = text[len(text) - waiting :]
        return text[: len(text) - waiting]


def special_token_ids(tokenizer: Any) -> frozenset[int]:
    """The tokens that `decode(skip_special_tokens=True)` skips."""
    added = tokenizer.added_tokens_decoder
    return frozenset(i for i, token in added.items() if token.special) | frozenset(tokenizer.all_special_ids)


def _shared_end(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` begins with, without being all of it."""
    return next(
        (n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])),
        0,
    )
