"""`SageState` after any history equals dense float64 GraphSAGE, and what is private stays so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from graph.errors import UnknownMemory
from graph.schema import Item, Memory
from graph.view import GraphView
from models.graph_encoder import memory_inputs
from models.graph_encoder.features import FeatureExtractor, HashedFeatures, TextFeatures
from models.graph_encoder.item_features import ItemFeatures
from models.graph_encoder.parameters import EdgeWeights
from models.graph_encoder.sage import SageState
from models.graph_encoder.sage_parameters import SageParameters
from tests.models.graph_writer import MODEL, Writer

WORDS = HashedFeatures(item_buckets=32, user_buckets=16)
TEXT = TextFeatures(MODEL, 6, item_buckets=32, user_buckets=16)
ALL_EQUAL = EdgeWeights()
LIKED = EdgeWeights((0.5, 3.0, 4.5), (0.0, 1.0, 2.5))
TOLERANCE = 2e-5
DIM = 8


def make_parameters(
    edge_weights: EdgeWeights = LIKED, extractor: FeatureExtractor = TEXT, known: int = 12, seed: int = 0
) -> SageParameters:
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "id_source": (known, DIM),
        "id_target": (known, DIM),
        "id_bias": (known,),
        "feature_source": (extractor.item_columns, DIM),
        "feature_target": (extractor.item_columns, DIM),
        "feature_bias": (extractor.item_columns,),
        "user_attributes": (extractor.user_buckets, DIM),
        "user_bias": (DIM,),
        "item_bias": (DIM,),
    }
    drawn = {
        field.name: (rng.normal(size=shapes.get(field.name, (DIM, DIM))) / 2).astype(np.float32)
        for field in fields(SageParameters)
        if "Float32" in str(field.type)
    }
    return SageParameters(
        item_ids=tuple(f"i{n}" for n in range(known)),
        edge_weights=edge_weights,
        features=extractor.config(),
        **drawn,
    )


class Oracle:
    """The equations of sage_parameters.py over dense matrices, float64, from a writer's plain dicts."""

    def __init__(self, p: SageParameters, writer: Writer, extractor: FeatureExtractor = TEXT) -> None:
        num_items = writer.next_item
        self.weights = np.zeros((writer.next_user, num_items))
        for (u, i), value in writer.ratings.items():
            self.weights[u, i] = p.edge_weights([value])[0]
        x, y, self.bias = np.zeros((num_items, DIM)), np.zeros((num_items, DIM)), np.zeros(num_items)
        live = np.zeros((num_items, 1))
        for item in writer.items.values():
            f = self._row(extractor, item, writer.vectors.get((item.row, MODEL)))
            x[item.row], y[item.row] = f @ p.feature_source, f @ p.feature_target
            self.bias[item.row], live[item.row] = f @ p.feature_bias, 1
            if item.item_id in p.item_ids:
                n = p.item_ids.index(item.item_id)
                x[item.row] += p.id_source[n]
                y[item.row] += p.id_target[n]
                self.bias[item.row] += p.id_bias[n]
        u1 = np.maximum(_means(self.weights, x) @ p.user_neighbours + p.user_bias, 0)
        heard = _means(self.weights.T, u1) @ p.item_neighbours
        hidden = np.maximum(x @ p.item_root + heard + p.item_bias, 0) * live
        self.source = x @ p.source_root + hidden @ p.source_hidden
        self.target = y + hidden @ p.target_hidden
        self.degree = self.weights.sum(0)
        self.users = _means(self.weights, self.source) + u1 @ p.user_root
        self.memories = self._memories(p, writer, extractor, x)
        for user in writer.users.values():
            self.users[user.row] += extractor.user_features([user]).toarray()[0] @ p.user_attributes
            own = [self.memories[m.row] for m in writer.memories.values() if m.user_row == user.row]
            if own:
                self.users[user.row] += np.mean(own, axis=0) @ p.memory_gate

    def _memories(
        self, p: SageParameters, writer: Writer, extractor: FeatureExtractor, x: np.ndarray
    ) -> np.ndarray:
        own = np.zeros((writer.next_memory, DIM))
        items, memories = np.zeros((len(own), len(x))), np.zeros((len(own), len(own)))
        for m in writer.memories.values():
            item = Item(m.row, m.memory_id, m.text, (), None, m.text, 1)
            own[m.row] = self._row(extractor, item, writer.memory_vectors.get(m.row)) @ p.feature_source
        for r in writer.relations.values():
            (items if r.target_kind == "item" else memories)[r.memory_row, r.target_row] += 1
        joined = own @ p.memory_root + _means(items, x) @ p.memory_items
        joined += _means(memories, own) @ p.memory_memories
        hidden = np.maximum(joined @ p.item_root + p.item_bias, 0)
        return joined @ p.source_root + hidden @ p.source_hidden

    @staticmethod
    def _row(extractor: FeatureExtractor, item: Item, vector: np.ndarray | None) -> np.ndarray:
        f = extractor.item_features([item], None if vector is None else vector[None])
        return f.toarray()[0].astype(np.float64)


