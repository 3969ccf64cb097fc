"""A context fits its budget, leaves a conversation its room, and is counted beside the event loop."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import deployments.context_fitting as module
from deployments.context_fitting import BYTES, ContextFitter
from deployments.generation_messages import GenerateQuery
from deployments.memory_messages import ContextCandidates
from graph.context_lines import HEADER, ContextLine, render
from models.language_model.protocol import Message, Sampling
from tests.deployments.local_adapters import PlainBackend, PlainResidents, PlainStore
from tests.deployments.local_state import make_settings

LINES = tuple(ContextLine("said", "memory", f"m{n}", f"fact number {n} of many") for n in range(20))
CANDIDATES = ContextCandidates(LINES, 7, ("suggestions",))
HEADER_WORDS = len(HEADER.split())
LINE_WORDS = len(["-", "said:", "fact", "number", "0", "of", "many"])


@pytest.fixture
def backend(tmp_path: Path) -> PlainBackend:
    """It counts words."""
    return PlainBackend(PlainResidents(PlainStore(make_settings(tmp_path))))


def asked(budget: int, *turns: str, max_tokens: int | None = None) -> GenerateQuery:
    prompt = tuple(Message("user", turn) for turn in turns or ("hello",))
    return GenerateQuery(
        prompt, Sampling(max_tokens=max_tokens), context=CANDIDATES, max_context_tokens=budget
    )


@pytest.mark.parametrize("quick_chars", [0, 1_000_000])
async def test_as_many_lines_as_the_budget_holds_by_the_models_count(
    backend: PlainBackend, quick_chars: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_QUICK_CHARS", quick_chars)
    threads = []
    count = backend.count_tokens
    backend.count_tokens = lambda text: threads.append(threading.current_thread()) or count(text)  # type: ignore[func-returns-value,method-assign]
    budget = HEADER_WORDS + 3 * LINE_WORDS + 1
    found = await ContextFitter(backend).fit(CANDIDATES, budget)
    assert [line.source_id for line in found.lines] == ["m0", "m1", "m2"]
    assert found.text == render(found.lines)
    assert found.tokens == len(found.text.split()) == budget - 1
    assert (found.counted_by, found.version, found.missing) == ("plain", 7, ("suggestions",))
    assert (threading.main_thread() in threads) == (quick_chars > 0)


async def test_nothing_fits_a_budget_of_nothing(backend: PlainBackend) -> None:
    found = await ContextFitter(backend).fit(CANDIDATES, 0)
    assert (found.text, found.lines, found.tokens) == ("", (), 0)


async def test_a_model_that_cannot_count_has_its_context_counted_in_bytes(backend: PlainBackend) -> None:
    backend.counts = False
    found = await ContextFitter(backend).fit(CANDIDATES, 100)
    assert found.counted_by == BYTES
    assert 0 < found.tokens == len(found.text.encode()) <= 100
    beside = await ContextFitter(backend).fit_beside(asked(100), CANDIDATES)
    assert beside == found


async def test_a_conversation_that_grows_takes_its_room_from_the_context(backend: PlainBackend) -> None:
    backend.window = 200
    fitter = ContextFitter(backend)
    sizes = []
    for turns in range(0, 200, 10):
        found = await fitter.fit_beside(asked(100, "word " * turns, max_tokens=40), CANDIDATES)
        assert found.tokens <= 100
        assert found.tokens + turns + 40 <= 200 or found.tokens == 0
        sizes.append(found.tokens)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 100 - LINE_WORDS and sizes[-1] == 0


async def test_without_a_known_window_the_budget_decides(backend: PlainBackend) -> None:
    found = await ContextFitter(backend).fit_beside(asked(30, "word " * 10_000), CANDIDATES)
    assert 0 < found.tokens <= 30


async def test_lines_are_counted_once(backend: PlainBackend) -> None:
    texts: list[str] = []
    count = backend.count_tokens
    backend.count_tokens = lambda text: texts.append(text) or count(text)  # type: ignore[func-returns-value,method-assign]
    fitter = ContextFitter(backend)
    first = await fitter.fit(CANDIDATES, 1_000)
    lines = [text for text in texts if "\n" not in text.strip()]
    assert len(lines) == len(LINES) + 1
    texts.clear()
    assert await fitter.fit(CANDIDATES, 1_000) == first
    assert [text for text in texts if "\n" not in text.strip()] == []


async def test_few_counts_are_kept_and_long_texts_not(
    backend: PlainBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_KEPT_COUNTS", 5)
    monkeypatch.setattr(module, "_KEPT_CHARS", 40)
    fitter = ContextFitter(backend)
    long = ContextLine("said", "memory", "long", "word " * 30)
    await fitter.fit(ContextCandidates((long, *LINES), 7), 1_000)
    kept = fitter._counts._known
    assert len(kept) == 5
    assert all(len(text) <= 40 for text in kept)
