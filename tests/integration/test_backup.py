"""A backup of a service under load, the service and its data gone, and another one on what was restored."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from deployments.client import AuthenticationError, ForeignTokenError, WeftClient
from deployments.settings import Settings
from deployments.store_access import read_view
from graph.times import unix_seconds
from graph.view import GraphView
from models.graph_encoder.checkpoint import load_checkpoint
from models.graph_encoder.state import build_state
from models.ranking import Ranker, RankQuery
from models.small_model.folder import small_model_folder
from tests.lora_folders import write_adapter
from tests.processes import wait_until
from tests.service import Service, free_port, launch, running_service, wait_until_ready, weft
from tests.small_store import SmallStore

pytestmark = pytest.mark.integration

WRITERS = 4
PROMPT = "the sea and the ship"


@dataclass(frozen=True)
class Write:
    """An acknowledged one; times are Unix seconds."""

    user_id: str
    what: str
    begun: float
    acknowledged: float


@dataclass
class Lost:
    """The service that is gone: what was written when, what it answered, and its backup."""

    backup: Path
    extra: dict[str, str]
    store_id: str = ""
    told: dict[str, Any] = field(default_factory=dict)  # by the command
    began: float = 0.0
    ended: float = 0.0
    writes: list[Write] = field(default_factory=list)
    token: str = ""
    adapter_output: str = ""
    early_key: str = ""
    revoked_key: str = ""
    late_key: str = ""


def said(client: WeftClient, user_id: str) -> Any:
    return client.generate(PROMPT, user_id=user_id, max_tokens=12, temperature=0.0, use_context=False)


@pytest.fixture(scope="module")
def lost(small_store: SmallStore, tmp_path_factory: pytest.TempPathFactory) -> Lost:
    folder = tmp_path_factory.mktemp("lost")
    made = json.loads(weft(small_store.data_dir, free_port(), "keys", "create", "admin", "--json").stdout)
    extra = {"WEFT_API_KEY": made["key"], "WEFT_AUTH": "required", "WEFT_LANGUAGE_MODEL__ENABLED": "true"}
    lost = Lost(folder / "backup", extra)
    service = launch(small_store.data_dir, folder, extra=extra)
    try:
        wait_until_ready(service)
        wait_until(lambda: service.status()["language_model"].get("model"), 60, "the language model")
        lost.store_id = service.status()["graph_state"]["store_id"]
        with service.client() as admin:
            adapter = write_adapter(folder / "adapter", small_model_folder(), 1)
            admin.rate("ada", "space-00", 5.0)
            admin.put_adapter("user", "ada", "v1", adapter)
            admin.activate_adapter("user", "ada", "v1")
            lost.adapter_output = said(admin, "ada").output
            lost.early_key = admin.create_key("read").key
            revoked = admin.create_key("read")
            lost.revoked_key = revoked.key
            with Writing(service, small_store, lost):
                wait_until(lambda: len(lost.writes) > 100, 60, "writes before the backup")
                lost.told = service.weft_json("backup", str(lost.backup), "--json")
                # Not before the command was started: by the time it copies, writes of then are old.
                lost.began = unix_seconds(lost.told["created_at"])
                lost.ended = time.time()
                goal = len(lost.writes) + 100
                wait_until(lambda: len(lost.writes) > goal, 60, "writes after the backup")
            admin.put_adapter("user", "bo", "v1", adapter)
            admin.activate_adapter("user", "bo", "v1")
            admin.revoke_key(revoked.key_id)
            lost.late_key = admin.create_key("read").key
            lost.token = admin.version or ""
    except BaseException as error:
        error.add_note(service.logs())
        raise
    finally:
        service.sweep()  # as in a power cut
    shutil.rmtree(small_store.data_dir)
    return lost


class Writing:
    """Threads that rate and remember, each write once, until the context ends."""

    def __init__(self, service: Service, small_store: SmallStore, lost: Lost) -> None:
        items = [item for kind in small_store.items.values() for item in kind]
        self._stop, self._errors = threading.Event(), list[BaseException]()
        self._threads = [
            threading.Thread(target=self._work, args=(service, items, lost, f"w{n}")) for n in range(WRITERS)
        ]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def _work(self, service: Service, items: list[str], lost: Lost, name: str) -> None:
        try:
            with service.client() as client:
                for number in count():
                    if self._stop.is_set():
                        return
                    user_id, begun = f"{name}-{number // 30}", time.time()
                    if number % 10 == 0:
                        what = f"m-{name}-{number}"
                        client.remember(user_id, f"Fact {number} of {name}.", memory_id=what)
                    else:
                        what = items[(7 * number) % len(items)]
                        client.rate(user_id, what, 4.0 + number % 2, number)
                    lost.writes.append(Write(user_id, what, begun, time.time()))
        except BaseException as error:
            self._errors.append(error)


@pytest.fixture(scope="module")
def restored(lost: Lost, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command said, and where it put everything."""
    data_dir = tmp_path_factory.mktemp("restored")
    done = weft(data_dir, free_port(), "restore", str(lost.backup), "--json")
    assert "valid again" in done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found | {"data_dir": data_dir}


