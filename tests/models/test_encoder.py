"""`StructuralEncoder`: full and incremental paths agree, and the cache never changes an answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from graph.delta import Delta
from graph.errors import InvalidInput, UnknownItem, UnknownUser
from graph.schema import RATING_DTYPE, ChangeSet, Item, TextVector, User
from graph.view import GraphView
from models.graph_encoder.benchmark import benchmark_encoder
from models.graph_encoder.caller_graph import view_from_arrays, view_from_hetero
from models.graph_encoder.checkpoint import save_checkpoint
from models.graph_encoder.encoder import StructuralEncoder
from models.graph_encoder.features import FeatureExtractor, HashedFeatures, TextFeatures
from models.graph_encoder.incremental import LinearState
from models.graph_encoder.parameters import EdgeWeights, LinearParameters
from models.ranking_settings import RankingSettings

EXTRACTOR = HashedFeatures(item_buckets=32, user_buckets=16)
TEXT = TextFeatures("model-a", 5, item_buckets=32, user_buckets=16)
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def make_parameters(
    dim: int = 8, known: int = 20, extractor: FeatureExtractor = EXTRACTOR
) -> LinearParameters:
    rng, columns = np.random.default_rng(0), extractor.item_columns

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return LinearParameters(
        item_ids=tuple(f"i{n}" for n in range(known)),
        id_source=draw(known, dim),
        id_target=draw(known, dim),
        id_bias=draw(known),
        feature_source=draw(columns, dim),
        feature_target=draw(columns, dim),
        feature_bias=draw(columns),
        user_attributes=draw(16, dim),
        mix=np.array([0.5, 1.5, -0.7, 0.9, 1.2], np.float32),
        degree_exponent=0.7,
        edge_weights=EdgeWeights((0.5, 3.0), (0.0, 1.0)),
        features=extractor.config(),
    )


def make_view(users: int = 30, items: int = 25, ratings: int = 200, seed: int = 0) -> GraphView:
    rng = np.random.default_rng(seed)
    edges = np.stack([rng.integers(users, size=ratings), rng.integers(items, size=ratings)])
    return view_from_arrays(
        [User(0, f"u{n}", {"team": n % 3} if n % 2 else {}, 1) for n in range(users)],
        [Item(0, f"i{n}", f"Film {n}", (f"t{n % 5}",), 1990 + n, "", 1) for n in range(items)],
        edges,
        rng.integers(1, 11, ratings) / 2,
    )


def rate(view: GraphView, user_row: int, item_row: int, value: float) -> Delta:
    record = np.zeros(1, RATING_DTYPE)
    record[0] = (user_row, item_row, value, 0, view.version + 1, False)
    return view.apply(ChangeSet(view.version, view.version + 1, ratings=record))


def put_vectors(view: GraphView, rows: list[int], model: str = TEXT.text_model) -> Delta:
    version = view.version + 1
    drawn = np.random.default_rng(version).normal(size=(len(rows), TEXT.text_dim)).astype("<f2")
    vectors = [
        TextVector("item", row, model, "00" * 16, vector.tobytes(), version)
        for row, vector in zip(rows, drawn, strict=True)
    ]
    return view.apply(ChangeSet(view.version, version, text_vectors=vectors))


def delete(view: GraphView, item_row: int) -> None:
    """Remove an item with its ratings, and a user without any."""
    version = view.version + 1
    raters = view.raters_of(item_row).user_rows
    records = np.zeros(len(raters), RATING_DTYPE)
    records["user_row"], records["item_row"], records["deleted"] = raters, item_row, True
    item = view.item_at(item_row)
    assert item is not None
    gone = Item(item_row, item.item_id, "", (), None, "", version, deleted=True)
    view.apply(ChangeSet(view.version, version, items=[gone], ratings=records))


def close(one: torch.Tensor, other: object, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(one.cpu().double().numpy(), np.asarray(other), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("device", DEVICES)
def test_a_full_encode_equals_the_incremental_state(device: str) -> None:
    view = make_view()
    delete(view, 7)
    encoder = StructuralEncoder(make_parameters(), device).attach(view)
    users, items = encoder.encode_all()
    assert users.device.type == items.device.type == device
    state = LinearState(make_parameters(), EXTRACTOR, view)
    live = [item.row for item in view.items()]
    assert len(live) == 24
    close(items, state.target[live])
    close(users, state.user_vectors([user.row for user in view.users()]))
    assert len(encoder.user_ids) == len(users)
    assert len(encoder.item_ids) == len(items)


def test_a_full_encode_equals_the_network() -> None:
    from models.graph_encoder.network import EdgeList, FeatureRows, LinearEncoderNetwork

    view, parameters = make_view(items=20), make_parameters()
    users, items = StructuralEncoder(parameters).attach(view).encode_all()
    edges = view.edges()
    weights = parameters.edge_weights(edges.values)
    matrices = EdgeList(edges.user_rows, edges.item_rows.astype(np.int64), weights, 30, 20).matrices()
    with torch.no_grad():
        theirs = LinearEncoderNetwork.from_parameters(parameters)(
            matrices,
            FeatureRows(EXTRACTOR.item_features(list(view.items())).sparse),
            FeatureRows(EXTRACTOR.user_features(list(view.users()))),
        )
    close(users, theirs[0].numpy())
    close(items, theirs[1].numpy())


def test_a_full_encode_reads_text_vectors() -> None:
    from models.graph_encoder.network import EdgeList, FeatureRows, LinearEncoderNetwork

    view, parameters = make_view(items=20), make_parameters(extractor=TEXT)
    encoder = StructuralEncoder(parameters).attach(view)
    users, items = encoder.encode_all()
    close(items, LinearState(parameters, TEXT, view).target)
    delta = put_vectors(view, list(range(0, 20, 2)))
    encoder.apply(delta)
    moved = encoder.encode_all()
    assert not torch.allclose(moved[0], users) and not torch.allclose(moved[1], items)
    features = TEXT.item_features(
        list(view.items()), view.text_vectors("item", TEXT.text_model).get(np.arange(20))[0]
    )
    edges = view.edges()
    weights = parameters.edge_weights(edges.values)
    matrices = EdgeList(edges.user_rows, edges.item_rows.astype(np.int64), weights, 30, 20).matrices()
    with torch.no_grad():
        theirs = LinearEncoderNetwork.from_parameters(parameters)(
            matrices,
            FeatureRows(features.sparse, dense=features.dense),
            FeatureRows(TEXT.user_features(list(view.users()))),
        )
    close(moved[0], theirs[0].numpy())
    close(moved[1], theirs[1].numpy())


@pytest.mark.parametrize("follow", [True, False])
def test_a_changed_text_vector_makes_cached_vectors_stale(follow: bool) -> None:
    view, parameters = make_view(), make_parameters(extractor=TEXT)
    encoder = StructuralEncoder(parameters).attach(view)
    for n in range(4):
        ids = ["i1", "i2", "i3", "i24"]
        encoder.encode_by_id([*ids, "u1"])
        delta = put_vectors(view, [1, n])
        if follow:
            encoder.apply(delta)
        fresh = LinearState(parameters, TEXT, view)
        close(encoder.encode_by_id(ids), fresh.target[[1, 2, 3, 24]])
        close(encoder.encode_by_id(["u1"]), fresh.user_vectors([1]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_results_have_the_dtype_asked_for(dtype: torch.dtype) -> None:
    view = make_view()
    encoder = StructuralEncoder(make_parameters(), dtype=dtype).attach(view)
    state = LinearState(make_parameters(), EXTRACTOR, view)
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(dtype, 2e-5)
    for vectors in (encoder.encode_all()[1], encoder.encode_by_id(encoder.item_ids, "item")):
        assert vectors.dtype == dtype
        close(vectors, state.target, tolerance)
    with pytest.raises(InvalidInput, match="floating-point"):
        StructuralEncoder(make_parameters(), dtype=torch.int32)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("follow", [True, False])
def test_vectors_by_id_are_never_stale(cached: bool, follow: bool) -> None:
    view, rng = make_view(), np.random.default_rng(1)
    encoder = StructuralEncoder(make_parameters(), cache_embeddings=cached).attach(view)
    for _ in range(60):
        users = [f"u{n}" for n in rng.integers(30, size=4)]
        items = [f"i{n}" for n in rng.integers(25, size=4)]
        expected = LinearState(make_parameters(), EXTRACTOR, view)
        close(encoder.encode_by_id(users, "user"), expected.user_vectors([view.user(u).row for u in users]))
        close(encoder.encode_by_id(items), expected.target[[view.item(i).row for i in items]])
        delta = rate(view, int(rng.integers(30)), int(rng.integers(25)), float(rng.integers(1, 11)) / 2)
        if follow:
            encoder.apply(delta)
    assert (encoder.statistics().hits > 0) is (cached and follow)
    close(encoder.encode_all()[1], LinearState(make_parameters(), EXTRACTOR, view).target)


def test_statistics_count_what_happened() -> None:
    encoder = StructuralEncoder(make_parameters(), max_entries=3).attach(make_view())
    assert encoder.statistics().cached_entries == encoder.statistics().state_bytes == 0
    encoder.encode_by_id(["i1", "i2", "i1"])
    first = encoder.statistics()
    assert (first.hits, first.misses, first.cached_entries, first.cached_bytes) == (0, 2, 2, 2 * 8 * 4)
    assert first.state_bytes > 0
    encoder.encode_single("i1")
    encoder.encode_by_id(["i3", "u1"])
    # i2 was the longest unused of four.
    encoder.encode_by_id(["i1", "i3", "u1"])
    assert encoder.statistics().hits == 4
    encoder.encode_single("i2")
    assert (encoder.statistics().misses, encoder.statistics().cached_entries) == (5, 3)
    encoder.encode_all()
    assert encoder.statistics().encodes == 1


def test_the_cache_can_be_off_cleared_and_aged() -> None:
    now = [0.0]
    off = StructuralEncoder(make_parameters(), cache_embeddings=False).attach(make_view())
    off.encode_single("i1")
    off.encode_single("i1")
    assert (off.statistics().hits, off.statistics().misses, off.statistics().cached_entries) == (0, 2, 0)
    encoder = StructuralEncoder(make_parameters(), max_age_s=10, clock=lambda: now[0]).attach(make_view())
    encoder.encode_by_id(["i1", "u1"])
    now[0] = 10.0
    encoder.encode_by_id(["i1", "u1"])
    assert encoder.statistics().hits == 2
    now[0] = 10.1
    encoder.encode_by_id(["i1", "u1"])
    assert (encoder.statistics().hits, encoder.statistics().misses) == (2, 4)
    encoder.invalidate(["u1", "unknown"])
    encoder.encode_by_id(["i1", "u1"])
    assert (encoder.statistics().hits, encoder.statistics().misses) == (3, 5)
    encoder.invalidate()
    assert encoder.statistics().cached_entries == 0
    with pytest.raises(ValueError, match="max_age_s"):
        StructuralEncoder(make_parameters(), max_age_s=0)


def test_a_cached_vector_is_not_a_window_into_the_tables() -> None:
    view = make_view()
    encoder = StructuralEncoder(make_parameters()).attach(view)
    vector = encoder.encode_single("i1")
    before = vector.clone()
    encoder.encode_by_id(encoder.user_ids[:9], "user")
    assert all(entry.untyped_storage().nbytes() == 8 * 4 for entry, _, _ in encoder._cache._entries.values())
    for user in range(30):
        encoder.apply(rate(view, user, 1, 5.0))
    assert torch.equal(vector, before)
    assert not torch.allclose(encoder.encode_single("i1"), before)


def test_ids_are_looked_up_by_kind() -> None:
    view = view_from_arrays(["i1", "u"], ["i1", "i2"], [[0, 1], [0, 1]])
    encoder = StructuralEncoder(make_parameters()).attach(view)
    with pytest.raises(InvalidInput, match="an item and a user"):
        encoder.encode_single("i1")
    assert not torch.equal(encoder.encode_single("i1", "item"), encoder.encode_single("i1", "user"))
    assert torch.equal(encoder.encode_single("u"), encoder.encode_single("u", "user"))
    with pytest.raises(UnknownUser):
        encoder.encode_single("i2", "user")
    with pytest.raises(UnknownItem):
        encoder.encode_single("u", "item")
    with pytest.raises(UnknownItem, match="no item, user or memory"):
        encoder.encode_single("x")
    assert encoder.encode_by_id([]).shape == (0, 8)
    with pytest.raises(InvalidInput, match="attach"):
        StructuralEncoder(make_parameters()).encode_all()


def test_an_encoder_is_loaded_from_its_checkpoint(tmp_path: Path) -> None:
    path, view = save_checkpoint(tmp_path, make_parameters(), None, RankingSettings(0.0)), make_view()
    encoder = StructuralEncoder.load(path, device="cpu", dtype=torch.float32, compile=False, graph=view)
    assert torch.equal(
        encoder.encode_all()[0], StructuralEncoder(make_parameters()).attach(view).encode_all()[0]
    )


def test_nodes_without_ratings_have_vectors() -> None:
    view = view_from_arrays(["u0"], [Item(0, "i3", "", ("t1",), None, "", 1)], np.empty((2, 0), np.int64))
    users, items = StructuralEncoder(make_parameters()).attach(view).encode_all()
    assert not users.any()
    assert items.any()
    empty = StructuralEncoder(make_parameters()).attach(GraphView())
    assert [t.shape for t in empty.encode_all()] == [(0, 8), (0, 8)]


def test_a_hetero_graph_equals_the_arrays() -> None:
    from torch_geometric.data import HeteroData

    data = HeteroData()
    data["user"].num_nodes = 3
    data["item"].ids = ["i0", "i1"]
    data["user", "rates", "item"].edge_index = torch.tensor([[0, 1, 2, 2], [0, 1, 1, 1]])
    data["user", "rates", "item"].rating = torch.tensor([5.0, 4.0, 1.0, 3.5])
    view = view_from_hetero(data)
    assert [user.user_id for user in view.users()] == ["0", "1", "2"]
    assert view.rating(2, 1) == (3.5, 0)  # the later of two edges
    other = view_from_arrays(["0", "1", "2"], ["i0", "i1"], [[0, 1, 2], [0, 1, 1]], [5.0, 4.0, 3.5])
    ours, theirs = (StructuralEncoder(make_parameters()).attach(g).encode_all() for g in (data, other))
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    with pytest.raises(InvalidInput, match="one edge type"):
        view_from_hetero(HeteroData())


@pytest.mark.parametrize(
    ("edges", "values", "says"),
    [
        ([0, 1], None, "expected integers"),
        ([[0.5], [0.5]], None, "expected integers"),
        ([[2], [0]], None, "outside the 2 users"),
        ([[0], [-1]], None, "outside the 1 items"),
        ([[0], [0]], [1.0, 2.0], "one per edge"),
        ([[0], [0]], [float("nan")], "finite"),
    ],
)
def test_nonsense_arrays_are_refused(edges: list, values: list | None, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        view_from_arrays(["a", "b"], ["i"], edges, values)


def test_repeated_ids_are_refused() -> None:
    with pytest.raises(InvalidInput, match="must not repeat"):
        view_from_arrays(["a", "a"], ["i"], np.empty((2, 0), int))


def test_the_benchmark_reports_every_figure() -> None:
    encoder = StructuralEncoder(make_parameters()).attach(make_view())
    report = benchmark_encoder(encoder, num_iterations=5)
    for timing in (report.full, report.uncached, report.cached):
        assert 0 < timing.p50_ms <= timing.p99_ms
        assert timing.per_second == pytest.approx(1000 / timing.mean_ms)
    assert (report.nodes, report.ratings) == (55, encoder.view.num_ratings)
    assert report.bytes_per_node > 8 * 8
    with pytest.raises(InvalidInput):
        benchmark_encoder(encoder, num_iterations=0)


def test_neither_ray_nor_faiss_nor_redis_is_needed() -> None:
    program = (
        "import sys\n"
        "for name in ('ray', 'faiss', 'redis'): sys.modules[name] = None\n"
        "import models.graph_encoder.benchmark\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root)
