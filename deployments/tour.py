"""The steps of `weft tour`: each sends requests to the running service and says what came back."""

from __future__ import annotations

import json
import textwrap
import threading
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from deployments.client import WeftAPIError, WeftClient
from graph.errors import InvalidInput
from models.small_model.folder import small_model_folder, style_folders

_QUESTION = "What should I watch next, and what do you know about me?"
_WIDTH = 100
_STREAMS = 8


class Skipped(Exception):
    """A step that this service cannot show, and why."""


class Tour:
    """What the steps share: a client, a user of the tour's own, and what is to be removed in the end."""

    def __init__(self, client: WeftClient, url: str, user_id: str, seconds: float, interactive: bool) -> None:
        self.client, self.url, self.user_id = client, url, user_id
        self.seconds, self.interactive = seconds, interactive
        self.other_id = f"{user_id}-other"
        self.model: str | None = None
        """Of the service; None: it has none."""

    def begin(self) -> None:
        """Make the tour's user with three ratings, so that there is something to recommend from.

        Raises InvalidInput where the catalogue is too small for that.
        """
        # Not by asking for it: a model that is away is worth waiting for elsewhere.
        language_model = self.client.status()["language_model"]
        self.model = language_model.get("model") if language_model.get("open") else None
        self.client.put_user(self.user_id)
        popular = self.client.recommend(self.user_id, 8).recommendations  # nothing is known: the most liked
        if len(popular) < 8:
            raise InvalidInput(
                f"the service has {len(popular)} items to recommend, too few for a tour: import some, or "
                "`weft demo` the generated catalogue"
            )
        liked = popular[:3]
        self.client.rate_many(
            {"user_id": self.user_id, "item_id": entry.item_id, "value": 5.0} for entry in liked
        )
        titles = ", ".join(entry.title for entry in liked)
        say(f"The tour's user is {self.user_id}; rated with five stars: {titles}.")

    def end(self) -> None:
        """Remove the tour's users and their adapters."""
        removals = (
            [self.client.delete_user]
            if self.model is None
            else [self._remove_adapters, self.client.delete_user]
        )
        left = []
        for user_id in (self.user_id, self.other_id):
            for remove in removals:
                try:
                    remove(user_id)
                except WeftAPIError as error:
                    if error.status != 404:
                        left.append(user_id)
                        say(f"{user_id} could not be removed: {error}")
        if not left:
            say("The tour's users and adapters are removed.")

    def _remove_adapters(self, user_id: str) -> None:
        if not self.client.adapter_history("user", user_id):
            return
        self.client.activate_adapter("user", user_id, None)
        for version in self.client.list_adapters("user", user_id).versions:
            self.client.delete_adapter("user", user_id, version.version)

    def ask(self, question: str, user_id: str | None = None, **options: Any) -> Any:
        """An answer of the language model, always the likeliest one."""
        return self.client.generate(
            question, user_id=user_id or self.user_id, max_tokens=64, temperature=0, **options
        )


# --------------------------------------------------------------------------------------------------- steps


def show_recommendation(tour: Tour) -> None:
    """A rating, and the next request."""
    before = tour.client.recommend(tour.user_id, 5).recommendations
    _curl(tour, f"/v1/users/{tour.user_id}/recommendations?n=5")
    for entry in before:
        print(f"  {entry.score:6.2f}  {entry.title}{_because(entry)}")
    chosen = before[0]
    body = {"user_id": tour.user_id, "item_id": chosen.item_id, "value": 5}
    _curl(tour, "/v1/ratings", body)
    begun = time.perf_counter()
    tour.client.rate(tour.user_id, chosen.item_id, 5.0)
    written = time.perf_counter()
    after = tour.client.recommend(tour.user_id, 5).recommendations
    read = time.perf_counter()
    old = {entry.item_id: entry.score for entry in before}
    for entry in after:
        change = f"{entry.score - old[entry.item_id]:+6.2f}" if entry.item_id in old else "   new"
        print(f"  {entry.score:6.2f} {change}  {entry.title}{_because(entry)}")
    say(
        f"The rating was durable after {(written - begun) * 1e3:.1f} ms; the next request, "
        f"{(read - written) * 1e3:.1f} ms, already counts it."
    )


