"""Rows begin with what the prefix cache has of their prompts, and leave theirs to it."""

from __future__ import annotations

from models.language_model.batch import Sequence
from models.language_model.kv_cache import KVCache
from models.language_model.memory_recovery import is_out_of_memory
from models.language_model.prefix_cache import PrefixCache


class PrefixReuse:
    """Copies between rows and prefix cache. Where memory runs out for it, the prefix cache is what goes."""

    def __init__(self, base_digest: str, rows: KVCache, prefixes: PrefixCache | None) -> None:
        self._base_digest, self._rows, self._prefixes = base_digest, rows, prefixes
        self.out_of_memory = 0

    def begin(self, sequence: Sequence, row: int) -> int:
        """Fill a row with the longest known beginning; how many tokens that is."""
        prefixes = self._prefixes
        if prefixes is None:
            return 0
        hit = prefixes.lookup(
            self._root(sequence), sequence.tokens, sequence.request.owner, sequence.prompt.shared_tokens
        )
        try:
            for place, block in enumerate(hit.blocks):
                self._rows.write(row, place * prefixes.block_tokens, block.layers)
        except Exception as error:
            self._give_up(error, prefixes)
            return 0
        return hit.length

    def keep(self, sequence: Sequence, row: int) -> None:
        """Its prompt is read: copy what is not known yet."""
        prefixes, prompt = self._prefixes, sequence.prompt
        if prefixes is None:
            return
        try:
            prefixes.insert(
                self._root(sequence),
                prompt.tokens,
                sequence.request.owner,
                prompt.shared_tokens,
                lambda start, end: self._rows.read(row, start, end),
            )
        except Exception as error:
            self._give_up(error, prefixes)

    def _give_up(self, error: Exception, prefixes: PrefixCache) -> None:
        if not is_out_of_memory(error):
            raise error
        self.out_of_memory += 1
        prefixes.clear()

    def _root(self, sequence: Sequence) -> bytes:
        assert sequence.choice is not None
        return PrefixCache.root_key(self._base_digest, sequence.choice.parts)
