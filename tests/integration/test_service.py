"""The HTTP contract over the real thing: HAProxy, Ray Serve, the graph state actor, SQLite."""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.processes import listeners, wait_until
from tests.service import Service, free_port, running_service, weft
from tests.small_store import SmallStore, make_small_store

pytestmark = pytest.mark.integration

VERSION = "x-weft-min-version"


def new_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex[:12]}"


def ok(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def rate(http: httpx.Client, user: str, item: str, value: float = 5.0) -> str:
    token = ok(http.post("/v1/ratings", json={"user_id": user, "item_id": item, "value": value}))["version"]
    assert isinstance(token, str)
    return token


def recommend(http: httpx.Client, user: str, token: str | None = None, **params: Any) -> dict[str, Any]:
    headers = {} if token is None else {VERSION: token}
    return ok(http.get(f"/v1/users/{user}/recommendations", params={"n": 20} | params, headers=headers))


def items_of(answer: dict[str, Any]) -> list[str]:
    return [entry["item_id"] for entry in answer["recommendations"]]


def number(token: str) -> int:
    return int(token.rpartition(".")[2])


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"code", "message", "type", "param", "request_id", "retryable"}
    return error


# ---------------------------------------------------------------------------------------- read your writes


def test_a_rating_changes_the_next_recommendation(http: httpx.Client, small_store: SmallStore) -> None:
    user = new_id("user")
    rate(http, user, small_store.items["space"][0])
    before = recommend(http, user)
    assert before["basis"] == "personal"
    assert all(item.startswith("space") for item in items_of(before))
    top = items_of(before)[0]

    token = rate(http, user, top)
    after = recommend(http, user, token)

    assert top not in items_of(after)
    assert number(after["version"]) >= number(token) > number(before["version"])
    shared = {r["item_id"]: r["score"] for r in before["recommendations"]}
    assert any(shared[r["item_id"]] != r["score"] for r in after["recommendations"] if r["item_id"] in shared)
    reasons = {b["item_id"] for r in after["recommendations"] for b in r["because"]}
    assert top in reasons


def test_taste_follows_the_ratings(http: httpx.Client, small_store: SmallStore) -> None:
    user = new_id("user")
    rate(http, user, small_store.items["space"][0])
    for item in small_store.items["garden"][:4]:
        token = rate(http, user, item)
    kinds = [item.partition("-")[0] for item in items_of(recommend(http, user, token))]
    assert kinds.count("garden") > kinds.count("space")


def test_sixteen_writers_never_read_stale(service: Service, small_store: SmallStore) -> None:
    """Every thread overwrites the same rating and adds others; every read must see the thread's last write.

    The lists of items and users are not among what the ingress remembers per user: there, only the token
    makes the read wait.
    """
    barrier = threading.Barrier(16)

    def write_and_read(n: int) -> int:
        user, fixed = new_id("writer"), small_store.items["space"][0]
        with httpx.Client(base_url=service.url, timeout=20.0, trust_env=False) as http:
            barrier.wait(20)
            for step in range(12):
                value = 0.5 + 0.5 * (step % 10)
                seen = small_store.items["garden"][step]
                ratings = [
                    {"user_id": user, "item_id": fixed, "value": value},
                    {"user_id": user, "item_id": seen, "value": 4.0},
                ]
                token = ok(http.post("/v1/ratings", json={"ratings": ratings}))["version"]
                answer = recommend(http, user, token, n=120)
                assert number(answer["version"]) >= number(token)
                assert {fixed, seen}.isdisjoint(items_of(answer))
                stored = ok(http.get(f"/v1/users/{user}/ratings", headers={VERSION: token}))
                assert {r["item_id"]: r["value"] for r in stored["ratings"]}[fixed] == value
                session = {"items": [fixed], "min_version": token}
                found = ok(http.post("/v1/recommendations/session", json=session))
                assert number(found["version"]) >= number(token)
            stranger = new_id("stranger")
            token = ok(http.put(f"/v1/users/{stranger}", json={}))["version"]
            users = ok(http.get("/v1/users?limit=1000", headers={VERSION: token}))["users"]
            assert stranger in {u["user_id"] for u in users}
        return n

    with ThreadPoolExecutor(16) as pool:
        assert sorted(pool.map(write_and_read, range(16))) == list(range(16))


