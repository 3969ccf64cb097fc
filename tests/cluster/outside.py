"""What somebody does who knows nothing of a service but its address and a key, from a host of his own.

`python -m tests.cluster.outside ready|visit|write`, with OUTSIDE_URL and OUTSIDE_KEY in the environment. Ends
with a traceback where a promise does not hold.
"""

from __future__ import annotations

import os
import sys
import time
import uuid

import httpx

from deployments.client import WeftClient

DEADLINE_S = 180.0


def ready(url: str) -> None:
    """Wait until the service says that it is."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            answer = httpx.get(f"{url}/readyz", timeout=10.0, trust_env=False)
            if answer.status_code == 200:
                return
            last = answer.text
        except httpx.HTTPError as error:
            last = repr(error)
        assert time.monotonic() < deadline, f"not ready within {DEADLINE_S:g} s: {last}"
        time.sleep(0.2)


def refused(url: str) -> None:
    """Without the key nobody gets in."""
    for headers in ({}, {"authorization": "Bearer weft_guessed.guess"}):
        answer = httpx.get(f"{url}/v1/users", headers=headers, timeout=10.0, trust_env=False)
        assert answer.status_code == 401, answer.text


def visit(client: WeftClient, fan: str) -> None:
    """Rate, state, search, ask: each shows in the next answer. `fan`: a user with ratings."""
    before = client.recommend(fan, n=5)
    top = before.recommendations[0]
    client.rate(fan, top.item_id, 5.0)
    after = client.recommend(fan, n=5)
    assert top.item_id not in {r.item_id for r in after.recommendations}
    scores = {r.item_id: r.score for r in before.recommendations}
    assert any(scores[r.item_id] != r.score for r in after.recommendations if r.item_id in scores)
    print(f"{fan} rated {top.item_id}, gets {', '.join(r.item_id for r in after.recommendations)}")

    user = f"visitor-{uuid.uuid4().hex[:6]}"
    client.remember(user, "My boat is called Albatross.")
    context = client.context(user, "What is my boat called?")
    assert "Albatross" in context.text, context
    print(f"{user} said it, and the context has: {context.text!r}")

    found = client.search(top.title, n=3)
    assert found.results[0].item_id == top.item_id
    assert found.text_model is not None
    print(f"{top.title!r} is found: {found.results[0].item_id}")

    answer = client.generate("What is my boat called?", user_id=user, max_tokens=24, temperature=0.0)
    assert answer.output
    assert answer.context is not None and not answer.context["missing"], answer.context
    print(f"{answer.model} says: {answer.output!r}")


def write(client: WeftClient) -> None:
    """One write, however long it takes, and what was written."""
    user, began = f"writer-{uuid.uuid4().hex[:6]}", time.monotonic()
    client.put_user(user, {"seen": True})
    took = time.monotonic() - began
    assert client.get_user(user).attributes == {"seen": True}
    print(f"written after {took:.1f} s")


def main(what: str, *arguments: str) -> None:
    url = os.environ["OUTSIDE_URL"]
    if what == "ready":
        ready(url)
        return
    key = os.environ["OUTSIDE_KEY"]
    attempts = int(DEADLINE_S)
    with WeftClient(url, api_key=key, deadline_s=DEADLINE_S, timeout_s=30.0, max_attempts=attempts) as client:
        if what == "write":
            write(client)
        else:
            refused(url)
            visit(client, *arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
