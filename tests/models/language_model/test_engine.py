"""The engine's answers are those of transformers' `generate`, whatever else is in the batch."""

from __future__ import annotations

import dataclasses
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graph.errors import InvalidInput, Overloaded, TextTooLong, Unavailable, WeftError
from models.language_model.engine import Engine, EngineLimits
from models.language_model.prefix_cache import PrefixCache
from models.language_model.protocol import (
    AdapterChoice,
    AdapterPart,
    Event,
    GenerationRequest,
    Message,
    Sampling,
)
from tests.models.language_model.tiny_models import (
    ARCHITECTURES,
    Heard,
    generate,
    make_base,
    make_model,
    make_tokenizer,
    submit,
)

GREEDY = Sampling(temperature=0.0, max_tokens=12)
Open = Callable[..., Engine]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture
def open_engine(tokenizer: Any) -> Iterator[Open]:
    opened: list[Engine] = []

    def make(
        model: Any = None, prefix_cache: Any = None, lora: Any = None, residents: Any = None, **limits: Any
    ):
        base = make_base(make_model() if model is None else model, tokenizer)
        engine = Engine(
            base, limits=EngineLimits(**limits), prefix_cache=prefix_cache, lora=lora, residents=residents
        )
        opened.append(engine)
        return engine

    yield make
    for engine in opened:
        engine.close()


def ask(prompt: Any, sampling: Sampling = GREEDY, **fields: Any) -> GenerationRequest:
    return GenerationRequest("r", prompt, sampling, **fields)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("with_prefix_cache", [False, True])
def test_greedy_equals_generate(
    architecture: str, with_prefix_cache: bool, open_engine: Open, tokenizer: Any
) -> None:
    model = make_model(architecture, seed=1)
    chance = random.Random(5)
    shared = "In the beginning there was a prompt that many begin with. "
    prompts = [
        (shared if chance.random() < 0.5 else "")
        + "".join(chance.choices("abcdefgh ", k=chance.choice([1, 2, 7, 33, 60])))
        for _ in range(20)
    ]
    lengths = [chance.randrange(1, 25) for _ in prompts]
    expected = [generate(model, tokenizer, p, n) for p, n in zip(prompts, lengths, strict=True)]
    cache = PrefixCache(1 << 22, block_tokens=8) if with_prefix_cache else None
    engine = open_engine(model, cache, max_batch=5, prefill_chunk_tokens=16)
    heard: list[Heard] = []
    for i, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        if i % 7 == 6:
            heard[-2].wait()  # others join while some are in the middle
        heard.append(
            submit(engine, ask(prompt, Sampling(temperature=0.0, max_tokens=length), owner=str(i % 2)))
        )
    assert [h.wait().ids for h in heard] == expected
    for h, length, ids in zip(heard, lengths, expected, strict=True):
        assert h.finished.reason == ("stop" if len(ids) < length else "length")
        assert h.text == tokenizer.decode(ids)
    if with_prefix_cache:
        assert sum(h.admitted.cached_tokens for h in heard) > 0
    status = engine.status()
    assert (status["running"], status["queued"]) == (0, 0)


PROMPTS = ("a", "bcd", "to be or not to be", "x" * 70, "to be or not to see")


@pytest.fixture(scope="module")
def busy(tokenizer: Any) -> Iterator[tuple[Engine, dict[str, list[int]]]]:
    """An engine with little room, and what `generate` says to each prompt."""
    model = make_model()
    engine = Engine(
        make_base(model, tokenizer),
        limits=EngineLimits(max_batch=3, prefill_chunk_tokens=8),
        prefix_cache=PrefixCache(1 << 14, block_tokens=4),
    )
    yield engine, {prompt: generate(model, tokenizer, prompt, 20) for prompt in PROMPTS}
    engine.close()