def test_a_version_that_does_not_come_is_a_retryable_503(http: httpx.Client, small_store: SmallStore) -> None:
    fan = small_store.fans["space"][0]
    store_id, _, version = recommend(http, fan)["version"].rpartition(".")
    started = time.monotonic()
    response = http.get(
        f"/v1/users/{fan}/recommendations", headers={VERSION: f"{store_id}.{int(version) + 100_000}"}
    )
    took = time.monotonic() - started
    error = error_of(response, 503)
    assert (error["code"], error["retryable"]) == ("not_yet", True)
    assert int(response.headers["retry-after"]) >= 1
    assert 2.5 < took < 10


def test_a_read_waits_for_a_version_that_comes_in_time(http: httpx.Client, small_store: SmallStore) -> None:
    """No other test of this module writes meanwhile, so the next version is the one written here."""
    fan, item = small_store.fans["space"][1], small_store.items["garden"][40]
    store_id, _, version = rate(http, new_id("user"), item).rpartition(".")
    ahead = f"{store_id}.{int(version) + 1}"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(recommend, http, fan, ahead, n=120)
        with pytest.raises(TimeoutError):
            waiting.result(0.4)
        assert rate(http, fan, item) == ahead
        answer = waiting.result(5)
    assert number(answer["version"]) >= int(version) + 1
    assert item not in items_of(answer)


@pytest.mark.parametrize("where", ["header", "query"])
def test_a_token_of_another_store_is_refused(http: httpx.Client, small_store: SmallStore, where: str) -> None:
    foreign = "0123456789ab.3"
    path = f"/v1/users/{small_store.fans['space'][0]}/recommendations"
    given = {"headers": {VERSION: foreign}} if where == "header" else {"params": {"min_version": foreign}}
    started = time.monotonic()
    error = error_of(http.get(path, **given), 409)
    assert (error["code"], error["retryable"]) == ("foreign_token", False)
    assert time.monotonic() - started < 2


# ------------------------------------------------------------------------------------------------- deletes


def test_a_deleted_rating_is_gone_and_its_item_returns(http: httpx.Client, small_store: SmallStore) -> None:
    user, item = new_id("user"), small_store.items["space"][5]
    rate(http, user, small_store.items["space"][0])
    token = rate(http, user, item)
    assert item not in items_of(recommend(http, user, token, n=120))
    token = ok(http.delete(f"/v1/users/{user}/ratings/{item}"))["version"]
    assert item in items_of(recommend(http, user, token, n=120))
    stored = ok(http.get(f"/v1/users/{user}/ratings", headers={VERSION: token}))["ratings"]
    assert item not in {r["item_id"] for r in stored}
    assert error_of(http.delete(f"/v1/users/{user}/ratings/{item}"), 404)["code"] == "unknown_rating"


def test_a_deleted_user_is_unknown(http: httpx.Client, small_store: SmallStore) -> None:
    user = new_id("user")
    rate(http, user, small_store.items["space"][0])
    token = ok(http.delete(f"/v1/users/{user}"))["version"]
    for path in ("", "/recommendations", "/ratings"):
        response = http.get(f"/v1/users/{user}{path}", headers={VERSION: token})
        assert error_of(response, 404)["code"] == "unknown_user"
    assert error_of(http.delete(f"/v1/users/{user}"), 404)["code"] == "unknown_user"


def test_a_deleted_item_is_nowhere(http: httpx.Client, small_store: SmallStore) -> None:
    item, user = new_id("item"), new_id("user")
    token = ok(http.put(f"/v1/items/{item}", json={"title": "Short-lived", "tags": ["space"]}))["version"]
    assert items_of(recommend(http, small_store.fans["space"][0], token, candidates=item)) == [item]
    rate(http, user, item)
    rate(http, user, small_store.items["space"][0])
    token = ok(http.delete(f"/v1/items/{item}"))["version"]
    assert items_of(recommend(http, small_store.fans["space"][0], token, candidates=item)) == []
    headers = {VERSION: token}
    assert error_of(http.get(f"/v1/items/{item}", headers=headers), 404)["code"] == "unknown_item"
    assert error_of(http.get(f"/v1/items/{item}/similar", headers=headers), 404)["code"] == "unknown_item"
    stored = ok(http.get(f"/v1/users/{user}/ratings", headers=headers))["ratings"]
    assert [r["item_id"] for r in stored] == [small_store.items["space"][0]]
    refused = http.post("/v1/ratings", json={"user_id": user, "item_id": item, "value": 3})
    assert error_of(refused, 404)["code"] == "unknown_item"


