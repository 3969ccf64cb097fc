"""Two replicas of every part that scales, and what is promised all the same.

Each ingress replica listens on a port of its own behind the proxy. The tests talk to these ports, so that a
write and the read after it meet different replicas because they were sent there, not by luck.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import httpx
import pytest

from deployments.client import WeftClient
from deployments.settings import Settings
from deployments.store_access import read_view
from models.graph_encoder.checkpoint import load_checkpoint
from models.small_model.folder import small_model_folder
from tests.lora_folders import write_adapter
from tests.plain_ranking import PlainRanking
from tests.processes import Process, listeners, wait_until
from tests.service import Service, free_port, running_service, weft
from tests.small_store import SmallStore

pytestmark = pytest.mark.integration

VERSION = "x-weft-min-version"
PARTS = ("INGRESS", "GRAPH_ENCODER", "RETRIEVER", "LANGUAGE_MODEL")
PROMPT = "the sea and the ship"
MAX_LAG_S = 1.0
"""What `WEFT_AUTH_MAX_LAG_S` is by default."""


@pytest.fixture(scope="module")
def service(small_store: SmallStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    extra = {f"WEFT_{part}__NUM_REPLICAS": "2" for part in PARTS}
    # A thread each: models that share two cores and spin for them take them from each other.
    extra |= {"WEFT_LANGUAGE_MODEL__ENABLED": "true", "WEFT_LANGUAGE_MODEL__NUM_THREADS": "1"}
    made = weft(small_store.data_dir, free_port(), "keys", "create", "admin").stdout
    extra |= {"WEFT_AUTH": "required", "WEFT_API_KEY": made.strip()}
    with running_service(small_store.data_dir, tmp_path_factory.mktemp("logs"), extra=extra) as service:
        wait_until(lambda: _open_models(service) == 2, 60, "both language models")
        yield service


def _open_models(service: Service) -> int:
    replicas = service.status()["language_model"].get("replicas", ())
    return sum(isinstance(replica, dict) and replica["open"] for replica in replicas)


def replica_processes(service: Service, deployment: str) -> list[Process]:
    found = [p for p in service.family() if f"ServeReplica:weft:{deployment}" in p.command]
    assert len(found) == 2, found
    return found


class Ingress(NamedTuple):
    """One of the two replicas, asked without the other's knowledge, with an admin's key."""

    url: str
    key: str

    def http(self, timeout_s: float = 30.0, key: str | None = None) -> httpx.Client:
        headers = {"authorization": f"Bearer {key or self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s, trust_env=False)

    def client(self) -> WeftClient:
        return WeftClient(self.url, api_key=self.key, timeout_s=60.0)


Ingresses: TypeAlias = tuple[Ingress, Ingress]


@pytest.fixture(scope="module")
def ingresses(service: Service) -> Ingresses:
    found = listeners(replica_processes(service, "Ingress"))
    urls = [f"http://127.0.0.1:{one.port}" for one in found if _is_ingress(one.port)]
    first, second = (Ingress(url, str(service.key)) for url in urls)
    return first, second


def _is_ingress(port: int) -> bool:
    """Whether that port is the ingress' own and not one of Ray's, which do not speak HTTP/1."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/livez", timeout=2.0, trust_env=False).is_success
    except httpx.HTTPError:
        return False


@pytest.fixture
def pair(ingresses: Ingresses) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """Plain HTTP to either: no retries, no remembered versions."""
    first, second = ingresses
    with (
        first.http(30.0) as one,
        second.http(30.0) as other,
    ):
        yield one, other


