"""A language model in this process: adapters are files with a word in them, generation repeats that word."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deployments.opening_language_model import OpenedLanguageModel
from deployments.settings import Settings
from graph.errors import InvalidAdapter, Overloaded, Unavailable, UnknownAdapter, WeftError
from models.language_model.protocol import (
    Admitted,
    Event,
    Failed,
    Finished,
    GenerationRequest,
    Listener,
    Piece,
    Prompt,
    TokenLogprob,
)


@dataclass(frozen=True)
class Files:
    digest: str
    size_bytes: int
    rank: int = 4
    modules: tuple[str, ...] = ("q_proj", "v_proj")
    created_at: float = 1_700_000_000.0


@dataclass(frozen=True)
class Found:
    path: str
    digest: str | None
    size_bytes: int
    problem: str | None


def digest_of(word: str) -> str:
    return hashlib.sha256(word.encode()).hexdigest()


class PlainStore:
    """`models.adapters.AdapterStore` with files of one word, which must not be "bad"."""

    def __init__(self, settings: Settings) -> None:
        self.root, self.inbox = settings.adapter_dir, settings.adapter_inbox
        self.root.mkdir(parents=True, exist_ok=True)
        self.inbox.mkdir(parents=True, exist_ok=True)
        self.before_import: Callable[[], None] = lambda: None

    def import_folder(self, relative: str) -> Files:
        return self.import_archive(self.inbox / relative)

    def import_archive(self, path: Path) -> Files:
        self.before_import()
        word = path.read_text(encoding="utf-8")
        if word == "bad":
            raise InvalidAdapter(f"{path.name} is no adapter")
        (self.root / digest_of(word)).write_text(word, encoding="utf-8")
        return Files(digest_of(word), len(word))

    def info(self, digest: str) -> Files:
        return Files(digest, len(self.load(digest)))

    def load(self, digest: str) -> str:
        try:
            return (self.root / digest).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UnknownAdapter(f"the files of adapter {digest} are gone") from None

    def delete(self, digest: str) -> None:
        (self.root / digest).unlink()

    def candidates(self) -> list[Found]:
        return [Found(p.name, None, p.stat().st_size, None) for p in sorted(self.inbox.iterdir())]

    def digests(self) -> set[str]:
        return {p.name for p in self.root.iterdir() if not p.name.startswith(".")}


class PlainResidents:
    def __init__(self, store: PlainStore) -> None:
        self._store = store
        self.words: dict[str, str] = {}
        self.requested: list[str] = []
        self.forgotten: list[str] = []
        self.closed = False

    def request(self, digest: str) -> Literal["ready", "loading"] | WeftError:
        self.requested.append(digest)
        try:
            self.words[digest] = self._store.load(digest)
        except WeftError as error:
            return error
        return "ready"

    def resident(self) -> tuple[str, ...]:
        return tuple(self.words)

    def forget(self, digest: str) -> None:
        self.forgotten.append(digest)
        self.words.pop(digest, None)

    def close(self) -> None:
        self.closed = True


class PlainTicket:
    def __init__(self) -> None:
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        self.cancelled.set()


class PlainBackend:
    """Answers on threads of its own: `max_tokens` times the word of the adapter, or `base`."""

    model_name, device = "plain", "cpu"

    def __init__(self, residents: PlainResidents) -> None:
        self._residents = residents
        self.tickets: list[PlainTicket] = []
        self.requests: list[GenerationRequest] = []
        self.token_s = 0.0
        self.refusal: WeftError | None = None
        self.admission = threading.Event()  # nothing is admitted before it is set
        self.admission.set()
        self.max_waiting = 10_000
        self.window: int | None = None
        self.counts = True
        self.closed = False

    def submit(self, request: GenerationRequest, listener: Listener) -> PlainTicket:
        if self.refusal is not None:
            raise self.refusal
        if sum(not t.cancelled.is_set() for t in self.tickets) >= self.max_waiting:
            raise Overloaded("too much")
        ticket = PlainTicket()
        self.tickets.append(ticket)
        self.requests.append(request)
        threading.Thread(target=self._answer, args=(request, listener, ticket), daemon=True).start()
        return ticket

    def _answer(self, request: GenerationRequest, listener: Listener, ticket: PlainTicket) -> None:
        began, told, first_ms = time.monotonic(), 0, 0.0

        def tell(event: Event) -> None:
            listener(event)

        def cancelled() -> None:
            tell(Finished("cancelled", 3, told, first_ms, (time.monotonic() - began) * 1e3))

        while not self.admission.wait(0.005):
            if ticket.cancelled.is_set():
                return cancelled()
        failed: dict[str, str] = {}
        while True:
            try:
                choice = request.choose(failed)
            except WeftError as error:
                return tell(Failed(error))
            words = []
            for part in choice.parts:
                problem = self._residents.request(part.digest)
                if isinstance(problem, WeftError):
                    failed[part.digest] = problem.message
                else:
                    words.append(self._residents.words[part.digest])
            if len(words) == len(choice.parts):
                break
        word = "+".join(words) or "base"
        tell(Admitted(choice, 3, 1, 0.5))
        for _ in range(request.sampling.max_tokens or 3):
            if ticket.cancelled.is_set():
                return cancelled()
            if word == "breaks":
                return tell(Failed(Overloaded("broke in the middle")))
            first_ms = first_ms or 1.0
            told += 1
            tell(Piece(f"{word} ", (told,), (TokenLogprob(word, told, -0.5),)))
            if self.token_s:
                ticket.cancelled.wait(self.token_s)
        tell(Finished("length", 3, told, first_ms, (time.monotonic() - began) * 1e3))

    def count_tokens(self, text: str) -> int:
        if not self.counts:
            raise Unavailable("only the server can count its tokens")
        return len(text.split())

    def room_for_context(self, prompt: Prompt, max_tokens: int | None) -> int | None:
        """What `window` leaves, a word counting as a token."""
        if self.window is None:
            return None
        turns = [prompt] if isinstance(prompt, str) else [turn.content for turn in prompt]
        return max(0, self.window - sum(len(text.split()) for text in turns) - (max_tokens or 0))

    def status(self) -> dict[str, object]:
        return {"backend": "plain", "device": self.device, "model": self.model_name}

    def close(self) -> None:
        self.closed = True
        for ticket in self.tickets:
            ticket.cancel()


def open_plain(settings: Settings) -> OpenedLanguageModel:
    store = PlainStore(settings)
    residents = PlainResidents(store)
    return OpenedLanguageModel(PlainBackend(residents), store, residents)


def put_in_inbox(settings: Settings, name: str, word: str) -> str:
    """A candidate; returns its digest."""
    settings.adapter_inbox.mkdir(parents=True, exist_ok=True)
    (settings.adapter_inbox / name).write_text(word, encoding="utf-8")
    return digest_of(word)


def plain(opened: OpenedLanguageModel | None) -> tuple[Any, Any, Any]:
    """Backend, store and residents of a model that `open_plain` opened."""
    assert opened is not None
    return opened.backend, opened.store, opened.residents