# -------------------------------------------------------------------------------------------- new and unknown


def test_a_user_without_ratings_gets_popular_items(http: httpx.Client) -> None:
    user = new_id("user")
    token = ok(http.put(f"/v1/users/{user}", json={"attributes": {"city": "Turin"}}))["version"]
    answer = recommend(http, user, token, n=5)
    assert answer["basis"] == "popular"
    assert len(answer["recommendations"]) == 5
    assert all(r["because"] == [] for r in answer["recommendations"])


def test_an_unknown_user_is_a_typed_404(http: httpx.Client) -> None:
    error = error_of(http.get(f"/v1/users/{new_id('nobody')}/recommendations"), 404)
    assert (error["code"], error["retryable"]) == ("unknown_user", False)


def test_a_new_item_without_ratings_can_be_recommended(http: httpx.Client, small_store: SmallStore) -> None:
    item = new_id("item")
    body = {"title": "Brand new", "tags": ["space"], "year": 2024, "text": "A station far from home."}
    token = ok(http.put(f"/v1/items/{item}", json=body))["version"]
    answer = recommend(http, small_store.fans["space"][2], token, candidates=item)
    assert items_of(answer) == [item]
    assert item in items_of(recommend(http, small_store.fans["space"][2], token, n=1_000))
    vector = ok(http.get(f"/v1/nodes/{item}/embedding", headers={VERSION: token}))
    assert vector["kind"] == "item"
    assert any(vector["embedding"])
    similar = ok(http.get(f"/v1/items/{item}/similar?n=3", headers={VERSION: token}))
    assert len(similar["similar"]) == 3


# ------------------------------------------------------------------------------------------------------- text


def test_an_item_of_nothing_but_a_text_is_found_by_the_first_search(http: httpx.Client) -> None:
    for word in ("quokka", "narwhal", "axolotl", "pangolin", "capybara"):
        item = new_id("item")
        # Nothing random in the text: hashed words may collide.
        body = {"title": f"Number {len(word)}", "text": f"A tale of one brave {word}"}
        token = ok(http.put(f"/v1/items/{item}", json=body))["version"]
        question = {"query": f"tale of a brave {word}", "n": 3}
        answer = ok(http.post("/v1/search", json=question, headers={VERSION: token}))
        assert number(answer["version"]) >= number(token)
        assert answer["results"][0]["item_id"] == item


def test_texts_that_wait_get_their_vectors(service: Service, http: httpx.Client) -> None:
    """More items in one write than the write waits for: the indexer embeds them afterwards."""
    mark = new_id("bulk")
    items = [{"item_id": f"{mark}-{n}", "title": f"Volume {n} {mark}"} for n in range(300)]
    token = ok(http.post("/v1/items", json={"items": items}))["version"]

    def indexed() -> bool:
        indexer = service.status()["text_indexer"]
        return bool(indexer["version"] >= number(token) and indexer["waiting"] == 0)

    wait_until(indexed, 30, "text vectors of 300 items")
    indexer = service.status()["text_indexer"]
    assert (indexer["failure"], indexer["candidate"]) == (None, None)
    found = ok(http.post("/v1/search", json={"query": f"volume {mark}", "n": 300}))
    assert len({r["item_id"] for r in found["results"]} & {i["item_id"] for i in items}) > 200


