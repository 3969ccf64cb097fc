"""SIGKILL on text embedder and text indexer: writes and searches go on, and no vector stays away."""

from __future__ import annotations

import os
import signal

import httpx
import pytest

from tests.processes import wait_until
from tests.service import Service

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("part", ["TextEmbedder", "TextIndexer"])
def test_a_killed_part_delays_vectors_and_nothing_else(service: Service, part: str) -> None:
    victim = service.replica(part)
    os.kill(victim.pid, signal.SIGKILL)
    word = f"quixotic{part.lower()}"
    by_words = 0
    with httpx.Client(base_url=service.url, timeout=20.0, trust_env=False) as http:
        for n in range(60):
            body = {"title": f"Film {part} {n}", "text": f"{word} number {n}"}
            written = http.put(f"/v1/items/{part}-{n}", json=body)
            assert written.status_code == 200, written.text
            found = http.post("/v1/search", json={"query": f"Film {part} {n}", "n": 1})
            assert found.status_code == 200, found.text
            assert found.json()["results"], "letters find the title, whatever became of the vectors"
            by_words += found.json()["text_model"] is None

        def complete() -> bool:
            status = service.status()
            followers = {f["kind"] for f in status["graph_state"]["followers"]}
            return (
                status["text_indexer"].get("waiting") == 0
                and status["text_embedder"].get("model") is not None
                and {"text_embedder", "text_indexer"} <= followers
            )

        wait_until(complete, 60, "vectors of everything written meanwhile")

        def meant() -> bool:
            """Every item is the nearest to its own text, which only its vector can say so exactly."""
            for n in range(0, 60, 7):
                query = {"query": f"{word} number {n}. Film {part} {n}.", "n": 1}
                answer = http.post("/v1/search", json=query).json()
                (best,) = answer["results"]
                if answer["waiting"] or best["item_id"] != f"{part}-{n}" or best["score"] < 0.999:
                    return False
            return True

        wait_until(meant, 30, "search by the text of the new items")
    print(f"{part}: {by_words} of 60 searches went by words")
