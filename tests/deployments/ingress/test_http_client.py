"""Every method of the SDK against the real application."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI

from deployments.client import AsyncWeftClient, NotFoundError
from deployments.client_calls import Recommendations, UserFailure
from tests.deployments.ingress.fake_backend import ENCODER


async def test_every_call(app: FastAPI) -> None:
    async with AsyncWeftClient("http://test", transport=httpx.ASGITransport(app)) as weft:
        assert await weft.live() is True
        assert (await weft.ready()).ready is True
        assert (await weft.status())["store_id"] == "store1"
        assert (await weft.put_user("bob b", {"age": 5})).version == "store1.8"
        assert (await weft.get_user("bob b")).attributes == {"age": 5}
        assert [user.user_id for user in (await weft.list_users(limit=1)).records] == ["ada"]
        await weft.put_item("x,1", "X", ["drama"], 1999, "text")
        assert (await weft.get_item("x,1")).tags == ("drama",)
        await weft.put_items([{"item_id": "y", "title": "Y"}])
        assert len((await weft.list_items()).records) == 5
        await weft.rate("bob b", "x,1", 4.5, timestamp=3)
        await weft.rate_many([{"user_id": "bob b", "item_id": "y", "value": 2.0}])
        page = await weft.list_ratings("bob b", limit=1)
        assert [(r.item_id, r.value, r.timestamp) for r in page.records] == [("x,1", 4.5, 3)]
        assert (await weft.list_ratings("bob b", after=page.next)).next is None
        answer = await weft.recommend(
            "bob b", 2, tags=["drama"], exclude=["i0"], exclude_below=2, explain=False
        )
        assert answer.recommendations[0].because[0].contribution == 0.25
        good, bad = await weft.recommend_many(["ada", "nobody"], n=1)
        assert isinstance(good, Recommendations)
        assert isinstance(bad, UserFailure)
        assert bad.code == "unknown_user"
        assert (await weft.recommend_session(["i0", ("i1", 3.0)], n=1)).user_id is None
        assert (await weft.similar_items("i0", 2, tags=["drama"])).similar[0].item_id == "i1"
        assert (await weft.embedding("ada", "user")).embedding == (0.5, -1.0)
        assert (await weft.list_encoders())[0].digest == ENCODER
        await weft.activate_encoder(ENCODER)
        for delete in (weft.delete_rating("bob b", "y"), weft.delete_item("y"), weft.delete_user("bob b")):
            assert (await delete).changed == 1
        with pytest.raises(NotFoundError) as caught:
            await weft.get_user("bob b")
        assert caught.value.code == "unknown_user"
        assert weft.version == "store1.16"
