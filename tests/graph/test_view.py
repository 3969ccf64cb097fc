"""`GraphView` equals plain dicts after any changes, and its deltas tell the difference."""

from __future__ import annotations

import math

import numpy as np
import pytest

from graph.delta import Delta
from graph.errors import UnknownItem, UnknownUser
from graph.schema import RATING_DTYPE, ChangeSet, Item, Memory, Pointer, Relation, User
from graph.view import GraphView

USERS, ITEMS = 12, 15


def ratings_array(records: list[tuple[int, int, float, int, int, bool]]) -> np.ndarray:
    return np.array(records, RATING_DTYPE)


def nodes(version: int = 1) -> tuple[list[User], list[Item]]:
    users = [User(n, f"u{n}", {"n": n}, version) for n in range(USERS)]
    items = [Item(n, f"i{n}", f"Film {n}", ("a",), 1990, "", version) for n in range(ITEMS)]
    return users, items


def make_view() -> GraphView:
    users, items = nodes()
    view = GraphView("s")
    view.apply(ChangeSet(0, 1, users=users, items=items))
    return view


def assert_equal(view: GraphView, model: dict[tuple[int, int], tuple[float, int]]) -> None:
    assert view.num_ratings == len(model)
    for user in range(USERS):
        expected = {i: pair for (u, i), pair in model.items() if u == user}
        rated = view.ratings_of(user)
        pairs = zip(rated.values.tolist(), rated.timestamps.tolist(), strict=True)
        assert dict(zip(rated.item_rows.tolist(), pairs, strict=True)) == expected
    for item in range(ITEMS):
        expected_raters = {u: value for (u, i), (value, _) in model.items() if i == item}
        raters = view.raters_of(item)
        assert dict(zip(raters.user_rows.tolist(), raters.values.tolist(), strict=True)) == expected_raters
    edges = view.edges()
    triples = zip(edges.user_rows.tolist(), edges.item_rows.tolist(), edges.values.tolist(), strict=True)
    assert sorted(triples) == sorted((u, i, value) for (u, i), (value, _) in model.items())
    wanted = np.array([3, 1, 3])
    indptr, rows, values = view.ratings_of_many(wanted)
    for n, user in enumerate(wanted.tolist()):
        part = slice(indptr[n], indptr[n + 1])
        assert rows[part].tolist() == view.ratings_of(user).item_rows.tolist()
        assert values[part].tolist() == view.ratings_of(user).values.tolist()


@pytest.mark.parametrize("per_version", [1, 2, 9])
def test_ratings_equal_a_dict(per_version: int) -> None:
    rng, view = np.random.default_rng(per_version), make_view()
    model: dict[tuple[int, int], tuple[float, int]] = {}
    for step in range(600):
        version, before = view.version + 1, dict(model)
        changed: dict[tuple[int, int], tuple[int, int, float, int, int, bool]] = {}
        for _ in range(per_version):
            pair = int(rng.integers(USERS)), int(rng.integers(ITEMS))
            if rng.random() < 0.4:
                # A tombstone may also speak of a rating this view never held.
                model.pop(pair, None)
                changed[pair] = (*pair, 0.0, 0, version, True)
            else:
                model[pair] = float(rng.integers(1, 11)) / 2, step
                changed[pair] = (*pair, *model[pair], version, False)
        delta = view.apply(ChangeSet(view.version, version, ratings=ratings_array(list(changed.values()))))
        assert_delta(delta, before, model, set(changed))
        if step % 25 == 0:
            assert_equal(view, model)
    assert_equal(view, model)


def assert_delta(delta: Delta, before: dict, after: dict, changed: set[tuple[int, int]]) -> None:
    found = delta.ratings
    pairs = list(zip(found.user_rows.tolist(), found.item_rows.tolist(), strict=True))
    assert set(pairs) == changed
    assert len(pairs) == len(changed)
    assert found.user_rows.tolist() == sorted(found.user_rows.tolist())
    assert (found.user_rows.dtype, found.item_rows.dtype) == (np.int64, np.int64)
    assert (found.old.dtype, found.new.dtype) == (np.float32, np.float32)
    for pair, old, new in zip(pairs, found.old.tolist(), found.new.tolist(), strict=True):
        assert old == before[pair][0] if pair in before else math.isnan(old)
        assert new == after[pair][0] if pair in after else math.isnan(new)


def test_applying_twice_changes_nothing_more() -> None:
    view = make_view()
    changes = ChangeSet(1, 2, ratings=ratings_array([(1, 2, 4.0, 7, 2, False)]))
    first, second = view.apply(changes), view.apply(changes)
    assert math.isnan(first.ratings.old[0])
    assert second.ratings.old.tolist() == second.ratings.new.tolist() == [4.0]
    assert_equal(view, {(1, 2): (4.0, 7)})
    assert view.version == 2


def test_one_record_and_several_leave_the_same_view() -> None:
    records = [(u, i, 3.0, u, 2, False) for u in range(4) for i in range(5)]
    one_by_one, together = make_view(), make_view()
    for record in records:
        one_by_one.apply(
            ChangeSet(one_by_one.version, one_by_one.version + 1, ratings=ratings_array([record]))
        )
    together.apply(ChangeSet(1, 2, ratings=ratings_array(records)))
    for user in range(USERS):
        assert one_by_one.ratings_of(user).item_rows.tolist() == together.ratings_of(user).item_rows.tolist()