def test_similar_items_by_text(http: httpx.Client) -> None:
    first, second = new_id("item"), new_id("item")
    for item in (first, second):
        token = ok(http.put(f"/v1/items/{item}", json={"title": item, "text": "Herons at dusk"}))["version"]
    path = f"/v1/items/{first}/similar"
    answer = ok(http.get(path, params={"by": "text", "n": 1}, headers={VERSION: token}))
    assert [entry["item_id"] for entry in answer["similar"]] == [second]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"input": []}, 422, "invalid_input"),
        ({"input": ""}, 422, "invalid_input"),
        ({"input": "text", "no_such_field": 1}, 422, "invalid_input"),
        ({"input": "text", "dimensions": 7}, 422, "invalid_input"),
        ({"input": [1, 2, 3]}, 400, "unsupported_input"),
        ({"input": ["text"] * 2_049}, 413, "batch_too_large"),
        ({"input": "x" * (5 << 20)}, 413, "body_too_large"),
        ({"input": "text", "model": "no-such-model"}, 404, "unknown_text_model"),
    ],
)
def test_embeddings_that_cannot_be_had(
    http: httpx.Client, body: dict[str, Any], status: int, code: str
) -> None:
    error = error_of(http.post("/v1/embeddings", json=body), status)
    assert (error["code"], error["retryable"]) == (code, False)


def test_a_text_that_was_embedded_is_a_hit_for_command_and_service(
    service: Service, http: httpx.Client, tmp_path: Path
) -> None:
    texts = [f"{new_id('text')} number {n}" for n in range(5)]
    fresh = ok(http.post("/v1/embeddings", json={"input": texts}))
    assert (fresh["weft"]["cached"], len(fresh["data"])) == (0, 5)
    again = ok(http.post("/v1/embeddings", json={"input": texts}))
    assert again["weft"]["cached"] == 5
    assert again["data"] == fresh["data"]

    found = service.weft_json("cache", "stats", "--json")
    assert found["store"]["kind"] == "sqlite"
    (name,) = found["models"]
    assert found["models"][name] == found["store"]["entries"] >= 5
    assert name == fresh["weft"]["text_model"]
    assert found["service"]["hits"] >= 5
    assert found["service"]["store"]["location"] == found["store"]["location"]

    assert service.weft_json("cache", "invalidate", *texts[:2], "--json") == {"dropped": 2}
    assert ok(http.post("/v1/embeddings", json={"input": texts}))["weft"]["cached"] == 3


def test_a_cache_that_is_a_fallback_is_told_and_serves(tmp_path: Path) -> None:
    """A Redis that is not there; nor has the data directory vectors yet: the service starts all the same."""
    data_dir, secret = tmp_path / "data", "s3kret"
    data_dir.mkdir()
    make_small_store(data_dir)
    url = {"WEFT_CACHE__URL": f"redis://:{secret}@127.0.0.1:{free_port()}"}
    with running_service(data_dir, tmp_path, extra=url) as service:
        ready = ok(service.get("/readyz"))
        assert ready["ready"]
        assert "using the SQLite file" in ready["parts"]["degraded"]["cache"]
        assert "Connection refused" in ready["parts"]["degraded"]["cache"]
        done = weft(data_dir, service.port, "cache", "stats", "--json", extra=url)
        found = json.loads(done.stdout)
        assert (found["store"]["kind"], found["service"]["store"]["kind"]) == ("sqlite", "sqlite")
        assert found["store"]["entries"] >= 120  # the indexer's
        assert "the service's cache" in done.stderr
        assert secret not in done.stdout + done.stderr + service.logs() + json.dumps(ready)


# ------------------------------------------------------------------------------------------------ idempotency


def test_a_repeated_write_is_written_once(http: httpx.Client, small_store: SmallStore) -> None:
    user, item = new_id("user"), small_store.items["space"][7]
    headers = {"idempotency-key": new_id("key")}
    body = {"user_id": user, "item_id": item, "value": 4.0}
    first = ok(http.post("/v1/ratings", json=body, headers=headers))
    assert (first["changed"], first["replayed"]) == (2, False)  # the rating and its user
    token = rate(http, user, item, 1.0)
    again = ok(http.post("/v1/ratings", json=body, headers=headers))
    assert (again["version"], again["replayed"]) == (first["version"], True)
    stored = ok(http.get(f"/v1/users/{user}/ratings", headers={VERSION: token}))["ratings"]
    assert [(r["item_id"], r["value"]) for r in stored] == [(item, 1.0)]
    other = http.post("/v1/ratings", json=body | {"value": 2.0}, headers=headers)
    assert error_of(other, 409)["code"] == "idempotency_conflict"


