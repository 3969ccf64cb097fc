"""The prefix cache against sets of prefixes: who finds what, and how many bytes it holds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graph.errors import InvalidInput, OutOfMemory
from models.language_model.prefix_cache import KeysValues, PrefixCache
from models.language_model.protocol import AdapterPart

BLOCK = 2
BLOCK_BYTES = 2 * 2 * BLOCK * 3 * 4  # two layers of K and V, [1, BLOCK, 3] float32
ROOTS = [PrefixCache.root_key("base", ()), PrefixCache.root_key("base", (AdapterPart("a"),))]


def values(tag: object, start: int, end: int) -> KeysValues:
    """Keys and values that tell whose they are and where they stood."""
    number = float(hash(tag) % 99_991)
    one = torch.arange(start, end).float()[None, :, None].expand(1, -1, 3) + number
    return [(one.clone(), one + 0.25), (one + 0.5, one + 0.75)]


REQUEST = st.tuples(
    st.booleans(),
    st.integers(0, 1),
    st.lists(st.integers(0, 1), min_size=1, max_size=9),
    st.sampled_from([None, "", "nobody", "alice", "bob"]),
    st.integers(0, 9),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(REQUEST, max_size=25), st.integers(0, 12))
def test_only_what_was_inserted_for_the_same_owner_and_weights_is_found(
    requests: list[tuple[bool, int, list[int], str | None, int]], max_blocks: int
) -> None:
    bounded = PrefixCache(max_blocks * BLOCK_BYTES, BLOCK)
    unbounded = PrefixCache(1 << 30, BLOCK)
    # (root, tokens up to the block's end, who may see each block so far): the brute-force model.
    seen: set[tuple[object, ...]] = set()
    for insert, root, tokens, owner, shared in requests:

        def identity(
            blocks: int,
            root: int = root,
            tokens: list[int] = tokens,
            owner: str | None = owner,
            shared: int = shared,
        ) -> tuple[object, ...]:
            whose = tuple(
                "all" if end * BLOCK <= shared else ("owner", owner) for end in range(1, blocks + 1)
            )
            return (root, tuple(tokens[: blocks * BLOCK]), whose)

        def read(start: int, end: int, name=identity) -> KeysValues:  # type: ignore[no-untyped-def]
            return values(name(end // BLOCK), start, end)

        if insert:
            for cache in (bounded, unbounded):
                cache.insert(ROOTS[root], tokens, owner, shared, read)
            seen |= {identity(n) for n in range(1, len(tokens) // BLOCK + 1)}
        expected = 0
        while (expected + 1) * BLOCK <= len(tokens) - 1 and identity(expected + 1) in seen:
            expected += 1
        whole = unbounded.lookup(ROOTS[root], tokens, owner, shared)
        part = bounded.lookup(ROOTS[root], tokens, owner, shared)
        assert whole.length == expected * BLOCK
        assert part.length <= whole.length
        for hit in (whole, part):
            assert len(hit.blocks) * BLOCK == hit.length <= len(tokens) - 1
            for place, block in enumerate(hit.blocks):
                wanted = values(identity(place + 1), place * BLOCK, (place + 1) * BLOCK)
                for (k, v), (k_wanted, v_wanted) in zip(block.layers, wanted, strict=True):
                    assert torch.equal(k, k_wanted) and torch.equal(v, v_wanted)
        assert bounded.statistics()["bytes"] <= max_blocks * BLOCK_BYTES
        if insert:  # the newest is kept as far as it fits
            assert part.length == min(whole.length, max_blocks * BLOCK)
    assert unbounded.statistics()["bytes"] == len(seen) * BLOCK_BYTES
    assert unbounded.clear() == len(seen) * BLOCK_BYTES
    assert unbounded.statistics()["bytes"] == 0


def test_the_least_recently_used_goes_from_its_end() -> None:
    cache = PrefixCache(4 * BLOCK_BYTES, BLOCK)

    def put(tokens: list[int]) -> None:
        cache.insert(ROOTS[0], tokens, "u", 0, lambda start, end: values(0, start, end))

    def length(tokens: list[int]) -> int:
        return cache.lookup(ROOTS[0], [*tokens, 9], "u", 0).length

    put([1, 1, 1, 1])
    put([2, 2, 2, 2])
    assert length([1, 1, 1, 1]) == 4
    put([3, 3])
    assert (length([1, 1, 1, 1]), length([2, 2, 2, 2]), length([3, 3])) == (4, 2, 2)
    assert cache.statistics()["bytes"] == 4 * BLOCK_BYTES


def test_blocks_that_are_here_are_not_read_again_and_an_error_keeps_those_before() -> None:
    cache = PrefixCache(1 << 20, BLOCK)
    places: list[int] = []

    def read(start: int, end: int) -> KeysValues:
        if start == 4:
            raise OutOfMemory("no room")
        places.append(start)
        return values(0, start, end)

    cache.insert(ROOTS[0], [1, 2], None, 0, read)
    with pytest.raises(OutOfMemory):
        cache.insert(ROOTS[0], [1, 2, 3, 4, 5, 6], None, 0, read)
    assert places == [0, 2]
    assert cache.lookup(ROOTS[0], [1, 2, 3, 4, 5, 6, 7], None, 0).length == 4
    assert cache.statistics() == {
        "bytes": 2 * BLOCK_BYTES, "max_bytes": 1 << 20, "hits": 1, "misses": 0, "hit_tokens": 4
    }  # fmt: skip


def test_roots_differ_by_base_adapters_weights_and_order() -> None:
    a, b = AdapterPart("a"), AdapterPart("b")
    choices = [(), (a,), (b,), (AdapterPart("a", 0.5),), (a, b), (b, a), (AdapterPart("ab"),)]
    roots = {PrefixCache.root_key(base, parts) for base in ("x", "y") for parts in choices}
    assert len(roots) == 2 * len(choices)


@pytest.mark.parametrize(("max_bytes", "block_tokens"), [(-1, 4), (10, 0)])
def test_sizes_that_make_no_sense_are_refused(max_bytes: int, block_tokens: int) -> None:
    with pytest.raises(InvalidInput):
        PrefixCache(max_bytes, block_tokens)
