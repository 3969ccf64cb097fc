"""What a text encoder is: texts in, vectors out, and a fingerprint that says which vectors they are."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Float32: TypeAlias = npt.NDArray[np.float32]
Int32: TypeAlias = npt.NDArray[np.int32]

_NOT_IN_NAMES = re.compile(r"[^a-z0-9.]+")
_MAX_SLUG_CHARS = 40


@dataclass(frozen=True)
class Fingerprint:
    """Everything besides prompt argument and text that decides a vector's value.

    Two encoders with equal fingerprints give interchangeable vectors; a vector is only ever compared with
    vectors of the same fingerprint.
    """

    model: str
    """Name or path the model was asked for by; for people, and part of `name`."""
    weights: str
    """SHA-256 of the files that make up the model, hex; empty where nobody can know (a remote endpoint)."""
    pooling: str
    normalized: bool
    prompt: str
    """Prompt that the encoder puts before a text when the caller gives none."""
    dimensions: int
    max_tokens: int
    """Window: tokens of prompt and text beyond it are cut off. 0: unknown."""
    dtype: str
    """Of the computation ("float32", "bfloat16"); vectors are float32 either way."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all fields, hex."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def name(self) -> str:
        """Short, readable and unique: the model's own name and 12 hex digits of `digest`.

        Letters, digits, `.` and `-` alone: it names text vectors in the store and prefixes keys of the cache.
        """
        slug = _NOT_IN_NAMES.sub("-", self.model.rstrip("/").rpartition("/")[2].lower()).strip("-.")
        return f"{slug[:_MAX_SLUG_CHARS] or 'model'}-{self.digest[:12]}"

    @property
    def public_model(self) -> str:
        """What to call the model before clients: its name, of a folder only the last part."""
        path = Path(self.model)
        if path.is_absolute() or self.model.startswith((".", "~")) or path.is_dir():
            return path.resolve().name or "model"
        return self.model


class Encoded(NamedTuple):
    """Vectors of some texts, in order."""

    vectors: Float32  # [n, d]
    tokens: Int32  # [n] tokens of prompt and text before truncation; -1 where nobody knows


class TextEncoder(Protocol):
    """Implementations are thread-safe; calls may queue behind each other."""

    @property
    def fingerprint(self) -> Fingerprint: ...

    def encode(self, texts: Sequence[str], prompt: str | None = None) -> Float32:
        """Vectors float32 [n, d] of texts, in order; a text that does not fit the window is cut.

        `prompt` stands before every text; None is the encoder's own. Raises Unavailable when the model cannot
        answer now, InvalidInput for texts it will never take.
        """
        ...

    def encode_counted(
        self, texts: Sequence[str], prompt: str | None = None, *, truncate: bool = True
    ) -> Encoded:
        """The same with token counts. Without `truncate`, TextTooLong for a text beyond the window."""
        ...

    def close(self) -> None:
        """Let go of connections; calling the encoder afterwards is a mistake."""
        ...
