"""Graph encoder and retriever, following one graph state in this process, against the equations."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

import deployments.following as following
import deployments.graph_encoder as encoder_module
import deployments.retriever as retriever_module
from deployments.generations import load_generation
from deployments.graph_encoder import GraphEncoder
from deployments.graph_state import GraphState
from deployments.messages import RecommendAnswer, RecommendQuery, UserQuery, UserVector
from deployments.retriever import Retriever
from graph.api_keys import new_key
from graph.errors import InvalidInput, NotFound, NotYet, Unavailable, UnknownEncoder, UnknownItem, UnknownUser
from graph.schema import (
    DeleteApiKey,
    DeleteItem,
    DeleteRating,
    DeleteUser,
    Operation,
    PutApiKey,
    PutItem,
    PutPointer,
    PutRating,
    PutUser,
    WriteRequest,
    WriteResult,
)
from models.graph_encoder.checkpoint import load_checkpoint, save_checkpoint
from models.graph_encoder.features import HashedFeatures
from models.graph_encoder.incremental import LinearState
from models.graph_encoder.parameters import EdgeWeights, LinearParameters
from models.item_similarity import ItemSimilarity
from models.ranking_settings import RankingSettings
from tests.deployments.local_state import make_settings, until, write
from tests.plain_ranking import PlainRanking, assert_ranked

FEATURES = HashedFeatures(item_buckets=64, user_buckets=16)
TRAINED, DIM = 30, 8
TAGS = ("noir", "Space", "heist")


def make_encoder(folder: Path, seed: int, dim: int = DIM) -> str:
    """Save a random encoder that knows items i0 to i29; its digest."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    parameters = LinearParameters(
        item_ids=tuple(f"i{n}" for n in range(TRAINED)),
        id_source=normal(TRAINED, dim),
        id_target=normal(TRAINED, dim),
        id_bias=normal(TRAINED),
        feature_source=normal(FEATURES.item_buckets, dim),
        feature_target=normal(FEATURES.item_buckets, dim),
        feature_bias=normal(FEATURES.item_buckets),
        user_attributes=normal(FEATURES.user_buckets, dim),
        mix=np.array([0.9, 0.5, 0.3, 0.8, 0.6], np.float32),
        degree_exponent=0.4,
        edge_weights=EdgeWeights((3.0, 4.5), (0.5, 1.0)),
        features=FEATURES.config(),
    )
    matrix = sp.random(TRAINED, TRAINED, density=0.3, format="csr", dtype=np.float32, random_state=seed)
    matrix.setdiag(0)
    matrix.eliminate_zeros()
    similarity = ItemSimilarity(matrix)
    return save_checkpoint(folder, parameters, similarity, RankingSettings(similarity_weight=2.0), {}).name