def _means(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    totals = weights.sum(1, keepdims=True)
    return weights @ x / np.where(totals > 0, totals, 1)


def close(found: np.ndarray, expected: np.ndarray, name: str = "") -> None:
    scale = max(float(np.abs(expected).max(initial=0)), 1.0)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * scale, rtol=0, err_msg=name)


def assert_exact(state: SageState, writer: Writer) -> None:
    oracle = Oracle(state.parameters, writer, state.extractor)
    for name in ("source", "target", "bias", "degree"):
        close(getattr(state, name), getattr(oracle, name), name)
    empty = np.flatnonzero(oracle.weights.sum(axis=0) == 0)
    assert not state.degree[empty].any()
    assert not state._sums[empty].any()
    rows = np.array([user.row for user in writer.users.values()], np.int64)
    close(state.user_vectors(rows), oracle.users[rows], "users")
    for row in rows[:: max(1, len(rows) // 4)].tolist():
        close(state.user_vector(row), oracle.users[row], "one user")
    memories = np.array([memory.row for memory in writer.memories.values()], np.int64)
    close(state.memory_vectors(memories), oracle.memories[memories], "memories")
    assert state.deviation(writer.view) < TOLERANCE


def random_graph(seed: int, users: int = 25, items: int = 20, ratings: int = 200) -> Writer:
    rng, writer = np.random.default_rng(seed), Writer()
    for n in range(items):
        writer.put_item(f"i{n}", tags=[f"t{rng.integers(6)}" for _ in range(2)], year=1980 + n)
        if n % 2:
            writer.put_vector(f"i{n}", rng.normal(size=6))
    for n in range(users):
        writer.put_user(f"u{n}", **({"age": int(rng.integers(10, 80))} if n % 3 == 0 else {}))
    for _ in range(ratings):
        writer.rate(f"u{rng.integers(users)}", f"i{rng.integers(items)}", float(rng.integers(1, 11)) / 2)
    for _ in range(users):
        write_privately(writer, rng, users)
    writer.commit()
    return writer


def write_privately(writer: Writer, rng: np.random.Generator, users: int = 25) -> None:
    """One write of a memory, its text vector, a relation or a user's attributes."""
    kind, known = rng.random(), sorted(writer.memories)
    if kind < 0.4 or not known:
        n = int(rng.integers(60))
        memory_id = f"mem_{n:04d}"
        owner = writer.memories.get(memory_id)
        user_id = f"u{n % users}"
        if owner is None or user_id in writer.users:
            writer.put_memory(user_id, memory_id, f"w{rng.integers(9)} w{rng.integers(9)}")
        return
    memory = writer.memories[known[rng.integers(len(known))]]
    if kind < 0.55:
        writer.put_memory_vector(memory.memory_id, rng.normal(size=6))
    elif kind < 0.7 and writer.items:
        items = sorted(writer.items)
        writer.relate(memory.memory_id, "item", items[rng.integers(len(items))], f"n{rng.integers(2)}")
    elif kind < 0.8:
        siblings = [m for m in writer.memories.values() if m.user_row == memory.user_row]
        writer.relate(memory.memory_id, "memory", siblings[rng.integers(len(siblings))].memory_id)
    elif kind < 0.87 and writer.relations:
        keys = list(writer.relations)
        key = keys[rng.integers(len(keys))]
        writer.delete_relation(key, writer.relations[key])
    elif kind < 0.94:
        writer.delete_memory(memory.memory_id)
    else:
        writer.put_user(f"u{rng.integers(users)}", age=int(rng.integers(10, 80)))


def write_publicly(writer: Writer, rng: np.random.Generator) -> None:
    """One write of ratings, items, their text vectors, or the removal of a user."""
    kind, items = rng.random(), sorted(writer.items)
    item_id = items[rng.integers(len(items))]
    if kind < 0.5:
        writer.rate(f"u{rng.integers(25)}", item_id, float(rng.integers(1, 11)) / 2)
    elif kind < 0.78 and writer.ratings:
        pairs = list(writer.ratings)
        writer.delete_rating(pairs[rng.integers(len(pairs))])
    elif kind < 0.85:
        writer.put_vector(item_id, rng.normal(size=6))
    elif kind < 0.87 and writer.vectors:
        keys = list(writer.vectors)
        writer.drop_vector(keys[rng.integers(len(keys))])
    elif kind < 0.95:
        writer.put_item(f"i{rng.integers(24)}", [f"t{rng.integers(6)}"], int(rng.integers(1950, 2025)))
    elif kind < 0.97 and len(items) > 4:
        writer.delete_item(item_id)
    elif writer.users:
        users = sorted(writer.users)
        writer.delete_user(users[rng.integers(len(users))])


@pytest.mark.parametrize("edge_weights", [ALL_EQUAL, LIKED], ids=["all-equal", "liked"])
@pytest.mark.parametrize("extractor", [WORDS, TEXT], ids=["words", "text"])
def test_a_build_solves_the_equations(edge_weights: EdgeWeights, extractor: FeatureExtractor) -> None:
    writer = random_graph(1)
    assert_exact(SageState(make_parameters(edge_weights, extractor), extractor, writer.view), writer)


def test_an_empty_graph_has_no_rows() -> None:
    writer = Writer()
    state = SageState(make_parameters(), TEXT, writer.view)
    assert state.num_item_rows == 0
    assert state.session_vector([], []).shape == (DIM,)
    assert state.user_vectors([]).shape == (0, DIM)
    assert state.memory_vectors([]).shape == (0, DIM)
    assert_exact(state, writer)


@pytest.mark.parametrize("edge_weights", [ALL_EQUAL, LIKED], ids=["all-equal", "liked"])
@pytest.mark.parametrize("per_version", [1, 9])
def test_random_writes_end_where_a_rebuild_does(edge_weights: EdgeWeights, per_version: int) -> None:
    writer, rng = random_graph(2), np.random.default_rng(3)
    state = SageState(make_parameters(edge_weights), TEXT, writer.view)
    for step in range(1200):
        (write_privately if step % 3 == 0 else write_publicly)(writer, rng)
        if step % per_version == 0:
            writer.commit(state)
        if step % 300 == 0:
            writer.commit(state)
            assert_exact(state, writer)
    writer.commit(state)
    assert_exact(state, writer)
    assert writer.memories and writer.relations and writer.memory_vectors
    assert state.deviation(writer.view) < 1e-6
    fresh = SageState(state.parameters, TEXT, writer.view)
    rows = [memory.row for memory in writer.memories.values()]
    # Not to the last bit: a matrix product of a few rows rounds other than one of all, on some processors.
    kept, built = state.memory_vectors(rows), fresh.memory_vectors(rows)
    assert np.abs(kept - built).max() < 1e-6 * np.abs(built).max()


def test_the_network_of_torch_geometric_gives_the_same() -> None:
    """`SAGEConv` of the library itself, on all edges alike, in float64."""
    from models.graph_encoder.network import WeightedSum  # hides warnings of the next import

    assert WeightedSum
    from torch_geometric.nn import SAGEConv

    writer, p = random_graph(4), make_parameters(ALL_EQUAL)
    state = SageState(p, TEXT, writer.view)

    def conv(neighbours: np.ndarray, root: np.ndarray | None, bias: np.ndarray) -> torch.nn.Module:
        module = SAGEConv((DIM, DIM), DIM, aggr="mean", root_weight=root is not None).double()
        with torch.no_grad():
            module.lin_l.weight.copy_(torch.from_numpy(neighbours.T))
            module.lin_l.bias.copy_(torch.from_numpy(bias))
            if root is not None:
                module.lin_r.weight.copy_(torch.from_numpy(root.T))
        return module

    x = torch.from_numpy(state._q[: state.num_item_rows]).double()
    pairs = torch.tensor(list(writer.ratings), dtype=torch.int64).T
    nobody = torch.zeros(writer.next_user, DIM, dtype=torch.float64)
    to_users = conv(p.user_neighbours, None, p.user_bias)
    to_items = conv(p.item_neighbours, p.item_root, p.item_bias)
    with torch.no_grad():
        u1 = to_users((x, nobody), pairs.flip(0)).relu()
        hidden = to_items((u1, x), pairs).relu()
        source = (
            x @ torch.from_numpy(p.source_root).double() + hidden @ torch.from_numpy(p.source_hidden).double()
        )
    close(state.source, source.numpy())
    last = conv(np.eye(DIM, dtype=np.float32), p.user_root, np.zeros(DIM, np.float32))
    with torch.no_grad():
        users = last((source, u1), pairs.flip(0)).numpy()
    for user in [u for u in writer.users.values() if not u.attributes]:
        if not any(m.user_row == user.row for m in writer.memories.values()):
            close(state.user_vector(user.row), users[user.row])


@pytest.mark.parametrize("seed", range(3))
def test_no_private_text_reaches_shared_vectors(seed: int) -> None:
    """Whatever is written privately: all items, and all users but the one, stay bit for bit the same."""
    writer, rng = random_graph(10 + seed), np.random.default_rng(20 + seed)
    state = SageState(make_parameters(), TEXT, writer.view)
    moved_own = 0
    for _ in range(150):
        tables = [getattr(state, name).copy() for name in ("source", "target", "bias", "degree", "_sums")]
        # Users whom nobody wrote of; a memory may create its user.
        rows = {user.user_id: user.row for user in writer.users.values()}
        users = {row: state.user_vector(row) for row in rows.values()}
        owned, version = owners(writer), state.version
        write_privately(writer, rng)
        writer.commit(state)
        fresh = SageState(state.parameters, TEXT, writer.view)
        for other in (state, fresh):
            for name, before in zip(("source", "target", "bias", "degree"), tables, strict=False):
                np.testing.assert_array_equal(getattr(other, name)[: len(before)], before, err_msg=name)
        np.testing.assert_array_equal(state._sums, tables[-1])
        assert len(state.changed_since(version)) == 0
        changed = {row for row, before in users.items() if not np.array_equal(state.user_vector(row), before)}
        moved_own += len(changed)
        assert changed <= touched(owned, owners(writer), writer)
        assert len(changed) <= 1
    assert moved_own > 40


def owners(writer: Writer) -> dict[int, object]:
    """What each user has written privately."""
    found: dict[int, list[object]] = {row: [] for row in range(writer.next_user)}
    memory_owner = {m.row: m.user_row for m in writer.memories.values()}
    for user in writer.users.values():
        found[user.row].append(sorted(user.attributes.items()))
    for memory in writer.memories.values():
        vector = writer.memory_vectors.get(memory.row)
        text = (memory.row, memory.text, None if vector is None else vector.tobytes())
        found[memory.user_row].append(text)
    for key in writer.relations:
        found[memory_owner[key[0]]].append(key)
    return {row: sorted(map(repr, what)) for row, what in found.items()}


def touched(before: dict[int, object], after: dict[int, object], writer: Writer) -> set[int]:
    return {row for row in range(writer.next_user) if before.get(row) != after.get(row)}


def test_texts_of_memories_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = random_graph(5)
    state = SageState(make_parameters(), TEXT, writer.view)
    read: list[int] = []
    features = memory_inputs._features

    def counted(extractor: FeatureExtractor, view: GraphView, memories: Sequence[Memory]) -> ItemFeatures:
        read.append(len(memories))
        return features(extractor, view, memories)

    monkeypatch.setattr(memory_inputs, "_features", counted)
    rows = sorted({memory.user_row for memory in writer.memories.values()})
    first = state.user_vectors(rows)
    assert sum(read) >= len(writer.memories)
    read.clear()
    np.testing.assert_array_equal(state.user_vectors(rows), first)
    assert read == []
    bounded = memory_inputs.MemoryTexts(make_parameters(), TEXT, max_kept=2)
    memories = list(writer.memories.values())
    whole = memory_inputs.MemoryTexts(make_parameters(), TEXT).x(writer.view, memories)
    for _ in range(2):
        np.testing.assert_allclose(bounded.x(writer.view, memories), whole, rtol=1e-5, atol=1e-6)
        assert len(bounded._kept) == 2


def test_private_writes_of_one_user_move_that_user() -> None:
    writer, rng = random_graph(5), np.random.default_rng(6)
    state = SageState(make_parameters(), TEXT, writer.view)
    row = writer.users["u1"].row
    for write in (
        lambda: writer.put_memory("u1", "mem_new", "w1"),
        lambda: writer.put_memory_vector("mem_new", rng.normal(size=6)),
        lambda: writer.relate("mem_new", "item", "i3"),
        lambda: writer.relate("mem_new", "memory", "mem_second"),
        lambda: writer.put_user("u1", team="red"),
        lambda: writer.delete_memory("mem_new"),
    ):
        if "mem_second" not in writer.memories:
            writer.put_memory("u1", "mem_second", "w2")
            writer.put_memory_vector("mem_second", rng.normal(size=6))
            writer.commit(state)
        before = state.user_vector(row)
        write()
        writer.commit(state)
        assert not np.array_equal(state.user_vector(row), before) or "mem_new" in writer.memories
        assert_exact(state, writer)
    with pytest.raises(UnknownMemory):
        state.memory_vectors([writer.next_memory])


def test_a_relation_to_anothers_memory_counts_for_nothing() -> None:
    """The writer refuses it; were it there all the same, the other's text would not come in."""
    writer, rng = random_graph(7), np.random.default_rng(8)
    writer.put_memory("u1", "mine", "w1")
    writer.put_memory("u2", "theirs", "w2")
    writer.put_memory_vector("theirs", rng.normal(size=6))
    state = SageState(make_parameters(), TEXT, writer.view)
    writer.commit(state)
    row = writer.memories["mine"].row
    before = state.memory_vectors([row])
    writer.relate("mine", "memory", "theirs")
    writer.commit(state)
    assert writer.view.relations_of(row)
    np.testing.assert_array_equal(state.memory_vectors([row]), before)


@pytest.mark.parametrize("edge_weights", [ALL_EQUAL, LIKED], ids=["all-equal", "liked"])
def test_a_session_equals_an_inserted_user(edge_weights: EdgeWeights) -> None:
    writer, rng = random_graph(8), np.random.default_rng(9)
    state = SageState(make_parameters(edge_weights), TEXT, writer.view)
    writer.put_item("fresh", ["t1"])
    writer.commit(state)
    for n in range(15):
        chosen = rng.choice(sorted(writer.items), size=rng.integers(1, 9), replace=False).tolist()
        values = rng.integers(1, 11, len(chosen)) / 2
        session = state.session_vector([writer.items[item_id].row for item_id in chosen], values)
        for item_id, value in zip(chosen, values.tolist(), strict=True):
            writer.rate(f"session{n}", item_id, value)
        writer.commit(state)
        close(session, state.user_vector(writer.users[f"session{n}"].row))
        writer.delete_user(f"session{n}")
        writer.commit(state)
    with pytest.raises(IndexError):
        state.session_vector([99], [5.0])


def test_names_and_order_do_not_matter() -> None:
    """The same graph with its users, items and memories numbered another way round."""
    one = random_graph(11)
    state = SageState(make_parameters(), TEXT, one.view)
    rng, other = np.random.default_rng(12), Writer()
    named_users = {u.row: u.user_id for u in one.users.values()}
    named_items = {i.row: i.item_id for i in one.items.values()}
    for item in rng.permutation(list(one.items)).tolist():
        old = one.items[item]
        other.put_item(item, old.tags, old.year)
        if (old.row, MODEL) in one.vectors:
            other.put_vector(item, one.vectors[old.row, MODEL])
    for user in rng.permutation(list(one.users)).tolist():
        other.put_user(user, **one.users[user].attributes)
    for n in rng.permutation(len(one.ratings)).tolist():
        (u, i), value = list(one.ratings.items())[n]
        other.rate(named_users[u], named_items[i], value)
    for memory_id in rng.permutation(list(one.memories)).tolist():
        old_memory = one.memories[memory_id]
        other.put_memory(named_users[old_memory.user_row], memory_id, old_memory.text)
        if old_memory.row in one.memory_vectors:
            other.put_memory_vector(memory_id, one.memory_vectors[old_memory.row])
    named_memories = {m.row: m.memory_id for m in one.memories.values()}
    for row, name, kind, target in one.relations:
        target_id = named_items[target] if kind == "item" else named_memories[target]
        other.relate(named_memories[row], kind, target_id, name)  # type: ignore[arg-type]
    other.commit()
    same = SageState(state.parameters, TEXT, other.view)
    assert [u.row for u in other.users.values()] != [one.users[u].row for u in other.users]
    close(
        same.target[[other.items[i].row for i in one.items]],
        state.target[[i.row for i in one.items.values()]],
    )
    users, theirs = [u.row for u in one.users.values()], [other.users[u].row for u in one.users]
    close(same.user_vectors(theirs), state.user_vectors(users))
    close(
        same.memory_vectors([other.memories[m].row for m in one.memories]),
        state.memory_vectors([m.row for m in one.memories.values()]),
    )


def test_a_rating_touches_only_what_its_user_likes() -> None:
    writer = random_graph(13)
    state = SageState(make_parameters(), TEXT, writer.view)
    version = state.version
    writer.rate("u2", "i4", 5.0)
    writer.commit(state)
    row = writer.users["u2"].row
    liked = {i for (u, i), value in writer.ratings.items() if u == row and value >= 3.0}
    assert set(state.changed_since(version).tolist()) <= liked | {writer.items["i4"].row}


def test_untrained_a_memory_is_near_items_of_its_text_and_those_it_is_about() -> None:
    writer, rng = random_graph(14), np.random.default_rng(15)
    one = np.eye(DIM, dtype=np.float32)
    p = make_parameters(ALL_EQUAL)
    p = replace(p, memory_root=one, memory_items=one, memory_memories=one / 2)
    state = SageState(p, TEXT, writer.view)
    vector = rng.normal(size=6)
    new = writer.put_item("new")
    writer.put_vector("new", vector)
    writer.put_memory("u1", "alike", "w1")
    writer.put_memory_vector("alike", vector)
    writer.commit(state)
    # An unrated item with this text, and nothing but it, has the very vector as its source.
    np.testing.assert_allclose(
        state.memory_vectors([writer.memories["alike"].row])[0], state.source[new.row], atol=1e-5
    )
    silent = writer.put_item("i11", (), None)
    writer.put_memory("u1", "about", "")
    for pair in [pair for pair in writer.ratings if pair[1] == silent.row]:
        writer.delete_rating(pair)
    writer.relate("about", "item", "i11")
    writer.commit(state)
    np.testing.assert_allclose(
        state.memory_vectors([writer.memories["about"].row])[0], state.source[silent.row], atol=1e-5
    )
