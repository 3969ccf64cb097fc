"""Whatever is written, however a replica follows: at the head it is what plain dicts say.

The machine writes through `GraphWriter`, restarts it, snapshots and purges, and lets followers fall behind
and catch up by every road there is.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from graph.errors import Fenced, SnapshotRequired, WeftError
from graph.node_text import text_digest
from graph.schema import (
    ChangeSet,
    DeleteApiKey,
    DeleteItem,
    DeleteMemory,
    DeleteRating,
    DeleteRelation,
    DeleteTextVector,
    DeleteUser,
    Operation,
    PutApiKey,
    PutItem,
    PutMemory,
    PutPointer,
    PutRating,
    PutRelation,
    PutTextVector,
    PutUser,
    TextKind,
    WriteRequest,
)
from graph.snapshot import newest_snapshot, remove_snapshots_before, write_snapshot
from graph.store import GraphStore
from graph.view import GraphView
from graph.writer import GraphWriter
from tests.graph.plain_model import PlainModel, assert_same_view, model_of, read_view
from tests.postgres_server import postgres_schema

USERS = st.sampled_from([f"u{n}" for n in range(4)])
ITEMS = st.sampled_from([f"i{n}" for n in range(5)])
MEMORIES = st.sampled_from([f"m{n}" for n in range(3)])
VALUES = st.sampled_from([0.5, 3.0, 4.5, 5.0])
MODELS = st.sampled_from(["t-1", "t-2"])
KINDS: st.SearchStrategy[TextKind] = st.sampled_from(["item", "memory"])
# Of length 2 or, for a model that was dropped or by mistake, 3.
VECTORS = st.sampled_from(
    [np.array(v, "<f2").tobytes() for v in ([1, 0], [0, 1], [0.5, -2], [1, 1], [1, 2, 3])]
)
RATINGS = st.builds(PutRating, USERS, ITEMS, VALUES, st.integers(0, 3))
TIMES = st.sampled_from([None, 5, 9])
NAMES = st.sampled_from(["about", "since"])
KEYS = st.sampled_from([f"weft_{n:016x}" for n in range(3)])
TARGETS = st.tuples(st.just("item"), ITEMS) | st.tuples(st.just("memory"), MEMORIES)


def relations(kind: type[PutRelation] | type[DeleteRelation]) -> st.SearchStrategy[Operation]:
    return st.builds(
        lambda user, memory, name, target: kind(user, memory, name, *target), USERS, MEMORIES, NAMES, TARGETS
    )


OPERATIONS: st.SearchStrategy[Operation] = st.one_of(
    RATINGS,
    RATINGS,
    st.builds(PutItem, ITEMS, st.sampled_from(["A", "B"]), st.lists(st.sampled_from("xyx")).map(tuple)),
    st.builds(PutUser, USERS, st.dictionaries(st.sampled_from("ab"), st.integers(0, 2), max_size=1)),
    st.builds(DeleteRating, USERS, ITEMS),
    st.builds(DeleteUser, USERS),
    st.builds(DeleteItem, ITEMS),
    st.builds(PutMemory, MEMORIES, USERS, st.sampled_from("pq"), TIMES, TIMES, st.sampled_from(["", "chat"])),
    st.builds(DeleteMemory, MEMORIES, st.none() | USERS),
    relations(PutRelation),
    relations(PutRelation),
    relations(DeleteRelation),
    st.builds(
        PutPointer, st.just("encoder"), st.sampled_from(["active", "candidate"]), st.just({"digest": 1})
    ),
    st.builds(
        PutTextVector,
        st.just("item"),
        ITEMS,
        MODELS,
        st.sampled_from(["A.", "B.", "A. x.", "B. x, y."]).map(text_digest),
        VECTORS,
    ),
    st.builds(
        PutTextVector, st.just("memory"), MEMORIES, MODELS, st.sampled_from("pq").map(text_digest), VECTORS
    ),
    st.builds(DeleteTextVector, KINDS, st.integers(0, 6), MODELS),
    st.builds(PutApiKey, KEYS, st.just("user"), st.just("0" * 64), st.just(9), USERS, st.just("a label")),
    st.builds(
        PutApiKey,
        KEYS,
        st.sampled_from(["admin", "read", "user"]),
        st.just("1" * 64),
        st.integers(0, 1),
        expires_at=TIMES,
    ),
    st.builds(DeleteApiKey, KEYS),
    st.builds(PutPointer, st.just("adapter.user"), USERS, st.just({"arms": []})),
    st.builds(
        PutPointer, st.just("adapter_version"), USERS.map("user/{}/v1".format), st.just({"digest": "d"})
    ),
)
# What comes and goes within one commit.
CHAINS: st.SearchStrategy[list[Operation]] = st.builds(
    lambda rating, vector, last: [
        PutItem(rating.item_id, "A"),
        rating,
        PutMemory("m8", rating.user_id, "q"),
        PutMemory("m9", rating.user_id, "p"),
        PutRelation(rating.user_id, "m9", "about", "item", rating.item_id),
        PutRelation(rating.user_id, "m9", "after", "memory", "m8"),
        PutRelation(rating.user_id, "m8", "before", "memory", "m9"),
        PutTextVector("item", rating.item_id, "t-1", text_digest("A."), vector),
        PutTextVector("memory", "m9", "t-1", text_digest("p"), vector),
        PutApiKey("weft_00000000000000ff", "user", "2" * 64, 7, rating.user_id),
        *last(rating),
    ],
    RATINGS,
    VECTORS,
    st.sampled_from(
        [
            lambda rating: [DeleteUser(rating.user_id)],
            lambda rating: [DeleteItem(rating.item_id)],
            lambda rating: [DeleteRating(rating.user_id, rating.item_id), DeleteMemory("m9", rating.user_id)],
            lambda rating: [DeleteItem(rating.item_id), PutItem(rating.item_id, "B"), rating],
            lambda rating: [DeleteItem(rating.item_id), PutItem(rating.item_id, "A")],
            lambda rating: [PutItem(rating.item_id, "B")],
            lambda rating: [DeleteMemory("m8", rating.user_id)],
            lambda rating: [DeleteApiKey("weft_00000000000000ff")],
            lambda rating: [DeleteMemory("m9", rating.user_id), PutMemory("m9", rating.user_id, "p")],
            lambda rating: [DeleteRelation(rating.user_id, "m9", "about", "item", rating.item_id)],
        ]
    ),
)
REQUESTS = st.lists(OPERATIONS, min_size=1, max_size=3) | CHAINS


@dataclass
class Tailing:
    """A follower and the commits that are on their way to it."""

    view: GraphView
    coming: list[ChangeSet] = field(default_factory=list)


class Feed(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="weft-feed-"))
        self.snapshots = self.folder / "snapshots"
        self.afterwards = ExitStack()
        self.afterwards.callback(shutil.rmtree, self.folder)
        self.store = GraphStore(self.place())
        self.afterwards.callback(self.store.close)
        self.writer = GraphWriter(self.store)
        self.model = PlainModel()
        self.past: list[GraphView] = []
        self.asked: list[tuple[TextKind, str, str]] = []  # texts that an embedder is at
        self.tails = [Tailing(GraphView(self.store.store_id))]

    def place(self) -> str:
        """Where the store is."""
        return f"sqlite:///{self.folder / 'weft.sqlite'}"

    def teardown(self) -> None:
        self.afterwards.close()

    # ------------------------------------------------------------------------------------------- writing

    @initialize()
    def first_items(self) -> None:
        self.group([[PutItem(f"i{n}", "A") for n in range(3)]])

    @rule(operation=OPERATIONS)
    def one(self, operation: Operation) -> None:
        self.group([[operation]])

    @rule(ratings=st.lists(RATINGS, min_size=8, max_size=20))
    def bulk(self, ratings: list[Operation]) -> None:
        self.group([ratings])

    @rule(requests=st.lists(REQUESTS, min_size=2, max_size=6))
    def group(self, requests: list[list[Operation]]) -> None:
        version = self.writer.view.version
        committed = self.writer.commit([WriteRequest(tuple(r)) for r in requests])
        for operations, outcome in zip(requests, committed.outcomes, strict=True):
            before = self.model.copy()
            assert self.model.write(operations) == (not isinstance(outcome, WeftError)), outcome
            if not isinstance(outcome, WeftError):
                version += outcome.changed > 0
                assert outcome.version == version
                assert outcome.changed or self.model == before
        for tail in self.tails:
            tail.coming += committed.changes

    @rule(kind=KINDS, model=MODELS)
    def ask_for_vectors(self, kind: TextKind, model: str) -> None:
        """What waits for a vector is what has none of its text; the answers come whenever they come."""
        ids = {row: node_id for (k, node_id), row in self.model.rows.items() if k == kind}
        waiting = [ids[row] for row in self.writer.view.waiting_texts(kind, model).tolist()]
        texts = {node_id: self.model.text_digest(kind, node_id) for node_id in ids.values()}
        held = {n: d for (k, n, m), (d, _) in self.model.text_vectors.items() if (k, m) == (kind, model)}
        assert waiting == [n for _, n in sorted(ids.items()) if held.get(n) != texts[n]]
        self.asked += [(kind, n, str(texts[n])) for n in waiting]

    @precondition(lambda self: self.asked)
    @rule(model=MODELS, vector=VECTORS)
    def answers_arrive(self, model: str, vector: bytes) -> None:
        self.group([[PutTextVector(kind, n, model, digest, vector) for kind, n, digest in self.asked]])
        self.asked.clear()

    @rule(model=MODELS, vector=VECTORS)
    def drop_model(self, model: str, vector: bytes) -> None:
        """Every vector of a model, which then may have another length."""
        view = self.writer.view
        kinds: tuple[TextKind, ...] = ("item", "memory")
        drops: list[Operation] = [
            DeleteTextVector(kind, row, model)
            for kind in kinds
            for row in view.text_vectors(kind, model).rows().tolist()
        ]
        again = [PutTextVector("item", i, model, text_digest("A."), vector) for i in ("i0", "i1", "i2")]
        self.group([drops, list(again)])

    # ----------------------------------------------------------------------------- restarts and snapshots

    @rule(from_snapshot=st.booleans())
    def restart(self, from_snapshot: bool) -> None:
        old = self.writer
        view = newest_snapshot(self.snapshots, self.store.store_id) if from_snapshot else None
        self.writer = GraphWriter(self.store, view)
        with pytest.raises(Fenced):
            old.commit([WriteRequest((PutPointer("s", "n", {"never": "written"}),))])
        for tail in self.tails:
            tail.coming.clear()  # the ring is gone

    @rule(purge=st.booleans())
    def snapshot(self, purge: bool) -> None:
        contents = self.writer.view.contents()
        write_snapshot(self.snapshots, contents)
        remove_snapshots_before(self.snapshots, contents.version)
        if purge:
            self.writer.purge(contents.version)

    @rule()
    def purge_late(self) -> None:
        """A purge up to an older snapshot, after further writes."""
        view = newest_snapshot(self.snapshots, self.store.store_id)
        if view is not None and view.version >= self.writer.head.horizon:
            self.writer.purge(view.version)

    # ------------------------------------------------------------------------------------------ following

    @rule()
    def remember(self) -> None:
        self.past.append(self.writer.view.copy())

    @precondition(lambda self: self.past)
    @rule(data=st.data(), page_rows=st.integers(1, 20))
    def catch_up(self, data: st.DataObject, page_rows: int) -> None:
        view = data.draw(st.sampled_from(self.past)).copy()
        self._catch_up(view, page_rows)

    def _catch_up(self, view: GraphView, page_rows: int) -> GraphView:
        try:
            pages = list(self.store.changes_since(view.version, page_rows=page_rows))
        except SnapshotRequired:
            assert 0 < view.version < self.writer.head.horizon
            found = newest_snapshot(self.snapshots, self.store.store_id)
            assert found is not None, "purged without a snapshot"
            return self._catch_up(found, page_rows)
        view.apply(ChangeSet.concatenate(pages))
        assert_same_view(view, self.writer.view)
        return view

    @rule()
    def start_another(self) -> None:
        if len(self.tails) < 4:
            view = newest_snapshot(self.snapshots, self.store.store_id) or GraphView(self.store.store_id)
            self.tails.append(Tailing(self._catch_up(view, 7)))

    @rule(data=st.data(), commits=st.integers(1, 3))
    def deliver(self, data: st.DataObject, commits: int) -> None:
        tail = data.draw(st.sampled_from(self.tails))
        first = tail.coming[0].from_version if tail.coming else self.writer.view.version
        if first != tail.view.version:  # the ring does not reach back
            tail.view = self._catch_up(tail.view, 5)
            tail.coming.clear()
        for changes in tail.coming[:commits]:
            assert changes.from_version == tail.view.version
            tail.view.apply(changes)
        del tail.coming[:commits]

    # ------------------------------------------------------------------------------------------ invariants

    @invariant()
    def the_writer_is_what_the_dicts_say(self) -> None:
        assert model_of(self.writer.view) == self.model

    @invariant()
    def followers_at_the_head_are_the_same(self) -> None:
        for tail in self.tails:
            if tail.view.version == self.writer.view.version:
                assert_same_view(tail.view, self.writer.view)

    @invariant()
    def so_is_a_view_from_version_0(self) -> None:
        assert self.store.head() == self.writer.head
        assert_same_view(read_view(self.store), self.writer.view)


class FeedOnPostgreSQL(Feed):
    def place(self) -> str:
        return self.afterwards.enter_context(postgres_schema())


# No shrinking: every step commits to disk, it would take minutes.
STEPS = settings(max_examples=25, stateful_step_count=30, deadline=None, phases=[Phase.generate])
TestFeed = Feed.TestCase
TestFeed.settings = STEPS
TestFeedOnPostgreSQL = FeedOnPostgreSQL.TestCase
TestFeedOnPostgreSQL.settings = settings(STEPS, max_examples=10)