class CancelledAfter(Heard):
    """Cancels its request, on the engine's thread, at its n-th event."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if len(self.events) == self.after:
            self.ticket.cancel()


@settings(max_examples=25, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(
            st.sampled_from(PROMPTS),
            st.integers(1, 20),  # tokens
            st.none() | st.integers(0, 8),  # events until it is cancelled; 0: by the one who asked
            st.none() | st.integers(0, 7),  # whose end is waited for before the next one comes
        ),
        min_size=1,
        max_size=8,
    )
)
def test_any_order_of_arrivals_and_cancellations(
    busy: tuple[Engine, dict[str, list[int]]], arrivals: list[tuple[str, int, int | None, int | None]]
) -> None:
    engine, expected = busy
    heard: list[Heard] = []
    for prompt, max_tokens, cancelled_after, wait_for in arrivals:
        one: Heard = Heard() if not cancelled_after else CancelledAfter(cancelled_after)
        ready = threading.Event()

        def listen(event: Event, one: Heard = one, ready: threading.Event = ready) -> None:
            assert ready.wait(20)
            one(event)

        one.ticket = engine.submit(ask(prompt, Sampling(temperature=0.0, max_tokens=max_tokens)), listen)
        ready.set()
        if cancelled_after == 0:
            one.ticket.cancel()
        heard.append(one)
        if wait_for is not None and wait_for < len(heard):
            heard[wait_for].wait()
    for h, (prompt, max_tokens, cancelled_after, _) in zip(heard, arrivals, strict=True):
        reason = h.wait().finished.reason
        whole = expected[prompt][:max_tokens]
        if reason == "cancelled":
            assert cancelled_after is not None and h.ids == whole[: len(h.ids)]
        else:
            assert h.ids == whole
            assert reason == ("stop" if len(whole) < max_tokens else "length")
    status = engine.status()
    assert (status["running"], status["queued"]) == (0, 0)


def test_eos_ends_unless_ignored(open_engine: Open, tokenizer: Any) -> None:
    model = make_model()
    first = generate(model, tokenizer, "hello", 3)[2]
    base = dataclasses.replace(make_base(model, tokenizer), eos_token_ids=frozenset({first}))
    engine = Engine(base, limits=EngineLimits())
    heard = submit(engine, ask("hello")).wait()
    assert heard.finished.reason == "stop"
    assert heard.finished.completion_tokens == len(heard.ids) + 1 <= 3
    on = submit(engine, ask("hello", Sampling(temperature=0.0, max_tokens=8, ignore_eos=True))).wait()
    assert len(on.ids) == 8 and on.finished.reason == "length"
    engine.close()


def test_stop_text_ends_and_is_left_out(open_engine: Open) -> None:
    engine = open_engine()
    whole = (
        submit(engine, ask("hello", Sampling(temperature=0.0, max_tokens=30, ignore_eos=True))).wait().text
    )
    stop = whole[10:13]
    heard = submit(
        engine, ask("hello", Sampling(temperature=0.0, max_tokens=30, ignore_eos=True, stop=(stop,)))
    ).wait()
    assert heard.text == whole[: whole.index(stop)]
    assert heard.finished.reason == "stop" and heard.finished.completion_tokens < 30


def test_a_seed_gives_the_same_whatever_the_batch(open_engine: Open) -> None:
    sampling = Sampling(
        seed=7, max_tokens=15, top_p=0.9, top_k=50, repetition_penalty=1.2, logprobs=2, ignore_eos=True
    )
    engine = open_engine(max_batch=4, prefill_chunk_tokens=8)
    alone = submit(engine, ask("once upon a time", sampling)).wait()
    others = [submit(engine, ask("x" * (5 + 9 * i), Sampling(max_tokens=30))) for i in range(5)]
    again = submit(engine, ask("once upon a time", sampling)).wait()
    for other in others:
        other.wait()
    assert again.ids == alone.ids and len(alone.logprobs) == 15
    assert [p.token_id for p in alone.logprobs] == alone.ids
    assert all(len(p.top) == 2 and p.logprob <= p.top[0][2] for p in alone.logprobs)


def test_the_window(open_engine: Open) -> None:
    engine = open_engine(max_context_tokens=40, default_max_tokens=30)
    with pytest.raises(TextTooLong) as caught:
        submit(engine, ask("x" * 40))
    assert caught.value.param == "prompt"
    with pytest.raises(TextTooLong):
        submit(engine, ask("x" * 30, Sampling(max_tokens=11)))
    exact = submit(engine, ask("x" * 30, Sampling(max_tokens=10, ignore_eos=True))).wait()
    assert len(exact.ids) == 10
    rest = submit(engine, ask("x" * 30, Sampling(ignore_eos=True))).wait()
    assert len(rest.ids) == 10
    assert len(submit(engine, ask("x", Sampling(ignore_eos=True))).wait().ids) == 30


class Gate:
    """Holds the engine's thread inside a listener until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self.heard = Heard()

    def __call__(self, event: Event) -> None:
        self.heard(event)
        self.reached.set()
        assert self.opened.wait(60)


