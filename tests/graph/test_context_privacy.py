"""Nothing of another user's is ever in a context, over random graphs."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from graph.context import ContextQuery, Suggestion, select
from graph.context_lines import ContextLine
from graph.memory_search import score_memories
from graph.neighbours import LIKED_FROM
from graph.words import Wording
from tests.graph.small_worlds import MODEL, NOW, Fact, World

USERS, ITEMS, DIM = ("anna", "ben", "cleo", "dora"), 7, 4
WORDS = ("peanuts", "dog", "violin", "Oslo", "thriller")
QUERIES = ("", "Where is my dog?", "Any thriller to watch next?", "What about Film 3?", "peanuts")

component = st.integers(-2, 2).map(float)
unlike_zero = st.tuples(st.sampled_from([-1.0, 1.0, 2.0]), *[component] * (DIM - 1))
vectors = st.none() | unlike_zero
times = st.none() | st.integers(-3, 3).map(lambda n: NOW + n)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Users with facts that share words, vectors and items, related among their own."""
    world = World(users=list(USERS))
    for n in range(ITEMS):
        world.items[f"i{n}"] = (f"Film {n}", draw(st.sampled_from([(), ("thriller",)])))
        if draw(st.booleans()):
            world.item_vectors[f"i{n}"] = draw(unlike_zero)
    pairs = st.tuples(st.sampled_from(USERS), st.sampled_from(list(world.items)))
    rated = draw(st.dictionaries(pairs, st.sampled_from([1.0, 3.0, 4.0, 5.0]), max_size=24))
    world.ratings = [(user, item, value) for (user, item), value in rated.items()]
    for n in range(draw(st.integers(0, 12))):
        owner = draw(st.sampled_from(USERS))
        said = " ".join(draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3)))
        own = [f.memory_id for f in world.facts if f.user_id == owner]
        begin, end = draw(times), draw(times)
        world.facts.append(
            Fact(
                f"m{n}",
                owner,
                # Whose it is can be told from any piece of it.
                f"{said} of-{owner}" + draw(st.sampled_from(["", f" n{n}"])),
                begin,
                end if begin is None or end is None or end > begin else None,
                draw(vectors),
                draw(st.lists(st.sampled_from(list(world.items)), max_size=2)),
                draw(st.lists(st.sampled_from(own), max_size=2)) if own else (),
            )
        )
    return world


@st.composite
def questions(draw: st.DrawFn) -> ContextQuery:
    vector = draw(vectors)
    suggested = draw(st.lists(st.integers(0, ITEMS), max_size=4))
    return ContextQuery(
        draw(st.sampled_from(USERS)),
        draw(st.sampled_from(QUERIES)),
        NOW,
        None if vector is None else np.array(vector, np.float32),
        draw(st.sampled_from([None, MODEL])),
        tuple(Suggestion(f"i{n}", f"Film {n}", ("Film 0",)) for n in suggested),
        tuple(draw(st.lists(st.sampled_from(["i0", "i1", "i6"]), max_size=2))),
        draw(st.integers(1, 12)),
    )


def owners_told(line: ContextLine) -> set[str]:
    return {user for user in USERS if f"of-{user}" in line.text or f"of-{user}" in line.why}


@settings(max_examples=60, deadline=None)
@given(world=worlds(), query=questions())
def test_every_line_is_the_users_own(world: World, query: ContextQuery) -> None:
    view, me = world.view(), query.user_id
    facts = {fact.memory_id: fact for fact in world.facts}
    values = {(user, item): value for user, item, value in world.ratings}
    lines = select(view, query)
    assert len(lines) <= query.max_lines
    assert len({(line.kind, line.source_kind, line.source_id) for line in lines}) == len(lines)
    for line in lines:
        assert "\n" not in line.text
        if line.kind == "said":
            fact = facts[line.source_id]
            assert (fact.user_id, line.source_kind) == (me, "memory")
            assert owners_told(line) == {me}
            assert fact.valid_at is None or fact.valid_at <= NOW
            assert fact.invalid_at is None or fact.invalid_at > NOW
            continue
        assert line.source_kind == "item"
        assert not owners_told(line)
        if line.kind == "liked":
            assert values[me, line.source_id] >= LIKED_FROM
        elif line.kind == "disliked":
            assert values[me, line.source_id] <= 2
        elif line.kind == "suggested":
            assert line.source_id in {s.item_id for s in query.suggestions}
            assert (me, line.source_id) not in values or line.source_id in query.must
        else:
            assert (me, line.source_id) not in values
            reasons = [i for i in world.items if world.items[i][0] in line.text.partition("because of ")[2]]
            assert reasons
            for reason in reasons:
                assert values[me, reason] >= LIKED_FROM
                both = [
                    user
                    for user in USERS
                    if user != me
                    and min(values.get((user, i), 0) for i in (reason, line.source_id)) >= LIKED_FROM
                ]
                assert len(both) >= 2
    row = view.user(me).row
    scored = score_memories(view, row, Wording(query.query), query.vector, MODEL, None)
    for memory, _ in scored.best(20):
        assert facts[memory.memory_id].user_id == me


@settings(max_examples=30, deadline=None)
@given(world=worlds(), query=questions(), data=st.data())
def test_others_memories_change_nothing(world: World, query: ContextQuery, data: st.DataObject) -> None:
    """Neither whether they are there, nor what they say, nor when the others wrote what they did."""
    me = query.user_id
    lines = select(world.view(), query)
    assert select(world.view(), query) == lines
    alone = dataclasses.replace(world, facts=[fact for fact in world.facts if fact.user_id == me])
    assert select(alone.view(), query) == lines
    other_words = [
        fact if fact.user_id == me else dataclasses.replace(fact, text=query.query or "x", vector=None)
        for fact in world.facts
    ]
    assert select(dataclasses.replace(world, facts=other_words).view(), query) == lines

    def shuffled(entries: list, mine: list) -> list:
        """In another order, but for what is the user's own among it."""
        own = iter(mine)
        return [next(own) if e in mine else e for e in data.draw(st.permutations(entries))]

    moved = dataclasses.replace(
        world,
        users=data.draw(st.permutations(world.users)),
        ratings=shuffled(world.ratings, [r for r in world.ratings if r[0] == me]),
        facts=shuffled(world.facts, [f for f in world.facts if f.user_id == me]),
    )
    assert select(moved.view(), query) == lines
