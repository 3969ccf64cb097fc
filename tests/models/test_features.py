"""Feature rows: normalised, stable across processes, and weighted as documented."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.errors import InvalidInput
from graph.schema import Item, User
from models.graph_encoder.features import HashedFeatures, extractor_from_config


def make_item(title: str = "", tags: tuple[str, ...] = (), year: int | None = None, text: str = "") -> Item:
    return Item(0, "i", title, tags, year, text, 1)


def make_user(**attributes: object) -> User:
    return User(0, "u", attributes, 1)  # type: ignore[arg-type]


def overlap(extractor: HashedFeatures, one: Item, other: Item) -> float:
    rows = extractor.item_features([one, other]).toarray()
    return float(rows[0] @ rows[1])


WIDE = HashedFeatures(item_buckets=2**20, user_buckets=2**20)


@given(
    st.builds(
        make_item,
        st.text(max_size=20),
        st.lists(st.text(max_size=8), max_size=4).map(tuple),
        st.none() | st.integers(0, 3000),
        st.text(max_size=40),
    ),
    st.booleans(),
)
def test_rows_are_normalised_or_empty(item: Item, signed: bool) -> None:
    extractor = HashedFeatures(item_buckets=64, signed=signed)
    matrix = extractor.item_features([item])
    assert matrix.shape == (1, 64)
    assert matrix.dtype == np.float32
    norm = float(np.linalg.norm(matrix.toarray()))
    assert norm == 0 or norm == pytest.approx(1, abs=1e-5)


def test_nothing_known_gives_an_empty_row() -> None:
    matrix = WIDE.item_features([make_item(), make_item(tags=("a",)), make_item(text=" ... ")])
    assert np.diff(matrix.indptr).tolist() == [0, 1, 0]
    assert WIDE.user_features([make_user()]).nnz == 0
    assert WIDE.item_features([]).shape == (0, 2**20)


def test_rows_do_not_depend_on_their_neighbours() -> None:
    items = [make_item("A film", ("x", "y"), 1990 + n, "some words here") for n in range(5)]
    together = WIDE.item_features(items)
    for n, item in enumerate(items):
        assert (together[[n]] != WIDE.item_features([item])).nnz == 0


def test_a_shared_tag_says_more_than_a_shared_word() -> None:
    base = make_item("The Old House", ("noir", "crime"), 1950, "a man returns to the house by the sea")
    same_tag = make_item("Other Name", ("noir", "opera"), 2010, "nothing in common whatsoever")
    same_word = make_item("Other Name", ("dance", "opera"), 2010, "people meet at sea")
    assert overlap(WIDE, base, same_tag) > 3 * overlap(WIDE, base, same_word) > 0


def test_a_long_text_does_not_drown_the_tags() -> None:
    long = " ".join(f"word{n}" for n in range(2000))
    one, other = make_item(tags=("a", "b"), text=long), make_item(tags=("a", "b"))
    assert overlap(WIDE, one, other) > 0.8


def test_a_repeated_word_counts_once() -> None:
    assert overlap(WIDE, make_item(text="sea sea sea fog"), make_item(text="sea fog")) == pytest.approx(1)


def test_fields_do_not_mix() -> None:
    assert overlap(WIDE, make_item(tags=("war",)), make_item(title="war")) == 0
    assert overlap(WIDE, make_item(title="war"), make_item(text="war")) == 0


def test_case_and_spacing_do_not_matter_and_order_does_not_either() -> None:
    one = make_item("War  Story", ("Sci-Fi ", "drama"))
    assert overlap(WIDE, one, make_item("STORY, war!", ("Drama", "sci-fi"))) == pytest.approx(1)


def test_years_share_their_decade() -> None:
    film = make_item(year=1994)
    assert overlap(WIDE, film, make_item(year=1994)) == pytest.approx(1)
    assert overlap(WIDE, film, make_item(year=1998)) == pytest.approx(0.5)
    assert overlap(WIDE, film, make_item(year=2004)) == 0


def user_overlap(one: dict[str, object], other: dict[str, object]) -> float:
    rows = WIDE.user_features([make_user(**one), make_user(**other)])
    return float((rows[[0]] @ rows[[1]].T).sum())


def test_lists_give_a_token_per_entry() -> None:
    assert user_overlap({"likes": ["tea", "rain"]}, {"likes": ["rain"]}) == pytest.approx(0.5**0.5)
    assert user_overlap({"likes": ["tea"]}, {"likes": "tea"}) == pytest.approx(1)
    assert user_overlap({"likes": ["tea"]}, {"hates": ["tea"]}) == 0


def test_near_numbers_share_buckets() -> None:
    assert user_overlap({"age": 40}, {"age": 40}) == pytest.approx(1)
    assert user_overlap({"age": 40}, {"age": 42}) > user_overlap({"age": 40}, {"age": 20})
    assert user_overlap({"age": 40}, {"age": -40}) == 0
    assert user_overlap({"x": 0.0}, {"x": 0.0}) == pytest.approx(1)
    for odd in (float("nan"), float("inf"), 10**400):
        WIDE.user_features([make_user(x=odd)])
    assert user_overlap({"x": True}, {"x": 1}) == 0


def test_rows_are_the_same_in_another_process() -> None:
    program = (
        "import json\n"
        "from graph.schema import Item\n"
        "from models.graph_encoder.features import HashedFeatures\n"
        "m = HashedFeatures().item_features([Item(0, 'i', 'A film', ('x', 'é'), 1990, 'plot', 1)])\n"
        "print(json.dumps([m.indices.tolist(), m.data.tolist()]))\n"
    )
    answers = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", program],
                check=True,
                capture_output=True,
                text=True,
                env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path))},
            ).stdout
        )
        for seed in ("1", "2")
    ]
    mine = HashedFeatures().item_features([make_item("A film", ("x", "é"), 1990, "plot")])
    assert answers[0] == answers[1] == [mine.indices.tolist(), mine.data.tolist()]


def test_the_configuration_comes_back() -> None:
    extractor = HashedFeatures(100, 7, 1.5, 0.0, 0.1, 0.2, signed=True)
    assert extractor_from_config(json.loads(json.dumps(extractor.config()))) == extractor


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"kind": "text"},
        {"kind": "hashed", "surprise": 1},
        {"kind": "hashed", "item_buckets": "8"},
        {"kind": "hashed", "item_buckets": True},
        {"kind": "hashed", "item_buckets": 0},
        {"kind": "hashed", "tag_weight": -1.0},
        {"kind": "hashed", "tag_weight": float("nan")},
        {"kind": "hashed", "signed": 1},
    ],
)
def test_unknown_configurations_are_refused(config: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        extractor_from_config(config)
