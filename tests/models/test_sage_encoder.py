"""`StructuralEncoder` over a `sage` checkpoint: users, items and memories by id, and the full encode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from graph.errors import InvalidInput, UnknownItem, UnknownMemory
from models.graph_encoder.benchmark import benchmark_encoder
from models.graph_encoder.checkpoint import save_checkpoint
from models.graph_encoder.encoder import StructuralEncoder
from models.graph_encoder.features import TextFeatures
from models.graph_encoder.parameters import EdgeWeights
from models.graph_encoder.sage_network import SageEncoderNetwork
from models.graph_encoder.sage_parameters import SageParameters
from models.graph_encoder.state import build_state
from models.ranking_settings import RankingSettings
from tests.models.graph_writer import MODEL, Writer

DIM = 8
EXTRACTOR = TextFeatures(MODEL, 6, item_buckets=32, user_buckets=16)
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def make_parameters() -> SageParameters:
    """Of a network as it is before training, with vectors of attributes."""
    network = SageEncoderNetwork(12, EXTRACTOR.item_columns, DIM, seed=3)
    weights = EdgeWeights((0.5, 3.0), (0.0, 1.0))
    parameters = network.to_parameters([f"i{n}" for n in range(12)], weights, EXTRACTOR.config())
    attributes = np.random.default_rng(0).normal(size=(16, DIM)).astype(np.float32)
    return SageParameters(**{**fields_of(parameters), "user_attributes": attributes})


def fields_of(parameters: SageParameters) -> dict:
    return {name: getattr(parameters, name) for name in parameters.__dataclass_fields__}


def make_graph() -> Writer:
    rng, writer = np.random.default_rng(1), Writer()
    for n in range(15):
        writer.put_item(f"i{n}", [f"t{n % 4}"], 1990 + n)
        if n % 3:
            writer.put_vector(f"i{n}", rng.normal(size=6))
    for n in range(10):
        writer.put_user(f"u{n}", **({"team": n % 3} if n % 2 else {}))
    for _ in range(70):
        writer.rate(f"u{rng.integers(9)}", f"i{rng.integers(15)}", float(rng.integers(1, 11)) / 2)
    for n in range(1, 9):
        writer.put_memory(f"u{n % 4}", f"mem_{n:04d}", f"text {n}")
        if n % 3:
            writer.put_memory_vector(f"mem_{n:04d}", rng.normal(size=6))
        writer.relate(f"mem_{n:04d}", "item", f"i{n}")
    writer.relate("mem_0001", "memory", "mem_0005")
    writer.commit()
    return writer


def close(one: torch.Tensor, other: np.ndarray) -> None:
    np.testing.assert_allclose(one.cpu().double().numpy(), other, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_a_full_encode_equals_the_incremental_state(device: str) -> None:
    writer = make_graph()
    writer.delete_item("i4")
    writer.delete_user("u7")
    writer.delete_memory("mem_0003")
    writer.commit()
    encoder = StructuralEncoder(make_parameters(), device).attach(writer.view)
    users, items = encoder.encode_all()
    assert users.device.type == items.device.type == device
    state = build_state(make_parameters(), writer.view)
    close(users, state.user_vectors([user.row for user in writer.view.users()]))
    close(items, state.target[[item.row for item in writer.view.items()]])
    close(encoder.encode_by_id(encoder.user_ids, "user"), users.cpu().numpy())


def test_a_memory_has_a_vector_by_its_id() -> None:
    writer = make_graph()
    encoder = StructuralEncoder(make_parameters()).attach(writer.view)
    state = build_state(make_parameters(), writer.view)
    row = writer.memories["mem_0001"].row
    close(encoder.encode_by_id(["mem_0001"]), state.memory_vectors([row]))
    close(encoder.encode_single("mem_0001", "memory"), state.memory_vectors([row])[0])
    mixed = encoder.encode_by_id(["u1", "mem_0002", "i2", "mem_0001"])
    close(mixed[1], state.memory_vectors([writer.memories["mem_0002"].row])[0])
    close(mixed[2], state.target[writer.items["i2"].row])
    with pytest.raises(UnknownMemory):
        encoder.encode_single("u1", "memory")
    with pytest.raises(UnknownItem, match="no item, user or memory"):
        encoder.encode_single("nothing")
    writer.put_user("mem_0001")
    writer.commit()
    with pytest.raises(InvalidInput, match="a user and a memory"):
        encoder.encode_single("mem_0001")


def test_an_encoder_without_memories_says_so() -> None:
    from tests.models.test_encoder import make_parameters as linear

    writer = make_graph()
    encoder = StructuralEncoder(linear()).attach(writer.view)
    assert encoder.encode_single("u1").shape == (8,)
    with pytest.raises(InvalidInput, match=r"`linear` and has no vectors of memories.*sage"):
        encoder.encode_single("mem_0001")


@pytest.mark.parametrize("follow", [True, False])
def test_cached_vectors_are_never_stale(follow: bool) -> None:
    """Whatever a memory's vector is made of may change: text, text vector, relation, item, other memory."""
    writer, rng = make_graph(), np.random.default_rng(2)
    encoder = StructuralEncoder(make_parameters()).attach(writer.view)
    writes = [
        lambda: writer.put_memory("u1", "mem_0001", "another text"),
        lambda: writer.put_memory_vector("mem_0001", rng.normal(size=6)),
        lambda: writer.relate("mem_0001", "item", "i9"),
        lambda: writer.put_vector("i9", rng.normal(size=6)),
        lambda: writer.put_item("i9", ["other"], 2020),
        lambda: writer.put_memory_vector("mem_0005", rng.normal(size=6)),
        lambda: writer.delete_memory("mem_0005"),
        lambda: writer.delete_item("i9"),
        lambda: writer.rate("u1", "i2", 5.0),
        lambda: writer.put_user("u1", team=9),
    ]
    moved = 0
    for write in writes:
        before = encoder.encode_by_id(["mem_0001", "u1"])
        assert torch.equal(encoder.encode_by_id(["mem_0001", "u1"]), before)
        write()
        if follow:
            writer.commit(encoder)
        else:
            writer.commit()
        state = build_state(make_parameters(), writer.view)
        found = encoder.encode_by_id(["mem_0001", "u1"])
        close(found[0], state.memory_vectors([writer.memories["mem_0001"].row])[0])
        close(found[1], state.user_vector(writer.users["u1"].row))
        moved += not torch.equal(found[0], before[0])
    assert moved >= 7
    assert encoder.statistics().hits > 0


def test_it_is_loaded_from_its_checkpoint_and_measured(tmp_path: Path) -> None:
    writer = make_graph()
    path = save_checkpoint(tmp_path, make_parameters(), None, RankingSettings(0.0))
    encoder = StructuralEncoder.load(path, graph=writer.view)
    ours = StructuralEncoder(make_parameters()).attach(writer.view)
    for mine, theirs in zip(encoder.encode_all(), ours.encode_all(), strict=True):
        assert torch.equal(mine, theirs)
    assert benchmark_encoder(encoder, num_iterations=3).nodes == 25


def test_a_hetero_graph_is_encoded() -> None:
    from models.graph_encoder.network import WeightedSum  # hides warnings of the next import

    assert WeightedSum
    from torch_geometric.data import HeteroData

    data = HeteroData()
    data["user"].num_nodes = 3
    data["item"].ids = ["i0", "i1"]
    data["user", "rates", "item"].edge_index = torch.tensor([[0, 1, 2], [0, 1, 1]])
    encoder = StructuralEncoder(make_parameters()).attach(data)
    users, items = encoder.encode_all()
    assert users.shape == (3, DIM) and items.shape == (2, DIM)
    close(encoder.encode_by_id(["0", "2"], "user"), users[[0, 2]].numpy())