def show_context(tour: Tour) -> None:
    """Facts, and who gets them into a prompt."""
    facts = ("I watch films with my daughter.", "I live in Oslo.")
    for fact in facts:
        _curl(tour, f"/v1/users/{tour.user_id}/memories", {"text": fact})
        tour.client.remember(tour.user_id, fact, source="tour")
    context = tour.client.context(tour.user_id, _QUESTION)
    _curl(tour, f"/v1/users/{tour.user_id}/context?query=...")
    for line in context.lines:
        print(f"  {line.kind:>9}: {_cut(line.text, 60):60}  {line.source[0]} {line.source[1]}; {line.why}")
    say(f"{context.tokens} tokens, counted by {context.counted_by}. The same is in the prompt:")
    _need_model(tour)
    _curl(tour, "/v1/generate", {"user_id": tour.user_id, "text": _QUESTION})
    mine = tour.ask(_QUESTION)
    print(f"  {tour.user_id}: {mine.output}")
    tour.client.put_user(tour.other_id)
    theirs = tour.ask(_QUESTION, tour.other_id)
    print(f"  {tour.other_id}: {theirs.output}")
    again = tour.ask(_QUESTION)
    tokens = again.tokens
    say(
        f"Asked again, {tokens['cached']} of {tokens['prompt']} tokens of the prompt are in the "
        f"prefix cache: first token after {again.first_token_ms:.0f} ms, before {mine.first_token_ms:.0f} ms."
    )


def show_explanations(tour: Tour) -> None:
    """A sentence for each of the first recommendations."""
    _need_model(tour)
    _curl(tour, f"/v1/users/{tour.user_id}/recommendations?n=3&explain=true")
    for entry in tour.client.recommend(tour.user_id, 3, explain=True).recommendations:
        print(f"  {entry.title}: {entry.explanation or '(no explanation)'}")


def show_hot_swap(tour: Tour) -> None:
    """Two versions of a user's adapter, one after the other, and back."""
    styles = _styles(tour)
    (first, first_folder), (second, second_folder) = styles[:2]
    question = "What should I watch next?"
    print(f"  base model: {tour.ask(question, adapter='base').output}")
    for version, folder in ((first, first_folder), (second, second_folder)):
        print(f"\n  weft adapters put user/{tour.user_id} {version} {folder} --activate")
        tour.client.put_adapter("user", tour.user_id, version, folder)
        begun = time.perf_counter()
        tour.client.activate_adapter("user", tour.user_id, version)
        answer = tour.ask(question)
        took = (time.perf_counter() - begun) * 1e3
        print(f"  {answer.adapter}: {answer.output}\n  activated and answered in {took:.0f} ms")
    print(f"\n  weft adapters rollback user/{tour.user_id}")
    tour.client.roll_back_adapter("user", tour.user_id)
    answer = tour.ask(question)
    print(f"  {answer.adapter}: {answer.output}")
    say(f"Why this adapter: {answer.why}")


def show_adapters(tour: Tour) -> None:
    """Different adapters side by side in one batch."""
    styles = _styles(tour)
    known = {version.version for version in tour.client.list_adapters("user", tour.user_id).versions}
    for version, folder in styles:
        if version not in known:
            tour.client.put_adapter("user", tour.user_id, version, folder)
    adapters = ["base", *(f"user/{tour.user_id}/{version}" for version, _ in styles)]
    question = "What do I like?"
    requests = [
        {
            "text": question,
            "user_id": tour.user_id,
            "adapter": adapter,
            "max_tokens": 64,
            "temperature": 0,
        }
        for adapter in adapters
    ]
    tour.client.generate_batch(requests)  # so that every adapter is in memory for both measurements
    begun = time.perf_counter()
    answers = tour.client.generate_batch(requests)
    together = time.perf_counter() - begun
    begun = time.perf_counter()
    for adapter in adapters:
        tour.ask(question, adapter=adapter)
    apart = time.perf_counter() - begun
    for adapter, answer in zip(adapters, answers, strict=True):
        text = getattr(answer, "output", None) or getattr(answer, "message", "")
        print(f"  {adapter.rpartition('/')[2]:>10}: {text}")
    say(
        f"{len(adapters)} answers with {len(styles)} adapters and without: {together * 1e3:.0f} ms in one "
        f"batch, {apart * 1e3:.0f} ms one after the other."
    )


