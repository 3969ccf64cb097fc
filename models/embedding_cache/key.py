"""The key of a cache entry: a digest over everything that decides a vector's value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import overload

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
        return list(self.on_demand(texts, prompt))

    def on_demand(self, texts: Sequence[str], prompt: str | None = None) -> KeySequence:
        """The same, digested when asked for. What cannot have a key is refused at once."""
        scope = self._scope.copy()
        try:
            scope.update(_counted(self.effective_prompt(prompt).encode()))
        except UnicodeEncodeError as error:
            raise InvalidInput(f"the prompt holds {_surrogate(error)}", param="prompt") from None
        try:
            return KeySequence(scope, list(map(str.encode, texts)))
        except UnicodeEncodeError as error:
            place = list(texts).index(error.object)
            raise InvalidInput(f"text {place} holds {_surrogate(error)}", param="texts") from None


class KeySequence(Sequence[bytes]):
    """Keys that are digested in order as far as somebody asks: a store that sends a batch piece by piece has
    the next piece digested while the server works on the last.

    Args:
        scope: a digest of everything before the text.
        texts: UTF-8.
    """

    def __init__(self, scope: hashlib._Hash, texts: Sequence[bytes]) -> None:
        self._copy, self._texts = scope.copy, texts
        self._digested: list[bytes] = []

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, place: int) -> bytes: ...
    @overload
    def __getitem__(self, place: slice) -> list[bytes]: ...
    def __getitem__(self, place: int | slice) -> bytes | list[bytes]:
        if isinstance(place, slice) and place.step is None and place.stop is not None and place.stop >= 0:
            return self._up_to(place.stop)[place]
        return self._up_to(len(self._texts))[place]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._up_to(len(self._texts)))

    def _up_to(self, count: int) -> list[bytes]:
        keys = self._digested
        if len(keys) < count:
            copy, keys = self._copy, keys.copy()  # another thread may be at the same
            for text in self._texts[len(keys) : count]:
                digest = copy()
                digest.update(text)
                keys.append(digest.digest())
            self._digested = keys
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