def test_a_gap_is_refused() -> None:
    with pytest.raises(ValueError, match="gap after 1"):
        make_view().apply(ChangeSet(2, 3))


def test_ratings_of_unknown_rows_are_held() -> None:
    view = GraphView()
    view.apply(ChangeSet(0, 1, ratings=ratings_array([(40, 50, 2.0, 0, 1, False)])))
    assert view.rating(40, 50) == (2.0, 0)
    view.apply(ChangeSet(1, 2, ratings=ratings_array([(80, 90, 0.0, 0, 2, True)])))
    assert view.num_ratings == 1


def test_nodes_come_change_and_go() -> None:
    view = make_view()
    assert (view.num_users, view.num_items) == (USERS, ITEMS)
    before, after = view.item("i3"), Item(3, "i3", "New", (), None, "", 2)
    delta = view.apply(ChangeSet(1, 2, items=[after]))
    assert delta.items == [(before, after)]
    gone = User(5, "u5", {}, 3, deleted=True)
    delta = view.apply(ChangeSet(2, 3, users=[gone], ratings=ratings_array([])))
    assert delta.users[0][1] is gone
    assert view.find_user("u5") is None
    assert view.user_at(5) is None
    with pytest.raises(UnknownUser, match="u5"):
        view.user("u5")
    with pytest.raises(UnknownItem, match="'x'"):
        view.item("x")
    # The same id again has another row, and a late tombstone of the old row does not hide it.
    view.apply(ChangeSet(3, 4, users=[User(USERS, "u5", {}, 4), gone]))
    assert view.user("u5").row == USERS
    assert view.num_user_rows == USERS + 1
    assert len(list(view.users())) == view.num_users == USERS
    assert view.user_at(-1) is None
    assert view.item_at(ITEMS) is None


def test_memories_and_pointers_follow() -> None:
    view = make_view()
    view.apply(
        ChangeSet(
            1,
            2,
            memories=[Memory(0, "m0", 3, "likes tea", 2), Memory(1, "m1", 3, "has a dog", 2)],
            pointers=[Pointer("encoder", "active", {"digest": "x"}, 2)],
        )
    )
    assert [memory.memory_id for memory in view.memories_of(3)] == ["m0", "m1"]
    pointer = view.pointer("encoder", "active")
    assert pointer is not None
    assert pointer.value == {"digest": "x"}
    view.apply(
        ChangeSet(
            2,
            3,
            memories=[Memory(0, "m0", 3, "", 3, deleted=True)],
            pointers=[Pointer("encoder", "active", {}, 3, deleted=True)],
        )
    )
    assert [memory.memory_id for memory in view.memories_of(3)] == ["m1"]
    assert view.find_memory("m0") is None
    assert view.num_memories == 1
    assert list(view.pointers()) == []


def test_relations_follow() -> None:
    view = make_view()
    memory, about = Memory(0, "m0", 3, "likes tea", 2), Relation(0, "about", "item", 7, 2)
    view.apply(ChangeSet(1, 2, memories=[memory], relations=[about]))
    assert (view.relations_of(0), list(view.relations_to("item", 7))) == ((about,), [about])
    assert (list(view.relations_of(1)), list(view.relations_to("memory", 7))) == ([], [])
    assert view.relation(0, "about", "item", 7) is about
    assert view.relation(0, "about", "memory", 7) is None
    later = Memory(0, "m0", 3, "liked tea", 3, invalid_at=9)
    view.apply(ChangeSet(2, 3, memories=[later]))
    assert view.memory_at(0) == later
    assert view.num_memories_of(3) == view.num_relations == 1
    copy = view.copy()
    gone, forgotten = (
        Relation(0, "about", "item", 7, 4, deleted=True),
        Memory(0, "m0", 3, "", 4, deleted=True),
    )
    for _ in range(2):  # final states: again changes nothing
        view.apply(ChangeSet(3, 4, memories=[forgotten], relations=[gone]))
        assert view.num_memories_of(3) == view.num_relations == 0
        assert view.memory_at(0) is None
    assert (copy.num_memories_of(3), copy.relations_of(0)) == (1, (about,))


def test_at_most_24_bytes_per_rating_and_direction_after_live_writes() -> None:
    rng, view = np.random.default_rng(0), GraphView()
    users, items = 900, 1200
    view.apply(
        ChangeSet(
            0,
            1,
            users=[User(n, f"u{n}", {}, 1) for n in range(users)],
            items=[Item(n, f"i{n}", "", (), None, "", 1) for n in range(items)],
        )
    )
    taste, fame = rng.lognormal(0, 1, users), rng.lognormal(0, 1, items)
    who = rng.choice(users, 100_000, p=taste / taste.sum()).tolist()
    what = rng.choice(items, 100_000, p=fame / fame.sum()).tolist()
    delete = (rng.random(100_000) < 0.3).tolist()
    live: list[tuple[int, int]] = []
    for u, i, gone in zip(who, what, delete, strict=True):
        pair = live.pop(u % len(live)) if gone and live else (u, i)
        record = ratings_array([(*pair, 4.0, 1, view.version + 1, gone)])
        view.apply(ChangeSet(view.version, view.version + 1, ratings=record))
        if not gone:
            live.append(pair)
    assert view.num_ratings > 20_000
    by_user, by_item = (held / view.num_ratings for held in view.rating_bytes)
    assert by_user <= 24
    assert by_item <= 24
