"""The key of a cache entry: a digest over everything that decides a vector's value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from graph.errors import InvalidInput
from models.text_encoder.protocol import Fingerprint

_FORMAT = b"weft embedding key 1\n"
_LENGTH_BYTES = 8


class EntryKeys:
    """Keys of one encoder's texts: SHA-256, never truncated, over what precedes a text and the text.

    Everything before the text carries its length, so that no two different tuples (fingerprint, parameters,
    prompt, text) digest the same bytes.

    Args:
        fingerprint: of the encoder.
        parameters: whatever else decides a vector's value; JSON values, the order of keys does not count.

    Raises InvalidInput for parameters that JSON cannot tell apart or cannot hold.
    """

    def __init__(self, fingerprint: Fingerprint, parameters: Mapping[str, object]) -> None:
        self.own_prompt = fingerprint.prompt
        self._scope = hashlib.sha256(
            _FORMAT + bytes.fromhex(fingerprint.digest) + _counted(_canonical(parameters))
        )

    def effective_prompt(self, prompt: str | None) -> str:
        """What stands before a text: None is the encoder's own prompt."""
        return self.own_prompt if prompt is None else prompt

    def many(self, texts: Sequence[str], prompt: str | None = None) -> list[bytes]:
        """Keys of `texts`, 32 bytes each, in order. Raises InvalidInput for what UTF-8 cannot hold."""
        scope = self._scope.copy()
        try:
            scope.update(_counted(self.effective_prompt(prompt).encode()))
        except UnicodeEncodeError as error:
            raise InvalidInput(f"the prompt holds {_surrogate(error)}", param="prompt") from None
        copy, keys = scope.copy, []
        try:
            for text in texts:
                digest = copy()
                digest.update(text.encode())
                keys.append(digest.digest())
        except UnicodeEncodeError as error:
            raise InvalidInput(f"text {len(keys)} holds {_surrogate(error)}", param="texts") from None
        return keys


def _surrogate(error: UnicodeEncodeError) -> str:
    return (
        f"a lone surrogate (U+{ord(error.object[error.start]):04X} at character {error.start}), "
        "which is no text: remove or replace it"
    )


def _counted(part: bytes) -> bytes:
    return len(part).to_bytes(_LENGTH_BYTES, "little") + part


def _canonical(parameters: Mapping[str, object]) -> bytes:
    _check_names(parameters)
    try:
        # Escapes would make a pair of lone surrogates equal to the character they stand for.
        text = json.dumps(
            dict(parameters), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        return text.encode()
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"key parameters must be JSON values: {error}") from error


def _check_names(value: object) -> None:
    """JSON turns other names into strings, and then 1 and "1" would be one."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise InvalidInput(f"key parameters: the name {name!r} must be a string")
            _check_names(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_names(inner)
