"""The generating half of the fake backend: it answers `echo: ` and the prompt, a word at a time."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from deployments.generation_messages import (
    ActivateAdapter,
    AdapterCandidate,
    AdapterListing,
    AdapterState,
    AdapterVersion,
    AdapterWritten,
    Delta,
    Ended,
    GenerateAnswer,
    GenerateQuery,
    LanguageModelInfo,
    PutAdapter,
    Started,
)
from graph.errors import AdapterInUse, Conflict, TextTooLong, UnknownAdapter, UnknownModel, WeftError
from models.adapter_pointers import AdapterArm, AdapterScope
from models.language_model.protocol import TokenLogprob
from tests.deployments.ingress.fake_memories import fitted

LANGUAGE_MODEL = "fake/Language-Model"
WINDOW_CHARS = 20_000
TIMINGS = (1.0, 2.0, 3.0)


@dataclass
class FakeGeneration:
    """`fails_after` words `failure` is raised; after `stalls_after` words a stream waits to be closed."""

    generated: list[GenerateQuery] = field(default_factory=list)
    fails_after: int | None = None
    failure: Exception = field(default_factory=lambda: WeftError("the secret of /etc/weft"))
    stalls_after: int | None = None
    stalled: asyncio.Event | None = None
    open_streams: int = 0
    closed_streams: int = 0
    put: dict[tuple[str, str, str], AdapterVersion] = field(default_factory=dict)
    states: dict[tuple[str, str], list[AdapterState]] = field(default_factory=dict)
    puts: list[PutAdapter] = field(default_factory=list)
    upload_dir: Path | None = None
    uploaded: list[bytes] = field(default_factory=list)

    async def language_model(self) -> LanguageModelInfo:
        self._read(0)
        active = tuple(f"{scope}/{name}" for (scope, name), s in self.states.items() if s[-1].arms)
        return LanguageModelInfo(LANGUAGE_MODEL, active)

    async def generate(self, query: GenerateQuery) -> GenerateAnswer:
        texts, logprobs = [], []
        async for event in self.stream(query):
            match event:
                case Started():
                    started = event
                case Delta():
                    texts.append(event.text)
                    logprobs.extend(event.logprobs)
                case Ended():
                    ended = event
        return GenerateAnswer("".join(texts), started, ended, tuple(logprobs))

    async def stream(self, query: GenerateQuery) -> AsyncIterator[Started | Delta | Ended]:
        self.generated.append(query)
        self.open_streams += 1
        try:
            version = self._read(query.min_version, query.user_id)
            prompt = query.prompt if isinstance(query.prompt, str) else query.prompt[-1].content
            if len(prompt) > WINDOW_CHARS:
                raise TextTooLong("the prompt does not fit the window")
            started = self._chosen(query, len(prompt.split()), version)
            yield started
            words = re.findall(r"\s*\S+\s*?", f"echo: {prompt}")
            words, reason = words[: query.sampling.max_tokens], "stop"
            if query.sampling.max_tokens == len(words):
                reason = "length"
            for place, word in enumerate(words):
                if place == self.fails_after:
                    raise self.failure
                if place == self.stalls_after:
                    if self.stalled is not None:
                        self.stalled.set()
                    await asyncio.get_running_loop().create_future()
                if word.strip() in query.sampling.stop:
                    reason = "stop"
                    break
                yield Delta(word, (place,), self._logprobs(query, word, place))
            yield Ended(reason, started.prompt_tokens, len(words), *TIMINGS)
        finally:
            self.closed_streams += 1

    def _chosen(self, query: GenerateQuery, tokens: int, version: int) -> Started:
        named = query.adapter
        if query.model not in (None, LANGUAGE_MODEL):
            if "/" not in query.model:
                raise UnknownModel(f"there is no model {query.model!r}", param="model")
            named = query.model
        adapter, source = named, "request" if named else "base"
        if query.blend:
            adapter, source = "+".join(reference for reference, _ in query.blend), "request"
        elif named is not None and tuple(named.split("/")[:2]) not in self.states:
            raise UnknownAdapter(f"there is no adapter {named!r}", param="adapter")
        elif named is None and query.user_id and ("user", query.user_id) in self.states:
            adapter, source = f"user/{query.user_id}", "user"
        digest = "d" * 64 if adapter else None
        context = None if query.context is None else fitted(query.context, query.max_context_tokens)
        return Started(LANGUAGE_MODEL, adapter, digest, source, "because", tokens, 1, version, context)

    def _logprobs(self, query: GenerateQuery, word: str, place: int) -> tuple[TokenLogprob, ...]:
        if query.sampling.logprobs is None:
            return ()
        top = tuple((f"w{n}", n, -1.0 - n) for n in range(query.sampling.logprobs))
        return (TokenLogprob(word, place, -0.5, top),)

    async def adapters(
        self, limit: int, after: str | None, scope: AdapterScope | None, name: str | None, min_version: int
    ) -> AdapterListing:
        version = self._read(min_version)
        found = [
            v
            for v in self.put.values()
            if (scope is None or v.scope == scope) and (name is None or v.name == name)
        ]
        start = int(after or 0)
        end = start + limit
        states = tuple(history[-1] for history in self.states.values())
        candidates = (AdapterCandidate("films/v3", None, 12, "it has no adapter_config.json"),)
        more = str(end) if end < len(found) else None
        return AdapterListing(tuple(found[start:end]), states, candidates, version, more)

    async def put_adapter(self, what: PutAdapter, min_version: int) -> AdapterWritten:
        self._read(min_version)
        self.puts.append(what)
        size = 10
        if what.upload is not None:
            assert self.upload_dir is not None
            content = (self.upload_dir / what.upload).read_bytes()
            self.uploaded.append(content)
            size = len(content)
        key = (what.scope, what.name, what.version)
        if key in self.put:
            if self.put[key].size_bytes != size:
                raise Conflict(f"version {what.version!r} has other files", param="version")
            return AdapterWritten(self.version, put=self.put[key], replayed=True)
        self.version += 1
        self.put[key] = AdapterVersion(*key, "d" * 64, size, 8, ("q_proj",), time.time())
        return AdapterWritten(self.version, put=self.put[key])

    async def activate_adapter(self, what: ActivateAdapter, min_version: int) -> AdapterWritten:
        self._read(min_version)
        arms = []
        for label, weight in what.arms:
            if (what.scope, what.name, label) not in self.put:
                raise UnknownAdapter(f"there is no version {label!r}", param="version")
            arms.append(AdapterArm(label, "d" * 64, weight))
        return self._moved(what.scope, what.name, tuple(arms), "activate" if arms else "deactivate")

    async def roll_back_adapter(self, scope: AdapterScope, name: str, min_version: int) -> AdapterWritten:
        self._read(min_version)
        history = self.states.get((scope, name))
        if not history:
            raise Conflict("nothing was active before")
        return self._moved(scope, name, history[-1].previous, "rollback")

    def _moved(self, scope: str, name: str, arms: tuple[AdapterArm, ...], action: str) -> AdapterWritten:
        history = self.states.setdefault((scope, name), [])
        self.version += 1
        previous = history[-1].arms if history else ()
        history.append(AdapterState(scope, name, arms, previous, self.version, action))
        active = {arm.version for arm in arms}
        for key, entry in self.put.items():
            if key[:2] == (scope, name):
                self.put[key] = replace(entry, active=entry.version in active)
        return AdapterWritten(self.version, state=history[-1])

    async def delete_adapter(
        self, scope: AdapterScope, name: str, version: str, min_version: int
    ) -> AdapterWritten:
        self._read(min_version)
        if (scope, name, version) not in self.put:
            raise UnknownAdapter(f"there is no version {version!r}", param="version")
        if self.put[scope, name, version].active:
            raise AdapterInUse(f"version {version!r} is active", param="version")
        del self.put[scope, name, version]
        self.version += 1
        return AdapterWritten(self.version)

    async def adapter_history(
        self, scope: AdapterScope, name: str, min_version: int
    ) -> tuple[AdapterState, ...]:
        self._read(min_version)
        return tuple(self.states.get((scope, name), ()))

    def _read(self, min_version: int, name: str | None = None) -> int:
        raise NotImplementedError
