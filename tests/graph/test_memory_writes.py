"""Writes of memories and relations: whose they are, what goes with what, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from graph.errors import (
    Conflict,
    InvalidInput,
    UnknownItem,
    UnknownMemory,
    UnknownRelation,
    UnknownUser,
    WeftError,
)
from graph.schema import (
    MAX_RELATIONS,
    MAX_UNIX_S,
    ChangeSet,
    DeleteItem,
    DeleteMemory,
    DeleteRelation,
    DeleteUser,
    Memory,
    Operation,
    PutItem,
    PutMemory,
    PutRelation,
    PutUser,
    Relation,
    WriteRequest,
    WriteResult,
)
from graph.store import GraphStore
from graph.writer import GraphWriter
from tests.graph.plain_model import assert_same_view, model_of, read_view, write

ABOUT = PutRelation("ann", "tea", "about", "item", "film")
AFTER = PutRelation("ann", "tea", "after", "memory", "move")


@pytest.fixture
def store(store_url: str) -> Iterator[GraphStore]:
    store = GraphStore(store_url)
    yield store
    store.close()


@pytest.fixture
def writer(store: GraphStore) -> Iterator[GraphWriter]:
    """At version 2: two memories of ann's, related, and one of bo's; afterwards all must be in the store."""
    writer = GraphWriter(store)
    write(writer, PutItem("film", "A Film"), PutItem("other", "Another"))
    write(
        writer,
        PutMemory("tea", "ann", "likes tea", 5, 9, "chat"),
        PutMemory("move", "ann", "moved to Porto"),
        PutMemory("dog", "bo", "has a dog"),
        ABOUT,
        AFTER,
        PutRelation("bo", "dog", "about", "item", "film"),
    )
    yield writer
    assert_same_view(read_view(store), writer.view)


def commit(writer: GraphWriter, *operations: Operation) -> ChangeSet:
    committed = writer.commit([WriteRequest(operations)])
    assert isinstance(committed.outcomes[0], WriteResult), committed.outcomes
    (changes,) = committed.changes
    return changes


def relations(writer: GraphWriter) -> set[tuple[str, str, str, str]]:
    return set(model_of(writer.view).relations)


# --------------------------------------------------------------------------------------------- memories


def test_a_memory_creates_its_user_and_keeps_all_it_is_given(writer: GraphWriter) -> None:
    assert writer.view.find_memory("tea") == Memory(
        0, "tea", writer.view.user("ann").row, "likes tea", 2, valid_at=5, invalid_at=9, source="chat"
    )
    assert write(writer, PutMemory("new", "eve", "x")) == WriteResult(3, 2)
    assert writer.view.user("eve").attributes == {}


@pytest.mark.parametrize(
    "changed",
    [
        PutMemory("tea", "ann", "likes coffee", 5, 9, "chat"),
        PutMemory("tea", "ann", "likes tea", 4, 9, "chat"),
        PutMemory("tea", "ann", "likes tea", 5, None, "chat"),
        PutMemory("tea", "ann", "likes tea", 5, 9),
    ],
)
def test_every_field_counts_as_a_change(writer: GraphWriter, changed: PutMemory) -> None:
    assert write(writer, PutMemory("tea", "ann", "likes tea", 5, 9, "chat")) == WriteResult(2, 0)
    assert write(writer, changed) == WriteResult(3, 1)
    memory = writer.view.find_memory("tea")
    assert memory is not None
    assert (memory.row, memory.version) == (0, 3)
    assert (memory.text, memory.valid_at, memory.invalid_at, memory.source) == (
        changed.text,
        changed.valid_at,
        changed.invalid_at,
        changed.source,
    )
    assert len(writer.view.relations_of(0)) == 2  # a change of the fact is not its end


@pytest.mark.parametrize(
    ("times", "now", "holds"),
    [
        ((None, None), 0, True),
        ((5, None), 4, False),
        ((5, None), 5, True),
        ((None, 9), 8, True),
        ((None, 9), 9, False),
        ((5, 9), 7, True),
    ],
)
def test_when_a_memory_holds(times: tuple[int | None, int | None], now: int, holds: bool) -> None:
    assert Memory(0, "m", 0, "x", 1, valid_at=times[0], invalid_at=times[1]).holds_at(now) is holds


def test_an_id_is_taken_by_whoever_was_first(writer: GraphWriter) -> None:
    for thief in ("bo", "nobody"):
        with pytest.raises(Conflict, match="taken") as caught:
            write(writer, PutMemory("tea", thief, "mine"))
        assert "ann" not in caught.value.message
    assert writer.view.find_user("nobody") is None
    write(writer, DeleteMemory("tea", "ann"), PutMemory("tea", "bo", "mine"))
    assert model_of(writer.view).memories["tea"][:2] == ("bo", "mine")


def test_an_id_that_went_over_stays_when_its_first_owner_goes(writer: GraphWriter) -> None:
    result = write(
        writer,
        DeleteMemory("tea", "ann"),
        PutMemory("tea", "bo", "mine"),
        DeleteUser("ann"),
        PutMemory("tea", "bo", "mine still"),
    )
    # Tombstones of ann, of her memories and of their relations, and bo's memory.
    assert result.changed == 1 + 2 + 2 + 1
    assert writer.view.find_memory("tea") == Memory(3, "tea", writer.view.user("bo").row, "mine still", 3)


def test_only_the_owner_deletes(writer: GraphWriter) -> None:
    with pytest.raises(UnknownMemory, match="'bo' has no memory 'tea'"):
        write(writer, DeleteMemory("tea", "bo"))
    write(writer, DeleteMemory("tea", "ann"))
    assert set(model_of(writer.view).memories) == {"dog", "move"}


# -------------------------------------------------------------------------------------------- relations


def test_a_relation_is_there_once(writer: GraphWriter) -> None:
    assert write(writer, ABOUT) == WriteResult(2, 0)
    assert write(writer, PutRelation("ann", "tea", "near", "item", "film"), ABOUT) == WriteResult(3, 1)
    assert [r.name for r in writer.view.relations_of(0)] == ["about", "after", "near"]
    assert write(writer, DeleteRelation("ann", "tea", "near", "item", "film")) == WriteResult(4, 1)
    assert write(writer, PutRelation("ann", "tea", "near", "item", "film")) == WriteResult(5, 1)


def test_a_memory_has_so_many_relations(writer: GraphWriter) -> None:
    def named(count: int) -> list[Operation]:
        return [PutRelation("ann", "tea", f"n{n}", "item", "film") for n in range(count)]

    write(writer, *named(MAX_RELATIONS - 2))  # beside the two it has
    assert len(writer.view.relations_of(0)) == MAX_RELATIONS
    more = PutRelation("ann", "tea", "more", "item", "film")
    for request in ((more,), (DeleteRelation("ann", "tea", "n0", "item", "film"), more, named(1)[0])):
        with pytest.raises(InvalidInput, match="has 1,000 relations"):
            write(writer, *request)
    write(writer, *named(7), DeleteRelation("ann", "tea", "n0", "item", "film"), more)
    assert len(writer.view.relations_of(0)) == MAX_RELATIONS


def test_a_hub_goes_with_what_it_leads_to(writer: GraphWriter) -> None:
    count, before = MAX_RELATIONS, writer.view.num_relations
    write(
        writer, *(PutMemory(f"e{n}", "eve", f"fact {n}") for n in range(count)), PutMemory("me", "eve", "I")
    )
    write(writer, *(PutRelation("eve", "me", "knows", "memory", f"e{n}") for n in range(count)))
    row = writer.view.find_memory("e7")
    assert row is not None
    assert [r.memory_row for r in writer.view.relations_to("memory", row.row)] == [3 + count]
    write(writer, DeleteUser("eve"))
    assert writer.view.num_relations == before


def test_relations_are_planned_with_their_ends(writer: GraphWriter) -> None:
    """Memory, item and relation in one request, also where the one before took them away."""
    wish: list[Operation] = [
        PutMemory("wish", "eve", "wants to see it"),
        PutItem("late", "Late"),
        PutRelation("eve", "wish", "about", "item", "late"),
    ]
    assert write(writer, *wish).changed == 4
    groups = [
        WriteRequest((DeleteMemory("wish", "eve"),)),
        WriteRequest((PutRelation("eve", "wish", "again", "item", "late"),)),
        WriteRequest((wish[0], PutRelation("eve", "wish", "again", "item", "late"))),
    ]
    first, second, third = writer.commit(groups).outcomes
    assert first == WriteResult(4, 2)  # the memory with its relation
    assert isinstance(second, UnknownMemory)
    assert third == WriteResult(5, 2)
    assert {r for r in relations(writer) if r[0] == "wish"} == {("wish", "again", "item", "late")}


@pytest.mark.parametrize("together", [True, False])
def test_a_relation_goes_and_comes_back_within_one_commit(writer: GraphWriter, together: bool) -> None:
    """In one request, or in several that share a transaction."""
    gone = DeleteRelation("ann", "tea", "about", "item", "film")
    operations = (gone, ABOUT, gone, ABOUT)
    groups = [WriteRequest(operations)] if together else [WriteRequest((o,)) for o in operations]
    outcomes = writer.commit(groups).outcomes
    assert outcomes == tuple(WriteResult(3 + n, 1) for n in range(len(groups)))
    assert writer.view.relations_of(0)[0] == Relation(0, "about", "item", 0, 2 + len(groups))
    assert isinstance(writer.commit([WriteRequest((gone, gone))]).outcomes[0], UnknownRelation)
    first, second = writer.commit([WriteRequest((gone,)), WriteRequest((gone,))]).outcomes
    assert isinstance(first, WriteResult)
    assert isinstance(second, UnknownRelation)


@pytest.mark.parametrize(
    "end", [DeleteMemory("move", "ann"), DeleteItem("other"), DeleteMemory("tea", "ann"), DeleteUser("ann")]
)
def test_an_end_goes_in_the_commit_that_brings_the_relation(writer: GraphWriter, end: Operation) -> None:
    new = (
        PutRelation("ann", "tea", "new", "item", "other"),
        PutRelation("ann", "tea", "new", "memory", "move"),
        PutRelation("ann", "move", "new", "item", "other"),
    )
    writer.commit([*(WriteRequest((relation,)) for relation in new), WriteRequest((end,))])
    ids = {("item", i.item_id) for i in writer.view.items()}
    ids |= {("memory", m.memory_id) for m in writer.view.memories()}
    for memory_id, _, kind, target_id in relations(writer):
        assert {("memory", memory_id), (kind, target_id)} <= ids
    left = {r for r in new if {("memory", r.memory_id), (r.target_kind, r.target_id)} <= ids}
    assert {r for r in relations(writer) if r[1] == "new"} == {
        (r.memory_id, r.name, r.target_kind, r.target_id) for r in left
    }
    assert len(left) == {DeleteItem: 1, DeleteMemory: 1, DeleteUser: 0}[type(end)]


def test_a_refused_request_leaves_no_relation(writer: GraphWriter) -> None:
    with pytest.raises(UnknownItem):
        write(
            writer,
            PutRelation("ann", "move", "x", "item", "film"),
            PutRelation("ann", "tea", "x", "item", "no"),
        )
    assert write(writer, PutRelation("ann", "move", "x", "item", "film")).changed == 1


@pytest.mark.parametrize(
    ("operation", "gone"),
    [
        (DeleteMemory("tea", "ann"), {ABOUT, AFTER}),
        (DeleteMemory("move", "ann"), {AFTER}),
        (DeleteUser("ann"), {ABOUT, AFTER}),
        (DeleteRelation("ann", "tea", "about", "item", "film"), {ABOUT}),
    ],
)
def test_what_goes_takes_its_relations_along(
    writer: GraphWriter, operation: Operation, gone: set[PutRelation]
) -> None:
    before = relations(writer)
    changes = commit(writer, operation)
    assert before - relations(writer) == {(r.memory_id, r.name, r.target_kind, r.target_id) for r in gone}
    assert len(changes.relations) == len(gone)
    assert {(r.deleted, r.version) for r in changes.relations} == {(True, 3)}


def test_an_item_goes_from_everybodys_memories(writer: GraphWriter) -> None:
    changes = commit(writer, DeleteItem("film"))
    assert [(r.memory_row, r.target_row, r.deleted) for r in changes.relations] == [
        (0, 0, True),
        (2, 0, True),
    ]
    assert relations(writer) == {("tea", "after", "memory", "move")}
    write(writer, PutItem("film", "A Film"))  # another row: nothing comes back
    assert relations(writer) == {("tea", "after", "memory", "move")}
    assert list(writer.view.relations_to("item", writer.view.item("film").row)) == []


def test_a_user_with_many_memories_goes_within_seconds(store: GraphStore) -> None:
    """All of it in one version, planned in time that grows with what goes, not with its square."""
    writer = GraphWriter(store)
    write(writer, PutItem("film", "A Film"))
    count = 4_000
    write(writer, *(PutMemory(f"m{n}", "ann", f"fact {n}") for n in range(count)))
    write(writer, *(PutRelation("ann", f"m{n}", "about", "item", "film") for n in range(count)))
    write(writer, *(PutRelation("ann", f"m{n}", "after", "memory", f"m{n - 1}") for n in range(1, count)))
    assert len(writer.view.relations_to("item", 0)) == count
    changes = commit(writer, DeleteUser("ann"))
    assert len(changes) == 1 + count + 2 * count - 1
    assert (writer.view.num_memories, writer.view.num_relations) == (0, 0)
    assert_same_view(read_view(store), writer.view)


def test_a_memory_with_many_relations(store: GraphStore) -> None:
    """As above, for one memory that is related to as much as it may be."""
    writer = GraphWriter(store)
    count = MAX_RELATIONS
    write(writer, *(PutItem(f"i{n}", "I") for n in range(count)))
    write(writer, PutMemory("all", "ann", "likes everything"))
    put = [PutRelation("ann", "all", "about", "item", f"i{n}") for n in range(count)]
    assert write(writer, *put).changed == count
    assert write(writer, *put).changed == 0
    assert write(
        writer, *(DeleteRelation("ann", "all", "about", "item", f"i{n}") for n in range(count))
    ).changed
    assert writer.view.num_relations == 0
    assert_same_view(read_view(store), writer.view)


def test_tombstones_say_nothing_private(writer: GraphWriter, store: GraphStore) -> None:
    version = writer.head.version
    commit(writer, DeleteUser("ann"), DeleteMemory("dog", "bo"))
    page = ChangeSet.concatenate(list(store.changes_since(version)))
    assert sorted(page.memories, key=lambda m: m.row) == [
        Memory(0, "tea", 0, "", 3, deleted=True),
        Memory(1, "move", 0, "", 3, deleted=True),
        Memory(2, "dog", 1, "", 3, deleted=True),
    ]
    with store._engine.connect() as connection:
        texts = connection.exec_driver_sql("SELECT text, valid_at, invalid_at, source FROM memories").all()
    assert set(map(tuple, texts)) == {("", None, None, "")}
    writer.purge(writer.head.version)
    with store._engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM relations").scalar() == 0


# --------------------------------------------------------------------------------------------- refusals

LONG = "x" * 300


@pytest.mark.parametrize(
    ("operation", "kind", "param"),
    [
        (PutMemory("m", "ann", "x", -1), InvalidInput, "valid_at"),
        (PutMemory("m", "ann", "x", MAX_UNIX_S + 1), InvalidInput, "valid_at"),
        (PutMemory("m", "ann", "x", None, -1), InvalidInput, "invalid_at"),
        (PutMemory("m", "ann", "x", 5, 5), InvalidInput, "invalid_at"),
        (PutMemory("m", "ann", "x", 6, 5), InvalidInput, "invalid_at"),
        (PutMemory("m", "ann", "x", source=LONG), InvalidInput, "source"),
        (PutMemory("m", "ann", "x", source=" "), InvalidInput, "source"),
        (PutMemory("m", "ann", "x", source="a\nb"), InvalidInput, "source"),
        (PutMemory("m", "ann", "x", source="\ud83d"), InvalidInput, "source"),
        (DeleteMemory("dog", "ann"), UnknownMemory, "memory_id"),
        (DeleteMemory("nope", "ann"), UnknownMemory, "memory_id"),
        (DeleteMemory("tea", "nobody"), UnknownUser, "user_id"),
        (PutRelation("nobody", "tea", "x", "item", "film"), UnknownUser, "user_id"),
        (PutRelation("ann", "nope", "x", "item", "film"), UnknownMemory, "memory_id"),
        (PutRelation("ann", "dog", "x", "item", "film"), UnknownMemory, "memory_id"),
        (PutRelation("ann", "tea", "x", "memory", "dog"), UnknownMemory, "to_memory_id"),
        (PutRelation("ann", "tea", "x", "memory", "nope"), UnknownMemory, "to_memory_id"),
        (PutRelation("ann", "tea", "x", "memory", "tea"), InvalidInput, "to_memory_id"),
        (PutRelation("ann", "tea", "x", "item", "nope"), UnknownItem, "item_id"),
        (PutRelation("ann", "tea", "", "item", "film"), InvalidInput, "name"),
        (PutRelation("ann", "tea", " ", "item", "film"), InvalidInput, "name"),
        (PutRelation("ann", "tea", "x\0", "item", "film"), InvalidInput, "name"),
        (PutRelation("ann", "tea", LONG, "item", "film"), InvalidInput, "name"),
        (PutRelation("ann", "tea", "x", "user", "ann"), InvalidInput, None),  # type: ignore[arg-type]
        (DeleteRelation("ann", "tea", "x", "item", "film"), UnknownRelation, None),
        (DeleteRelation("ann", "move", "about", "item", "film"), UnknownRelation, None),
        (DeleteRelation("ann", "dog", "about", "item", "film"), UnknownMemory, "memory_id"),
        (DeleteRelation("bo", "tea", "about", "item", "film"), UnknownMemory, "memory_id"),
    ],
)
@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)  # it does not get as far as the store
def test_refusals(
    writer: GraphWriter, operation: Operation, kind: type[WeftError], param: str | None
) -> None:
    head = writer.head
    # The good operation before it goes with it.
    with pytest.raises(kind) as caught:
        write(writer, PutUser("with it"), operation)
    assert type(caught.value) is kind
    assert caught.value.param == param
    assert writer.head == head


@pytest.mark.parametrize(
    "memory",
    [
        PutMemory("m", "ann", "x", 0, 1),
        PutMemory("m", "ann", "x", MAX_UNIX_S - 1, MAX_UNIX_S),
        PutMemory("m", "ann", "two\nlines", source="x" * 200),
    ],
)
def test_limits_are_allowed(writer: GraphWriter, memory: PutMemory) -> None:
    name = "n" * 64
    assert write(writer, memory, PutRelation("ann", "m", name, "item", "film")).changed == 2
    assert writer.view.relations_of(3) == (Relation(3, name, "item", 0, 3),)