class World:
    """One graph state, one encoder, one retriever, and a little graph."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        self.settings = make_settings(folder, retriever={"item_staleness_s": 0.02, "pull_rows": 7, **limits})
        self.digest, self.other = (make_encoder(self.settings.encoder_dir, seed) for seed in (1, 2))
        self.state = GraphState(self.settings)
        self.encoder = GraphEncoder(self.settings, self.state)
        self.retriever = Retriever(self.settings, self.state, self.encoder)
        self.rng = random.Random(0)

    async def fill(self, active: bool = True) -> None:
        await write(
            self.state, *(PutItem(f"i{n}", f"Film {n}", self.tags(n), 1980 + n, "plot") for n in range(36))
        )
        await write(self.state, *(PutUser(f"u{n}", {"age": n}) for n in range(8)))
        await write(
            self.state,
            *(
                PutRating(
                    f"u{n}", f"i{i}", self.rng.choice([1.0, 3.0, 4.0, 5.0]), 100 + self.rng.randrange(50)
                )
                for n in range(7)
                for i in self.rng.sample(range(36), 9)
            ),
        )
        if active:
            await self.point("active", self.digest)

    @staticmethod
    def tags(n: int) -> tuple[str, ...]:
        return tuple(tag for k, tag in enumerate(TAGS) if n % (k + 2) == 0)

    async def start(self) -> None:
        await self.encoder.start()
        await self.retriever.start()

    async def close(self) -> None:
        await self.retriever.stop()
        await self.encoder.stop()
        await self.state.close()

    async def point(self, name: str, digest: str | None) -> WriteResult:
        return await write(self.state, PutPointer("encoder", name, {"digest": digest}))

    async def reach(self, version: int) -> None:
        assert await self.encoder.wait_for(version, 15)
        assert await self.retriever.wait_for(version, 15)

    async def recommend(self, user_id: str | None = None, **options: Any) -> RecommendAnswer:
        """As the ingress asks: again while a replica is behind."""
        query = RecommendQuery(user_id, **options)
        async with asyncio.timeout(15):
            while True:
                (answer,) = await self.retriever.recommend([query])
                if isinstance(answer, RecommendAnswer):
                    return answer
                if not isinstance(answer, NotYet):
                    raise answer
                await asyncio.sleep(0.001)

    def plain(self, digest: str | None = None) -> PlainRanking:
        path = self.settings.encoder_dir / (digest or self.digest)
        return PlainRanking(load_checkpoint(path), self.state._writer.view)

    def random_operation(self) -> Operation:
        user, item = f"u{self.rng.randrange(10)}", f"i{self.rng.randrange(42)}"
        ratings = [
            PutRating(user, item, self.rng.randint(1, 10) / 2, self.rng.randrange(9)) for _ in range(12)
        ]
        put = PutItem(item, f"Film {self.rng.random()}", self.tags(self.rng.randrange(9)), 1999)
        return self.rng.choice(
            [
                *ratings,
                put,
                put,
                DeleteItem(item),
                DeleteRating(user, item),
                DeleteUser(user),
                PutUser(user, {"age": 3}),
            ]
        )

    async def write_some(self, count: int) -> int:
        """Random writes, some of them refused; the last version."""
        for _ in range(count):
            await self.state.write(
                [WriteRequest((self.random_operation(),)) for _ in range(self.rng.randint(1, 3))]
            )
        return self.state._head


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(following, "_RETRY_S", 0.001)
    monkeypatch.setattr(retriever_module, "_RETRY_S", 0.001)
    world = World(tmp_path)
    await world.fill()
    await world.start()
    yield world
    await world.close()


def ids(answer: RecommendAnswer) -> list[str]:
    return [r.item_id for r in answer.recommendations]


# ------------------------------------------------------------------------------------------------- equations


async def test_recommendations_are_what_the_equations_say(world: World) -> None:
    version = await world.write_some(120)
    await world.reach(version)
    plain, view = world.plain(), world.state._writer.view
    users = [u.user_id for u in view.users()]
    for user_id in users:
        answer = await world.recommend(user_id, n=12, exact_items=True, min_version=version)
        seen = {
            plain.items[row].item_id for row in view.ratings_of(view.user(user_id).row).item_rows.tolist()
        }
        every = {item.item_id for item in view.items()}
        assert_ranked(answer.recommendations, plain.scores(user_id), every - seen, 12)
        assert answer.basis == ("popular" if plain.user(user_id) is None else "personal")
        assert (answer.encoder, answer.version) == (world.digest, version)
        assert answer.item_version >= version
        again = await world.recommend(
            user_id, n=100, exclude_seen=False, exact_items=True, min_version=version
        )
        assert_ranked(again.recommendations, plain.scores(user_id), every, 100)
        for recommendation in answer.recommendations:
            assert recommendation.title == view.item(recommendation.item_id).title
            assert len(recommendation.because) <= 3
            assert {reason.item_id for reason in recommendation.because} <= seen
    assert len(users) >= 6


async def test_user_vectors_and_embeddings_are_what_the_equations_say(world: World) -> None:
    await world.reach(version := await world.write_some(40))
    plain = world.plain()
    for user in world.state._writer.view.users():
        (answer,) = await world.encoder.user_vectors([UserQuery(user.user_id, (), version)])
        assert isinstance(answer, UserVector)
        expected = plain.user(user.user_id)
        if expected is None:
            assert answer.vector is None
        else:
            np.testing.assert_allclose(answer.vector, expected, rtol=1e-4, atol=1e-4)
            embedding = await world.encoder.node_embedding(user.user_id, None, None, version)
            np.testing.assert_allclose(embedding.vector, expected, rtol=1e-4, atol=1e-4)
        times = [plain.view.rating(user.row, int(row))[1] for row in answer.seen_rows]
        assert times == sorted(times)
    item = next(world.state._writer.view.items())
    embedding = await world.encoder.node_embedding(item.item_id, "item", None, version)
    np.testing.assert_allclose(embedding.vector, plain.target[item.row], rtol=1e-4, atol=1e-4)


async def assert_rows_are_a_rebuilt_encoders(world: World) -> None:
    generation = world.retriever._generations.active
    assert generation is not None
    await until(lambda: world.retriever._follower.version == world.state._head)
    await until(lambda: generation.version >= world.state._head)
    view = world.state._writer.view
    parameters = load_checkpoint(world.settings.encoder_dir / world.digest).parameters
    fresh = LinearState(parameters, FEATURES, view)
    rows = np.array([item.row for item in view.items()])
    assert sorted(generation.ranker.rows().tolist()) == rows.tolist()
    expected = (fresh.source, fresh.target, fresh.bias)
    for mine, theirs in zip(generation.ranker.vectors(rows), expected, strict=True):
        np.testing.assert_allclose(mine, theirs[rows], rtol=1e-4, atol=1e-4)


async def test_after_many_writes_the_retriever_holds_a_rebuilt_encoders_rows(world: World) -> None:
    for _ in range(5):
        await world.write_some(60)
    await assert_rows_are_a_rebuilt_encoders(world)


async def test_a_pull_may_overtake_the_vectors_of_a_commit(world: World) -> None:
    """Newer vectors that came first must not stay overwritten by the older ones."""
    fetch, generation = world.retriever._fetch, world.retriever._generations.active
    assert generation is not None
    overtaken = []

    async def slow(*args: Any, **kwargs: Any) -> Any:
        pieces = await fetch(*args, **kwargs)
        if kwargs.get("rows") is not None and not overtaken:
            overtaken.append((await write(world.state, PutRating("u7", "i4", 5.0))).version)
            await world.encoder.wait_for(overtaken[0], 15)
            async with world.retriever._pulling:
                await world.retriever._pull(generation, overtaken[0])
        return pieces

    world.retriever._fetch = slow  # type: ignore[method-assign]
    await world.reach((await write(world.state, PutItem("i4", "Another title"))).version)
    assert overtaken
    await assert_rows_are_a_rebuilt_encoders(world)


async def test_a_session_is_recommended_what_an_inserted_user_would_be(world: World) -> None:
    session = (("i3", 5.0), ("i31", 3.0), ("i7", 1.0), ("i9", 4.0), ("i3", 4.0))
    before = await world.recommend(session=session, n=15)
    version = (
        await write(world.state, *(PutRating("inserted", item, value) for item, value in session))
    ).version
    # The session joins the sums it reads; other items see it only once it is inserted, so compare with z.
    (inside, outside) = await world.encoder.user_vectors([UserQuery(None, session), UserQuery("u1")])
    assert isinstance(inside, UserVector)
    assert isinstance(outside, UserVector)
    await world.reach(version)
    (user,) = await world.encoder.user_vectors([UserQuery("inserted", (), version)])
    assert isinstance(user, UserVector)
    assert user.seen_rows.tolist() == inside.seen_rows.tolist()
    assert user.seen_weights.tolist() == inside.seen_weights.tolist()
    assert before.basis == "personal"
    await write(world.state, DeleteUser("inserted"))
    await world.reach(world.state._head)
    (without,) = await world.encoder.user_vectors([UserQuery(None, session)])
    assert isinstance(without, UserVector)
    np.testing.assert_allclose(without.vector, user.vector, rtol=1e-4, atol=1e-5)
    again = await world.recommend(session=session, n=15, exact_items=True, min_version=world.state._head)
    assert ids(again) == ids(before)
    assert not {"i3", "i31", "i7", "i9"} & set(ids(again))


# ------------------------------------------------------------------------------------------------ live writes


async def test_every_client_reads_its_own_writes(world: World) -> None:
    async def client(number: int) -> None:
        rng = random.Random(number)
        name, seen = f"c{number}", set()
        for n in range(8):
            item = f"i{rng.randrange(36)}"
            result = await write(world.state, PutRating(name, item, 5.0, n + 1))
            seen.add(item)
            answer = await world.recommend(name, n=50, min_version=result.version)
            assert answer.version >= result.version
            assert set(ids(answer)) == {f"i{k}" for k in range(36)} - seen
            assert answer.basis == "personal"

    await asyncio.gather(*(client(n) for n in range(10)))


async def test_a_new_item_is_found_as_soon_as_its_version_is_published(world: World) -> None:
    for n in range(15):
        version = (await write(world.state, PutItem(f"new{n}", f"New {n}", ("fresh",)))).version
        await world.retriever.wait_for(version, 15)
        (answer,) = await world.retriever.recommend(
            [RecommendQuery("u0", tags=("FRESH",), n=50, min_version=version)]
        )
        assert isinstance(answer, RecommendAnswer)
        assert set(ids(answer)) == {f"new{k}" for k in range(n + 1)}
        similar = await world.retriever.similar(f"new{n}", 5, (), ("i1",), "graph", version)
        assert len(similar.similar) == 5
        assert not {f"new{n}", "i1"} & {r.item_id for r in similar.similar}


async def test_a_deleted_item_is_never_returned_again(world: World) -> None:
    stop = asyncio.Event()
    gone: dict[str, int] = {}

    async def ask() -> int:
        asked = 0
        while not stop.is_set():
            expected = dict(gone)
            at_least = max(expected.values(), default=0)
            answer = await world.recommend(f"u{asked % 7}", n=50, exclude_seen=False, min_version=at_least)
            assert not set(ids(answer)) & set(expected)
            assert not {b.item_id for r in answer.recommendations for b in r.because} & set(expected)
            asked += 1
            await asyncio.sleep(0)
        return asked

    asking = [asyncio.create_task(ask()) for _ in range(3)]
    for n in range(0, 30, 2):
        gone[f"i{n}"] = (await write(world.state, DeleteItem(f"i{n}"))).version
        await world.reach(gone[f"i{n}"])
    stop.set()
    assert min(await asyncio.gather(*asking)) > 3
    found = await world.retriever.similar("i0", 5, (), (), "graph", 0)
    assert isinstance(found, UnknownItem)


async def test_an_item_that_comes_back_is_another(world: World) -> None:
    await write(world.state, DeleteItem("i5"))
    version = (await write(world.state, PutItem("i5", "Reborn", ("again",)))).version
    answer = await world.recommend("u0", tags=("again",), min_version=version)
    assert [(r.item_id, r.title) for r in answer.recommendations] == [("i5", "Reborn")]
    await world.reach(version)
    plain = world.plain()
    exact = await world.recommend("u0", n=50, exact_items=True, min_version=version, candidates=("i5",))
    assert exact.recommendations[0].score == pytest.approx(plain.scores("u0")["i5"], rel=1e-4, abs=1e-4)


# ------------------------------------------------------------------------------------------------- filters


async def test_filters_hold(world: World) -> None:
    view, every = world.state._writer.view, {f"i{n}" for n in range(36)}
    seen = {
        f"i{row}": value for row, value in zip(*(c.tolist() for c in view.ratings_of(0)[:2]), strict=True)
    }
    noir = {f"i{n}" for n in range(36) if n % 2 == 0}
    space = {f"i{n}" for n in range(36) if n % 3 == 0}
    some = ("i1", "i2", "i3", "i4", "i6", "unknown")
    for options, eligible in (
        ({}, every - set(seen)),
        ({"exclude_seen": False}, every),
        ({"tags": ("NOIR", "space")}, noir & space - set(seen)),
        ({"tags": ("noir", "none has this")}, set()),
        ({"candidates": some, "exclude_seen": False}, set(some) - {"unknown"}),
        ({"candidates": some, "tags": ("noir",), "exclude_seen": False}, {"i2", "i4", "i6"}),
        ({"candidates": (), "exclude_seen": False}, set()),
        ({"exclude": some, "exclude_seen": False}, every - set(some)),
        ({"exclude_seen": False, "exclude_below": 4.0}, every - {i for i, v in seen.items() if v < 4.0}),
        ({"exclude": some, "exclude_below": 9.0, "tags": ("space",)}, space - set(some) - set(seen)),
    ):
        answer = await world.recommend("u0", n=40, **options)
        assert set(ids(answer)) == eligible, options
        assert len(ids(answer)) == len(eligible)
    silent = await world.recommend("u0", n=3, because=False)
    assert all(r.because == () for r in silent.recommendations)


@pytest.mark.parametrize("rating", [None, 1.0], ids=["no ratings", "nothing liked"])
async def test_without_likes_what_is_popular_is_said_to_be(world: World, rating: float | None) -> None:
    if rating is not None:
        await write(world.state, PutRating("u7", "i0", rating))
    version = world.state._head
    await world.reach(version)
    answer = await world.recommend("u7", n=8, min_version=version, exact_items=True)
    assert answer.basis == "popular"
    rated = set() if rating is None else {"i0"}
    assert_ranked(answer.recommendations, world.plain().scores("u7"), {f"i{n}" for n in range(36)} - rated, 8)
    empty = await world.recommend(session=(), n=3)
    assert empty.basis == "popular"


async def test_errors_are_typed_and_leave_the_batch_alone(world: World) -> None:
    head = world.state._head
    answers = await world.retriever.recommend(
        [
            RecommendQuery("nobody"),
            RecommendQuery("u0", n=2),
            RecommendQuery(session=(("no item", 5.0),)),
            RecommendQuery("u1", min_version=head + 5),
            RecommendQuery("u1", n=3, exact_items=True, min_version=head),
        ]
    )
    assert [type(a) for a in answers[:4]] == [UnknownUser, RecommendAnswer, UnknownItem, NotYet]
    assert isinstance(answers[1], RecommendAnswer)
    assert len(answers[1].recommendations) == 2
    assert isinstance(await world.encoder.read_user("nobody", 0), UnknownUser)
    assert isinstance(await world.encoder.read_item("nothing", 0), UnknownItem)
    assert isinstance(await world.encoder.read_user("u0", head + 1), NotYet)
    assert isinstance(await world.encoder.node_embedding("x", "item", None, 0), NotFound)
    assert isinstance(await world.encoder.list_users(5, "x", 0), InvalidInput)
    assert isinstance(await world.encoder.item_vectors("0" * 16), UnknownEncoder)


async def test_an_encoder_that_is_behind_holds_up_nobody_else(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact items that cannot be had are `not_yet` for who asked for them, at once."""

    async def behind(*_: Any, **__: Any) -> NotYet:
        return NotYet("the graph encoder is behind")

    monkeypatch.setattr(world.encoder, "item_vectors", behind)
    generation = world.retriever._generations.active
    assert generation is not None
    generation.version = -1
    head = world.state._head
    async with asyncio.timeout(15):
        exact, plain = await world.retriever.recommend(
            [RecommendQuery("u0", exact_items=True, min_version=head), RecommendQuery("u0", min_version=head)]
        )
    assert isinstance(exact, NotYet)
    assert isinstance(plain, RecommendAnswer)


