"""Which items have a tag, whatever its case."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from graph.delta import Delta
from graph.schema import Item


class TaggedRows:
    """Rows of live items by their tags."""

    def __init__(self, items: Iterable[Item] = ()) -> None:
        self._rows: defaultdict[str, set[int]] = defaultdict(set)
        for item in items:
            self._add(item)

    def of(self, tag: str) -> set[int]:
        """Rows that have it; not to be changed."""
        return self._rows.get(tag.casefold(), set())

    def apply(self, delta: Delta) -> None:
        for before, after in delta.items:
            if before is not None:
                for tag in before.tags:
                    self._rows[tag.casefold()].discard(before.row)
            if not after.deleted:
                self._add(after)

    def _add(self, item: Item) -> None:
        for tag in item.tags:
            self._rows[tag.casefold()].add(item.row)
