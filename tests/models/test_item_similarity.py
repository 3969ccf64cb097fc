"""EASE against its dense formula and its optimality condition; the matrix against dense arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from models.ease import ease_scores, fit_ease, liked_matrix
from models.item_similarity import ItemSimilarity, cut_columns


def ratings(num_users: int, num_items: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(user rows, item positions, X), every user with something."""
    x = np.random.default_rng(seed).random((num_users, num_items)) < 0.2
    x[:, 0] |= ~x.any(1)
    users, items = x.nonzero()
    return users.astype(np.int64), items.astype(np.int64), x.astype(np.float64)


def dense(matrix: ItemSimilarity) -> np.ndarray:
    every = np.arange(matrix.size)
    return matrix.addends(every, every)


def formula(x: np.ndarray, l2: float) -> np.ndarray:
    p = np.linalg.inv(x.T @ x + l2 * np.eye(x.shape[1]))
    b = -p / np.diag(p)
    np.fill_diagonal(b, 0)
    return b


@pytest.mark.parametrize("shape", [(60, 25), (25, 60)], ids=["more users", "more items"])
def test_fit_equals_the_dense_formula(shape: tuple[int, int]) -> None:
    users, items, x = ratings(*shape)
    found = fit_ease(users, items, shape[1], 7.0)
    np.testing.assert_allclose(dense(found), formula(x, 7.0), atol=2e-6)


def test_fit_is_optimal() -> None:
    """Off the diagonal the gradient of the penalised error is zero; the diagonal is the constraint."""
    users, items, x = ratings(40, 30)
    b = dense(fit_ease(users, items, 30, 5.0)).astype(np.float64)
    gradient = x.T @ (x @ b - x) + 5.0 * b
    np.fill_diagonal(gradient, 0)
    assert np.abs(gradient).max() < 1e-4
    assert not np.diag(b).any()


@pytest.mark.parametrize("shape", [(60, 25), (25, 60)], ids=["more users", "more items"])
def test_scores_without_the_matrix_equal_those_with_it(shape: tuple[int, int]) -> None:
    users, items, x = ratings(*shape)
    liked = liked_matrix(users, items, shape[1])
    expected = fit_ease(users, items, shape[1], 7.0).product(liked)
    found = ease_scores(liked, 7.0)
    np.testing.assert_allclose(found[x == 0], expected[x == 0], atol=2e-6)


def test_user_ids_need_not_be_dense() -> None:
    users, items, x = ratings(40, 12)
    found = fit_ease(users * 1000 + 7, items, 12, 3.0)
    np.testing.assert_allclose(dense(found), formula(x, 3.0), atol=2e-6)


@pytest.mark.parametrize("shape", [(60, 25), (25, 60)], ids=["more users", "more items"])
def test_a_cut_keeps_the_strongest_of_each_column(shape: tuple[int, int]) -> None:
    users, items, x = ratings(*shape)
    found = dense(fit_ease(users, items, shape[1], 7.0, entries_per_column=4))
    whole = formula(x, 7.0)
    threshold = np.sort(np.abs(whole), axis=0)[-4]
    np.testing.assert_allclose(found, np.where(np.abs(whole) >= threshold, whole, 0), atol=2e-6)


def test_strongest_equals_fitting_with_a_cut() -> None:
    users, items, _ = ratings(60, 25)
    cut = fit_ease(users, items, 25, 7.0).strongest(3)
    np.testing.assert_allclose(dense(cut), dense(fit_ease(users, items, 25, 7.0, entries_per_column=3)))
    assert cut.nnz == 75


def test_what_is_cut_can_be_cut_again() -> None:
    users, items, _ = ratings(60, 25)
    twice = fit_ease(users, items, 25, 7.0).strongest(6).strongest(3)
    np.testing.assert_allclose(dense(twice), dense(fit_ease(users, items, 25, 7.0).strongest(3)))


