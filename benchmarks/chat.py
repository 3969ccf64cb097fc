"""A whole chat request with context over HTTP: where its time goes, and what a returning user saves.

Users of the demo catalogue, with about 60 ratings and 40 memories each, ask one at a time for at most 32 new
tokens, of the small model that comes with Weft and of a random Llama with 30M parameters:
  first      a user's first question: nothing of the prompt is in the prefix cache
  another    the same user's next question: the lines that do not depend on it are
  repeated   the same question again: embedding and prompt are known

Parts of a request: embedding of the question, recommendations (beside it), selection of lines, counting and
rendering them, queue, prefill (to the first token), decoding; the rest is HTTP and hops between processes.

python -m benchmarks.chat
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.report import percentiles, spread, write

USERS, MEMORIES, NEW_TOKENS = 60, 40, 32
PARTS = ("embedding", "suggestions", "selection", "fitting", "queue", "prefill", "decode", "rest")
_PLACES = ("Oslo", "Lisbon", "Kyoto", "Quito", "Accra", "Turin", "Perth", "Leeds", "Cork", "Lyon")
_THINGS = ("sailing", "baking bread", "old maps", "night trains", "choir", "chess", "pottery", "rowing")
_PEOPLE = ("my daughter", "Ben", "my neighbour", "Aunt Lo", "a friend", "colleagues", "Mira", "my father")


def facts(user: str) -> list[str]:
    """Sentences of one user's, each different."""
    draw = random.Random(user)
    forms = (
        "I was in {place} with {person} in {year}.",
        "I like {thing} more than {other}.",
        "{person} told me about {thing} in {place}.",
        "In {year} I began with {thing}.",
    )
    found: dict[str, None] = {}
    while len(found) < MEMORIES:
        thing, other = draw.sample(_THINGS, 2)
        text = draw.choice(forms).format(
            place=draw.choice(_PLACES),
            person=draw.choice(_PEOPLE),
            thing=thing,
            other=other,
            year=draw.randrange(1980, 2026),
        )
        found[text[0].upper() + text[1:]] = None
    return list(found)


def questions(user: str) -> tuple[str, str]:
    draw = random.Random(f"{user} asks")
    place, thing, person = draw.choice(_PLACES), draw.choice(_THINGS), draw.choice(_PEOPLE)
    return f"What did I do in {place} with {person}?", f"What should I watch after {thing}?"


def timed(client: Any, user: str, question: str) -> dict[str, float]:
    """Milliseconds of each part of one request."""
    begun = time.perf_counter()
    answer = client.generate(question, user_id=user, max_tokens=NEW_TOKENS, temperature=0.0)
    total = (time.perf_counter() - begun) * 1e3
    told = answer.context["timings_ms"]
    parts = {
        "embedding": told["embedding"],
        "suggestions": told["suggestions"],
        "selection": told["selection"],
        "fitting": told["fitting"],
        "queue": answer.queued_ms,
        "prefill": answer.first_token_ms - answer.queued_ms,
        "decode": answer.latency_ms - answer.first_token_ms,
    }
    # The question's embedding and the recommendations are asked for at the same time.
    gathered = max(told["embedding"], told["suggestions"]) + told["selection"] + told["fitting"]
    return {
        "total": total,
        **parts,
        "rest": total - gathered - answer.latency_ms,
        "first_token": answer.first_token_ms,
        "prompt_tokens": answer.tokens["prompt"],
        "cached_tokens": answer.tokens["cached"],
        "context_tokens": answer.context["tokens"],
        "new_tokens": answer.tokens["completion"],
    }


def measured(url: str) -> dict[str, Any]:
    from deployments.client import WeftClient

    found: dict[str, list[dict[str, float]]] = {"first": [], "another": [], "repeated": []}
    with WeftClient(url) as client:
        users = [user.user_id for user in client.list_users(limit=USERS + 10).records]
        for user in users:
            client.put_memories(user, [{"text": text} for text in facts(user)])
        while client.status()["text_indexer"].get("waiting"):
            time.sleep(0.2)
        for user in users[USERS:]:
            for question in questions(user):
                timed(client, user, question)  # what loads at first use has been loaded
        for user in users[:USERS]:
            one, other = questions(user)
            found["first"].append(timed(client, user, one))
            found["another"].append(timed(client, user, other))
            found["repeated"].append(timed(client, user, other))
    return {name: _summary(rows) for name, rows in found.items()} | {
        "first_token_first_over_another": spread(
            [
                a["first_token"] / b["first_token"]
                for a, b in zip(found["first"], found["another"], strict=True)
            ]
        ),
        "first_token_first_over_repeated": spread(
            [
                a["first_token"] / b["first_token"]
                for a, b in zip(found["first"], found["repeated"], strict=True)
            ]
        ),
    }


def _summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    total = sum(row["total"] for row in rows)
    return {
        "total_ms": percentiles([row["total"] for row in rows]),
        "first_token_ms": percentiles([row["first_token"] for row in rows]),
        "share": {part: round(sum(row[part] for row in rows) / total, 3) for part in PARTS},
        **{
            name: spread([row[name] for row in rows])
            for name in ("prompt_tokens", "cached_tokens", "context_tokens", "new_tokens")
        },
    }


def save_random_llama(folder: Path) -> Path:
    """With the small model's tokenizer, so that both read the same tokens."""
    from transformers import AutoTokenizer

    from benchmarks.language_models import random_llama
    from models.small_model.folder import small_model_folder

    random_llama().save_pretrained(folder)
    AutoTokenizer.from_pretrained(small_model_folder()).save_pretrained(folder)
    return folder


def served(model: str) -> dict[str, Any]:
    """Start the service with a model, in a process that has not imported Ray yet, and measure it."""
    from deployments.launcher import running
    from deployments.settings import Settings

    os.environ["WEFT_LANGUAGE_MODEL__MODEL"] = model
    settings = Settings()
    with running(settings):
        return measured(settings.url)


def main() -> None:
    from deployments.cli import prepare
    from deployments.settings import Settings

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WEFT_DATA_DIR"] = str(Path(folder) / "data")
        prepare(Settings(), None)
        models = {"weft-small": "", "llama-30m": str(save_random_llama(Path(folder) / "llama-30m"))}
        with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as processes:
            figures = dict(zip(models, processes.map(served, models.values()), strict=True))
    write("chat", figures)


if __name__ == "__main__":
    main()