def ok(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


# ---------------------------------------------------------------------------------------- read your writes


def rating(writer: httpx.Client, reader: httpx.Client, store: SmallStore, user: str, step: int) -> None:
    """What was rated is in the list with its value, and recommended no more."""
    item, value = store.items["space"][step], 0.5 + step % 10 / 2
    token = ok(writer.post("/v1/ratings", json={"user_id": user, "item_id": item, "value": value}))["version"]
    headers = {VERSION: token}
    stored = ok(reader.get(f"/v1/users/{user}/ratings?limit=1000", headers=headers))
    assert {r["item_id"]: r["value"] for r in stored["ratings"]}.get(item) == value
    found = ok(reader.get(f"/v1/users/{user}/recommendations?n=120", headers=headers))
    assert item not in {r["item_id"] for r in found["recommendations"]}


def item(writer: httpx.Client, reader: httpx.Client, store: SmallStore, user: str, step: int) -> None:
    """A new item is there, found by its title, and gone when it was deleted."""
    name, title = f"{user}-{step}", f"Quagga {user} {step}"
    written = ok(writer.put(f"/v1/items/{name}", json={"title": title, "tags": ["space"]}))
    headers = {VERSION: written["version"]}
    assert ok(reader.get(f"/v1/items/{name}", headers=headers))["title"] == title
    found = ok(reader.post("/v1/search", json={"query": title, "n": 1}, headers=headers))
    assert [r["item_id"] for r in found["results"]] == [name]
    headers = {VERSION: ok(writer.delete(f"/v1/items/{name}"))["version"]}
    assert reader.get(f"/v1/items/{name}", headers=headers).status_code == 404


def memory(writer: httpx.Client, reader: httpx.Client, store: SmallStore, user: str, step: int) -> None:
    """A stated fact is among the user's memories and in the context of the next question."""
    fact = f"My lucky number is {step}{user[-4:]}."
    written = ok(writer.post(f"/v1/users/{user}/memories", json={"text": fact}))
    headers = {VERSION: written["version"]}
    listed = ok(reader.get(f"/v1/users/{user}/memories?limit=1000", headers=headers))
    assert fact in {m["text"] for m in listed["memories"]}
    query = {"query": fact, "max_tokens": 400}
    assert fact in ok(reader.get(f"/v1/users/{user}/context", params=query, headers=headers))["text"]


Promise = Callable[[httpx.Client, httpx.Client, SmallStore, str, int], None]


@pytest.mark.parametrize(("promise", "steps"), [(rating, 40), (item, 15), (memory, 10)])
def test_what_one_ingress_acknowledged_the_other_reads(
    ingresses: Ingresses, small_store: SmallStore, promise: Promise, steps: int
) -> None:
    """The header is all that the reading replica knows of the write."""

    def write_and_read(n: int) -> int:
        user = f"both-{uuid.uuid4().hex[:8]}"
        there, back = ingresses if n % 2 else ingresses[::-1]
        with (
            there.http(30.0) as writer,
            back.http(30.0) as reader,
        ):
            for step in range(steps):
                promise(writer, reader, small_store, user, step)
        return n

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(write_and_read, range(6))) == list(range(6))


# ------------------------------------------------------------------------------------- encoder generations


def test_a_generation_change_reaches_all_replicas_and_mixes_nothing(
    service: Service, ingresses: Ingresses, small_store: SmallStore
) -> None:
    """Every answer is one encoder's from the first score to the last, the one it names.

    At every change another replica stands still for a while: the change waits for it.
    """
    view = read_view(Settings.model_validate({"data_dir": service.data_dir}))
    fans = (*small_store.fans["space"], *small_store.fans["garden"])
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for digest in (small_store.active, small_store.other):
        plain = PlainRanking(load_checkpoint(service.data_dir / "encoders" / digest), view)
        scores[digest] = {fan: plain.scores(fan) for fan in fans}
    exact = {VERSION: f"{view.store_id}.{view.version}"}
    stop, failures = threading.Event(), list[str]()
    answers: list[tuple[float, int, str]] = []  # began, by which ingress, from which encoder

    def read(n: int) -> None:
        with ingresses[n % 2].http(30.0) as http:
            for fan in iter(lambda: None if stop.is_set() else fans[len(answers) % len(fans)], None):
                began = time.monotonic()
                response = http.get(f"/v1/users/{fan}/recommendations?n=20&exact_items=true", headers=exact)
                if response.status_code != 200 or len(response.json()["recommendations"]) != 20:
                    failures.append(response.text)
                    return
                answer = response.json()
                expected = scores[answer["encoder"]][fan]
                found = {r["item_id"]: r["score"] for r in answer["recommendations"]}
                if found != pytest.approx({item: expected[item] for item in found}, rel=1e-4, abs=1e-4):
                    failures.append(f"{fan}: not the scores of {answer['encoder']}: {response.text}")
                answers.append((began, n % 2, answer["encoder"]))

    def activate(digest: str) -> str:
        with ingresses[0].http(130.0) as http:
            return str(ok(http.post(f"/v1/encoders/{digest}/activate"))["encoder"])

    replicas = [p for part in ("Retriever", "GraphEncoder") for p in replica_processes(service, part)]
    targets = (small_store.other, small_store.active) * 2
    with ThreadPoolExecutor(7) as pool:
        readers = [pool.submit(read, n) for n in range(6)]
        try:
            for target, stopped in zip(targets, replicas, strict=True):
                os.kill(stopped.pid, signal.SIGSTOP)
                try:
                    activating = pool.submit(activate, target)
                    early, _ = wait([activating], 1.0)
                finally:
                    os.kill(stopped.pid, signal.SIGCONT)
                assert activating.result() == target
                assert not early, "acknowledged while a replica could not have known"
                acknowledged = time.monotonic()

                def after(since: float = acknowledged) -> Counter[tuple[int, str]]:
                    return Counter((where, digest) for began, where, digest in answers if began > since)

                def enough(found: Callable[[], Counter[tuple[int, str]]] = after) -> bool:
                    by_ingress = Counter(where for where, _ in found().elements())
                    return bool(failures) or min(by_ingress[0], by_ingress[1]) >= 40

                wait_until(enough, 60, "answers after the change")
                assert not failures, failures[:3]
                assert set(after()) == {(0, target), (1, target)}
        finally:
            stop.set()
        for reader in readers:
            reader.result()
    assert failures == []
    followers = service.status()["graph_state"]["followers"]
    ready = Counter(f["kind"] for f in followers if small_store.active in f["generations"])
    assert ready == {"graph_encoder": 2, "retriever": 2}