# --------------------------------------------------------------------------------------------------- encoders


def test_encoders_change_under_load_without_a_failed_request(
    service: Service, http: httpx.Client, small_store: SmallStore
) -> None:
    failures: list[str] = []
    answered: list[set[str]] = [set()]  # digests that answered requests begun after the n-th activation
    stop = threading.Event()

    def reading(n: int) -> int:
        fan, done = small_store.fans["space"][n], 0
        with httpx.Client(base_url=service.url, timeout=20.0, trust_env=False) as http:
            while not stop.is_set():
                now = answered[-1]
                response = http.get(f"/v1/users/{fan}/recommendations?n=5")
                if response.status_code == 200 and len(response.json()["recommendations"]) == 5:
                    now.add(response.json()["encoder"])
                else:
                    failures.append(response.text)
                done += 1
        return done

    def writing(n: int) -> int:
        user, done = new_id("busy"), 0
        with httpx.Client(base_url=service.url, timeout=20.0, trust_env=False) as http:
            while not stop.is_set():
                item = small_store.items["space"][done % 60]
                body = {"user_id": user, "item_id": item, "value": 5 - done % 3}
                response = http.post("/v1/ratings", json=body)
                if response.status_code != 200:
                    failures.append(response.text)
                elif item in items_of(recommend(http, user, response.json()["version"], n=100)):
                    failures.append(f"{item} was recommended though it had been rated")
                done += 1
        return done

    with ThreadPoolExecutor(6) as pool:
        loads = [pool.submit(reading, n) for n in range(4)] + [pool.submit(writing, n) for n in range(2)]
        try:
            for target in (small_store.other, small_store.active, small_store.other):
                wait_until(lambda: answered[-1] or failures, 20, "answers before the change")
                answer = ok(http.post(f"/v1/encoders/{target}/activate", timeout=130))
                assert answer["encoder"] == target
                answered.append(set())
                wait_until(lambda: answered[-1] or failures, 20, "answers after the change")
                assert answered[-1] == {target}
        finally:
            stop.set()
        done = [load.result() for load in loads]
    assert failures == []
    assert min(done) > 3
    states = {e["digest"]: e["state"] for e in ok(http.get("/v1/encoders"))["encoders"]}
    assert states == {small_store.active: "available", small_store.other: "active"}
    assert ok(http.get("/readyz"))["ready"]


def test_an_unknown_encoder_is_refused(http: httpx.Client) -> None:
    assert error_of(http.post(f"/v1/encoders/{'0' * 16}/activate"), 404)["code"] == "unknown_encoder"


# ------------------------------------------------------------------------------------------------- operations


def test_the_service_is_alive_and_ready(http: httpx.Client) -> None:
    assert ok(http.get("/livez")) == {"status": "ok"}
    ready = ok(http.get("/readyz"))
    assert ready["ready"]
    assert ready["parts"]["checks"] and all(ready["parts"]["checks"].values())


def test_everything_that_speaks_http_listens_on_loopback(service: Service) -> None:
    """The proxy with its statistics and metrics pages, Serve's fallback proxy, the ingress, the exporter.

    So does everything of Ray's but a gRPC port of each replica: see the README on where Weft may run.
    """
    found = listeners(service.family())
    proxy = [one for one in found if "haproxy" in one.process.command]
    assert {service.port} < {one.port for one in proxy}
    assert len(proxy) >= 3  # service, statistics, metrics
    assert [one for one in proxy if not one.on_loopback] == []
    exposed = [one for one in found if not one.on_loopback and _answers_http(one.port)]
    ours = ("haproxy", "ServeReplica", "ProxyActor", "deployments.cli", "HAProxyManager", "GraphState")
    assert [one for one in exposed if any(name in one.process.command for name in ours)] == []
    ingress = [one for one in found if "Ingress" in one.process.command and _answers_http(one.port)]
    assert ingress, "the ingress replica itself listens, and on loopback"
    assert [one for one in found if not one.on_loopback and "ServeReplica" not in one.process.command] == []
    exporter = re.search(r"Metrics for Prometheus: http://127\.0\.0\.1:(\d+)/metrics", service.log)
    assert exporter is not None
    assert [one.on_loopback for one in found if one.port == int(exporter[1])] == [True]