async def test_reads_and_listings(world: World) -> None:
    head = world.state._head
    user = await world.encoder.read_user("u0", head)
    assert (user.user.user_id, user.num_ratings, user.version) == ("u0", 9, head)
    item = await world.encoder.read_item("i4", head)
    assert item.num_ratings == len(world.state._writer.view.raters_of(4).user_rows)
    found, after = [], None
    while True:
        page = await world.encoder.list_items(10, after, head)
        found += [record.item.item_id for record in page.records]
        if (after := page.next) is None:
            break
    assert found == [f"i{n}" for n in range(36)]
    first = await world.encoder.list_ratings("u0", 5, None, head)
    rest = await world.encoder.list_ratings("u0", 5, first.next, head)
    assert rest.next is None
    rated = world.state._writer.view.ratings_of(0)
    expected = sorted(zip(*(column.tolist() for column in rated), strict=True))
    listed = [(int(r.item_id[1:]), r.value, r.timestamp) for r in first.records + rest.records]
    assert listed == expected


async def test_keys_are_listed_without_what_opens_them(world: World) -> None:
    made = sorted(new_key() for _ in range(5))
    keys = [PutApiKey(key.key_id, "read", key.digest, n) for n, key in enumerate(made)]
    head = (await write(world.state, *keys, DeleteApiKey(made[1].key_id))).version
    await world.reach(head)
    found, after = [], None
    while True:
        page = await world.encoder.list_api_keys(2, after, head)
        assert len(page.records) <= 2
        found += page.records
        if (after := page.next) is None:
            break
    assert [key.key_id for key in found] == [key.key_id for n, key in enumerate(made) if n != 1]
    assert [key.created_at for key in found] == [0, 2, 3, 4]
    assert {key.digest for key in found} == {""}
    assert isinstance(await world.encoder.list_api_keys(2, "3", head), InvalidInput)
    assert isinstance(await world.encoder.list_api_keys(2, None, head + 1), NotYet)