# --------------------------------------------------------------------------------------- the language model


def generate(http: httpx.Client, user: str | None, token: str = "", **body: Any) -> dict[str, Any]:
    """An answer of twelve tokens; `request_id` is what the audit log calls it."""
    request_id = uuid.uuid4().hex
    asked = {"text": PROMPT, "user_id": user, "max_tokens": 12, "temperature": 0, "use_context": False}
    headers = {"x-request-id": request_id} | ({VERSION: token} if token else {})
    sent = {key: value for key, value in (asked | body).items() if value is not None}
    return {**ok(http.post("/v1/generate", json=sent, headers=headers)), "request_id": request_id}


def replicas_of(service: Service, request_ids: list[str]) -> dict[str, str]:
    """Which replica answered each request: every replica has an audit log of its own."""

    def found() -> dict[str, str] | None:
        by_request = {
            json.loads(line)["request_id"]: path.name
            for path in (service.data_dir / "audit").glob("generations-*.jsonl")
            for line in path.read_text(encoding="utf-8").splitlines()
        }
        there = {request_id: by_request[request_id] for request_id in request_ids if request_id in by_request}
        return there if len(there) == len(request_ids) else None

    return wait_until(found, 20, "lines of the audit log") or {}


def test_a_user_meets_the_same_language_model_through_either_ingress(
    service: Service, pair: tuple[httpx.Client, httpx.Client]
) -> None:
    users = [f"stays-{n}" for n in range(16)]
    asked = [
        (user, generate(http, user, max_tokens=1)["request_id"])
        for _ in range(2)
        for http in pair
        for user in users
    ]
    answered = replicas_of(service, [request_id for _, request_id in asked])
    met: dict[str, set[str]] = {user: set() for user in users}
    for user, request_id in asked:
        met[user].add(answered[request_id])
    assert all(len(replicas) == 1 for replicas in met.values()), met
    assert len(set(answered.values())) == 2, "users are divided among the replicas"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("adapters")
    return [write_adapter(root / f"a{n}", small_model_folder(), n) for n in range(2)]


def test_a_swap_reaches_both_language_models_and_mixes_no_weights(
    service: Service,
    ingresses: Ingresses,
    pair: tuple[httpx.Client, httpx.Client],
    folders: list[Path],
) -> None:
    """In flight an answer is wholly the old adapter's or wholly the new one's; after the acknowledgement,
    whoever carries its version gets the new one, through either ingress and from either replica.
    """
    users = [f"swap-{n}" for n in range(8)]
    outputs: dict[str | None, str] = {}
    with ingresses[0].client() as weft:
        digests = [weft.put_adapter("domain", "sea", f"v{n}", path).digest for n, path in enumerate(folders)]
        for digest in digests:
            outputs[digest] = weft.generate(
                PROMPT, adapter=digest, max_tokens=12, temperature=0.0, use_context=False
            ).output
        assert len(set(outputs.values())) == 2
        weft.activate_adapter("domain", "sea", "v0")
        start = weft.version or ""
        stop, seen = threading.Event(), Counter[str | None]()

        def ask(n: int) -> None:
            with ingresses[n % 2].http(60.0) as http:
                while not stop.is_set():
                    found = generate(http, f"load-{n}", start, domain="sea")
                    assert found["output"] == outputs[found["digest"]], found
                    seen[found["digest"]] += 1

        asked: list[str] = []
        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask, n) for n in range(4)]
            try:
                for turn in range(1, 6):
                    weft.activate_adapter("domain", "sea", f"v{turn % 2}")
                    told = [
                        generate(http, user, weft.version or "", domain="sea")
                        for http in pair
                        for user in users
                    ]
                    assert {answer["digest"] for answer in told} == {digests[turn % 2]}
                    assert {answer["output"] for answer in told} == {outputs[digests[turn % 2]]}
                    asked += [answer["request_id"] for answer in told]
            finally:
                stop.set()
            for future in asking:
                future.result()
        weft.activate_adapter("domain", "sea", None)
    assert set(seen) == set(digests)
    assert len(set(replicas_of(service, asked).values())) == 2, "both replicas were asked"


