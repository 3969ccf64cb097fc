"""Writing text vectors: late answers change nothing, wrong ones are refused, and none outlives its node."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from graph.errors import InvalidInput
from graph.node_text import item_text, text_digest
from graph.schema import (
    ChangeSet,
    DeleteItem,
    DeleteMemory,
    DeleteTextVector,
    DeleteUser,
    PutItem,
    PutMemory,
    PutTextVector,
    PutUser,
    WriteRequest,
    WriteResult,
)
from graph.store import GraphStore
from graph.view import GraphView
from graph.writer import GraphWriter
from tests.graph.plain_model import assert_same_view, read_view, write


def vector(*values: float) -> bytes:
    return np.array(values, "<f2").tobytes()


def of_item(
    node_id: str, *values: float, model: str = "m", text: str | None = None, digest: str | None = None
) -> PutTextVector:
    text = f"Film {node_id}." if text is None else text
    return PutTextVector("item", node_id, model, digest or text_digest(text), vector(*values))


def of_memory(node_id: str, *values: float, model: str = "m", text: str = "tea") -> PutTextVector:
    return PutTextVector("memory", node_id, model, text_digest(text), vector(*values))


@pytest.fixture
def store(store_url: str) -> Iterator[GraphStore]:
    store = GraphStore(store_url)
    yield store
    store.close()


@pytest.fixture
def writer(store: GraphStore) -> GraphWriter:
    writer = GraphWriter(store)
    write(writer, *(PutItem(f"i{n}", f"Film i{n}") for n in range(3)))
    write(writer, PutUser("u0"), PutMemory("m0", "u0", "tea"), PutMemory("m1", "u0", "tea"))
    write(
        writer, of_item("i0", 1, 2), of_item("i1", 3, 4), of_item("i1", 5, model="n"), of_memory("m0", 6, 7)
    )
    return writer


def rows(view: GraphView, model: str = "m") -> tuple[list[int], list[int]]:
    items, memories = view.text_vectors("item", model), view.text_vectors("memory", model)
    return items.rows().tolist(), memories.rows().tolist()


def test_a_vector_is_a_row_with_a_version(writer: GraphWriter, store: GraphStore) -> None:
    assert rows(writer.view) == ([0, 1], [0])
    table = writer.view.text_vectors("item", "m")
    assert table.raw(1) == vector(3, 4)
    item = writer.view.item("i1")
    assert table.digest(1) == text_digest(item_text(item))
    (page, _) = store.changes_since(2)
    assert {(v.kind, v.row, v.model, v.version) for v in page.text_vectors} == {
        ("item", 0, "m", 3),
        ("item", 1, "m", 3),
        ("item", 1, "n", 3),
        ("memory", 0, "m", 3),
    }
    assert_same_view(read_view(store), writer.view)


@pytest.mark.parametrize(
    "late",
    [
        of_item("never", 1, 1),
        of_item("i2", 1, 1, text="Its text before."),
        of_item("i2", 1, 1, digest="0" * 32),
        of_memory("never", 1, 1),
        of_memory("m1", 1, 1, text="coffee"),
        PutTextVector("memory", "i2", "m", text_digest("Film i2."), vector(1, 1)),
        of_item("i0", 1, 2),
        DeleteTextVector("item", 2, "m"),
        DeleteTextVector("item", 0, "n"),
        DeleteTextVector("memory", 99, "m"),
    ],
)
def test_what_comes_too_late_or_twice_changes_nothing(writer: GraphWriter, late: PutTextVector) -> None:
    assert write(writer, late) == WriteResult(3, 0)
    # Nor does it fail what is written along with it.
    assert write(writer, late, of_item("i2", 8, 8)) == WriteResult(4, 1)
    assert rows(writer.view) == ([0, 1, 2], [0])


def test_the_text_is_the_one_at_that_point_of_the_request(writer: GraphWriter, store: GraphStore) -> None:
    written = write(
        writer,
        of_item("i2", 1, 1),  # its text as it was
        PutItem("i2", "New"),
        of_item("i2", 2, 2),  # late
        PutItem("i9", "Fresh"),
        of_item("i9", 3, 3, text="Fresh."),
        PutMemory("m0", "u0", "coffee"),
        of_memory("m0", 9, 9),
        of_memory("m0", 4, 4, text="coffee"),
    )
    assert written.changed == 3  # nodes alone: their vectors follow from them
    table = writer.view.text_vectors("item", "m")
    assert (table.raw(2), table.digest(2)) == (vector(1, 1), text_digest("Film i2."))
    assert table.raw(3) == vector(3, 3)
    assert writer.view.text_vectors("memory", "m").raw(0) == vector(4, 4)
    assert writer.view.waiting_texts("item", "m").tolist() == [2]
    assert_same_view(read_view(store), writer.view)


def test_the_text_is_the_one_at_that_point_of_the_group(writer: GraphWriter) -> None:
    requests = [(PutItem("i2", "New"),), (of_item("i2", 2, 2),), (of_item("i2", 3, 3, text="New."),)]
    committed = writer.commit([WriteRequest(r) for r in requests])
    assert [o.changed for o in committed.outcomes if isinstance(o, WriteResult)] == [1, 0, 1]
    assert writer.view.text_vectors("item", "m").raw(2) == vector(3, 3)


def test_an_outdated_vector_stays_until_the_next(writer: GraphWriter) -> None:
    write(writer, PutItem("i0", "Film i0", ("new",)))
    table = writer.view.text_vectors("item", "m")
    assert table.raw(0) == vector(1, 2)
    assert writer.view.waiting_texts("item", "m").tolist() == [0, 2]
    write(writer, of_item("i0", 1, 2, text="Film i0. new."))  # the same vector, of another text
    assert writer.view.waiting_texts("item", "m").tolist() == [2]


def test_a_vector_of_the_same_text_can_be_replaced(writer: GraphWriter) -> None:
    assert write(writer, of_item("i0", 9, 9)).changed == 1
    assert writer.view.text_vectors("item", "m").raw(0) == vector(9, 9)


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        (of_item("i2", 1), "vector"),
        (of_item("i2", 1, 2, 3), "vector"),
        (of_memory("m1", 1, 2, model="n"), "vector"),  # lengths are the model's, not the kind's
        (of_item("never", 1), "vector"),
        (of_item("i2"), "vector"),
        (PutTextVector("item", "i2", "m", "0" * 32, vector(1, 2)[:3]), "vector"),
        (of_item("i2", 1, np.nan), "vector"),
        (of_item("i2", np.inf, 1), "vector"),
        (of_item("i2", 1, 2, model=""), "model"),
        (of_item("i2", 1, 2, model="x" * 129), "model"),
        (of_item("i2", 1, 2, model="a/b"), "model"),
        (of_item("i2", 1, 2, digest="0" * 31), "text_digest"),
        (of_item("i2", 1, 2, digest="Z" * 32), "text_digest"),
    ],
)
@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)  # it does not get as far as the store
def test_what_can_be_no_vector_is_refused(writer: GraphWriter, wrong: PutTextVector, param: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        write(writer, of_item("i2", 5, 5), wrong)
    assert caught.value.param == param
    assert (writer.view.version, rows(writer.view)) == (3, ([0, 1], [0]))


def test_lengths_agree_within_a_plan(writer: GraphWriter) -> None:
    with pytest.raises(InvalidInput, match=r"a vector of 2 values under .* 'new', whose .* 3"):
        write(writer, of_item("i0", 1, 2, 3, model="new"), of_memory("m0", 1, 2, model="new"))
    # What failed fixed nothing.
    groups = [(of_item("i0", 1, 2, model="new"),), (of_item("i1", 1, 2, 3, model="new"),)]
    first, second = writer.commit([WriteRequest(g) for g in groups]).outcomes
    assert isinstance(first, WriteResult)
    assert isinstance(second, InvalidInput)


def test_requests_of_a_group_see_the_vectors_of_those_before(writer: GraphWriter, store: GraphStore) -> None:
    groups = [
        (of_item("i0", 1, model="new"),),
        (of_item("i1", 2, model="new"),),
        (of_item("i0", 1, model="new"),),
        (DeleteItem("i0"),),  # with its vectors under both models
    ]
    outcomes = writer.commit([WriteRequest(g) for g in groups]).outcomes
    assert [o.changed for o in outcomes if isinstance(o, WriteResult)] == [1, 1, 0, 1]
    assert rows(writer.view, "new") == ([1], [])
    assert_same_view(read_view(store), writer.view)


def test_a_dropped_model_may_come_back_with_another_length(writer: GraphWriter, store: GraphStore) -> None:
    drops = [DeleteTextVector("item", 0, "m"), DeleteTextVector("item", 1, "m")]
    with pytest.raises(InvalidInput):
        write(writer, *drops, of_item("i0", 1, 2, 3))  # a memory still has two values
    behind = writer.view.copy()
    write(
        writer, *drops, DeleteTextVector("memory", 0, "m"), of_item("i0", 1, 2, 3), of_memory("m1", 4, 5, 6)
    )
    assert rows(writer.view) == ([0], [1])
    behind.apply(ChangeSet.concatenate(list(store.changes_since(behind.version))))
    for view in (writer.view, read_view(store), behind):
        assert view.text_vectors("item", "m").dim == 3
        assert_same_view(view, writer.view)


# ----------------------------------------------------------------------------------------- with their nodes


def test_a_deleted_item_takes_its_vectors_along(writer: GraphWriter, store: GraphStore) -> None:
    assert write(writer, DeleteItem("i1")).changed == 1
    assert (rows(writer.view), rows(writer.view, "n")) == (([0], [0]), ([], []))
    (_, page, _) = store.changes_since(3)
    assert [(v.row, v.model, v.text_digest, v.vector, v.deleted) for v in page.text_vectors] == [
        (1, "m", "", b"", True),
        (1, "n", "", b"", True),
    ]
    assert writer.view.text_models("item") == ("m",)


def test_a_deleted_memory_or_user_takes_vectors_along(writer: GraphWriter) -> None:
    assert write(writer, of_memory("m1", 1, 1), DeleteMemory("m0", "u0")).changed == 1
    assert rows(writer.view) == ([0, 1], [1])
    # The user and both memories that are left; vectors go with them uncounted.
    assert write(writer, PutMemory("m2", "u0", "tea"), of_memory("m2", 2, 2), DeleteUser("u0")).changed == 3
    assert rows(writer.view) == ([0, 1], [])


def test_a_new_text_of_a_memory_takes_the_old_vector_along(writer: GraphWriter, store: GraphStore) -> None:
    assert rows(writer.view)[1] != []
    write(writer, PutMemory("m0", "u0", "tea", 5))  # the same text
    assert 0 in rows(writer.view)[1]
    assert write(writer, PutMemory("m0", "u0", "coffee")).changed == 1
    assert 0 not in rows(writer.view)[1]
    assert 0 in writer.view.waiting_texts("memory", "m").tolist()
    assert_same_view(read_view(store), writer.view)


def test_a_node_made_again_has_no_vector(writer: GraphWriter, store: GraphStore) -> None:
    write(writer, DeleteItem("i0"), PutItem("i0", "Film i0"))
    assert rows(writer.view) == ([1], [0])
    assert writer.view.item("i0").row == 3
    assert writer.view.waiting_texts("item", "m").tolist() == [2, 3]
    write(writer, of_item("i0", 1, 2))  # an answer that was asked for the one before fits this one too
    assert rows(writer.view) == ([1, 3], [0])
    assert_same_view(read_view(store), writer.view)


def test_what_comes_and_goes_in_one_write_leaves_nothing(writer: GraphWriter, store: GraphStore) -> None:
    write(writer, PutItem("x", "X"), of_item("x", 1, 1, text="X.", model="only"), DeleteItem("x"))
    assert writer.view.text_models("item") == ("m", "n")
    assert_same_view(read_view(store), writer.view)


def test_a_purge_drops_their_tombstones(writer: GraphWriter, store: GraphStore) -> None:
    write(writer, DeleteTextVector("item", 1, "n"), DeleteTextVector("memory", 0, "m"))
    assert rows_stored(store) == 4
    assert writer.purge(writer.view.version) == 2
    assert rows_stored(store) == 2
    assert_same_view(read_view(store), writer.view)


def rows_stored(store: GraphStore) -> int:
    with store._engine.connect() as connection:
        return int(connection.exec_driver_sql("SELECT count(*) FROM text_vectors").scalar_one())