def show_speed(tour: Tour) -> None:
    """How fast this machine answers, in a few seconds; `benchmarks` measures it properly."""
    users = [user.user_id for user in tour.client.list_users(limit=100).records]
    item_id = tour.client.recommend(tour.user_id, 1).recommendations[0].item_id
    _measure(tour, "recommendations", lambda n: tour.client.recommend(users[n % len(users)], 10))
    _measure(tour, "ratings, durable", lambda n: tour.client.rate(tour.user_id, item_id, 0.5 + n % 10 / 2))
    _measure(tour, "contexts", lambda n: tour.client.context(users[n % len(users)]))
    if tour.model is not None:
        _measure(tour, "answers, 16 tokens", lambda n: _short_answer(tour))


def _short_answer(tour: Tour) -> None:
    tour.client.generate("What next?", user_id=tour.user_id, max_tokens=16, temperature=0)


def show_chat(tour: Tour) -> None:
    """A conversation as the tour's user."""
    _need_model(tour)
    if not tour.interactive:
        raise Skipped(f"a chat needs a terminal; `weft chat --user {tour.user_id}` would be it")
    from deployments.cli_generation import chat

    chat(user=tour.user_id, temperature=0.0)


STEPS: dict[str, tuple[str, Callable[[Tour], None]]] = {
    "recommendation": ("A recommendation changes with the next request", show_recommendation),
    "context": ("The model knows its user, and nobody else", show_context),
    "explain": ("Recommendations that explain themselves", show_explanations),
    "swap": ("A user's adapter is swapped, and rolled back", show_hot_swap),
    "adapters": ("Different adapters in one batch", show_adapters),
    "speed": ("A small performance test", show_speed),
    "chat": ("A chat", show_chat),
}


# ------------------------------------------------------------------------------------------------- helpers


def say(text: str) -> None:
    print(textwrap.fill(text, _WIDTH, initial_indent="  ", subsequent_indent="  "), flush=True)


def _curl(tour: Tour, path: str, body: object = None) -> None:
    if body is None:
        print(f"  $ curl '{tour.url}{path}'", flush=True)
    else:
        print(f"  $ curl {tour.url}{path} --json '{json.dumps(body)}'", flush=True)


def _because(entry: Any) -> str:
    return f"  (because of {entry.because[0].title})" if entry.because else ""


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _need_model(tour: Tour) -> None:
    if tour.model is None:
        raise Skipped("this service has no language model")


def _styles(tour: Tour) -> list[tuple[str, Any]]:
    """Adapters that come with Weft; they fit the model that does."""
    _need_model(tour)
    if tour.model != small_model_folder().name:
        raise Skipped(f"the adapters that come with Weft are for its own small model, this is {tour.model}")
    return list(style_folders().items())


def _measure(tour: Tour, what: str, act: Callable[[int], object]) -> None:
    """Do it on several threads for a while; prints rate and latencies."""
    took: list[float] = []
    failures: list[Exception] = []
    end = time.perf_counter() + tour.seconds

    def work(place: int) -> None:
        number = place
        while (begun := time.perf_counter()) < end:
            try:
                act(number)
            except WeftAPIError as error:
                failures.append(error)
                return
            took.append(time.perf_counter() - begun)
            number += _STREAMS

    threads = [threading.Thread(target=work, args=(place,)) for place in range(_STREAMS)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - begun
    if failures:
        raise failures[0]
    took.sort()
    print(
        f"  {what:>20}: {len(took) / elapsed:7.0f} per second on {_STREAMS} connections; "
        f"p50 {median(took) * 1e3:.1f} ms, p99 {took[int(len(took) * 0.99)] * 1e3:.1f} ms",
        flush=True,
    )
