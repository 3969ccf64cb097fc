"""Every method of the SDK against the real application."""

from __future__ import annotations

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from deployments.client import AsyncWeftClient, InvalidRequestError, NotFoundError
from deployments.client_results import Recommendations, UserFailure
from tests.deployments.ingress.fake_backend import (
    DIMENSIONS,
    ENCODER,
    MODEL,
    SHORT,
    TEXT_MODEL,
    FakeBackend,
    vector_of,
)


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
            "bob b", 2, tags=["drama"], exclude=["i0"], exclude_below=2, because=False
        )
        assert answer.recommendations[0].because[0].contribution == 0.25
        good, bad = await weft.recommend_many(["ada", "nobody"], n=1)
        assert isinstance(good, Recommendations)
        assert isinstance(bad, UserFailure)
        assert bad.code == "unknown_user"
        assert (await weft.recommend_session(["i0", ("i1", 3.0)], n=1)).user_id is None
        similar = await weft.similar_items("i0", 2, tags=["drama"])
        assert (similar.similar[0].item_id, similar.by, similar.model) == ("i1", "graph", ENCODER)
        similar = await weft.similar_items("i0", by="text")
        assert (similar.by, similar.model, similar.encoder) == ("text", TEXT_MODEL, None)
        assert (await weft.embedding("ada", "user")).embedding == (0.5, -1.0)
        assert (await weft.list_encoders())[0].digest == ENCODER
        await weft.activate_encoder(ENCODER)
        for delete in (weft.delete_rating("bob b", "y"), weft.delete_item("y"), weft.delete_user("bob b")):
            assert (await delete).changed == 1
        with pytest.raises(NotFoundError) as caught:
            await weft.get_user("bob b")
        assert caught.value.code == "unknown_user"
        assert weft.version == "store1.16"


async def test_text(app: FastAPI, backend: FakeBackend) -> None:
    async with AsyncWeftClient("http://test", transport=httpx.ASGITransport(app)) as weft:
        found = await weft.embed(["rain", "a quiet film"])
        assert found.vectors.dtype == np.float32
        assert found.vectors.tobytes() == np.stack([vector_of("rain"), vector_of("a quiet film")]).tobytes()
        found.vectors[0] = 0  # the caller's own
        assert (found.model, found.text_model, found.tokens) == (MODEL, TEXT_MODEL, 4)
        again = await weft.embed("rain", model=TEXT_MODEL, dimensions=SHORT, prompt="query: ")
        assert again.vectors.tobytes() == vector_of("rain", "query: ")[:SHORT].tobytes()
        assert (again.vectors.shape, again.cached, again.truncated) == ((1, SHORT), 1, 0)
        long = "nine words are one too many for this window"
        cut = await weft.embed(text for text in (long, "rain"))
        assert (cut.vectors.shape, cut.truncated) == ((2, DIMENSIONS), 1)
        for refused in (weft.embed(long, truncate=False), weft.embed([]), weft.embed("a", dimensions=7)):
            with pytest.raises(InvalidRequestError):
                await refused
        with pytest.raises(NotFoundError, match="unknown_text_model"):
            await weft.embed("a", model="another")

        answer = await weft.search("a quiet film", 2, tags=["drama"], exclude=["i0"], candidates=["i0", "i2"])
        assert [entry.item_id for entry in answer.results] == ["i2"]
        assert (answer.query, answer.waiting, answer.text_model) == ("a quiet film", 2, TEXT_MODEL)
        assert weft.version == answer.version == "store1.7"

        ranked = await weft.rerank("b", ["a", "b", "c"], 2)
        assert ranked.results[0].index == 1
        assert ranked.results[0].relevance_score == pytest.approx(1.0)
        assert (len(ranked.results), ranked.model, ranked.tokens) == (2, TEXT_MODEL, 4)

        assert (await weft.cache_statistics())["tiers"][0]["entries"] == 3
        assert await weft.invalidate_cache(texts="rain") == 1
        assert await weft.invalidate_cache(model="another", texts=()) == 0
        assert await weft.invalidate_cache(everything=True) == 2
        for nonsense in (
            {},
            {"texts": []},
            {"everything": True, "model": "m"},
            {"model": "m", "texts": ["a"]},
        ):
            with pytest.raises(ValueError, match="exactly one of"):
                await weft.invalidate_cache(**nonsense)
