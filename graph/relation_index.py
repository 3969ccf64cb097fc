"""Relations of a view, found from either end."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from sys import intern

from graph.schema import Relation, TargetKind


class RelationIndex:
    """Live relations by the memory they leave and by what they lead to.

    Made for many memories with few relations each: a memory without any costs nothing, and a target that one
    memory leads to costs one number beside the relation itself.
    """

    def __init__(self) -> None:
        self._of: dict[int, tuple[Relation, ...]] = {}  # by memory row, sorted
        # Memories that lead to a row: a set only where there are several.
        self._to: dict[TargetKind, dict[int, int | set[int]]] = {"item": {}, "memory": {}}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Relation]:
        return (relation for relations in self._of.values() for relation in relations)

    def of(self, memory_row: int) -> Sequence[Relation]:
        """Relations that leave a memory, by name, kind and row of the target. O(1)."""
        return self._of.get(memory_row, ())

    def to(self, kind: TargetKind, row: int) -> Sequence[Relation]:
        """Relations that lead to a node, by memory row and name. O(k log k) for k relations."""
        memories = self._to[kind].get(row, ())
        rows = [memories] if isinstance(memories, int) else sorted(memories)
        return [r for m in rows for r in self._of[m] if (r.target_kind, r.target_row) == (kind, row)]

    def find(self, memory_row: int, name: str, kind: TargetKind, row: int) -> Relation | None:
        """One relation. O(log d) for d relations of the memory."""
        found, order = self._of.get(memory_row, ()), (name, kind, row)
        place = bisect_left(found, order, key=_order)
        return found[place] if place < len(found) and _order(found[place]) == order else None

    def apply(self, changes: Iterable[Relation]) -> list[tuple[Relation | None, Relation]]:
        """Bring the index to these final states, tombstones too; returns each with what was there before."""
        groups: dict[int, list[Relation]] = {}
        for change in changes:
            groups.setdefault(change.memory_row, []).append(change)
        return [pair for memory_row, group in groups.items() for pair in self._apply_to(memory_row, group)]

    def _apply_to(
        self, memory_row: int, changes: list[Relation]
    ) -> Iterator[tuple[Relation | None, Relation]]:
        """Apply changes of one memory, whose relations are put in order once."""
        before = {_order(relation): relation for relation in self._of.get(memory_row, ())}
        after = dict(before)
        for change in changes:
            if change.deleted:
                after.pop(_order(change), None)
            else:
                after[_order(change)] = _sharing_name(change)
        if after:
            self._of[memory_row] = tuple(after[order] for order in sorted(after))
        else:
            self._of.pop(memory_row, None)
        self._count += len(after) - len(before)
        # Under different names a memory may lead to the same node several times.
        targets, left = {order[1:] for order in after}, {order[1:] for order in before}
        for kind, row in targets - left:
            self._link(kind, row, memory_row)
        for kind, row in left - targets:
            self._unlink(kind, row, memory_row)
        return ((before.get(_order(change)), change) for change in changes)

    def _link(self, kind: TargetKind, row: int, memory_row: int) -> None:
        memories = self._to[kind].setdefault(row, memory_row)
        if isinstance(memories, set):
            memories.add(memory_row)
        elif memories != memory_row:
            self._to[kind][row] = {memories, memory_row}

    def _unlink(self, kind: TargetKind, row: int, memory_row: int) -> None:
        memories = self._to[kind][row]
        if isinstance(memories, set):
            memories.discard(memory_row)
            if memories:
                return
        del self._to[kind][row]


def _sharing_name(relation: Relation) -> Relation:
    """The relation with the one copy of its name: a store has few names and many relations."""
    name = intern(relation.name)
    if name is relation.name:
        return relation
    return Relation(relation.memory_row, name, relation.target_kind, relation.target_row, relation.version)


def _order(relation: Relation) -> tuple[str, TargetKind, int]:
    return relation.name, relation.target_kind, relation.target_row