@pytest.fixture(scope="module")
def service(
    lost: Lost, restored: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    with running_service(restored["data_dir"], tmp_path_factory.mktemp("logs"), extra=lost.extra) as service:
        wait_until(lambda: service.status()["language_model"].get("model"), 60, "the language model")
        yield service


def written_in(view: GraphView) -> set[tuple[str, str]]:
    """(user, item or memory) of everything in a view."""
    found = set()
    for user in view.users():
        for row in view.ratings_of(user.row).item_rows:
            item = view.item_at(int(row))
            assert item is not None
            found.add((user.user_id, item.item_id))
    owners = {user.row: user.user_id for user in view.users()}
    return found | {(owners[m.user_row], m.memory_id) for m in view.memories()}


def test_every_write_of_before_is_there_and_none_of_after(
    lost: Lost, restored: dict[str, Any], service: Service
) -> None:
    before = {(w.user_id, w.what) for w in lost.writes if w.acknowledged < lost.began}
    after = {(w.user_id, w.what) for w in lost.writes if w.begun > lost.ended}
    assert len(before) > 100
    assert len(after) >= 100
    view = read_view(Settings(data_dir=restored["data_dir"]))
    found = written_in(view)
    assert before <= found
    assert not after & found
    # The same out of the replicas.
    with service.client() as client:
        for user_id in sorted({user_id for user_id, _ in before | after}):
            known = {what for owner, what in found if owner == user_id}
            if not known:
                assert service.get(f"/v1/users/{user_id}").status_code == 404
                continue
            ratings = client.list_ratings(user_id, limit=1000).records
            memories = client.list_memories(user_id, limit=1000).records
            assert {r.item_id for r in ratings} | {m.memory_id for m in memories} == known


def test_it_is_another_store_and_old_tokens_are_refused(
    lost: Lost, restored: dict[str, Any], service: Service
) -> None:
    state = service.status()["graph_state"]
    assert lost.told["store_id"] == restored["restored_from"] == lost.store_id
    assert state["store_id"] == restored["store_id"] != lost.store_id
    assert restored["version"] == lost.told["version"] <= state["version"]
    # Of the lost future, and of the past that both share: neither passes.
    shared = f"{lost.store_id}.{lost.told['version']}"
    for token in (lost.token, shared):
        refused = service.get("/v1/users/ada/recommendations", headers={"x-weft-min-version": token})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "foreign_token")
    with service.client() as client:
        client.observe(lost.token)
        with pytest.raises(ForeignTokenError):
            client.recommend("ada")
        assert client.recommend("ada").recommendations
        # A fact, which changes nobody's recommendations.
        written = client.remember("newcomer", "Keeps bees.")
        assert written.version.startswith(f"{restored['store_id']}.")
        assert [m.text for m in client.list_memories("newcomer").records] == ["Keeps bees."]


def test_recommendations_are_those_of_a_fresh_computation(
    lost: Lost, small_store: SmallStore, service: Service, tmp_path: Path
) -> None:
    """Out of the files of the backup alone, without the service's code."""
    shutil.copy(lost.backup / "weft.sqlite", tmp_path)  # opening it writes beside it
    view = read_view(Settings(data_dir=tmp_path))
    users = [*small_store.fans["space"][:3], *small_store.fans["garden"][:3]]
    users += sorted(u.user_id for u in view.users() if u.user_id.startswith("w"))[:4]
    checkpoint = load_checkpoint(lost.backup / "encoders" / small_store.active)
    state = build_state(checkpoint.parameters, view)
    ranker = Ranker(checkpoint.parameters.dim, checkpoint.similarity, checkpoint.ranking)
    place = {item_id: n for n, item_id in enumerate(checkpoint.parameters.item_ids)}
    rows = np.array([item.row for item in view.items()])
    ids = {item.row: item.item_id for item in view.items()}
    positions = np.array([place.get(ids[int(row)], -1) for row in rows])
    ranker.upsert(
        rows, state.source[rows], state.target[rows], state.bias[rows], state.degree[rows], positions
    )
    with service.client() as client:
        for user_id in users:
            row = view.user(user_id).row
            seen, weights = state.seen(row)
            vector = state.user_vectors(np.array([row]))[0]
            (fresh,) = ranker.recommend([RankQuery(vector, seen.astype(np.int64), weights, n=10)])
            answer = client.recommend(user_id, n=10, exact_items=True)
            assert answer.encoder == small_store.active
            assert [r.item_id for r in answer.recommendations] == [ids[int(best)] for best in fresh.rows]
            np.testing.assert_allclose(
                [r.score for r in answer.recommendations], fresh.scores, rtol=1e-4, atol=1e-5
            )


def test_adapters_speak_as_before(lost: Lost, service: Service) -> None:
    with service.client() as client:
        ada, bo = said(client, "ada"), said(client, "bo")
    assert (ada.adapter, ada.output) == ("user/ada/v1", lost.adapter_output)
    assert bo.adapter is None  # given after the backup
    assert bo.output != ada.output


def test_keys_open_as_they_did_then(lost: Lost, service: Service) -> None:
    """The revoked one too, as the command said; one that was made later is unknown."""
    for key in (lost.early_key, lost.revoked_key):
        with service.client(api_key=key) as reader:
            assert reader.recommend("ada").recommendations
    with service.client(api_key=lost.late_key) as reader, pytest.raises(AuthenticationError):
        reader.recommend("ada")
    assert httpx.get(f"{service.url}/v1/items", trust_env=False).status_code == 401