def test_overload_is_typed(open_engine: Open) -> None:
    engine = open_engine(max_batch=1, max_queued=2)
    gate = Gate()
    engine.submit(ask("a"), gate)
    assert gate.reached.wait(60)
    queued = [submit(engine, ask("b")) for _ in range(2)]
    with pytest.raises(Overloaded):
        submit(engine, ask("c"))
    assert engine.status()["queued"] == 2
    gate.opened.set()
    assert all(q.wait().finished for q in queued)


def test_cancelling_frees_the_row_at_once(open_engine: Open, tokenizer: Any) -> None:
    model = make_model()
    engine = open_engine(model, max_batch=2)
    gate = Gate()
    long = Sampling(temperature=0.0, max_tokens=100, ignore_eos=True)
    ticket = engine.submit(ask("to be cancelled", long), gate)
    assert gate.reached.wait(60)
    neighbour, waiting = submit(engine, ask("neighbour")), submit(engine, ask("waiting"))
    never = submit(engine, ask("never runs"))
    never.ticket.cancel()
    ticket.cancel()
    gate.opened.set()
    assert gate.heard.wait().finished.reason == "cancelled"
    assert gate.heard.finished.completion_tokens <= 1
    assert never.wait().finished.reason == "cancelled" and never.finished.completion_tokens == 0
    assert neighbour.wait().ids == generate(model, tokenizer, "neighbour", 12)
    assert waiting.wait().ids == generate(model, tokenizer, "waiting", 12)
    ticket.cancel()  # harmless
    assert engine.status()["running"] == 0


def test_a_long_prompt_does_not_stall_those_that_decode(open_engine: Open) -> None:
    """Between two chunks of a long prompt the other rows take a step each."""
    model = make_model()
    shapes: list[tuple[int, ...]] = []
    model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    engine = open_engine(model, prefill_chunk_tokens=10)
    gate = Gate()
    engine.submit(ask("short", Sampling(temperature=0.0, max_tokens=20, ignore_eos=True)), gate)
    assert gate.reached.wait(60)
    other = submit(engine, ask("y" * 100, Sampling(temperature=0.0, max_tokens=2)))
    gate.opened.set()
    other.wait()
    chunks = [i for i, shape in enumerate(shapes) if shape == (1, 10)]
    assert len(chunks) == 10
    assert all(shapes[i + 1] == (1, 1) for i in chunks[:-1])


def test_a_failing_step_fails_only_its_requests(open_engine: Open, tokenizer: Any) -> None:
    model = make_model()

    def explode(module: Any, args: Any, kwargs: Any) -> None:
        if (kwargs["input_ids"] == ord("z") - 33).any():
            raise ValueError("broken on purpose")

    model.get_decoder().register_forward_pre_hook(explode, with_kwargs=True)
    assert tokenizer.backend_tokenizer.encode("z").ids == [ord("z") - 33]
    engine = open_engine(model)
    bad = submit(engine, ask("zzz"))
    assert isinstance(bad.wait().error, WeftError)
    assert submit(engine, ask("good", Sampling(max_tokens=1))).wait().finished.reason == "length"
    assert engine.status()["running"] == 0


