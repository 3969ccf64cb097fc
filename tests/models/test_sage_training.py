"""Training `sage` on small worlds: what it finds, what memories teach, and what must not learn from them."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from graph.schema import RATING_DTYPE, ChangeSet, Item, Memory, Relation, User
from graph.view import GraphView
from models.evaluation import recommend_served
from models.graph_encoder.checkpoint import load_checkpoint, save_checkpoint
from models.graph_encoder.features import HashedFeatures
from models.graph_encoder.fitting import FitConfig
from models.graph_encoder.network import EdgeList, FeatureRows
from models.graph_encoder.sage_network import SageEncoderNetwork
from models.graph_encoder.sage_parameters import SageParameters
from models.graph_encoder.state import build_state
from models.graph_encoder.training import ALL_POSITIVE, TrainedEncoder, TrainingConfig, train, train_on
from models.interactions import Interactions
from models.ranking_metrics import hits_of, ranking_metrics, top_items

NUM_USERS, NUM_ITEMS, NUM_TASTES = 90, 90, 3
EXTRACTOR = HashedFeatures(item_buckets=128, user_buckets=16)
QUICK = TrainingConfig(
    "sage", search=False, edge_weights=(ALL_POSITIVE,), fit=FitConfig(dim=16, steps=60, l2=0.3)
)
PRIVATE = ("user_attributes", "memory_root", "memory_items", "memory_memories", "memory_gate")
WORDS = ("crime", "romance", "space")


def world(memories: bool = True, attributes: bool = False, seed: int = 0) -> GraphView:
    """Every user rates items of one taste, told by the items' texts, and a few others.

    Every second user has memories that name the taste, or are about an item of it.
    """
    rng = np.random.default_rng(seed)
    items = [
        Item(n, f"i{n}", f"{WORDS[n % NUM_TASTES]} {n}", (), None, WORDS[n % NUM_TASTES], 1)
        for n in range(NUM_ITEMS)
    ]
    users = [
        User(n, f"u{n}", {"likes": WORDS[n % NUM_TASTES]} if attributes else {}, 1) for n in range(NUM_USERS)
    ]
    records = []
    for n in range(NUM_USERS):
        own = np.arange(NUM_ITEMS) % NUM_TASTES == n % NUM_TASTES
        odds = np.where(own, 5.0, 0.3) / (1 + np.arange(NUM_ITEMS) / 30)
        for item in rng.choice(NUM_ITEMS, 14, replace=False, p=odds / odds.sum()):
            records.append((n, int(item), 4.0, 0, 1, False))
    written, relations = [], []
    for n in range(0, NUM_USERS if memories else 0, 2):
        for text in (f"enjoys {WORDS[n % NUM_TASTES]} most", "lives in a town"):
            written.append(Memory(len(written), f"mem_{len(written):04d}", n, text, 1))
        row = len(written)
        written.append(Memory(row, f"mem_{row:04d}", n, "talked about it", 1))
        relations.append(Relation(row, "next to", "memory", row - 2, 1))
        relations.append(Relation(row, "about", "item", n % NUM_TASTES + 3 * int(rng.integers(20)), 1))
    view = GraphView("world")
    view.apply(
        ChangeSet(
            0,
            1,
            users,
            items,
            written,
            ratings=np.array(records, RATING_DTYPE),
            relations=relations,
        )
    )
    return view


@pytest.fixture(scope="module")
def trained() -> TrainedEncoder:
    return train(world(attributes=True), QUICK, extractor=EXTRACTOR)


def parameters_of(encoder: TrainedEncoder) -> SageParameters:
    assert isinstance(encoder.parameters, SageParameters)
    return encoder.parameters


def newcomer(view: GraphView, taste: int, *, memory: bool = False, attributes: bool = False) -> int:
    """A user without ratings, of whom one thing is known."""
    row, version = view.num_user_rows, view.version + 1
    known = {"likes": WORDS[taste]} if attributes else {}
    memories = []
    if memory:
        memories = [Memory(10_000 + row, f"mem_new_{row}", row, f"enjoys {WORDS[taste]} most", version)]
    user = User(row, f"new{row}", known, version)
    view.apply(ChangeSet(view.version, version, [user], memories=memories))
    return row


def own_share(encoder: TrainedEncoder, view: GraphView, row: int, taste: int) -> float:
    """Share of the ten best items that are of the taste."""
    state = build_state(encoder.parameters, view)
    best = np.argsort(-(state.target @ state.user_vector(row) + state.bias))[:10]
    return float((best % NUM_TASTES == taste).mean())


def test_held_out_ratings_are_found_better_than_by_popularity() -> None:
    view = world(memories=False)
    edges = view.edges()
    rows, columns = edges.user_rows, edges.item_rows.astype(np.int64)
    stamps = np.zeros(len(rows), np.int64)
    ratings = Interactions(rows, columns, edges.values, stamps, NUM_USERS, NUM_ITEMS)
    held = np.random.default_rng(1).random(len(ratings)) < 0.25
    kept, test = ratings.select(~held), ratings.select(held)
    items, users = list(view.items()), list(view.users())
    encoder = train_on(kept, items, users, QUICK, extractor=EXTRACTOR)
    encoder = replace(encoder, settings=replace(encoder.settings, similarity_weight=0.0))
    asked = np.unique(test.users)
    served, exhaustive = recommend_served(encoder, kept, items, users, asked, 10)
    np.testing.assert_array_equal(served, exhaustive)
    relevant, seen = np.zeros((2, NUM_USERS, NUM_ITEMS), np.bool_)
    relevant[test.users, test.items], seen[kept.users, kept.items] = True, True
    popular = np.where(seen, -np.inf, seen.sum(0)).astype(np.float32)

    def ndcg(top: np.ndarray) -> float:
        hits = hits_of(top, sp.csr_matrix(relevant[asked]))
        return ranking_metrics(hits, relevant[asked].sum(1), 10).ndcg

    assert ndcg(served) > 1.5 * ndcg(top_items(popular[asked], 10))


def test_memories_and_attributes_speak_for_users_without_ratings(trained: TrainedEncoder) -> None:
    view = world(attributes=True)
    for taste in range(NUM_TASTES):
        by_memory = newcomer(view, taste, memory=True)
        by_attributes = newcomer(view, taste, attributes=True)
        assert own_share(trained, view, by_memory, taste) > 0.7
        assert own_share(trained, view, by_attributes, taste) > 0.7
    assert trained.metadata["private"] == {
        "users_with_attributes": NUM_USERS,
        "users_with_memories": NUM_USERS // 2,
        "memories_trained": True,
    }


def test_a_memory_of_a_taste_is_near_its_items(trained: TrainedEncoder) -> None:
    view = world()
    state = build_state(trained.parameters, view)
    vectors = state.memory_vectors(np.arange(view.num_memories))
    for n, memory in enumerate(sorted(view.memories(), key=lambda m: m.row)):
        taste = memory.user_row % NUM_TASTES
        if memory.text.startswith("enjoys"):
            best = np.argsort(-(state.target @ vectors[n]))[:10]
            assert (best % NUM_TASTES == taste).mean() > 0.7


def test_untrained_memories_already_name_items_of_their_text() -> None:
    encoder = train(world(memories=False), QUICK, extractor=EXTRACTOR)
    assert encoder.metadata["private"] == {
        "users_with_attributes": 0,
        "users_with_memories": 0,
        "memories_trained": False,
    }
    view = world(memories=False)
    nobody = newcomer(view, 0)
    for taste in range(NUM_TASTES):
        row = newcomer(view, taste, memory=True)
        state = build_state(encoder.parameters, view)
        added = state.target @ (state.user_vector(row) - state.user_vector(nobody))
        assert (np.argsort(-added)[:10] % NUM_TASTES == taste).mean() > 0.7


def test_training_lets_nothing_private_into_what_is_shared(trained: TrainedEncoder) -> None:
    """Bit for bit the same parameters with memories and attributes, with others, and without."""
    mine = parameters_of(trained)
    silent = parameters_of(train(world(memories=False), QUICK, extractor=EXTRACTOR))
    for field in fields(SageParameters):
        if "Float32" in str(field.type):
            same = np.array_equal(getattr(mine, field.name), getattr(silent, field.name))
            assert same is (field.name not in PRIVATE), field.name


def test_the_seed_decides_everything(trained: TrainedEncoder) -> None:
    again = parameters_of(train(world(attributes=True), QUICK, extractor=EXTRACTOR))
    other = parameters_of(train(world(attributes=True), replace(QUICK, seed=1), extractor=EXTRACTOR))
    for name in ("id_source", "user_neighbours", *PRIVATE):
        assert np.array_equal(getattr(again, name), getattr(parameters_of(trained), name)), name
        assert not np.array_equal(getattr(other, name), getattr(parameters_of(trained), name)), name


def test_the_network_computes_what_its_parameters_say(trained: TrainedEncoder) -> None:
    view, p = world(memories=False), parameters_of(trained)
    network = SageEncoderNetwork.from_parameters(p)
    assert len(p.item_ids) == NUM_ITEMS
    edges = view.edges()
    items = edges.item_rows.astype(np.int64)
    matrices = EdgeList(edges.user_rows, items, p.edge_weights(edges.values), NUM_USERS, NUM_ITEMS).matrices()
    features = FeatureRows(EXTRACTOR.item_features(list(view.items())).sparse)
    users, targets, bias = (tensor.detach().numpy() for tensor in network(matrices, features))
    state = build_state(replace(p, user_attributes=p.user_attributes[:0]), view)
    np.testing.assert_allclose(users, state.user_vectors(np.arange(NUM_USERS)), atol=1e-5)
    np.testing.assert_allclose(targets, state.target, atol=1e-5)
    np.testing.assert_allclose(bias, state.bias, atol=1e-5)
    again = network.to_parameters(p.item_ids, p.edge_weights, p.features)
    for field in fields(SageParameters):
        if field.name not in PRIVATE:
            assert np.array_equal(getattr(again, field.name), getattr(p, field.name)), field.name


def test_a_checkpoint_brings_it_back(trained: TrainedEncoder, tmp_path: Path) -> None:
    path = save_checkpoint(
        tmp_path, trained.parameters, trained.similarity, trained.settings, trained.metadata
    )
    loaded, view = load_checkpoint(path), world(attributes=True)
    assert isinstance(loaded.parameters, SageParameters)
    assert loaded.metadata == dict(trained.metadata)
    mine, theirs = build_state(trained.parameters, view), build_state(loaded.parameters, view)
    np.testing.assert_array_equal(mine.target, theirs.target)
    rows = np.arange(NUM_USERS)
    np.testing.assert_array_equal(mine.user_vectors(rows), theirs.user_vectors(rows))
    memories = np.arange(view.num_memories)
    np.testing.assert_array_equal(mine.memory_vectors(memories), theirs.memory_vectors(memories))


def test_search_chooses_for_sage_too() -> None:
    config = replace(QUICK, search=True, search_steps=20, l2=(3.0,), dims=(), fit=FitConfig(dim=8, steps=30))
    encoder = train(world(), config, extractor=EXTRACTOR)
    assert len(encoder.metadata["trials"]) == 2  # type: ignore[arg-type]
    assert parameters_of(encoder).dim == 8