def _answers_http(port: int) -> bool:
    try:
        httpx.get(f"http://127.0.0.1:{port}/livez", timeout=1.0, trust_env=False)
    except httpx.HTTPError:
        return False
    return True


# ----------------------------------------------------------------------------------------------- command line

Weft = Callable[..., Any]


def test_import_goes_through_the_service_and_twice_changes_nothing(
    service: Service, http: httpx.Client, small_store: SmallStore, tmp_path: Any
) -> None:
    mark = uuid.uuid4().hex[:6]
    items = [f"{mark}-i{n}" for n in range(40)]
    (tmp_path / "items.csv").write_text(
        "item_id,title,tags\n" + "".join(f"{i},Title {i},space|new\n" for i in items), encoding="utf-8"
    )
    rows = [(f"{mark}-u{n % 20}", items[n % 40], 1 + n % 5) for n in range(400)]
    rows = list({(user, item): (user, item, value) for user, item, value in rows}.values())
    bad = f"{mark}-u0,no-such-item,3\n{mark}-u0,{items[1]},99\n"
    (tmp_path / "ratings.csv").write_text(
        "user_id,item_id,rating\n" + "".join(f"{u},{i},{v}\n" for u, i, v in rows) + bad, encoding="utf-8"
    )
    command = (
        *(
            "import",
            "csv",
            "--ratings",
            str(tmp_path / "ratings.csv"),
            "--items",
            str(tmp_path / "items.csv"),
        ),
        *("--tags-column", "tags", "--rejects", str(tmp_path / "rejects.csv"), "--json"),
    )
    first = service.weft_json(*command)
    assert (first["kept"], first["rejected"]) == (len(items) + len(rows), 2)
    assert first["changed"] >= len(items) + len(rows)
    before = service.status()["graph_state"]
    user, item, value = rows[-1]
    stored = ok(http.get(f"/v1/users/{user}/ratings"))["ratings"]
    assert {r["item_id"]: r["value"] for r in stored}[item] == value
    assert recommend(http, user)["basis"] in ("personal", "popular")

    second = service.weft_json(*command)
    assert second["changed"] == 0
    after = service.status()["graph_state"]
    assert (after["users"], after["items"], after["ratings"]) == (
        before["users"],
        before["items"],
        before["ratings"],
    )


def test_commands_against_the_running_service(service: Service, small_store: SmallStore) -> None:
    settings = service.weft_json("config", "--json")
    assert settings["WEFT_HTTP__PORT"]["value"] == str(service.port)
    assert settings["WEFT_HTTP__PORT"]["from"] == "environment"
    assert settings["WEFT_HTTP__HOST"]["from"] == "default"
    assert all(row["meaning"] for row in settings.values())

    status = service.weft_json("status", "--json")
    assert status["graph_state"]["pid"] == service.writer_pid()
    followers = {f["kind"] for f in status["graph_state"]["followers"]}
    assert followers == {"graph_encoder", "retriever", "text_embedder", "text_indexer"}

    found = {row["encoder"]: row["active"] for row in service.weft_json("encoder", "list", "--json")}
    assert found.keys() == {small_store.active, small_store.other}
    assert sum(found.values()) == 1
    assert "WEFT_DATA_DIR" in service.weft("config").stdout
    assert "graph_state" in service.weft("status").stdout


def test_a_command_activates_an_encoder(
    service: Service, http: httpx.Client, small_store: SmallStore
) -> None:
    for digest in (small_store.other, small_store.active):
        service.weft("encoder", "activate", digest)
        assert recommend(http, small_store.fans["space"][0])["encoder"] == digest
    missing = service.weft("encoder", "activate", "0" * 16, status=1)
    assert "weft encoder list" in missing.stderr
    assert "Traceback" not in missing.stderr
