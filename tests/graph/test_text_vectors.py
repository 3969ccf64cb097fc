"""Text vectors in a view: dense tables that equal a dict, whatever comes in whatever order."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph.node_text import item_text, memory_text, text_digest
from graph.schema import ChangeSet, Item, Memory, TextKind, TextVector
from graph.text_vectors import TextVectors, TextVectorTable
from graph.view import GraphView


def vector(*values: float) -> bytes:
    return np.array(values, "<f2").tobytes()


def record(row: int, *values: float, kind: TextKind = "item", model: str = "m", text: str = "") -> TextVector:
    return TextVector(kind, row, model, text_digest(text), vector(*values), 1)


def tombstone(row: int, kind: TextKind = "item", model: str = "m") -> TextVector:
    return TextVector(kind, row, model, "", b"", 2, deleted=True)


def table_of(*records: TextVector) -> TextVectorTable:
    tables = TextVectors()
    tables.apply(records)
    return tables.table("item", "m")


def test_a_record_has_its_values() -> None:
    values = record(0, 1.5, -2).values
    assert values.tolist() == [1.5, -2]
    assert values.dtype == np.float32
    assert tombstone(0).values.shape == (0,)


def test_rows_without_a_vector_are_zero() -> None:
    table = table_of(record(5, 1, 2), record(2, 3, 4))
    vectors, found = table.get(np.array([2, 0, 5, 900, -1, 2]))
    assert vectors.tolist() == [[3, 4], [0, 0], [1, 2], [0, 0], [0, 0], [3, 4]]
    assert found.tolist() == [True, False, True, False, False, True]
    assert (vectors.dtype, found.dtype) == (np.float32, np.bool_)
    assert table.rows().tolist() == [2, 5]
    assert (len(table), table.dim) == (2, 2)
    assert table.nbytes >= 6 * (2 * 2 + 16 + 1)


def test_one_row_at_a_time() -> None:
    table = table_of(record(1, 1, 2, text="t"))
    found = table.vector(1)
    assert found is not None
    assert found.tolist() == [1, 2]
    assert table.digest(1) == text_digest("t")
    assert table.raw(1) == vector(1, 2)
    for row in (0, 2, -1, 10**9):
        assert table.vector(row) is table.digest(row) is table.raw(row) is None
        assert row not in table


def test_what_is_read_is_a_copy() -> None:
    table = table_of(record(0, 1, 2))
    one, (many, found) = table.vector(0), table.get(np.array([0]))
    assert one is not None
    one[:] = many[:] = 9
    found[:] = False
    assert table.get(np.array([0]))[0].tolist() == [[1, 2]]


def test_an_empty_table() -> None:
    table = GraphView("s").text_vectors("memory", "nobody's")
    vectors, found = table.get(np.array([0, 3]))
    assert (vectors.shape, found.tolist()) == ((2, 0), [False, False])
    assert (len(table), table.dim, table.nbytes, table.rows().tolist()) == (0, 0, 0, [])


def test_the_last_vector_takes_the_table_and_its_length_along() -> None:
    tables = TextVectors()
    tables.apply([record(0, 1, 2), record(1, 3, 4), record(0, 5, kind="memory")])
    tables.apply([tombstone(1)])
    assert (tables.models("item"), tables.models("memory"), len(tables)) == (("m",), ("m",), 2)
    tables.apply([tombstone(0), tombstone(7), tombstone(0, model="other")])
    assert (tables.models("item"), tables.table("item", "m").dim, len(tables)) == ((), 0, 1)
    tables.apply([record(1, 1, 2, 3)])
    assert tables.table("item", "m").get(np.array([0, 1]))[0].tolist() == [[0, 0, 0], [1, 2, 3]]


def test_vectors_of_another_length_replace_all() -> None:
    """A page of a catch-up may bring them before the tombstones of those that are gone."""
    tables = TextVectors()
    tables.apply([record(0, 1, 2), record(1, 3, 4)])
    tables.apply([record(1, 7, 8, 9), tombstone(0)])
    table = tables.table("item", "m")
    assert (table.rows().tolist(), table.dim, len(table)) == ([1], 3, 1)


@given(
    st.lists(
        st.lists(
            st.tuples(st.integers(0, 40), st.none() | st.integers(-3, 3)),
            max_size=8,
            unique_by=lambda c: c[0],
        ),
        max_size=12,
    )
)
@settings(deadline=None)
def test_a_table_equals_a_dict(batches: list[list[tuple[int, int | None]]]) -> None:
    tables, expected = TextVectors(), {}
    for batch in batches:
        tables.apply(
            [tombstone(row) if n is None else record(row, n, 1, text=str(n)) for row, n in batch],
        )
        for row, n in batch:
            expected.pop(row, None)
            if n is not None:
                expected[row] = n
        for now in (tables, TextVectors(tables.contents())):
            table = now.table("item", "m")
            assert table.rows().tolist() == sorted(expected)
            assert len(table) == len(now) == len(expected)
            vectors, found = table.get(np.arange(45))
            assert found.tolist() == [row in expected for row in range(45)]
            for row, n in expected.items():
                assert vectors[row].tolist() == [n, 1]
                assert table.digest(row) == text_digest(str(n))


# ----------------------------------------------------------------------------------------------- in a view


ITEMS = [Item(n, f"i{n}", f"Film {n}", ("a",), 1990, "", 1) for n in range(4)]
MEMORIES = [Memory(n, f"m{n}", 0, f"fact {n}", 1) for n in (2, 0, 1)]


def make_view() -> GraphView:
    view = GraphView("s")
    vectors = [record(n, n, 1, text=item_text(ITEMS[n])) for n in (0, 2)]
    vectors += [record(1, 5, 5, kind="memory", text="fact 1"), record(1, 7, model="n", text="old")]
    view.apply(ChangeSet(0, 1, items=ITEMS, memories=MEMORIES, text_vectors=vectors))
    return view


def test_a_view_has_one_table_per_kind_and_model() -> None:
    view = make_view()
    assert view.text_models("item") == ("m", "n")
    assert view.text_models("memory") == ("m",)
    assert view.num_text_vectors == 4
    assert view.text_vectors("item", "m").rows().tolist() == [0, 2]
    assert view.text_vectors("memory", "m").rows().tolist() == [1]
    assert view.text_vector_bytes > 0


def test_a_delta_tells_what_was_applied() -> None:
    view = make_view()
    came = [tombstone(0), record(3, 1, 1)]
    assert view.apply(ChangeSet(1, 2, text_vectors=came)).text_vectors == came
    assert view.apply(ChangeSet(2, 3)).text_vectors == ()


def test_vectors_of_unknown_nodes_are_held() -> None:
    """A view may follow this kind alone."""
    view = GraphView("s")
    view.apply(ChangeSet(0, 1, text_vectors=[record(50, 1, 2)]))
    assert view.text_vectors("item", "m").rows().tolist() == [50]
    assert (view.num_items, view.num_item_rows) == (0, 0)


def test_only_a_tombstone_of_its_own_removes_a_vector() -> None:
    view = make_view()
    gone = Item(0, "i0", "Film 0", ("a",), 1990, "", 2, deleted=True)
    view.apply(ChangeSet(1, 2, items=[gone]))
    assert 0 in view.text_vectors("item", "m")
    view.apply(ChangeSet(2, 3, text_vectors=[tombstone(0)]))
    assert 0 not in view.text_vectors("item", "m")


def test_texts_that_wait() -> None:
    view = make_view()
    assert view.waiting_texts("item", "m").tolist() == [1, 3]
    assert view.waiting_texts("item", "n").tolist() == [0, 1, 2, 3]  # row 1 has one of another text
    assert view.waiting_texts("item", "new").tolist() == [0, 1, 2, 3]
    assert view.waiting_texts("memory", "m").tolist() == [0, 2]
    assert memory_text(MEMORIES[0]) == "fact 2"
    retitled = Item(2, "i2", "Another", ("a",), 1990, "", 2)
    gone = Item(3, "i3", "Film 3", ("a",), 1990, "", 2, deleted=True)
    view.apply(ChangeSet(1, 2, items=[retitled, gone]))
    assert view.waiting_texts("item", "m").tolist() == [1, 2]
    assert GraphView("s").waiting_texts("item", "m").tolist() == []
    assert view.waiting_texts("item", "m").dtype == np.int64


def test_copies_share_nothing() -> None:
    view = make_view()
    contents, copy = view.contents(), view.copy()
    view.apply(ChangeSet(1, 2, text_vectors=[tombstone(0), record(2, 9, 9)]))
    for other in (copy, GraphView.from_contents(contents)):
        assert other.text_vectors("item", "m").get(np.arange(3))[0].tolist() == [[0, 1], [0, 0], [2, 1]]
        assert other.text_models("item") == ("m", "n")


@pytest.mark.parametrize("through_contents", [False, True])
def test_no_object_per_vector_is_kept(through_contents: bool) -> None:
    view = GraphView("s")
    view.apply(ChangeSet(0, 1, text_vectors=[record(n, 1, 2) for n in range(500)]))
    if through_contents:
        view = GraphView.from_contents(view.contents())
    gc.collect()
    assert not [o for o in gc.get_objects() if type(o) is TextVector and o.row > 20]
    assert view.text_vector_bytes < 2 * 500 * (2 * 2 + 16 + 1)
