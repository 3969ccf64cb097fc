"""`LinearState` after any history equals a rebuild and a dense float64 evaluation of the equations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from models.graph_encoder.features import FeatureExtractor, HashedFeatures, TextFeatures
from models.graph_encoder.incremental import LinearState
from models.graph_encoder.parameters import EdgeWeights, LinearParameters
from tests.models.graph_writer import MODEL, Writer

EXTRACTOR = HashedFeatures(item_buckets=32, user_buckets=16)
TEXT = TextFeatures(MODEL, 6, item_buckets=32, user_buckets=16)
OTHER_MODEL = "model-b"
ALL_EQUAL = EdgeWeights()
LIKED = EdgeWeights((0.5, 3.0, 4.5), (0.0, 1.0, 2.5))
UNEVEN = EdgeWeights((0.5, 3.0, 4.5), (1e-9, 1.0, 2.5))
"""So far apart that sums of weights are rounded."""
TOLERANCE = 2e-5


def make_parameters(
    edge_weights: EdgeWeights = LIKED,
    *,
    dim: int = 8,
    exponent: float = 0.7,
    known: int = 12,
    seed: int = 0,
    extractor: FeatureExtractor = EXTRACTOR,
) -> LinearParameters:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    buckets, own = extractor.item_columns, extractor.user_buckets
    return LinearParameters(
        item_ids=tuple(f"i{n}" for n in range(known)),
        id_source=draw(known, dim),
        id_target=draw(known, dim),
        id_bias=draw(known),
        feature_source=draw(buckets, dim),
        feature_target=draw(buckets, dim),
        feature_bias=draw(buckets),
        user_attributes=draw(own, dim),
        mix=np.array([0.5, 1.5, -0.7, 0.9, 1.2], np.float32),
        degree_exponent=exponent,
        edge_weights=edge_weights,
        features=extractor.config(),
    )


class Oracle:
    """The equations of parameters.py over a dense weight matrix, float64."""

    def __init__(
        self, parameters: LinearParameters, writer: Writer, extractor: FeatureExtractor = EXTRACTOR
    ) -> None:
        p = parameters
        num_items, dim = writer.next_item, p.dim
        weights = np.zeros((writer.next_user, num_items))
        for (u, i), value in writer.ratings.items():
            weights[u, i] = p.edge_weights([value])[0]
        q, y, self.bias = np.zeros((num_items, dim)), np.zeros((num_items, dim)), np.zeros(num_items)
        for item in writer.items.values():
            vector = writer.vectors.get((item.row, str(extractor.text_model)))
            f = extractor.item_features([item], None if vector is None else vector[None])
            f = f.toarray()[0].astype(np.float64)
            q[item.row], y[item.row] = f @ p.feature_source, f @ p.feature_target
            self.bias[item.row] = f @ p.feature_bias
            if item.item_id in p.item_ids:
                n = p.item_ids.index(item.item_id)
                q[item.row] += p.id_source[n]
                y[item.row] += p.id_target[n]
                self.bias[item.row] += p.id_bias[n]
        d_u, d_i = weights.sum(axis=1), weights.sum(axis=0)
        safe_u, safe_i = np.where(d_u > 0, d_u, 1)[:, None], np.where(d_i > 0, d_i, 1)[:, None]
        u1 = weights @ q / safe_u
        sums = weights.T @ (u1 * safe_u ** -(1 - p.degree_exponent))
        i1 = sums * safe_i**-p.degree_exponent
        w = p.mix.astype(np.float64)
        self.degree, self.weights = d_i, weights
        self.source = w[0] * q + w[1] * i1 + w[2] * y
        self.target = w[3] * y + w[4] * i1
        self.users = weights @ self.source / safe_u
        for user in writer.users.values():
            g = extractor.user_features([user]).toarray()[0].astype(np.float64)
            self.users[user.row] += g @ p.user_attributes


def assert_exact(state: LinearState, writer: Writer) -> None:
    oracle = Oracle(state.parameters, writer, state.extractor)
    for name in ("source", "target", "bias", "degree"):
        expected = getattr(oracle, name)
        scale = max(float(np.abs(expected).max(initial=0)), 1.0)
        np.testing.assert_allclose(
            getattr(state, name), expected, atol=TOLERANCE * scale, rtol=0, err_msg=name
        )
    empty = np.flatnonzero(oracle.weights.sum(axis=0) == 0)
    assert not state.degree[empty].any()
    assert not state._sums[empty].any()
    rows = np.arange(writer.next_user)
    scale = max(float(np.abs(oracle.users).max(initial=0)), 1.0)
    if len(rows):
        np.testing.assert_allclose(state.user_vectors(rows), oracle.users, atol=TOLERANCE * scale, rtol=0)
        for row in rows[:: max(1, len(rows) // 5)].tolist():
            np.testing.assert_allclose(
                state.user_vector(row), oracle.users[row], atol=TOLERANCE * scale, rtol=0
            )
            seen, weights = state.seen(row)
            assert dict(zip(seen.tolist(), weights.tolist(), strict=True)) == {
                i: float(oracle.weights[u, i]) for u, i in writer.ratings if u == row
            }
    assert state.deviation(writer.view) < TOLERANCE


def random_graph(seed: int, users: int = 25, items: int = 20, ratings: int = 200) -> Writer:
    rng, writer = np.random.default_rng(seed), Writer()
    for n in range(items):
        writer.put_item(f"i{n}", tags=[f"t{rng.integers(6)}" for _ in range(2)], year=1980 + n)
    for n in range(users):
        writer.put_user(f"u{n}", **({"age": int(rng.integers(10, 80))} if n % 3 == 0 else {}))
    for _ in range(ratings):
        writer.rate(f"u{rng.integers(users)}", f"i{rng.integers(items)}", float(rng.integers(1, 11)) / 2)
    writer.commit()
    return writer


@pytest.mark.parametrize("edge_weights", [ALL_EQUAL, LIKED], ids=["all-equal", "liked"])
@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.02])
def test_a_build_solves_the_equations(edge_weights: EdgeWeights, exponent: float) -> None:
    writer = random_graph(1)
    assert_exact(
        LinearState(make_parameters(edge_weights, exponent=exponent), EXTRACTOR, writer.view), writer
    )


def test_an_empty_graph_has_no_rows() -> None:
    writer = Writer()
    state = LinearState(make_parameters(), EXTRACTOR, writer.view)
    assert state.num_item_rows == 0
    assert state.session_vector([], []).tolist() == [0.0] * 8
    assert_exact(state, writer)


@pytest.mark.parametrize("edge_weights", [ALL_EQUAL, LIKED], ids=["all-equal", "liked"])
@pytest.mark.parametrize("per_version", [1, 7])
def test_thousands_of_random_writes_end_where_a_rebuild_does(
    edge_weights: EdgeWeights, per_version: int
) -> None:
    writer, rng = random_graph(2), np.random.default_rng(3)
    state = LinearState(make_parameters(edge_weights), EXTRACTOR, writer.view)
    for step in range(4000):
        _random_write(writer, rng)
        if step % per_version == 0:
            writer.commit(state)
        if step % 1000 == 0:
            writer.commit(state)
            assert_exact(state, writer)
    writer.commit(state)
    assert_exact(state, writer)
    assert state.deviation(writer.view) < 1e-6


def _random_write(writer: Writer, rng: np.random.Generator, texts: float = 0.0) -> None:
    """One write; `texts` is the share of those that are of text vectors."""
    kind = rng.random()
    items = list(writer.items)
    item_id = items[rng.integers(len(items))] if items else "i0"
    user_id = f"u{rng.integers(40)}"
    if kind < texts and items:
        if kind < 0.3 * texts and writer.vectors:
            keys = list(writer.vectors)
            writer.drop_vector(keys[rng.integers(len(keys))])
        else:
            model = OTHER_MODEL if kind > 0.8 * texts else TEXT.text_model
            writer.put_vector(item_id, rng.normal(size=TEXT.text_dim), model)
        return
    kind = rng.random()
    if kind < 0.62 and items:
        writer.rate(user_id, item_id, float(rng.integers(1, 11)) / 2)
    elif kind < 0.90 and writer.ratings:
        pairs = list(writer.ratings)
        writer.delete_rating(pairs[rng.integers(len(pairs))])
    elif kind < 0.92 and user_id in writer.users:
        writer.delete_user(user_id)
    elif kind < 0.94 and len(items) > 3:
        writer.delete_item(item_id)
    elif kind < 0.97:
        writer.put_item(
            f"i{rng.integers(30)}", tags=[f"t{rng.integers(6)}"], year=int(rng.integers(1950, 2025))
        )
    else:
        writer.put_user(user_id, age=int(rng.integers(10, 80)))


@pytest.mark.parametrize("per_version", [1, 7, 60])
def test_text_vectors_among_thousands_of_writes_end_where_a_rebuild_does(per_version: int) -> None:
    writer, rng = random_graph(18), np.random.default_rng(19)
    parameters = make_parameters(LIKED, extractor=TEXT)
    state = LinearState(parameters, TEXT, writer.view)
    for step in range(2400):
        _random_write(writer, rng, texts=0.3)
        if step % per_version == 0:
            writer.commit(state)
        if step % 600 == 0:
            writer.commit(state)
            assert_exact(state, writer)
    writer.commit(state)
    assert_exact(state, writer)
    assert any(model == TEXT.text_model for _, model in writer.vectors)
    assert state.deviation(writer.view) < 1e-6


@pytest.mark.parametrize("written", [1, 3, 15])
def test_an_arriving_vector_reaches_every_co_rated_item(written: int) -> None:
    writer, rng = random_graph(20), np.random.default_rng(21)
    state = LinearState(make_parameters(dim=8, extractor=TEXT), TEXT, writer.view)
    before, version = state.source.copy(), state.version
    for n in range(written):
        writer.put_vector(f"i{n}", rng.normal(size=6))
    writer.commit(state)
    assert_exact(state, writer)
    moved = np.flatnonzero((state.source != before).any(axis=1))
    assert len(moved) > written
    assert set(moved.tolist()) <= set(state.changed_since(version).tolist())
    for n in range(written):
        writer.drop_vector((writer.items[f"i{n}"].row, TEXT.text_model))
    writer.rate("u1", "i0", 5.0)
    writer.commit(state)
    assert_exact(state, writer)


def test_a_vector_and_its_item_in_one_version() -> None:
    writer, rng = random_graph(22), np.random.default_rng(23)
    state = LinearState(make_parameters(extractor=TEXT), TEXT, writer.view)
    writer.put_item("fresh", ["t1"])
    writer.put_vector("fresh", rng.normal(size=6))
    writer.rate("u1", "fresh", 5.0)
    writer.put_item("i3", ["other"], 1999)
    writer.put_vector("i3", rng.normal(size=6))
    writer.commit(state)
    assert_exact(state, writer)
    writer.delete_item("fresh")
    writer.commit(state)
    assert_exact(state, writer)


@pytest.mark.parametrize("extractor", [EXTRACTOR, TEXT], ids=["hashed", "text"])
def test_vectors_of_other_models_move_nothing(extractor: FeatureExtractor) -> None:
    writer = random_graph(24)
    state = LinearState(make_parameters(extractor=extractor), extractor, writer.view)
    version = state.version
    writer.put_vector("i1", np.ones(9), OTHER_MODEL)
    if extractor.text_model is None:
        writer.put_vector("i2", np.ones(6))
    writer.commit(state)
    assert state.version == version + 1
    assert len(state.changed_since(version)) == 0
    assert_exact(state, writer)


@pytest.mark.parametrize("per_version", [1, 5])
@pytest.mark.parametrize("edge_weights", [ALL_EQUAL, LIKED, UNEVEN], ids=["all-equal", "liked", "uneven"])
def test_the_last_edge_leaves_exactly_nothing(edge_weights: EdgeWeights, per_version: int) -> None:
    writer = random_graph(4)
    state = LinearState(make_parameters(edge_weights), EXTRACTOR, writer.view)
    rng = np.random.default_rng(5)
    pairs = list(writer.ratings)
    for step, n in enumerate(rng.permutation(len(pairs)).tolist(), 1):
        writer.delete_rating(pairs[n])
        if step % per_version == 0:
            writer.commit(state)
            left = np.unique([i for (_, i), value in writer.ratings.items() if edge_weights([value])[0] > 0])
            empty = np.setdiff1d(np.arange(state.num_item_rows), left)
            # Exactly: the next rating of the item would be divided by what rounding left.
            assert not state.degree[empty].any()
            assert not state._sums[empty].any()
        if step % 25 == 0:
            writer.commit(state)
            assert_exact(state, writer)
    writer.commit(state)
    fresh = LinearState(state.parameters, EXTRACTOR, writer.view)
    for name in ("source", "target", "bias", "degree"):
        np.testing.assert_array_equal(getattr(state, name), getattr(fresh, name))
    assert not state._sums.any()


def test_a_user_who_liked_nothing_before_starts_from_exactly_nothing() -> None:
    writer, rng = random_graph(16), np.random.default_rng(17)
    weights = EdgeWeights((0.5, 1.5, 3.0, 4.5), (0.0, 7.7e-11, 1.0, 2.5))
    state = LinearState(make_parameters(weights), EXTRACTOR, writer.view)
    for n in range(40):
        items = rng.choice(20, 9, replace=False)
        for item in items.tolist():
            writer.rate(f"new{n}", f"i{item}", 1.0)
        writer.commit(state)
        # In another order, so that adding up and taking away round differently.
        for item in rng.permutation(items).tolist():
            writer.rate(f"new{n}", f"i{item}", float(rng.choice([2.0, 3.0, 5.0])))
        writer.commit(state)
    assert_exact(state, writer)


def test_a_recreated_item_gets_its_id_table_entry_back() -> None:
    writer = random_graph(6)
    state = LinearState(make_parameters(), EXTRACTOR, writer.view)
    old = writer.items["i3"]
    writer.delete_item("i3")
    writer.commit(state)
    assert not state.source[old.row].any()
    assert not state.target[old.row].any()
    new = writer.put_item("i3", old.tags, old.year)
    writer.commit(state)
    assert new.row != old.row
    assert state.bias[new.row] == pytest.approx(Oracle(state.parameters, writer).bias[new.row], abs=1e-5)
    writer.rate("u1", "i3", 5.0)
    writer.commit(state)
    assert_exact(state, writer)


@pytest.mark.parametrize("changed", [1, 3, 12])
def test_changed_features_reach_every_co_rated_item(changed: int) -> None:
    writer = random_graph(7)
    state = LinearState(make_parameters(dim=8), EXTRACTOR, writer.view)
    for n in range(changed):
        writer.put_item(f"i{n}", ["other", f"t{n}"], 2020)
    writer.rate("u1", "i0", 5.0)
    writer.commit(state)
    assert_exact(state, writer)


@pytest.mark.parametrize("edge_weights", [ALL_EQUAL, LIKED], ids=["all-equal", "liked"])
def test_a_session_equals_an_inserted_user(edge_weights: EdgeWeights) -> None:
    writer, rng = random_graph(8), np.random.default_rng(9)
    state = LinearState(make_parameters(edge_weights), EXTRACTOR, writer.view)
    writer.put_item("fresh", ["t1"])
    writer.commit(state)
    for n in range(20):
        chosen = rng.choice(list(writer.items), size=rng.integers(1, 9), replace=False).tolist()
        values = rng.integers(1, 11, len(chosen)) / 2
        rows = [writer.items[item_id].row for item_id in chosen]
        session = state.session_vector(rows, values)
        for item_id, value in zip(chosen, values.tolist(), strict=True):
            writer.rate(f"session{n}", item_id, value)
        writer.commit(state)
        inserted = state.user_vector(writer.users[f"session{n}"].row)
        np.testing.assert_allclose(session, inserted, atol=1e-5)
        writer.delete_user(f"session{n}")
        writer.commit(state)


def test_of_repeated_items_in_a_session_the_last_counts() -> None:
    writer = random_graph(8)
    state = LinearState(make_parameters(), EXTRACTOR, writer.view)
    np.testing.assert_array_equal(
        state.session_vector([1, 2, 1], [0.5, 4.0, 5.0]), state.session_vector([1, 2], [5.0, 4.0])
    )
    with pytest.raises(IndexError, match=r"0\.\.19"):
        state.session_vector([20], [5.0])


def test_the_order_of_writes_does_not_matter() -> None:
    pairs = list(random_graph(10).ratings.items())
    states = []
    for seed in (0, 1):
        writer = random_graph(10, ratings=0)
        state = LinearState(make_parameters(), EXTRACTOR, writer.view)
        for n in np.random.default_rng(seed).permutation(len(pairs)).tolist():
            (u, i), value = pairs[n]
            writer.rate(f"u{u}", f"i{i}", value)
            writer.commit(state)
        states.append(state)
    for name in ("source", "target", "degree"):
        np.testing.assert_allclose(getattr(states[0], name), getattr(states[1], name), atol=1e-6)
    rows = np.arange(25)
    np.testing.assert_allclose(states[0].user_vectors(rows), states[1].user_vectors(rows), atol=1e-5)


def test_changed_rows_are_those_whose_vectors_moved() -> None:
    writer, rng = random_graph(11, ratings=60), np.random.default_rng(12)
    state = LinearState(make_parameters(), EXTRACTOR, writer.view)
    assert state.changed_since(0).tolist() == list(range(20))
    for _ in range(200):
        before = state.source.copy(), state.target.copy(), state.bias.copy(), state.version
        _random_write(writer, rng)
        writer.commit(state)
        rows = len(before[0])
        moved = (state.source[:rows] != before[0]) | (state.target[:rows] != before[1])
        moved = moved.any(axis=1) | (state.bias[:rows] != before[2])
        expected = set(np.flatnonzero(moved).tolist()) | set(range(rows, state.num_item_rows))
        reported = set(state.changed_since(before[3]).tolist())
        assert expected <= reported
        assert (state.changed_version <= state.version).all()


def test_a_rating_touches_only_what_its_user_likes() -> None:
    writer = random_graph(13)
    state = LinearState(make_parameters(), EXTRACTOR, writer.view)
    version = state.version
    writer.rate("u2", "i4", 5.0)
    writer.commit(state)
    row = writer.users["u2"].row
    liked = {i for (u, i), value in writer.ratings.items() if u == row and value >= 3.0}
    assert set(state.changed_since(version).tolist()) <= liked | {writer.items["i4"].row}
    # A disliked item weighs nothing, before and after: nothing moves.
    writer.rate("u2", "i5", 1.0)
    writer.commit(state)
    version = state.version
    writer.rate("u2", "i5", 2.0)
    writer.commit(state)
    assert len(state.changed_since(version)) == 0


def test_a_left_out_delta_is_refused() -> None:
    writer = random_graph(14)
    state = LinearState(make_parameters(), EXTRACTOR, writer.view)
    writer.rate("u1", "i1", 4.0)
    writer.commit()
    writer.rate("u1", "i2", 4.0)
    with pytest.raises(ValueError, match="state is at 1"):
        writer.commit(state)


def test_deviation_notices_a_drifted_sum() -> None:
    writer = random_graph(15)
    state = LinearState(make_parameters(), EXTRACTOR, writer.view)
    assert state.deviation(writer.view) == 0
    state._sums[3, 2] += 1.0
    assert state.deviation(writer.view) > 1e-3


values = st.sampled_from([0.5, 2.5, 3.0, 4.0, 4.5, 5.0])
user_ids = st.sampled_from([f"u{n}" for n in range(6)])
item_ids = st.sampled_from([f"i{n}" for n in range(16)])  # the id table knows i0 .. i11
tags = st.lists(st.sampled_from(["a", "b", "c"]), max_size=2)


class History(RuleBasedStateMachine):
    """Any order of writes, with commits in between."""

    @initialize(edge_weights=st.sampled_from([ALL_EQUAL, LIKED]), exponent=st.sampled_from([0.0, 0.5, 1.02]))
    def begin(self, edge_weights: EdgeWeights, exponent: float) -> None:
        self.writer = Writer()
        parameters = make_parameters(edge_weights, dim=4, exponent=exponent, extractor=TEXT)
        self.state = LinearState(parameters, TEXT, self.writer.view)
        self.pending = False

    @rule(item_id=item_ids, tags=tags)
    def put_item(self, item_id: str, tags: list[str]) -> None:
        self.writer.put_item(item_id, tags)
        self.pending = True

    @precondition(lambda self: self.writer.items)
    @rule(direction=st.integers(0, 5), model=st.sampled_from([TEXT.text_model, OTHER_MODEL]), data=st.data())
    def put_vector(self, direction: int, model: str, data: st.DataObject) -> None:
        item_id = data.draw(st.sampled_from(sorted(self.writer.items)))
        self.writer.put_vector(item_id, np.eye(6)[direction] + 0.25, model)
        self.pending = True

    @precondition(lambda self: self.writer.vectors)
    @rule(data=st.data())
    def drop_vector(self, data: st.DataObject) -> None:
        self.writer.drop_vector(data.draw(st.sampled_from(sorted(self.writer.vectors))))
        self.pending = True

    @precondition(lambda self: self.writer.items)
    @rule(user_id=user_ids, value=values, data=st.data())
    def rate(self, user_id: str, value: float, data: st.DataObject) -> None:
        self.writer.rate(user_id, data.draw(st.sampled_from(sorted(self.writer.items))), value)
        self.pending = True

    @precondition(lambda self: self.writer.ratings)
    @rule(data=st.data())
    def delete_rating(self, data: st.DataObject) -> None:
        self.writer.delete_rating(data.draw(st.sampled_from(sorted(self.writer.ratings))))
        self.pending = True

    @rule(user_id=user_ids, team=st.sampled_from(["red", "blue"]))
    def put_user(self, user_id: str, team: str) -> None:
        self.writer.put_user(user_id, team=team)
        self.pending = True

    @precondition(lambda self: self.writer.users)
    @rule(data=st.data())
    def delete_user(self, data: st.DataObject) -> None:
        self.writer.delete_user(data.draw(st.sampled_from(sorted(self.writer.users))))
        self.pending = True

    @precondition(lambda self: self.writer.items)
    @rule(data=st.data())
    def delete_item(self, data: st.DataObject) -> None:
        self.writer.delete_item(data.draw(st.sampled_from(sorted(self.writer.items))))
        self.pending = True

    @rule()
    def commit(self) -> None:
        self.writer.commit(self.state)
        self.pending = False

    @invariant()
    def exact(self) -> None:
        if not self.pending:
            assert_exact(self.state, self.writer)


History.TestCase.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestHistory = History.TestCase
