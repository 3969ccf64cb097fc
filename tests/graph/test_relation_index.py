"""`RelationIndex` equals a plain dict after any changes, from either end."""

from __future__ import annotations

import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from graph.relation_index import RelationIndex
from graph.schema import Relation

KEYS = st.tuples(
    st.integers(0, 3), st.sampled_from(["a", "b"]), st.sampled_from(["item", "memory"]), st.integers(0, 2)
)
CHANGES = st.dictionaries(KEYS, st.booleans(), max_size=6)


@settings(deadline=None)
@given(st.lists(CHANGES, max_size=12))
def test_it_equals_a_dict(steps: list[dict[tuple[int, str, str, int], bool]]) -> None:
    index, plain = RelationIndex(), dict[tuple[int, str, str, int], Relation]()
    for version, step in enumerate(steps):
        changes = [Relation(*key, version, deleted=gone) for key, gone in step.items()]  # type: ignore[arg-type]
        index.apply(changes)
        for key, change in zip(step, changes, strict=True):
            if change.deleted:
                plain.pop(key, None)
            else:
                plain[key] = change
        assert len(index) == len(plain)
        assert {(r.memory_row, r.name, r.target_kind, r.target_row): r for r in index} == plain
        for row in range(5):
            assert list(index.of(row)) == [plain[key] for key in sorted(plain) if key[0] == row]
            for kind in ("item", "memory"):
                leading = [plain[key] for key in sorted(plain) if key[2:] == (kind, row)]
                assert list(index.to(kind, row)) == leading
                for memory in range(5):
                    for name in ("a", "b", "c"):
                        key = (memory, name, kind, row)
                        assert index.find(*key) == plain.get(key)


def test_few_relations_each_take_little_room() -> None:
    """Beside the records themselves: a tuple, two entries of dicts and no set."""
    index, count = RelationIndex(), 10_000
    for n in range(count):
        index.apply([Relation(n, "".join(("ab", "out")), "memory", n + 1, 1)])
    assert len({id(relation.name) for relation in index}) == 1
    held = sys.getsizeof(index._of) + sys.getsizeof(index._to["memory"])
    held += sum(map(sys.getsizeof, index._of.values()))
    assert not any(isinstance(memories, set) for memories in index._to["memory"].values())
    assert held / count < 150
    index.apply([Relation(n, "about", "memory", n + 1, 2, deleted=True) for n in range(count)])
    assert (len(index), index._of, index._to) == (0, {}, {"item": {}, "memory": {}})
