"""SIGKILL on the language model under load: recommendations go on, and it comes back as it was."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.small_model.folder import small_model_folder
from tests.lora_folders import write_adapter
from tests.processes import wait_until
from tests.service import Service
from tests.small_store import SmallStore

pytestmark = pytest.mark.faults

ASKED = {"text": "the sea and the ship", "max_tokens": 12, "temperature": 0}


class Load:
    """Requests without a pause, until the end; what came of them is counted."""

    def __init__(self, service: Service, fan: str) -> None:
        self._service, self._fan = service, fan
        self._stop = threading.Event()
        self.seen = Counter[str]()
        self.reasons: set[str] = set()

    def __enter__(self) -> Load:
        self._pool = ThreadPoolExecutor(5)
        kinds = (self.recommend, self.ready, self.generate, self.generate, self.stream)
        self._running = [self._pool.submit(self._repeat, kind) for kind in kinds]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()
        for running in self._running:
            running.result()

    def _repeat(self, ask: Callable[[httpx.Client], str]) -> None:
        with httpx.Client(base_url=self._service.url, timeout=60.0, trust_env=False) as http:
            while not self._stop.is_set():
                self.seen[ask(http)] += 1

    def recommend(self, http: httpx.Client) -> str:
        answer = http.get(f"/v1/users/{self._fan}/recommendations", params={"n": 3})
        assert answer.status_code == 200, answer.text
        return "recommended"

    def ready(self, http: httpx.Client) -> str:
        answer = http.get("/readyz")
        assert answer.status_code == 200, answer.text
        degraded = answer.json()["parts"]["degraded"].get("language_model", "")
        return "without" if degraded.startswith("nothing can be generated") else "with"

    def generate(self, http: httpx.Client) -> str:
        answer = http.post("/v1/generate", json=ASKED)
        if answer.status_code == 200:
            return "generated"
        return self.typed(answer.json()["error"], answer.text)

    def stream(self, http: httpx.Client) -> str:
        with http.stream("POST", "/v1/generate", json=ASKED | {"stream": True}) as answer:
            if answer.status_code != 200:
                answer.read()
                return self.typed(answer.json()["error"], answer.text)
            lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
        last = json.loads(next(line for line in reversed(lines) if line != "[DONE]"))
        return "streamed" if "finished" in last else self.typed(last["error"], lines[-1])

    def typed(self, error: dict[str, Any], text: str) -> str:
        assert error["type"] in ("unavailable_error", "rate_limit_error"), text
        assert error["retryable"] is True, text
        self.reasons.add(error["code"])
        return "refused"


def test_a_killed_language_model_comes_back_with_its_adapters(
    service: Service, small_store: SmallStore, tmp_path: Path
) -> None:
    def model() -> dict[str, Any]:
        found: dict[str, Any] = service.status()["language_model"]
        return found

    wait_until(lambda: model().get("open"), 60, "the language model")
    folder = write_adapter(tmp_path / "adapter", small_model_folder(), 7)
    with service.client() as weft:
        put = weft.put_adapter("user", "survivor", "v1", folder)
        weft.activate_adapter("user", "survivor", "v1")
        before = weft.generate(ASKED["text"], user_id="survivor", max_tokens=12, temperature=0.0)
        assert before.digest == put.digest
        saved = service.data_dir / "adapters" / ".resident-0.json"
        wait_until(lambda: saved.is_file() and put.digest in saved.read_text(), 10, "the list of residents")

        killed = model()["replica"]
        with Load(service, small_store.fans["space"][0]) as load:
            wait_until(lambda: min(load.seen["generated"], load.seen["streamed"]) > 5, 30, "load")
            os.kill(service.replica("LanguageModel").pid, signal.SIGKILL)
            wait_until(lambda: model().get("replica", killed) != killed, 60, "another replica")
            wait_until(lambda: model().get("open"), 60, "its model")
            # Nobody asks for the adapter meanwhile.
            wait_until(lambda: model()["adapters"]["resident"] == 1, 10, "the adapter loaded ahead")
            back = load.seen.copy()
            wait_until(lambda: load.seen["generated"] > back["generated"] + 5, 30, "answers again")
            wait_until(lambda: load.seen["streamed"] > back["streamed"] + 5, 30, "streams again")
        after = weft.generate(ASKED["text"], user_id="survivor", max_tokens=12, temperature=0.0)
        assert (after.adapter, after.digest, after.output) == ("user/survivor/v1", put.digest, before.output)
        assert [state.action for state in weft.adapter_history("user", "survivor")] == ["activate"]
    assert load.seen["without"] > 0, "for a moment nothing could be generated"
    assert load.seen["recommended"] > 50
    print(dict(load.seen), load.reasons)
