"""A text encoder of hashed words: no model, no files, the same vectors on every machine.

Vectors of texts that share words are similar, which is all that tests of whatever sits on an encoder need.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Sequence

import numpy as np

from graph.errors import InvalidInput, Unavailable, WeftError
from models.text_encoder.protocol import Encoded, Fingerprint, Float32
from models.text_encoder.texts import check_window, checked_prompt, checked_texts

_WORD = re.compile(r"\w+")


class HashingEncoder:
    """Each word adds 1 or -1 to one of `dimensions` components; the sum is normalised.

    The empty text gives zeros. Tokens are words, of prompt and text alike.

    Attributes:
        calls: calls of `encode` and `encode_counted` so far, failed ones included.
        texts_encoded: texts in calls that succeeded.
        failure: raised by every call while it is set, `fail` and `recover` set it.
        gate: every call waits until this event is set; it is set at first. Clear it to block callers.
        waiting: calls blocked at the gate now.
    """

    def __init__(
        self,
        dimensions: int = 32,
        model: str = "hashing",
        *,
        weights: str = "",
        prompt: str = "",
        max_tokens: int = 0,
        gate: threading.Event | None = None,
    ) -> None:
        if not model.strip():
            raise InvalidInput("the text model has no name; any non-empty name will do", param="model")
        if dimensions < 1:
            raise InvalidInput(f"dimensions is {dimensions}; must be at least 1", param="dimensions")
        self.fingerprint = Fingerprint(
            model=model,
            weights=weights or hashlib.sha256(b"hashed words, signed, sha-256").hexdigest(),
            pooling="sum",
            normalized=True,
            prompt=checked_prompt(prompt, ""),
            dimensions=dimensions,
            max_tokens=max_tokens,
            dtype="float32",
        )
        self.calls = 0
        self.texts_encoded = 0
        self.waiting = 0
        self.failure: WeftError | None = None
        self.gate = gate if gate is not None else _open_gate()
        self._lock = threading.Lock()

    def fail(self, error: WeftError | None = None) -> None:
        """Let every call from now on raise `error`, Unavailable by default."""
        self.failure = error or Unavailable("the text model does not answer; try again later")

    def recover(self) -> None:
        """Let calls succeed again."""
        self.failure = None

    def close(self) -> None:
        """There is nothing to let go of."""

    def encode(self, texts: Sequence[str], prompt: str | None = None) -> Float32:
        return self.encode_counted(texts, prompt).vectors

    def encode_counted(
        self, texts: Sequence[str], prompt: str | None = None, *, truncate: bool = True
    ) -> Encoded:
        with self._lock:
            self.calls += 1
            self.waiting += 1
        self.gate.wait()
        with self._lock:
            self.waiting -= 1
        if self.failure is not None:
            raise self.failure
        chosen = checked_prompt(prompt, self.fingerprint.prompt)
        words = [_WORD.findall((chosen + text).lower()) for text in checked_texts(texts)]
        tokens = np.array([len(found) for found in words], np.int32)
        window = self.fingerprint.max_tokens
        if not truncate:
            check_window(tokens, window)
        vectors = np.zeros((len(words), self.fingerprint.dimensions), np.float32)
        for vector, found in zip(vectors, words, strict=True):
            self._add(vector, found[: window or None])
        with self._lock:
            self.texts_encoded += len(words)
        return Encoded(vectors, tokens)

    def _add(self, vector: Float32, words: Sequence[str]) -> None:
        for word in words:
            hashed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
            vector[(hashed >> 1) % len(vector)] += 1.0 if hashed & 1 else -1.0
        norm = np.linalg.norm(vector)
        if norm > 0:
            vector /= norm


def _open_gate() -> threading.Event:
    gate = threading.Event()
    gate.set()
    return gate
