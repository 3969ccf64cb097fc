"""/v1/models."""

from __future__ import annotations

import httpx

from deployments.ingress.generation_answers import ModelsAnswer
from models.adapter_pointers import AdapterArm
from tests.deployments.ingress.error_shape import error_of
from tests.deployments.ingress.fake_backend import FakeBackend
from tests.deployments.ingress.fake_generation import LANGUAGE_MODEL


async def test_base_first_then_adapters(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    for scope, name in (("user", "Zoë ☃"), ("global", "default")):
        backend._moved(scope, name, (AdapterArm("v1", "d" * 64),), "activate")
    backend._moved("domain", "none", (), "deactivate")
    found = (await http.get("/v1/models")).json()
    ModelsAnswer.model_validate(found, strict=True)
    assert [entry["id"] for entry in found["data"]] == [LANGUAGE_MODEL, "user/Zoë ☃", "global/default"]
    assert (found["data"][0]["object"], found["data"][0]["owned_by"]) == ("model", "weft")
    for entry in found["data"]:
        assert (await http.get(f"/v1/models/{entry['id']}")).json() == entry
    assert (await http.get("/v1/models/user%2FZo%C3%AB%20%E2%98%83")).json() == found["data"][1]


async def test_unknown_models(http: httpx.AsyncClient) -> None:
    for name in ("gpt-4", "user/nobody", "..%2F..", "%00", "%ED%A0%80", "x" * 5000, ""):
        error = error_of(await http.get(f"/v1/models/{name}"), 404, "model_not_found")
        assert error["param"] == "model"
    response = await http.post("/v1/models/user/ada")
    assert error_of(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "GET"
