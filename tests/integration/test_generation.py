"""Generation and adapters over HTTP on a running service with the model that comes with Weft."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from deployments.client import WeftClient
from models.small_model.folder import small_model_folder
from tests.lora_folders import write_adapter
from tests.processes import wait_until
from tests.service import Service, running_service
from tests.small_store import SmallStore

pytestmark = pytest.mark.integration

PROMPT = "the sea and the ship"


@pytest.fixture(scope="module")
def service(small_store: SmallStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    extra = {"WEFT_LANGUAGE_MODEL__ENABLED": "true", "WEFT_LANGUAGE_MODEL__NUM_REPLICAS": "2"}
    with running_service(small_store.data_dir, tmp_path_factory.mktemp("logs"), extra=extra) as service:
        wait_until(lambda: service.status()["language_model"].get("model"), 60, "the language model")
        yield service


@pytest.fixture(scope="module")
def folders(service: Service, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("adapters")
    model = small_model_folder()
    return [write_adapter(root / f"a{n}", model, n) for n in range(4)]


def said(http: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = http.post("/v1/generate", json={"text": PROMPT, "max_tokens": 12, "temperature": 0, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_an_adapter_from_the_folder_to_the_next_request(service: Service, folders: list[Path]) -> None:
    """Put, activate, swap, roll back: each shows in the next request that carries its version."""
    with service.client() as weft:

        def answer() -> Any:
            return weft.generate(PROMPT, user_id="ada", max_tokens=12, temperature=0.0)

        base = answer()
        assert (base.adapter, base.source) == (None, "base")
        first = weft.put_adapter("user", "ada", "v1", folders[0])
        second = weft.put_adapter("user", "ada", "v2", folders[1])
        assert answer().adapter is None, "putting activates nothing"
        weft.activate_adapter("user", "ada", "v1")
        one = answer()
        assert (one.adapter, one.digest, one.source) == ("user/ada/v1", first.digest, "user")
        assert one.output != base.output
        weft.activate_adapter("user", "ada", "v2")
        two = answer()
        assert (two.adapter, two.digest) == ("user/ada/v2", second.digest)
        assert two.output not in (one.output, base.output)
        weft.roll_back_adapter("user", "ada")
        again = answer()
        assert (again.adapter, again.output) == ("user/ada/v1", one.output)
        assert [state.action for state in weft.adapter_history("user", "ada")] == [
            "activate",
            "activate",
            "rollback",
        ]
        other = weft.generate(PROMPT, user_id="bob", max_tokens=12, temperature=0.0)
        assert (other.adapter, other.output) == (None, base.output)


def test_cascade_and_named_adapters(service: Service, http: httpx.Client, folders: list[Path]) -> None:
    with service.client() as weft:
        weft.put_adapter("domain", "films", "v1", folders[2])
        weft.activate_adapter("domain", "films", "v1")
        http.headers["x-weft-min-version"] = weft.version or ""
    found = said(http, user_id="carl", domain="films")
    assert (found["adapter"], found["source"]) == ("domain/films/v1", "domain")
    assert said(http, user_id="carl", domain="films", adapter="base")["output"] == said(http)["output"]
    named = said(http, adapter="domain/films/v1")
    assert (named["output"], named["source"]) == (found["output"], "request")
    refused = http.post("/v1/generate", json={"text": PROMPT, "adapter": "domain/opera"})
    assert refused.status_code == 404
    assert refused.json()["error"]["code"] == "unknown_adapter"


def test_the_openai_client_streams_and_counts(service: Service) -> None:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as client:
        model = client.models.list().data[0].id
        whole = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": PROMPT}], max_tokens=12, temperature=0
        )
        chunks = list(
            client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": PROMPT}],
                max_tokens=12,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 12
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "x"}])


def test_each_of_a_batch_succeeds_or_fails_alone(http: httpx.Client) -> None:
    requests = [
        {"text": PROMPT, "max_tokens": 4},
        {"text": PROMPT, "temperature": -1},
        {"text": "x " * 9_000},
    ]
    results = http.post("/v1/generate/batch", json={"requests": requests}).json()["results"]
    assert results[0]["output"]
    assert results[1]["error"]["param"] == "temperature"
    assert results[2]["error"]["code"] == "text_too_long"


def test_swaps_under_load_fail_no_request_and_mix_no_weights(service: Service, folders: list[Path]) -> None:
    """Every answer is the one that its digest gives alone; none fails while the pointer moves."""
    with service.client() as weft:
        digests = {
            None: weft.generate(PROMPT, adapter="base", max_tokens=12, temperature=0.0).output,
        }
        for n, folder in enumerate(folders):
            put = weft.put_adapter("global", "default", f"v{n}", folder)
            alone = weft.generate(PROMPT, adapter=put.digest, max_tokens=12, temperature=0.0)
            digests[put.digest] = alone.output
        assert len(set(digests.values())) == 5
        stop, seen = threading.Event(), Counter[str | None]()

        def ask(user: str) -> int:
            count = 0
            with httpx.Client(base_url=service.url, timeout=30.0, trust_env=False) as http:
                while not stop.is_set():
                    found = said(http, user_id=user)
                    assert found["output"] == digests[found["digest"]], found
                    seen[found["digest"]] += 1
                    count += 1
            return count

        with ThreadPoolExecutor(8) as pool:
            asking = [pool.submit(ask, f"load-{n}") for n in range(8)]
            try:
                for n in range(24):
                    if n % 6 == 5:
                        state = weft.roll_back_adapter("global", "default")
                    else:
                        state = weft.activate_adapter("global", "default", f"v{n % 4}")
                    told = weft.generate(PROMPT, user_id="judge", max_tokens=12, temperature=0.0)
                    assert told.digest == state.arms[0].digest, (
                        "the next request with its version has the swap"
                    )
            finally:
                stop.set()
            total = sum(future.result() for future in asking)
        weft.activate_adapter("global", "default", None)
    assert total == sum(seen.values()) > 100
    assert len(seen) >= 4


def test_commands_against_the_running_service(service: Service, folders: list[Path]) -> None:
    assert service.weft("adapters", "put", "user/eve", "v1", str(folders[3]), "--activate").returncode == 0
    found = service.weft_json("generate", PROMPT, "--user", "eve", "--temperature", "0", "--json")
    assert found["adapter"] == "user/eve/v1"
    listed = service.weft_json("adapters", "list", "user/eve", "--json")
    assert [(a["version"], a["active"]) for a in listed["adapters"]] == [("v1", True)]


def test_generations_are_in_the_audit_log_without_their_texts(service: Service, http: httpx.Client) -> None:
    request_id = "audited-1"
    answer = http.post(
        "/v1/generate",
        json={"text": "a secret", "user_id": "audit", "max_tokens": 3},
        headers={"x-request-id": request_id},
    )
    assert answer.status_code == 200

    def lines() -> list[dict[str, Any]]:
        paths = (service.data_dir / "audit").glob("*.jsonl")
        found = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
        return [entry for entry in found if entry["request_id"] == request_id]

    (entry,) = wait_until(lines, 10, "the audit line")
    assert entry["user"] == "audit"
    assert entry["adapter_active"] is False
    assert "secret" not in json.dumps(entry)


def test_users_stay_with_their_replica(service: Service) -> None:
    """Prefixes and adapters are found in memory because a user's requests go to one replica."""
    with WeftClient(service.url) as weft:
        turns = [{"role": "user", "content": "tell me a long story about the sea " * 12}]
        weft.generate(messages=turns, user_id="stay", max_tokens=1)
        cached = [
            weft.generate(messages=turns, user_id="stay", max_tokens=1).tokens["cached"] for _ in range(6)
        ]
    assert all(cached), cached