# ---------------------------------------------------------------------------------------------- generations


async def test_without_an_encoder_reads_answer_and_the_rest_says_why(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.fill(active=False)
    await world.start()
    assert (await world.encoder.read_user("u0", 3)).num_ratings == 9
    (answer,) = await world.retriever.recommend([RecommendQuery("u0")])
    assert isinstance(answer, Unavailable)
    assert "weft train" in answer.message
    version = (await write(world.state, PutRating("u0", "i35", 5.0))).version
    await world.reach(version)
    await world.reach((await world.point("active", world.digest)).version)
    await until(
        lambda: world.digest in world.encoder.generations() and world.digest in world.retriever.generations()
    )
    assert (await world.recommend("u0", n=3)).encoder == world.digest
    await world.close()


async def test_a_generation_change_fails_nobody_and_mixes_nothing(world: World) -> None:
    stop = asyncio.Event()
    answers: list[RecommendAnswer] = []

    async def ask(user_id: str) -> None:
        while not stop.is_set():
            answers.append(await world.recommend(user_id, n=40, exclude_seen=False))
            await asyncio.sleep(0)

    async def change(digest: str) -> None:
        await world.point("candidate", digest)
        await until(lambda: digest in world.encoder.generations() and digest in world.retriever.generations())
        assert world.encoder._generations.active_digest != digest
        count = len(answers)
        await until(lambda: len(answers) > count + 3)
        # One group commit: an item that both generations need, and the change itself.
        new = PutItem(f"with {digest}", "New", ("with",))
        outcomes = await world.state.write(
            [WriteRequest((new,)), WriteRequest((PutPointer("encoder", "active", {"digest": digest}),))]
        )
        await world.reach(outcomes[-1].version)
        await until(lambda: answers[-1].encoder == digest)

    asking = [asyncio.create_task(ask(f"u{n}")) for n in range(5)]
    for digest in (world.other, world.digest):
        await change(digest)
    stop.set()
    await asyncio.gather(*asking)
    assert {a.encoder for a in answers} == {world.digest, world.other}
    # No rating changed: up to the two new items, each answer is one of two.
    plain = {digest: world.plain(digest) for digest in (world.digest, world.other)}
    scores = {digest: {f"u{n}": plain[digest].scores(f"u{n}") for n in range(5)} for digest in plain}
    for answer in answers:
        for r in answer.recommendations:
            expected = scores[answer.encoder][answer.user_id or ""][r.item_id]
            assert r.score == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert world.encoder.generations() == world.retriever.generations() == (world.digest,)
    similar = await world.retriever.similar("i1", 3, ("with",), (), "graph", world.state._head)
    assert len(similar.similar) == 2


async def test_a_candidate_follows_the_writes_while_it_is_built(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(
        encoder_module, "load_generation", lambda *named: gate.wait(15) and load_generation(*named)
    )
    await world.reach((await world.point("candidate", world.other)).version)
    await world.reach(await world.write_some(60))
    assert world.encoder.generations() == (world.digest,)
    gate.set()
    await until(
        lambda: world.other in world.encoder.generations() and world.other in world.retriever.generations()
    )
    version = (await world.point("active", world.other)).version
    await world.reach(version)
    plain, view = world.plain(world.other), world.state._writer.view
    for user in view.users():
        answer = await world.recommend(
            user.user_id, n=50, exclude_seen=False, exact_items=True, min_version=version
        )
        assert answer.encoder == world.other
        assert_ranked(
            answer.recommendations, plain.scores(user.user_id), {i.item_id for i in view.items()}, 50
        )


async def test_a_damaged_candidate_is_reported_and_changes_nothing(world: World) -> None:
    (world.settings.encoder_dir / world.other / "tensors.safetensors").write_bytes(b"damaged")
    await world.point("candidate", world.other)
    await until(lambda: world.other in world.encoder.failed() and world.other in world.retriever.failed())
    assert world.encoder.generations() == world.retriever.generations() == (world.digest,)
    assert (await world.recommend("u0")).encoder == world.digest
    world.encoder.check_health()
    world.retriever.check_health()
    await until(lambda: any(world.other in f.failed for f in world.state.followers()))


async def test_a_candidate_that_only_the_encoder_cannot_load_is_reported_by_both(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(digest: str) -> Any:
        raise Unavailable(f"{digest} does not fit into memory")

    monkeypatch.setattr(world.encoder._generations, "_build", fail)
    await world.point("candidate", world.other)
    await until(lambda: world.other in world.encoder.failed() and world.other in world.retriever.failed())


async def test_an_encoder_that_is_ahead_of_a_change_does_not_hold_the_retriever(world: World) -> None:
    """It has retired the old generation while the retriever still has items to bring into it."""
    await world.point("candidate", world.other)
    await until(lambda: world.other in world.retriever.generations())
    fetch, hold = world.retriever._fetch, asyncio.Event()

    async def held(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("rows") is not None:
            await hold.wait()
        return await fetch(*args, **kwargs)

    world.retriever._fetch = held  # type: ignore[method-assign]
    await write(world.state, PutItem("late", "Late", ("late",)))
    version = (await world.point("active", world.other)).version
    await until(lambda: world.digest not in world.encoder.generations())
    hold.set()
    await world.reach(version)
    answer = await world.recommend("u0", tags=("late",), min_version=version)
    assert (ids(answer), answer.encoder) == (["late"], world.other)


async def test_active_and_candidate_are_both_built_at_a_start(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.fill()
    await world.point("candidate", world.other)
    await world.start()
    both = {world.digest, world.other}
    await until(lambda: set(world.encoder.generations()) == set(world.retriever.generations()) == both)
    assert (await world.recommend("u0")).encoder == world.digest
    await world.close()