def test_too_many_items_leaves_the_rarest_out() -> None:
    users, items, x = ratings(60, 25)
    found = fit_ease(users, items, 25, 7.0, max_inverted=10, entries_per_column=25)
    kept = np.sort(np.argsort(-x.sum(0), kind="stable")[:10])
    np.testing.assert_allclose(dense(found)[np.ix_(kept, kept)], formula(x[:, kept], 7.0), atol=2e-6)
    assert found.nnz == 90


@pytest.mark.parametrize("l2", [0.0, -1.0])
def test_a_penalty_that_is_not_positive_is_refused(l2: float) -> None:
    users, items, _ = ratings(60, 25)
    with pytest.raises(ValueError, match="l2"):
        fit_ease(users, items, 25, l2)


# ------------------------------------------------------------------------------------------------- matrix


def matrices() -> list[ItemSimilarity]:
    rng = np.random.default_rng(3)
    whole = rng.normal(size=(40, 40)).astype(np.float32)
    np.fill_diagonal(whole, 0)
    return [ItemSimilarity(whole), ItemSimilarity(cut_columns(whole, 5))]


@pytest.fixture(params=[0, 1], ids=["dense", "sparse"])
def matrix(request: pytest.FixtureRequest) -> ItemSimilarity:
    return matrices()[request.param]


def test_both_layouts_are_covered() -> None:
    assert [set(m.tensors()) for m in matrices()] == [{"dense"}, {"indptr", "columns", "values"}]


@pytest.mark.parametrize("num_targets", [0, 1, 3, 40])
@pytest.mark.parametrize("num_seen", [0, 1, 7, 40])
def test_scores_are_the_sum_of_the_addends(matrix: ItemSimilarity, num_seen: int, num_targets: int) -> None:
    rng = np.random.default_rng(0)
    seen, targets = rng.permutation(40)[:num_seen], rng.permutation(40)[:num_targets]
    addends, scores = matrix.addends(seen, targets), matrix.scores(seen, targets)
    assert addends.shape == (num_seen, num_targets) and addends.dtype == np.float32
    assert scores.shape == (num_targets,) and scores.dtype == np.float32
    np.testing.assert_allclose(addends, dense(matrix)[np.ix_(seen, targets)])
    np.testing.assert_allclose(scores, addends.sum(0), atol=1e-5)


def test_product_scores_many_users(matrix: ItemSimilarity) -> None:
    users, items, x = ratings(9, 40)
    expected = x @ dense(matrix)
    np.testing.assert_allclose(matrix.product(liked_matrix(users, items, 40)), expected, atol=1e-5)


@pytest.mark.parametrize("limit", [0, 1, 4, 100])
def test_neighbours_are_each_seen_items_strongest(matrix: ItemSimilarity, limit: int) -> None:
    b, seen = dense(matrix), np.array([3, 17, 20])
    expected = {int(j) for row in b[seen] for j in np.argsort(-row)[:limit] if row[j] > 0}
    found = matrix.neighbours(seen, limit)
    assert found.dtype == np.int64
    assert found.tolist() == sorted(expected)
    assert matrix.neighbours(np.empty(0, np.int64), limit).tolist() == []


def test_tensors_survive_a_round_trip(matrix: ItemSimilarity) -> None:
    again = ItemSimilarity.from_tensors(matrix.tensors())
    assert (again.size, again.nnz) == (matrix.size, matrix.nnz)
    np.testing.assert_array_equal(dense(again), dense(matrix))


def test_tensors_of_something_else_are_refused() -> None:
    good = matrices()[1].tensors()
    for name, bad in (
        ("columns", good["columns"] + 40),
        ("values", good["values"][:-1]),
        ("values", good["values"] * np.nan),
        ("indptr", good["indptr"] + 1),
        ("indptr", good["indptr"][::-1]),
    ):
        with pytest.raises(ValueError):
            ItemSimilarity.from_tensors({**good, name: bad})
    with pytest.raises(ValueError):
        ItemSimilarity.from_tensors({"values": good["values"]})


def test_only_square_matrices_with_an_empty_diagonal() -> None:
    with pytest.raises(ValueError, match="square"):
        ItemSimilarity(np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="diagonal"):
        ItemSimilarity(sp.eye(3, format="csr", dtype=np.float32))
