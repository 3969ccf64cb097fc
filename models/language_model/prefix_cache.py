"""Keys and values of prompt beginnings that were computed before.

A prompt is cut into blocks of `block_tokens`; the key of a block is a hash over the key of the block before
it, its tokens and whose it is. The first key stands for base model and adapters, so nothing is found under
other weights.
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

from graph.errors import InvalidInput
from models.language_model.protocol import AdapterPart

KeysValues: TypeAlias = list[tuple[Tensor, Tensor]]
"""Per layer K and V, each [heads, n, d]."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Keys and values of `block_tokens` tokens; not to be written to."""

    layers: tuple[tuple[Tensor, Tensor], ...] = field(repr=False)
    nbytes: int


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """The beginning of a prompt that need not be computed: `length` tokens, in `blocks`, in order."""

    length: int = 0
    blocks: tuple[Block, ...] = ()


class PrefixCache:
    """Blocks by key, at most `max_bytes` of them, the least recently used dropped first.

    For one thread, but for `statistics`, which any thread may call.

    A chain is always touched from its end to its beginning, so a block is older than the one before it: the
    oldest block of all has nothing behind it, and dropping it makes no other unreachable.

    Args:
        max_bytes: of all keys and values together.
        block_tokens: tokens of a block; what is left of a prompt after its last whole block is not kept.

    Raises:
        InvalidInput: a negative max_bytes, or block_tokens below 1.
    """

    def __init__(self, max_bytes: int, block_tokens: int = 32) -> None:
        if max_bytes < 0:
            raise InvalidInput(f"max_bytes is {max_bytes}; must be at least 0", param="max_bytes")
        if block_tokens < 1:
            raise InvalidInput(f"block_tokens is {block_tokens}; must be at least 1", param="block_tokens")
        self.max_bytes = max_bytes
        self.block_tokens = block_tokens
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()  # oldest first
        self._bytes = self._hits = self._misses = self._hit_tokens = 0

    @staticmethod
    def root_key(base_digest: str, choice_parts: Sequence[AdapterPart]) -> bytes:
        """The key before the first block: base model, adapters and their weights, in order."""
        base = base_digest.encode()
        found = hashlib.sha256(struct.pack("<qq", len(base), len(choice_parts)) + base)
        for part in choice_parts:
            digest = part.digest.encode()
            found.update(struct.pack("<qd", len(digest), part.weight) + digest)
        return found.digest()

    def lookup(self, root: bytes, tokens: Sequence[int], owner: str | None, shared_tokens: int) -> PrefixHit:
        """The longest beginning of `tokens` that is here, short of the last token: its logits are needed."""
        keys: list[bytes] = []
        blocks: list[Block] = []
        for key in self._keys(root, tokens, (len(tokens) - 1) // self.block_tokens, owner, shared_tokens):
            block = self._blocks.get(key)
            if block is None:
                break
            keys.append(key)
            blocks.append(block)
        self._touch(keys)
        length = len(blocks) * self.block_tokens
        if length:
            self._hits += 1
        else:
            self._misses += 1
        self._hit_tokens += length
        return PrefixHit(length, tuple(blocks))

    def insert(
        self,
        root: bytes,
        tokens: Sequence[int],
        owner: str | None,
        shared_tokens: int,
        read: Callable[[int, int], KeysValues],
    ) -> None:
        """Keep the whole blocks of `tokens`, as many from the beginning as fit `max_bytes`.

        `read(start, end)` copies keys and values of tokens [start, end); it is called only for blocks that
        are not here. What it raises is passed on, with the blocks before kept.
        """
        keys = self._keys(root, tokens, len(tokens) // self.block_tokens, owner, shared_tokens)
        here = 0
        while here < len(keys) and keys[here] in self._blocks:
            here += 1
        self._touch(keys[:here])
        own = sum(self._blocks[key].nbytes for key in keys[:here])
        try:
            for place in range(here, len(keys)):
                start = place * self.block_tokens
                layers = tuple(read(start, start + self.block_tokens))
                block = Block(layers, sum(k.nbytes + v.nbytes for k, v in layers))
                own += block.nbytes
                if own > self.max_bytes:
                    break
                # All blocks of this chain were touched just now: what goes is others'.
                while self._bytes + block.nbytes > self.max_bytes:
                    self._bytes -= self._blocks.popitem(last=False)[1].nbytes
                self._blocks[keys[place]] = block
                self._bytes += block.nbytes
                here = place + 1
        finally:
            self._touch(keys[:here])

    def clear(self) -> int:
        """Forget everything; returns how many bytes that were."""
        freed = self._bytes
        self._blocks.clear()
        self._bytes = 0
        return freed

    def statistics(self) -> dict[str, int]:
        """Bytes held and allowed, lookups that found something or nothing, tokens found."""
        return {
            "bytes": self._bytes,
            "max_bytes": self.max_bytes,
            "hits": self._hits,
            "misses": self._misses,
            "hit_tokens": self._hit_tokens,
        }

    def _touch(self, keys: Sequence[bytes]) -> None:
        for key in reversed(keys):
            self._blocks.move_to_end(key)

    def _keys(
        self, root: bytes, tokens: Sequence[int], count: int, owner: str | None, shared_tokens: int
    ) -> list[bytes]:
        """Keys of the first `count` blocks. A block is everybody's when it ends within `shared_tokens`."""
        own = b"nobody" if owner is None else b"owner:" + owner.encode("utf-8", "surrogatepass")
        keys: list[bytes] = []
        key = root
        for place in range(count):
            start, end = place * self.block_tokens, (place + 1) * self.block_tokens
            whose = b"all" if end <= shared_tokens else own
            # Fixed sizes before the owner: no two different blocks are the same bytes.
            key = hashlib.sha256(key + array("q", tokens[start:end]).tobytes() + whose).digest()
            keys.append(key)
        return keys
