"""Generation and adapters over HTTP on a running service with the model that comes with Weft."""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from deployments.client import WeftClient
from deployments.metrics import METRICS, STATE
from models.small_model.folder import small_model_folder
from tests.exporter import FOREIGN_LABELS, PREFIX, Exporter, Scrape
from tests.integration.metrics_walk import Walk, walk
from tests.lora_folders import write_adapter
from tests.processes import wait_until
from tests.service import Service, running_service
from tests.small_store import SmallStore

pytestmark = pytest.mark.integration

PROMPT = "the sea and the ship"


@pytest.fixture(scope="module")
def service(small_store: SmallStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    extra = {
        "WEFT_LANGUAGE_MODEL__ENABLED": "true",
        "WEFT_LANGUAGE_MODEL__NUM_REPLICAS": "2",
        "WEFT_METRICS__INTERVAL_S": "1",
        "WEFT_LOG__SLOW_CALL_S": "0",
    }
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


# -------------------------------------------------------------------------------------- metrics, request ids

# What a handful of requests does not bring about; test_part_metrics.py does.
RARE = {
    *("weft_writers_replaced_total", "weft_cache_errors_total", "weft_cache_evictions_total"),
    *("weft_engine_out_of_memory_total", "weft_keys_lag_seconds"),
}


@dataclass
class Walked:
    asked: Walk
    before: Scrape
    after: Scrape

    def grew(self, name: str, **labels: str) -> float:
        return self.after.of(name, **labels) - self.before.of(name, **labels)


@pytest.fixture(scope="module")
def walked(service: Service, small_store: SmallStore, tmp_path_factory: pytest.TempPathFactory) -> Walked:
    exporter = Exporter(service)
    # Adapters that no other test has had loaded.
    root, model = tmp_path_factory.mktemp("walk"), small_model_folder()
    folders = [write_adapter(root / f"a{n}", model, 100 + n) for n in range(2)]
    before = exporter.at_rest()
    with httpx.Client(base_url=service.url, timeout=30.0, trust_env=False) as http, service.client() as weft:
        asked = walk(http, weft, small_store, folders)
    return Walked(asked, before, exporter.at_rest())


def test_every_metric_of_the_table_is_exported_and_no_other(walked: Walked) -> None:
    found = {family.name.removeprefix(PREFIX): family for family in walked.after.ours()}
    # The parser takes the ending off counters.
    wanted = {metric.name.removesuffix("_total"): metric for metric in METRICS if metric.name not in RARE}
    assert found.keys() - {name.removesuffix("_total") for name in RARE} == wanted.keys()
    assert not [name for name in walked.after.families if name.startswith("weft_")]
    for name, metric in wanted.items():
        assert found[name].type == metric.kind, name
        by = {sample.labels["deployment"] for sample in found[name].samples}
        assert by == set(metric.parts), name


def test_counts_are_exact(walked: Walked) -> None:
    asked, grew = walked.asked, walked.grew
    route = "/v1/users/{user_id}/recommendations"
    assert grew("weft_requests_total", method="GET", route=route, status="200") == 3
    assert grew("weft_request_duration_seconds_count", method="GET", route=route) == 3
    assert grew("weft_requests_total", method="POST", route="/v1/ratings", status="200") == 2
    assert grew("weft_requests_total", method="POST", route="/v1/ratings", status="404") == 1
    assert grew("weft_requests_total", route="unmatched") == 1
    assert grew("weft_requests_total", route="/v1/generate", status="200") == 5
    assert grew("weft_writes_total", outcome="replayed") == 1
    assert grew("weft_writes_total", outcome="refused") == 1
    assert grew("weft_commit_group_writes_sum") >= grew("weft_commit_seconds_count") >= 4
    for source, count in {"user": 2, "domain": 1, "base": 2, "global": 0, "request": 0}.items():
        assert grew("weft_generations_total", source=source, outcome="length") == count
    tokens = [answer["tokens"] for answer in asked.generated]
    assert grew("weft_prompt_tokens_total") == sum(each["prompt"] for each in tokens)
    assert grew("weft_completion_tokens_total") == sum(each["completion"] for each in tokens) > 0
    assert grew("weft_cached_prompt_tokens_total") == sum(each["cached"] for each in tokens) > 0
    assert grew("weft_first_token_seconds_count") == grew("weft_output_token_seconds_count") == 5
    assert grew("weft_inference_seconds_count", part="language_model") == 5
    assert grew("weft_queue_seconds_count", part="language_model") == 5
    assert sum(grew("weft_prefix_cache_lookups_total", outcome=o) for o in ("hit", "miss")) == 5
    assert grew("weft_adapter_events_total", event="load") >= 2
    # One text, twice in each of two requests: computed once, one waits for the other, two are in memory.
    assert grew("weft_cache_coalesced_texts_total") == 1
    assert grew("weft_cache_hits_total", tier="memory") >= 2
    for part in ("graph_encoder", "retriever"):
        assert grew("weft_inference_seconds_count", part=part) >= 3
        assert grew("weft_queue_seconds_count", part=part) >= 3


def test_values_are_those_of_the_service(service: Service, walked: Walked) -> None:
    after, status = walked.after, service.status()
    versions = {
        sample.labels["replica"]: sample.value
        for family in after.ours()
        if family.name == f"{PREFIX}weft_replica_version"
        for sample in family.samples
    }
    assert len(versions) == 6, "encoder, retriever, embedder, indexer, two language models"
    assert set(versions.values()) == {after.of("weft_head_version")} == {status["graph_state"]["version"]}
    assert after.of("weft_feed_lag_seconds") == 0
    assert after.of("weft_store_up", deployment=STATE) == 1
    digest = status["graph_encoder"]["encoder"][:12]
    assert after.of("weft_encoder_info", digest=digest, deployment="Retriever") == 1
    for kind, count in (("user", "users"), ("item", "items"), ("rating", "ratings"), ("memory", "memories")):
        assert after.of("weft_graph_rows", kind=kind) == status["graph_state"][count]
    assert after.of("weft_engine_rows", state="free") == 32
    assert after.of("weft_engine_rows", state="busy") == after.of("weft_texts_without_vector") == 0
    assert after.of("weft_cache_memory_bytes") > 0
    mean = after.of("weft_first_token_seconds_sum") / after.of("weft_first_token_seconds_count")
    assert 0 < mean < 60


def test_labels_hold_nothing_that_users_wrote(walked: Walked) -> None:
    metrics = {metric.name.removesuffix("_total"): metric for metric in METRICS}
    for family in walked.after.ours():
        metric = metrics[family.name.removeprefix(PREFIX)]
        for sample in family.samples:
            assert sample.labels.keys() - FOREIGN_LABELS == set(metric.labels), sample
            for label in metric.labels:
                assert walked.asked.mark not in sample.labels[label]
                assert not sample.labels[label].startswith(("space-", "garden-", "/walked"))


def test_a_request_id_is_in_the_lines_of_every_part_it_passed(service: Service, walked: Walked) -> None:
    service.family()

    def parts() -> set[str]:
        return {
            _part(path)
            for folder in service.log_folders()
            for path in folder.rglob("*")
            if path.is_file() and walked.asked.request_id in path.read_text(errors="replace")
        }

    wanted = {"Ingress", "GraphEncoder", "Retriever", "TextEmbedder", "LanguageModel", "worker"}
    wait_until(lambda: parts() >= wanted, 10, f"lines of {wanted}, there are {parts()}")


def test_requests_that_share_a_call_are_all_named(service: Service, small_store: SmallStore) -> None:
    mark = f"crowd-{uuid.uuid4().hex[:8]}"
    fans = small_store.fans["garden"]

    def ask(n: int) -> int:
        url = f"{service.url}/v1/users/{fans[n % len(fans)]}/recommendations"
        return httpx.get(url, headers={"x-request-id": f"{mark}-{n}-"}, trust_env=False).status_code

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(ask, range(48))) == {200}
    service.family()

    def lines(part: str) -> list[str]:
        paths = [p for folder in service.log_folders() for p in folder.rglob(f"*{part}*.log")]
        return [line for p in paths for line in p.read_text().splitlines() if mark in line]

    for part in ("Retriever", "GraphEncoder"):
        named = wait_until(
            lambda part=part: {m for line in lines(part) for m in re.findall(rf"{mark}-\d+-", line)}, 10, part
        )
        assert named == {f"{mark}-{n}-" for n in range(48)}, part
    assert any("," in line for line in lines("Retriever")), "some went together"


def _part(path: Path) -> str:
    """Whose log it is: a deployment's, or, as for the graph state, that of a worker process."""
    replica = re.match(r"replica_weft_([A-Za-z]+)_", path.name)
    return replica[1] if replica else path.name.partition("-")[0]
