"""A service that asks for keys and listens beyond loopback: what gets in, what does not, and until when."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deployments.client import AuthenticationError, PermissionDeniedError
from tests.deployments.ingress.foreign_requests import filled, foreign_requests, in_place, routes
from tests.processes import wait_until
from tests.service import Service, free_port, running_service, weft
from tests.small_store import SmallStore

pytestmark = pytest.mark.integration

SECRET = "bo-keeps-bees"
MAX_LAG_S = 1.0
"""What `WEFT_AUTH_MAX_LAG_S` is by default."""


@pytest.fixture(scope="module")
def service(small_store: SmallStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    # The first key is made in the store itself, before anything runs.
    made = json.loads(weft(small_store.data_dir, free_port(), "keys", "create", "admin", "--json").stdout)
    extra = {
        "WEFT_API_KEY": made["key"],
        "WEFT_AUTH": "required",
        "WEFT_HTTP__HOST": "0.0.0.0",
        "WEFT_LANGUAGE_MODEL__ENABLED": "true",
    }
    with running_service(small_store.data_dir, tmp_path_factory.mktemp("logs"), extra=extra) as service:
        wait_until(lambda: service.status()["language_model"].get("model"), 60, "the language model")
        with service.client() as admin:
            for user in ("ada", "bo"):
                admin.put_user(user, {"note": SECRET if user == "bo" else "owls"})
                admin.put_item("i0", "A Film", ["space"])
                admin.rate(user, "i0", 5.0)
                admin.remember(user, SECRET if user == "bo" else "owls", memory_id=f"m-{user}")
        yield service


@pytest.fixture
def keys(service: Service) -> Iterator[dict[str, str]]:
    """A key of every kind, revoked afterwards."""
    with service.client() as admin:
        made = {role: admin.create_key(role) for role in ("admin", "write", "read")}
        made |= {user: admin.create_key("user", user) for user in ("ada", "bo")}
        yield {name: key.key for name, key in made.items()}
        for key in made.values():
            admin.revoke_key(key.key_id)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_every_route_asks_for_a_key(service: Service) -> None:
    with httpx.Client(base_url=service.url, timeout=20.0, trust_env=False) as http:
        document = http.get("/openapi.json").json()
        asked = 0
        for method, path in routes(document):
            response = http.request(method, filled(path))
            if path in ("/livez", "/readyz"):
                assert response.status_code == 200
                assert "parts" not in response.json()
            else:
                assert response.status_code == 401, (method, path, response.text)
                assert response.json()["error"]["code"] == "unauthenticated"
                asked += 1
        assert asked >= 50


def test_a_users_key_yields_nothing_of_anybody_elses(service: Service, keys: dict[str, str]) -> None:
    """Every route that names a user, in every way: graph, memories, adapters, context, text, batches."""
    with httpx.Client(base_url=service.url, timeout=60.0, trust_env=False) as http:
        document = http.get("/openapi.json").json()
        with service.client() as admin:
            before = admin.get_user("bo")
            memories = admin.list_memories("bo").records
        asked = 0
        for method, path, options, names in foreign_requests(document):
            options["headers"] |= bearer(keys["ada"])
            response = http.request(method, path, **options)
            assert SECRET not in response.text, (method, path, options)
            if names:
                asked += 1
                assert response.text.count('"forbidden"') == 1, (method, path, options, response.text)
                assert response.status_code == (200 if in_place(path) else 403)
        assert asked > 80
        for path in ("/v1/users/bo", "/v1/users/bo/memories", "/v1/users/bo/context?query=bees"):
            assert SECRET in http.get(path, headers=bearer(keys["bo"])).text
        with service.client() as admin:
            assert admin.get_user("bo").attributes == before.attributes
            assert [m.text for m in admin.list_memories("bo").records] == [m.text for m in memories]


def test_what_each_key_is_for(service: Service, keys: dict[str, str]) -> None:
    with service.client(api_key=keys["read"]) as reader:
        assert reader.recommend("ada", 3).recommendations
        with pytest.raises(PermissionDeniedError, match="role write"):
            reader.rate("ada", "i0", 3.0)
    with service.client(api_key=keys["write"]) as writer:
        writer.rate("ada", "i0", 3.0)
        with pytest.raises(PermissionDeniedError, match="role admin"):
            writer.create_key("read")
    with service.client(api_key=keys["ada"]) as ada:
        ada.rate("ada", "space-00", 5.0)
        assert ada.recommend("ada", 3).recommendations
        answer = ada.generate("What do you know about me?", user_id="ada", max_tokens=16, temperature=0.0)
        assert ("memory", "m-ada") in [(s["kind"], s["id"]) for s in answer.context["sources"]]
        with pytest.raises(PermissionDeniedError, match="another user"):
            ada.rate("bo", "i0", 1.0)
    with service.client(api_key=None) as nobody, pytest.raises(AuthenticationError, match="API key"):
        nobody.recommend("ada")


def test_it_answers_on_its_other_addresses(service: Service, keys: dict[str, str]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it asks for the address that would be used
        except OSError:
            pytest.skip("this machine has no address but loopback")
        address = probe.getsockname()[0]
    assert not address.startswith("127.")
    url = f"http://{address}:{service.port}/v1/items?limit=1"
    assert httpx.get(url, trust_env=False).status_code == 401
    assert httpx.get(url, headers=bearer(keys["read"]), trust_env=False).status_code == 200
    named = bearer(keys["read"]) | {"host": "weft.example.com"}
    assert httpx.get(url, headers=named, trust_env=False).status_code == 200


def test_a_revoked_key_opens_nothing_a_second_later(service: Service, keys: dict[str, str]) -> None:
    made = service.weft_json("keys", "create", "read", "--label", "a laptop", "--json")
    outcomes: list[tuple[float, int]] = []
    done = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=service.url, timeout=20.0, trust_env=False) as http:
            while not done.is_set():
                begun = time.monotonic()
                status = http.get(
                    "/v1/users/ada/recommendations?n=1", headers=bearer(made["key"])
                ).status_code
                outcomes.append((begun, status))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(outcomes) >= 20, 20, "some answers")
        listed = service.weft_json("keys", "list", "--json")
        assert made["key_id"] in {key["key_id"] for key in listed}
        service.weft("keys", "revoke", made["key"])
        revoked = time.monotonic()
        time.sleep(2 * MAX_LAG_S)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert {status for _, status in outcomes} == {200, 401}
    late = [status for begun, status in outcomes if begun > revoked + MAX_LAG_S]
    assert len(late) > 5
    assert set(late) == {401}
    assert made["key_id"] not in {key["key_id"] for key in service.weft_json("keys", "list", "--json")}
    with service.client(api_key=keys["read"]) as reader:
        assert reader.recommend("ada", 1).recommendations


def test_a_deleted_user_takes_the_keys_along(service: Service) -> None:
    with service.client() as admin:
        made = admin.create_key("user", "cleo")
        with service.client(api_key=made.key) as cleo:
            cleo.rate("cleo", "i0", 4.0)
            cleo.delete_user("cleo")
            time.sleep(MAX_LAG_S)
            with pytest.raises(AuthenticationError):
                cleo.get_user("cleo")
            admin.put_user("cleo")
            with pytest.raises(AuthenticationError):
                cleo.get_user("cleo")


def test_while_the_feed_is_away_nobody_gets_in(service: Service, keys: dict[str, str]) -> None:
    """The writer is stopped, not dead, so that nothing tells the ingress; its watchdog replaces it."""
    pid = service.writer_pid()
    outcomes: list[tuple[float, int]] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            response = httpx.get(
                f"{service.url}/v1/items?limit=1", headers=bearer(keys["read"]), timeout=20.0, trust_env=False
            )
            outcomes.append((time.monotonic(), response.status_code))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(outcomes) >= 5, 20, "some answers")
        os.kill(pid, signal.SIGSTOP)
        stopped = time.monotonic()
        wait_until(
            lambda: any(at > stopped + 6 and status == 200 for at, status in outcomes), 60, "a new writer"
        )
    finally:
        done.set()
        for thread in threads:
            thread.join()
    # The watchdog takes three pings before it does anything, and Ray some seconds more.
    closed = [status for at, status in outcomes if stopped + MAX_LAG_S + 0.3 < at < stopped + 3]
    assert 200 not in closed
    refused = {status for at, status in outcomes if at > stopped} - {200}
    assert refused <= {503}


def test_secrets_are_written_nowhere(service: Service, keys: dict[str, str]) -> None:
    secrets = [key.split(".")[1] for key in keys.values()]
    secrets.append(service.key.split(".")[1] if service.key else "")
    for path in ("/v1/items", "/v1/nothing", "/v1/users/ada"):
        for key in (*keys.values(), keys["read"] + "x"):
            service.get(path, headers=bearer(key))
    texts = [service.logs()]
    texts += [p.read_bytes().decode("latin-1") for p in files_of(service.data_dir)]
    assert len(texts) > 5
    for secret in secrets:
        assert len(secret) == 43
        assert not any(secret in text for text in texts)


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_service_says_how_to_ask_it(service: Service) -> None:
    assert '-H "authorization: Bearer $WEFT_API_KEY"' in service.log
    assert service.key is not None
    assert service.key not in service.log
