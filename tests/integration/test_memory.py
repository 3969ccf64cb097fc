"""Memories, context and explanations on a running service with the small model that comes with Weft."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.processes import wait_until
from tests.service import Service, running_service
from tests.small_store import SmallStore

pytestmark = pytest.mark.integration

FIRST = ("Silver", "Quiet", "Broken", "Golden", "Hidden", "Distant", "Winter", "Crimson", "Paper", "Midnight")
SECOND = ("Harbour", "Orchard", "Signal", "Garden", "Voyage", "Letters")
TITLES = [f"{first} {second}" for second in SECOND for first in FIRST]
"""As films have them; those of the small store differ in a number alone, which the small model gets wrong."""

QUESTION = "What should I watch next, and what do you know about me?"


@pytest.fixture(scope="module")
def service(small_store: SmallStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    extra = {"WEFT_LANGUAGE_MODEL__ENABLED": "true"}
    with running_service(small_store.data_dir, tmp_path_factory.mktemp("logs"), extra=extra) as service:
        wait_until(lambda: service.status()["language_model"].get("model"), 60, "the language model")
        with service.client() as weft:
            weft.put_items(
                {"item_id": item_id, "title": title, "tags": ["space"]}
                for item_id, title in zip(small_store.items["space"], TITLES, strict=True)
            )
        yield service


def test_an_answer_uses_the_rating_and_the_fact_and_nobody_elses_does(
    service: Service, small_store: SmallStore
) -> None:
    """Rate, state a fact, ask; then somebody else asks the same."""
    with service.client() as weft:
        liked = small_store.items["space"][0]
        weft.rate("nora", liked, 5.0)
        (fact,) = weft.remember("nora", "I live in Tromsø.").memory_ids
        answer = weft.generate(QUESTION, user_id="nora", max_tokens=64, temperature=0.0)
        sources = [(source["kind"], source["id"]) for source in answer.context["sources"]]
        assert ("memory", fact) in sources
        assert ("item", liked) in sources
        assert answer.context["missing"] == []
        assert "Tromsø" in answer.output, answer.output
        assert TITLES[0] in answer.output, "what was rated is the reason"

        weft.put_user("ole")
        other = weft.generate(QUESTION, user_id="ole", max_tokens=64, temperature=0.0)
        assert "Tromsø" not in other.output
        context = weft.context("ole", QUESTION)
        # Nothing of anybody's but what is popular, without a reason.
        assert {line.kind for line in context.lines} <= {"suggested"}
        assert all("because" not in line.text for line in context.lines)

        without = weft.generate(QUESTION, user_id="nora", max_tokens=64, temperature=0.0, use_context=False)
        assert without.context is None
        assert "Tromsø" not in without.output


def test_what_the_route_shows_is_what_the_prompt_gets(service: Service) -> None:
    with service.client() as weft:
        weft.remember("pia", "My cat is called Miso.")
        shown = weft.context("pia", "What is my cat called?", max_tokens=80)
        answer = weft.generate(
            "What is my cat called?", user_id="pia", max_tokens=32, temperature=0.0, max_context_tokens=80
        )
        assert answer.context["tokens"] == shown.tokens <= 80
        sources = [(source["kind"], source["id"]) for source in answer.context["sources"]]
        assert sources == [line.source for line in shown.lines]
        assert shown.counted_by == answer.model
        assert "Miso" in answer.output
        again = weft.generate(
            "What is my cat called?", user_id="pia", max_tokens=32, temperature=0.0, max_context_tokens=80
        )
        assert again.output == answer.output
        assert again.tokens["cached"] > 0


def test_a_fact_is_there_in_the_next_read_changed_and_gone(service: Service) -> None:
    with service.client() as weft:
        (memory_id,) = weft.remember("quentin", "I am allergic to hazelnuts.").memory_ids
        assert weft.get_memory("quentin", memory_id).text == "I am allergic to hazelnuts."
        found = weft.search_memories("quentin", "allergic to what?")
        assert found.memories[0][0].memory_id == memory_id
        weft.put_memory("quentin", memory_id, "I am allergic to peanuts.")
        assert "peanuts" in weft.context("quentin", "What am I allergic to?").text
        weft.put_memory("quentin", memory_id, "I am allergic to peanuts.", invalid_at="2020-01-01")
        assert "peanuts" not in weft.context("quentin", "What am I allergic to?").text
        assert weft.get_memory("quentin", memory_id).valid is False
        weft.delete_memory("quentin", memory_id)
        assert weft.list_memories("quentin").records == ()


def test_relations_lead_from_facts_to_items(service: Service, small_store: SmallStore) -> None:
    with service.client() as weft:
        item_id = small_store.items["garden"][3]
        title = weft.get_item(item_id).title
        (memory_id,) = weft.remember("rosa", "Watched it with Ben.", about=[item_id]).memory_ids
        graph = weft.user_graph("rosa", 2)
        assert {(e.source, e.name, e.target) for e in graph.edges} == {
            (("user", "rosa"), "remembers", ("memory", memory_id)),
            (("memory", memory_id), "about", ("item", item_id)),
        }
        assert f"(about {title})" in weft.context("rosa", "Who was with me?").text


def test_recommendations_explain_themselves(
    service: Service, http: httpx.Client, small_store: SmallStore
) -> None:
    fan = small_store.fans["space"][0]
    body = http.get(f"/v1/users/{fan}/recommendations", params={"n": 4, "explain": "true"}).json()
    explained = body["recommendations"]
    assert all(entry["explanation"]["text"] for entry in explained[:3])
    assert "explanation" not in explained[3]
    # A sentence for itself names its film: the model was asked about that one.
    assert sum(entry["title"] in entry["explanation"]["text"] for entry in explained[:3]) >= 2
    url = f"/v1/users/{fan}/recommendations"
    headers = {"accept": "text/event-stream"}
    texts: dict[str, str] = {}
    whole: dict[str, str] = {}
    with http.stream("GET", url, params={"n": 4, "explain": "true"}, headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        event = ""
        for line in response.iter_lines():
            if line.startswith("event: "):
                event = line[7:]
            elif line.startswith("data: ") and line != "data: [DONE]":
                data = json.loads(line[6:])
                if event == "explanation":
                    texts[data["item_id"]] = texts.get(data["item_id"], "") + data["text"]
                elif event == "explained":
                    whole[data["item_id"]] = data["text"]
    assert texts == whole
    assert whole == {entry["item_id"]: entry["explanation"]["text"] for entry in explained[:3]}


def test_a_mesh_is_imported_into_the_running_service(
    service: Service, small_store: SmallStore, tmp_path: Path
) -> None:
    item_id = small_store.items["space"][5]
    mesh = {
        "nodes": [{"id": "a", "text": "I moved to Bergen."}, {"id": "b", "text": "I sail on Sundays."}],
        "edges": [
            {"from": "b", "to": "a", "name": "follows"},
            {"from": "b", "item": item_id, "name": "about"},
        ],
    }
    (tmp_path / "sven.json").write_text(json.dumps(mesh), encoding="utf-8")
    for _ in range(2):  # the second changes nothing
        service.weft("import", "mesh", str(tmp_path))
    with service.client() as weft:
        memories = weft.list_memories("sven").records
        assert [memory.text for memory in memories] == ["I moved to Bergen.", "I sail on Sundays."]
        assert {(r.name, r.kind) for r in memories[1].relations} == {("follows", "memory"), ("about", "item")}
    assert "sail" in service.weft("memories", "search", "sven", "sail on sundays").stdout


def test_the_tour_goes_through(service: Service) -> None:
    shown = service.weft("tour", "--no-pause", "--seconds", "0.3").stdout
    assert "already counts it" in shown
    assert "prefix cache" in shown
    assert "in one batch" in shown
    assert "recommendations:" in shown
    assert "Left out: a chat needs a terminal" in shown
    assert "are removed" in shown
    with service.client() as weft:
        users = {user.user_id for user in weft.list_users(limit=1000).records}
    assert not any(user.startswith("tour-") for user in users)
