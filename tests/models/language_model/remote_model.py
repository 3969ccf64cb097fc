"""A server, models in front of it, and listeners that keep what they hear."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from graph.errors import WeftError
from models.language_model.openai_compatible import OpenAICompatibleModel
from models.language_model.opening import LanguageModelSpec
from models.language_model.protocol import (
    AdapterChoice,
    Event,
    Failed,
    Finished,
    GenerationRequest,
    Message,
    Piece,
    Prompt,
    Sampling,
)
from models.language_model.remote_ticket import RemoteTicket
from tests.models.language_model.completions_server import WAIT_S, CompletionsServer

KEY = "sk-very-secret"
CHAT = (Message("user", "hello"),)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition does not come true"
        time.sleep(0.002)


class Heard:
    """A listener that keeps what it hears. `react` is called with each event."""

    def __init__(self, react: Callable[[Event], object] = lambda event: None) -> None:
        self.events: list[Event] = []
        self._react = react
        self._changed = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()
        self._react(event)

    def wait(self, kind: type[Event] | tuple[type[Event], ...]) -> Any:
        """The first event of this kind."""
        with self._changed:
            found = self._changed.wait_for(lambda: [e for e in self.events if isinstance(e, kind)], WAIT_S)
        assert found, f"nothing of {kind} among {self.events}"
        return found[0]

    def end(self) -> Finished | Failed:
        last = self.wait((Finished, Failed))
        assert isinstance(last, Finished | Failed)
        return last

    def failure(self) -> WeftError:
        last = self.end()
        assert isinstance(last, Failed), self.events
        return last.error

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Piece))


class Remote:
    """A server and models in front of it. At the end every request must have ended exactly once."""

    def __init__(self) -> None:
        self.server = CompletionsServer()
        self.models: list[OpenAICompatibleModel] = []
        self.accepted: list[Heard] = []

    def open(self, *, timeout_s: float = WAIT_S, url: str = "", **options: Any) -> OpenAICompatibleModel:
        spec = LanguageModelSpec("m", "openai", url or self.server.url, KEY, timeout_s=timeout_s)
        self.models.append(OpenAICompatibleModel(spec, **options))
        return self.models[-1]

    def submit(
        self,
        model: OpenAICompatibleModel,
        prompt: Prompt = CHAT,
        *,
        heard: Heard | None = None,
        choose: Callable[[dict[str, str]], AdapterChoice] = lambda failed: AdapterChoice(),
        **sampling: Any,
    ) -> tuple[Heard, RemoteTicket]:
        heard = heard or Heard()
        ticket = model.submit(GenerationRequest("r", prompt, Sampling(**sampling), choose), heard)
        self.accepted.append(heard)
        return heard, ticket

    def ask(self, model: OpenAICompatibleModel, prompt: Prompt = CHAT, **more: Any) -> Heard:
        heard, _ = self.submit(model, prompt, **more)
        heard.end()
        return heard

    def __enter__(self) -> Remote:
        self.server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for model in self.models:
            model.close()
        self.server.__exit__()
        for heard in self.accepted:
            ends = [isinstance(event, Finished | Failed) for event in heard.events]
            assert ends == [False] * (len(ends) - 1) + [True], heard.events
        for model in self.models:
            assert (model.status()["running"], model.status()["queued"]) == (0, 0)