def test_numbers_that_are_not_finite_do_not_stay(open_engine: Open, tokenizer: Any) -> None:
    """A row full of NaN fails alone, and leaves nothing behind for the one that gets its row."""
    model = make_model()
    expected = generate(model, tokenizer, "next one", 12)
    engine = open_engine(model, PrefixCache(1 << 20, block_tokens=2))
    long = Sampling(temperature=0.0, max_tokens=60, ignore_eos=True)
    alone = submit(engine, ask("n" * 60, long)).wait().ids
    bad = next(c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if ord(c) - 33 not in alone + expected)
    seen: list[torch.Tensor] = []
    model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    model.get_decoder().layers[0].self_attn.v_proj.register_forward_hook(
        lambda module, args, output: output.masked_fill((seen[-1] == ord(bad) - 33).unsqueeze(-1), torch.nan)
    )
    neighbour = Heard()
    others: list[Heard] = []

    def listen(event: Event) -> None:  # longer than the others, so that steps reach over their ends
        neighbour(event)
        if not others or (len(others) == 1 and others[0].ended.is_set()):
            others.append(submit(engine, ask("next one" if others else bad * 50)))

    engine.submit(ask("n" * 60, long), listen)
    assert neighbour.wait().ids == alone
    assert "not finite" in others[0].wait().error.message
    assert others[1].wait().ids == expected
    assert submit(engine, ask(bad * 50)).wait().error
    assert submit(engine, ask("next one")).wait().ids == expected


def test_a_listener_that_raises_is_cancelled(open_engine: Open, tokenizer: Any) -> None:
    engine = open_engine(max_batch=1)

    def listener(event: Event) -> None:
        raise RuntimeError("no ears")

    engine.submit(ask("a", Sampling(max_tokens=100, ignore_eos=True)), listener)
    assert submit(engine, ask("b")).wait().finished


def test_choosing_may_fail(open_engine: Open) -> None:
    engine = open_engine()

    def refuse(failed: dict[str, str]) -> AdapterChoice:
        raise InvalidInput("no such adapter")

    def stumble(failed: dict[str, str]) -> AdapterChoice:
        raise KeyError("a mistake")

    assert submit(engine, ask("a", choose=refuse)).wait().error.message == "no such adapter"
    assert "KeyError" in submit(engine, ask("a", choose=stumble)).wait().error.message
    parts = AdapterChoice((AdapterPart("a" * 64),), "user/a", "user", "")
    assert isinstance(submit(engine, ask("a", choose=lambda failed: parts)).wait().error, InvalidInput)
    assert submit(engine, ask("a")).wait().finished


def test_owners_share_only_the_system_prompt(open_engine: Open) -> None:
    engine = open_engine(prefix_cache=PrefixCache(1 << 20, block_tokens=4))
    talk = (
        Message("system", "You are short and kind to all."),
        Message("user", "Tell me about my own secret."),
    )

    def cached(owner: str) -> tuple[int, list[int]]:
        heard = submit(engine, ask(talk, owner=owner)).wait()
        return heard.admitted.cached_tokens, heard.ids

    first, ids = cached("alice")
    second, same = cached("alice")
    other, others = cached("bob")
    assert first == 0 and ids == same == others
    assert 0 < other < second


def test_close_fails_what_is_there(open_engine: Open) -> None:
    engine = open_engine(max_batch=1)
    gate = Gate()
    engine.submit(ask("a", Sampling(max_tokens=100, ignore_eos=True)), gate)
    assert gate.reached.wait(60)
    queued = submit(engine, ask("b"))
    closing = threading.Thread(target=engine.close)
    closing.start()
    gate.opened.set()
    closing.join(60)
    assert isinstance(queued.wait().error, Unavailable) and isinstance(gate.heard.wait().error, Unavailable)
    with pytest.raises(Unavailable):
        submit(engine, ask("c"))
    engine.close()


def test_count_tokens(open_engine: Open) -> None:
    assert open_engine().count_tokens("four") == 4
