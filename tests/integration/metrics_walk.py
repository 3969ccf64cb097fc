"""A handful of requests of each kind, and what every part has to have counted and logged of them."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from deployments.client import WeftClient
from tests.small_store import SmallStore


@dataclass
class Walk:
    """What was asked for, under ids that nobody else uses."""

    mark: str = field(default_factory=lambda: uuid.uuid4().hex[:10])
    max_tokens: int = 5
    generated: list[dict[str, Any]] = field(default_factory=list)

    @property
    def request_id(self) -> str:
        return f"walk-{self.mark}"

    @property
    def user(self) -> str:
        return f"user-{self.mark}"

    @property
    def text(self) -> str:
        return f"a text about {self.mark}"


def walk(http: httpx.Client, weft: WeftClient, store: SmallStore, adapters: list[Path]) -> Walk:
    """Every request carries the walk's id."""
    asked = Walk()
    http.headers["x-request-id"] = asked.request_id
    item, key = store.items["space"][0], {"idempotency-key": asked.mark}
    rating = {"user_id": asked.user, "item_id": item, "value": 5}
    for _ in range(2):
        _json(http.post("/v1/ratings", json=rating, headers=key))
    refused = http.post("/v1/ratings", json=rating | {"item_id": f"no-{asked.mark}"})
    assert refused.status_code == 404
    for _ in range(3):
        _json(http.get(f"/v1/users/{asked.user}/recommendations"))
    _json(http.post("/v1/search", json={"query": asked.text}))
    for _ in range(2):
        _json(http.post("/v1/embeddings", json={"input": [asked.text + "!", asked.text + "!"]}))
    _json(http.post(f"/v1/users/{asked.user}/memories", json={"text": asked.text}))
    _json(http.get(f"/v1/users/{asked.user}/context", params={"query": asked.text}))
    for scope, name, folder in (("user", asked.user, adapters[0]), ("domain", asked.mark, adapters[1])):
        weft.put_adapter(scope, name, "v1", folder)  # type: ignore[arg-type]
        weft.activate_adapter(scope, name, "v1")  # type: ignore[arg-type]
    http.headers["x-weft-min-version"] = weft.version or ""
    bare = {"text": asked.text, "max_tokens": asked.max_tokens, "temperature": 0}
    own: dict[str, Any] = {"user_id": asked.user}  # with a context: the second time it is in the prefix cache
    for chosen in (own, own, {"domain": asked.mark}, {}):
        found = _json(http.post("/v1/generate", json=bare | chosen))
        asked.generated.append(found)
    with http.stream("POST", "/v1/generate", json=bare | {"stream": True}) as answer:
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: {")]
    asked.generated.append(json.loads(events[-1])["finished"])
    assert http.get("/walked/into/nothing").status_code == 404
    return asked


def _json(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code in (200, 201), answer.text
    assert len(answer.headers.get_list("x-request-id")) == 1
    found: dict[str, Any] = answer.json()
    return found
