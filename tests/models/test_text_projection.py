"""What training sees of text vectors, and that what it learns there holds for the vectors as they are."""

from __future__ import annotations

import numpy as np
import pytest

from graph.schema import Item
from models.graph_encoder.features import TextFeatures
from models.graph_encoder.text_projection import TextProjection

COUNT, DIM = 200, 12
EXTRACTOR = TextFeatures("m", DIM, item_buckets=8, text_weight=2.0)
FIELD_NORM = 2 / (1 + 0.25 + 4) ** 0.5


def columns(missing: int = 0) -> np.ndarray:
    """Dense columns of items whose vectors share a large common part."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(COUNT, 4)) @ rng.normal(size=(4, DIM)) + 0.1 * rng.normal(size=(COUNT, DIM))
    vectors = (vectors + 5).astype(np.float32)
    vectors[:missing] = 0
    dense = EXTRACTOR.item_features([Item(0, "i", "", (), None, "", 1)] * COUNT, vectors).dense
    assert dense is not None
    return dense


def test_projected_vectors_are_centred_and_keep_the_weight_of_the_field() -> None:
    dense = columns(missing=20)
    for dim in (1, 4, DIM):
        projected = TextProjection.fit(dense, dim).project(dense)
        assert projected.shape == (COUNT, dim)
        assert not projected[:20].any()
        np.testing.assert_allclose(projected[20:].mean(0), 0, atol=1e-4)
        assert float((projected[20:] ** 2).sum(1).mean()) == pytest.approx(FIELD_NORM**2, rel=1e-4)


def test_the_strongest_axes_come_first_and_keep_the_distances() -> None:
    dense = columns()
    whole, four = TextProjection.fit(dense, DIM).project(dense), TextProjection.fit(dense, 4).project(dense)
    variances = whole.var(0)
    assert (np.diff(variances) <= 1e-9).all()
    assert variances[:4].sum() > 0.95 * variances.sum()
    between = np.linalg.norm(whole[:50, None] - whole[None, 50:100], axis=2)
    original = np.linalg.norm(dense[:50, None] - dense[None, 50:100], axis=2)
    np.testing.assert_allclose(between / between.mean(), original / original.mean(), rtol=1e-3)
    near = np.linalg.norm(four[:50, None] - four[None, 50:100], axis=2)
    assert np.corrcoef(near.ravel(), between.ravel())[0, 1] > 0.98


def test_unfolded_weights_do_to_vectors_what_trained_ones_do_to_projections() -> None:
    dense = columns(missing=20)
    projection = TextProjection.fit(dense, 5)
    for shape in ((5, 3), (5,)):
        weights = np.random.default_rng(1).normal(size=shape).astype(np.float32)
        np.testing.assert_allclose(
            dense @ projection.unfold(weights), projection.project(dense) @ weights, atol=2e-5
        )


@pytest.mark.parametrize("present", [0, 1, 2, 3])
def test_next_to_no_vectors_give_next_to_no_columns(present: int) -> None:
    dense = columns(missing=COUNT - present)
    projection = TextProjection.fit(dense, 64)
    kept = max(0, present - 1)
    assert projection.project(dense).shape == (COUNT, kept)
    assert projection.unfold(np.ones((kept, 3), np.float32)).shape == (1 + DIM, 3)


def test_equal_vectors_have_no_axes() -> None:
    dense = np.tile(columns()[:1], (COUNT, 1))
    assert TextProjection.fit(dense, 4).project(dense).shape == (COUNT, 0)
