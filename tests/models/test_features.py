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
from models.graph_encoder.features import (
    FeatureExtractor,
    HashedFeatures,
    TextFeatures,
    extractor_from_config,
)


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
    matrix = extractor.item_features([item]).toarray()
    assert matrix.shape == (1, 64)
    assert matrix.dtype == np.float32
    norm = float(np.linalg.norm(matrix))
    assert norm == 0 or norm == pytest.approx(1, abs=1e-5)


def test_nothing_known_gives_an_empty_row() -> None:
    matrix = WIDE.item_features([make_item(), make_item(tags=("a",)), make_item(text=" ... ")])
    assert np.diff(matrix.sparse.indptr).tolist() == [0, 1, 0]
    assert WIDE.user_features([make_user()]).nnz == 0
    assert WIDE.item_features([]).shape == (0, 2**20)


def test_rows_do_not_depend_on_their_neighbours() -> None:
    items = [make_item("A film", ("x", "y"), 1990 + n, "some words here") for n in range(5)]
    together = WIDE.item_features(items).sparse
    for n, item in enumerate(items):
        assert (together[[n]] != WIDE.item_features([item]).sparse).nnz == 0


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
        "m = HashedFeatures().item_features([Item(0, 'i', 'A film', ('x', 'é'), 1990, 'plot', 1)]).sparse\n"
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
    mine = HashedFeatures().item_features([make_item("A film", ("x", "é"), 1990, "plot")]).sparse
    assert answers[0] == answers[1] == [mine.indices.tolist(), mine.data.tolist()]


TEXT = TextFeatures("hash-1", 3, item_buckets=64, tag_weight=1.0, year_weight=0.5, text_weight=2.0)
SHARE = 1 / (1 + 0.25 + 4) ** 0.5
"""What each field's weight is divided by."""


def test_a_text_vector_fills_dense_columns_of_its_own() -> None:
    items = [make_item("A", ("x", "y"), 1990, "plot"), make_item("B", ("x", "y"), 1990), make_item()]
    vectors = np.array([[0, 3, 4], [0, 0, 0], [2, 0, 0]], np.float32)
    features = TEXT.item_features(items, vectors)
    assert features.shape == (3, 64 + 1 + 3) == (3, TEXT.item_columns)
    expected = 2 * SHARE * np.array([[1, 0, 0.6, 0.8], [0, 0, 0, 0], [1, 1, 0, 0]])
    np.testing.assert_allclose(features.dense, expected, rtol=1e-6)
    # Neither words nor the vector's absence change what tags and year weigh.
    sparse = features.sparse.toarray()
    np.testing.assert_array_equal(sparse[0], sparse[1])
    assert float(np.linalg.norm(sparse[0])) == pytest.approx((1 + 0.25) ** 0.5 * SHARE)
    assert not sparse[2].any()


def test_without_vectors_nobody_has_one() -> None:
    items = [make_item("A", ("x",)), make_item("B")]
    absent = TEXT.item_features(items, np.zeros((2, 3), np.float32)).toarray()
    np.testing.assert_array_equal(TEXT.item_features(items).toarray(), absent)


def test_vectors_that_do_not_fit_are_refused() -> None:
    for shape in ((1, 4), (2, 3), (1, 0)):
        with pytest.raises(InvalidInput, match="'hash-1'"):
            TEXT.item_features([make_item()], np.ones(shape, np.float32))


@pytest.mark.parametrize("extractor", [HashedFeatures(item_buckets=32), TEXT], ids=["hashed", "text"])
def test_products_are_those_of_the_whole_matrix(extractor: FeatureExtractor) -> None:
    rng = np.random.default_rng(0)
    items = [make_item(f"film {n}", (f"t{n % 3}", "b"), 1990 + n, "words") for n in range(7)]
    features = extractor.item_features(items, rng.normal(size=(7, 3)).astype(np.float32))
    for shape in ((extractor.item_columns,), (extractor.item_columns, 5)):
        weights = rng.normal(size=shape).astype(np.float32)
        product = features @ weights
        assert product.dtype == np.float32
        np.testing.assert_allclose(product, features.toarray() @ weights, rtol=1e-4, atol=1e-6)


def test_the_configuration_comes_back() -> None:
    text = TextFeatures("minilm-0123456789ab", 384, 100, 7, 1.5, 0.0, 0.2)
    assert extractor_from_config(json.loads(json.dumps(text.config()))) == text
    extractor = HashedFeatures(100, 7, 1.5, 0.0, 0.1, 0.2, signed=True)
    assert extractor_from_config(json.loads(json.dumps(extractor.config()))) == extractor


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"kind": "words"},
        {"kind": ["text"]},
        {"kind": "text"},
        {"kind": "text", "text_model": "m"},
        {"kind": "text", "text_model": "", "text_dim": 4},
        {"kind": "text", "text_model": 3, "text_dim": 4},
        {"kind": "text", "text_model": "m", "text_dim": 0},
        {"kind": "text", "text_model": "m", "text_dim": 4.0},
        {"kind": "text", "text_model": "m", "text_dim": 4, "text_weight": 0.0},
        {"kind": "text", "text_model": "m", "text_dim": 4, "title_weight": 0.5},
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
