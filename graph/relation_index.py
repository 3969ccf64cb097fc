"""Relations of a view, found from either end."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from sys import intern
from typing import TypeAlias

from graph.schema import Relation, TargetKind

_From: TypeAlias = tuple[int, str]
"""Memory row and name: what tells the relations that lead to one node from each other."""


class RelationIndex:
    """Live relations by the memory they leave and by what they lead to.

    Made for many memories with few relations each: a memory without any costs nothing, and a target that one
    relation leads to costs one reference to it.
    """

    def __init__(self) -> None:
        self._of: dict[int, tuple[Relation, ...]] = {}  # by memory row, sorted
        # By the row they lead to: in a dict, by memory row and name, only where there are several.
        self._to: dict[TargetKind, dict[int, Relation | dict[_From, Relation]]] = {"item": {}, "memory": {}}
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
        found = self._to[kind].get(row, {})
        if isinstance(found, Relation):
            return [found]
        return [found[key] for key in sorted(found)]

    def find(self, memory_row: int, name: str, kind: TargetKind, row: int) -> Relation | None:
        """One relation. O(log d) for d relations of the memory."""
        found, order = self._of.get(memory_row, ()), (name, kind, row)
        place = bisect_left(found, order, key=_order)
        return found[place] if place < len(found) and _order(found[place]) == order else None

    def apply(self, changes: Iterable[Relation]) -> None:
        """Bring the index to these final states, tombstones too."""
        groups: dict[int, list[Relation]] = {}
        for change in changes:
            groups.setdefault(change.memory_row, []).append(change)
        for memory_row, group in groups.items():
            self._apply_to(memory_row, group)

    def _apply_to(self, memory_row: int, changes: list[Relation]) -> None:
        """Apply changes of one memory, whose relations are put in order once."""
        own = {_order(relation): relation for relation in self._of.get(memory_row, ())}
        before = len(own)
        for change in changes:
            order = _order(change)
            if not change.deleted:
                own[order] = _sharing_name(change)
                self._link(own[order])
            elif (gone := own.pop(order, None)) is not None:
                self._unlink(gone)
        if own:
            self._of[memory_row] = tuple(own[order] for order in sorted(own))
        else:
            self._of.pop(memory_row, None)
        self._count += len(own) - before

    def _link(self, relation: Relation) -> None:
        leading = self._to[relation.target_kind]
        there = leading.get(relation.target_row)
        if there is None or (isinstance(there, Relation) and _from(there) == _from(relation)):
            leading[relation.target_row] = relation
        elif isinstance(there, Relation):
            leading[relation.target_row] = {_from(there): there, _from(relation): relation}
        else:
            there[_from(relation)] = relation

    def _unlink(self, relation: Relation) -> None:
        leading = self._to[relation.target_kind]
        there = leading[relation.target_row]
        if isinstance(there, dict):
            del there[_from(relation)]
            if there:
                return
        del leading[relation.target_row]


def _sharing_name(relation: Relation) -> Relation:
    """The relation with the one copy of its name: a store has few names and many relations."""
    name = intern(relation.name)
    if name is relation.name:
        return relation
    return Relation(relation.memory_row, name, relation.target_kind, relation.target_row, relation.version)


def _from(relation: Relation) -> _From:
    return relation.memory_row, relation.name


def _order(relation: Relation) -> tuple[str, TargetKind, int]:
    return relation.name, relation.target_kind, relation.target_row