def test_a_language_model_that_lags_generates_with_the_swap_all_the_same(
    service: Service, ingresses: Ingresses, folders: list[Path]
) -> None:
    """One replica stands still while the other takes the swap; it must not answer from what it knew."""
    models = replica_processes(service, "LanguageModel")
    users, asked = [f"lags-{n}" for n in range(8)], list[str]()
    with (
        ingresses[0].client() as weft,
        ingresses[1].http(60.0) as http,
        ThreadPoolExecutor(9) as pool,
    ):
        digests = [weft.put_adapter("domain", "lag", f"v{n}", path).digest for n, path in enumerate(folders)]
        weft.activate_adapter("domain", "lag", "v1")
        for turn in range(40):
            if len(asked) >= 6 * len(users):
                break
            stopped = models[turn // 2 % 2]
            os.kill(stopped.pid, signal.SIGSTOP)
            try:
                activating = pool.submit(weft.activate_adapter, "domain", "lag", f"v{turn % 2}")
                done, _ = wait([activating], 1.0)
                if done:  # else it was sent to the one that stands still
                    token = weft.version or ""
                    answers = [pool.submit(generate, http, user, token, domain="lag") for user in users]
                    wait(answers, 0.2)
            finally:
                os.kill(stopped.pid, signal.SIGCONT)
            activating.result()
            if done:
                told = [answer.result() for answer in answers]
                assert {answer["digest"] for answer in told} == {digests[turn % 2]}
                asked += [answer["request_id"] for answer in told]
        weft.activate_adapter("domain", "lag", None)
    assert len(asked) >= 6 * len(users), "the swap was sent to the one that stands still, time and again"
    assert len(set(replicas_of(service, asked).values())) == 2, "both replicas were asked"


# ------------------------------------------------------------------------------------------------- API keys


def test_a_key_made_and_revoked_at_one_ingress_is_so_at_the_other(ingresses: Ingresses) -> None:
    for n in range(6):
        one, other = (ingresses[n % 2], ingresses[(n + 1) % 2])
        with one.client() as admin:
            made = admin.create_key("read", label=f"turn {n}")
            with one.http(key=made.key) as here, other.http(key=made.key) as there:
                assert here.get("/v1/items?limit=1").status_code == 200, "at once where it was made"
                made_at = time.monotonic()
                wait_until(lambda: there.get("/v1/items?limit=1").is_success, 5, "the key at the other")
                assert time.monotonic() - made_at < MAX_LAG_S
                admin.revoke_key(made.key_id)
                revoked = time.monotonic()
                assert here.get("/v1/items?limit=1").status_code == 401, "at once where it was revoked"
                statuses = []
                while time.monotonic() < revoked + MAX_LAG_S + 0.5:
                    begun = time.monotonic()
                    statuses.append((begun - revoked, there.get("/v1/items?limit=1").status_code))
                    time.sleep(0.01)
                late = [status for at, status in statuses if at > MAX_LAG_S]
                assert late
                assert set(late) == {401}


def test_an_ingress_that_cannot_know_lets_nobody_in(service: Service, ingresses: Ingresses) -> None:
    """The writer stands still. A key that one ingress might have revoked opens nothing at either."""
    pid = service.writer_pid()
    with ingresses[0].http() as one, ingresses[1].http() as other:
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(MAX_LAG_S + 0.2)
            with ThreadPoolExecutor(2) as pool:
                asked = [pool.submit(http.get, "/v1/items?limit=1") for http in (one, other)]
                wait(asked, timeout=1.0)
                assert not any(answer.done() and answer.result().is_success for answer in asked)
                assert {answer.result().status_code for answer in asked} <= {200, 503}
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        for http in (one, other):
            wait_until(lambda: http.get("/v1/items?limit=1").is_success, 60, "the keys")  # noqa: B023
