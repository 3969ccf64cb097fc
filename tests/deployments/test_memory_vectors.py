"""Vectors of memories, and recommendations for users of whom nothing but memories is known."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.graph_encoder import GraphEncoder
from deployments.graph_state import GraphState
from deployments.messages import NodeEmbedding, RecommendAnswer, RecommendQuery, UserQuery, UserVector
from deployments.retriever import Retriever
from graph.errors import InvalidInput, NotFound, NotYet
from graph.schema import DeleteMemory, PutItem, PutMemory, PutPointer, PutRating, PutRelation, PutUser
from models.graph_encoder.checkpoint import save_checkpoint
from models.graph_encoder.features import HashedFeatures
from models.graph_encoder.parameters import EdgeWeights
from models.graph_encoder.sage import SageState
from models.graph_encoder.sage_parameters import SageParameters
from models.ranking_settings import RankingSettings
from tests.deployments.local_state import make_settings, until, write
from tests.deployments.test_replicas import make_encoder

FEATURES = HashedFeatures(item_buckets=64, user_buckets=16)
ITEMS, DIM = 12, 8


def make_sage(folder: Path) -> str:
    """Save a random `sage` encoder that knows items i0 to i11; its digest."""
    rng = np.random.default_rng(3)

    def normal(*shape: int) -> Any:
        return (0.5 * rng.normal(size=shape)).astype(np.float32)

    square = {
        name: normal(DIM, DIM)
        for name in (
            "user_neighbours", "user_root", "item_neighbours", "item_root", "source_root", "source_hidden",
            "target_hidden", "memory_root", "memory_items", "memory_memories", "memory_gate",
        )
    }  # fmt: skip
    parameters = SageParameters(
        item_ids=tuple(f"i{n}" for n in range(ITEMS)),
        id_source=normal(ITEMS, DIM),
        id_target=normal(ITEMS, DIM),
        id_bias=normal(ITEMS),
        feature_source=normal(FEATURES.item_buckets, DIM),
        feature_target=normal(FEATURES.item_buckets, DIM),
        feature_bias=normal(FEATURES.item_buckets),
        user_bias=normal(DIM),
        item_bias=normal(DIM),
        user_attributes=normal(FEATURES.user_buckets, DIM),
        edge_weights=EdgeWeights((3.0, 4.5), (0.5, 1.0)),
        features=FEATURES.config(),
        **square,
    )
    return save_checkpoint(folder, parameters, None, RankingSettings(similarity_weight=0.0), {}).name


class World:
    def __init__(self, folder: Path) -> None:
        self.settings = make_settings(folder, retriever={"item_staleness_s": 0.02})
        self.state = GraphState(self.settings)
        self.encoder = GraphEncoder(self.settings, self.state)
        self.retriever = Retriever(self.settings, self.state, self.encoder)

    async def start(self) -> None:
        await write(
            self.state,
            *(PutItem(f"i{n}", f"Film {n}", ("noir",)) for n in range(ITEMS)),
            PutRating("ann", "i0", 5.0),
            PutUser("zoe"),
            PutMemory("m1", "bob", "a film about a quiet sea"),
            PutMemory("m2", "bob", "another"),
            PutRelation("bob", "m1", "about", "item", "i3"),
        )
        await self.encoder.start()
        await self.retriever.start()

    async def activate(self, digest: str) -> None:
        result = await write(self.state, PutPointer("encoder", "active", {"digest": digest}))
        for replica in (self.encoder, self.retriever):
            assert await replica.wait_for(result.version, 15)
            await until(lambda replica=replica: replica._generations.active_digest == digest)  # type: ignore[misc]

    async def close(self) -> None:
        await self.retriever.stop()
        await self.encoder.stop()
        await self.state.close()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    await world.start()
    yield world
    await world.close()


async def test_an_encoder_of_memories_has_their_vectors(world: World) -> None:
    await world.activate(make_sage(world.settings.encoder_dir))
    active = world.encoder._generations.active
    assert active is not None and isinstance(active.state, SageState)
    found = await world.encoder.node_embedding("m1", "memory", "bob", world.state._head)
    assert isinstance(found, NodeEmbedding)
    assert (found.kind, found.node_id, found.version) == ("memory", "m1", world.state._head)
    memory = active.view.find_memory("m1")
    assert memory is not None
    np.testing.assert_array_equal(found.vector, active.state.memory_vectors([memory.row])[0])
    # Private: nobody comes upon one without asking for memories.
    assert isinstance(await world.encoder.node_embedding("m1", None, None, world.state._head), NotFound)
    before = found.vector
    ahead = world.state._head + 1
    assert isinstance(await world.encoder.node_embedding("m1", "memory", "bob", ahead), NotYet)
    await write(world.state, PutRelation("bob", "m2", "about", "item", "i1"))
    assert await world.encoder.wait_for(ahead, 15)
    unchanged = await world.encoder.node_embedding("m1", "memory", "bob", ahead)
    assert isinstance(unchanged, NodeEmbedding)
    np.testing.assert_array_equal(unchanged.vector, before)
    result = await write(world.state, DeleteMemory("m1", "bob"))
    assert await world.encoder.wait_for(result.version, 15)
    assert isinstance(await world.encoder.node_embedding("m1", "memory", "bob", result.version), NotFound)


async def test_another_encoder_says_what_to_do(world: World) -> None:
    await world.activate(make_encoder(world.settings.encoder_dir, 1))
    found = await world.encoder.node_embedding("m1", "memory", "bob", 0)
    assert isinstance(found, InvalidInput)
    assert "sage" in found.message
    assert isinstance(await world.encoder.node_embedding("m9", "memory", "bob", 0), NotFound)
    # Whoever calls a memory as an item is called takes nothing from the item.
    await write(world.state, PutItem("m1", "A film"))
    assert await world.encoder.wait_for(world.state._head, 15)
    for kind in (None, "item"):
        item = await world.encoder.node_embedding("m1", kind, None, 0)
        assert isinstance(item, NodeEmbedding) and item.kind == "item"


@pytest.mark.parametrize("kind", ["sage", "linear"])
async def test_memories_alone_are_personal_where_the_encoder_reads_them(world: World, kind: str) -> None:
    folder = world.settings.encoder_dir
    await world.activate(make_sage(folder) if kind == "sage" else make_encoder(folder, 1))
    queries = [UserQuery(user) for user in ("bob", "zoe", "ann")]
    vectors = []
    for answer in await world.encoder.user_vectors(queries):
        assert isinstance(answer, UserVector)
        vectors.append(answer.vector)
    assert [vector is not None for vector in vectors] == [kind == "sage", False, True]
    answers = await world.retriever.recommend([RecommendQuery(q.user_id, n=3) for q in queries])
    bases = []
    for found in answers:
        assert isinstance(found, RecommendAnswer), found
        assert len(found.recommendations) == 3
        bases.append(found.basis)
    assert bases == ["personal" if kind == "sage" else "popular", "popular", "personal"]
