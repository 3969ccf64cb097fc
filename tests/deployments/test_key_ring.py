"""The keys of an ingress replica: in force as soon as the feed has them, and only while it is heard of."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deployments.graph_state import FollowerReport, Tail
from deployments.key_ring import KeyRing
from graph.api_keys import NewKey, new_key
from graph.errors import Unauthenticated, Unavailable
from graph.schema import ApiKey, ChangeSet, Role


class Feed:
    """A graph state whose tail the test holds in its hands."""

    def __init__(self) -> None:
        self.commits: list[ChangeSet] = []
        self.away = False
        self.head = 0

    async def status(self) -> dict[str, Any]:
        return {"store_id": "s"}

    async def changes_since(self, version: int, kinds: object) -> AsyncIterator[ChangeSet]:
        yield ChangeSet(version, self.head)

    async def tail(self, report: FollowerReport, kinds: frozenset[str], timeout_s: float) -> Tail:
        assert kinds == {"api_key"}
        for _ in range(int(timeout_s / 0.005)):
            if self.away:
                raise Unavailable("restarting")
            if self.head > report.version:
                found = tuple(c for c in self.commits if c.from_version >= report.version)
                return Tail("s", self.head, found)
            await asyncio.sleep(0.005)
        return Tail("s", self.head)

    async def forget(self, follower_id: str) -> None:
        pass

    def commit(self, *keys: ApiKey) -> None:
        self.commits.append(ChangeSet(self.head, self.head + 1, api_keys=keys))
        self.head += 1


def entry(made: NewKey, version: int, role: Role = "read", **more: Any) -> ApiKey:
    values = {"user_id": "", "label": "", "created_at": 0, "expires_at": None, "digest": made.digest} | more
    return ApiKey(made.key_id, role, version=version, **values)


@pytest.fixture
async def ring(tmp_path: Path) -> AsyncIterator[tuple[KeyRing, Feed]]:
    feed = Feed()
    ring = KeyRing(feed, tmp_path, max_lag_s=0.2)  # type: ignore[arg-type]
    await ring.start()
    yield ring, feed
    await ring.stop()


async def test_a_ring_opens_to_keys_of_the_feed_until_they_are_revoked(ring: tuple[KeyRing, Feed]) -> None:
    keys, feed = ring
    made, of_ada = new_key(), new_key()
    with pytest.raises(Unauthenticated):
        await keys.caller(made.text)
    feed.commit(entry(made, 1), entry(of_ada, 1, "user", user_id="ada"))
    await keys.wait_for(1)
    assert len(keys) == 2
    caller = await keys.caller(made.text)
    assert (caller.role, caller.key_id, caller.user_id) == ("read", made.key_id, None)
    assert (await keys.caller(of_ada.text)).user_id == "ada"
    for wrong in (
        made.text[:-1] + "_",
        made.key_id,
        made.text.split(".")[1],
        of_ada.key_id + made.text[21:],
        "",
    ):
        with pytest.raises(Unauthenticated):
            await keys.caller(wrong)
    feed.commit(entry(made, 2, digest="", deleted=True))
    await keys.wait_for(2)
    with pytest.raises(Unauthenticated):
        await keys.caller(made.text)
    assert (await keys.caller(of_ada.text)).user_id == "ada"


async def test_an_expired_key_opens_nothing(ring: tuple[KeyRing, Feed]) -> None:
    keys, feed = ring
    made, late = new_key(), new_key()
    feed.commit(
        entry(made, 1, expires_at=int(time.time()) - 1), entry(late, 1, expires_at=int(time.time()) + 60)
    )
    await keys.wait_for(1)
    with pytest.raises(Unauthenticated):
        await keys.caller(made.text)
    assert (await keys.caller(late.text)).key_id == late.key_id


async def test_a_ring_that_hears_nothing_closes_and_opens_again(
    ring: tuple[KeyRing, Feed], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, feed = ring
    made = new_key()
    feed.commit(entry(made, 1))
    await keys.wait_for(1)
    await keys.caller(made.text)
    monkeypatch.setattr("deployments.key_ring._WAIT_S", 0.3)
    feed.away = True
    heard = time.monotonic()
    with pytest.raises(Unavailable):
        while time.monotonic() < heard + 10:
            begun = time.monotonic()
            await keys.caller(made.text)
            # What was answered was known within the lag that was promised.
            assert begun - heard <= 0.2 + 0.05
            await asyncio.sleep(0.01)
    with pytest.raises(Unavailable):
        await keys.caller("nonsense")
    feed.away = False
    assert (await keys.caller(made.text)).key_id == made.key_id  # it waits for the feed, not for the client
