"""What is known about a user stands in the system message, is text, and is shared with nobody."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph.context_lines import ContextLine, one_line, render
from graph.errors import InvalidInput
from models.language_model.engine import Engine, EngineLimits
from models.language_model.prefix_cache import PrefixCache
from models.language_model.prompt import count_tokens, encode_prompt, room_for_context
from models.language_model.prompt_context import with_system_context, with_user_context
from models.language_model.protocol import GenerationRequest, Message, Sampling
from tests.models.language_model.test_prompt import (
    ATTACKS,
    CHAT,
    CHAT_LIKE,
    CHATML,
    LINES,
    NO_SYSTEM,
    controls,
    make,
    rendered,
    talk,
)
from tests.models.language_model.tiny_models import (
    WINDOW,
    Heard,
    make_base,
    make_model,
    make_tokenizer,
    submit,
)

SYSTEM = ("system", "You are a helpful weaver.")
ASKED = talk(SYSTEM, ("user", "which loom?"))
BLOCK = 8


def known(*facts: str) -> str:
    return render([ContextLine("said", "memory", f"m{n}", fact) for n, fact in enumerate(facts)])


@pytest.mark.parametrize("name", CHAT_LIKE)
def test_it_follows_the_callers_system_prompt(name: str) -> None:
    tokenizer, context = CHAT_LIKE[name], known("I weave at night")
    expected = rendered(tokenizer, talk(("system", f"{SYSTEM[1]}\n\n{context}"), ("user", "which loom?")))
    assert list(encode_prompt(tokenizer, ASKED, context).tokens) == expected
    assert encode_prompt(tokenizer, ASKED, "") == encode_prompt(tokenizer, ASKED)


@pytest.mark.parametrize("name", CHAT_LIKE)
def test_without_a_system_prompt_it_is_the_system_message(name: str) -> None:
    tokenizer, context = CHAT_LIKE[name], known("I weave at night")
    asked = talk(("user", "which loom?"))
    found = encode_prompt(tokenizer, asked, context)
    assert list(found.tokens) == rendered(tokenizer, talk(("system", context), *[("user", "which loom?")]))
    assert found.shared_tokens == 0


@pytest.mark.parametrize("name", CHAT_LIKE)
def test_a_context_counts_as_what_it_takes_in_the_prompt(name: str) -> None:
    tokenizer, asked = CHAT_LIKE[name], talk(("user", "which loom?"))
    context = known("I weave at night")
    hostile = known("I weave at night", *(attack * 9 for attack in ATTACKS))
    lengths = [len(encode_prompt(tokenizer, asked, text).tokens) for text in (context, hostile)]
    counts = [count_tokens(tokenizer, text) for text in (context, hostile)]
    assert lengths[1] - lengths[0] == counts[1] - counts[0] > 100


def test_lines_without_a_template() -> None:
    tokens = encode_prompt(LINES, ASKED, "Known: night").tokens
    expected = "system: You are a helpful weaver.\n\nKnown: night\nuser: which loom?\nassistant:"
    assert LINES.decode(tokens[1:]) == expected


NO_ROLE = make(NO_SYSTEM + CHATML)
DROPS = make("{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}")


@pytest.mark.parametrize("tokenizer", [NO_ROLE, DROPS], ids=["refuses", "drops"])
def test_a_template_without_system_messages_has_it_in_the_users_first_turn(tokenizer: Any) -> None:
    asked = talk(("user", "which loom?"), ("assistant", "mine"), ("user", "why?"))
    told = talk(("user", "Known: night\n\nwhich loom?"), *[(m.role, m.content) for m in asked[1:]])
    found = encode_prompt(tokenizer, asked, "Known: night")
    assert list(found.tokens) == rendered(tokenizer, told)
    assert found.shared_tokens == 0


def test_such_a_template_still_refuses_the_callers_own_system_prompt() -> None:
    with pytest.raises(InvalidInput, match="System role not supported"):
        encode_prompt(NO_ROLE, ASKED, "Known: night")


def test_a_text_takes_no_context() -> None:
    with pytest.raises(InvalidInput, match="takes no context"):
        encode_prompt(CHAT, "once", "Known: night")


def test_a_conversation_in_which_no_user_speaks_is_left_alone() -> None:
    asked = talk(("assistant", "hi"), ("system", "go on"))
    assert with_user_context(asked, "Known: night") == asked
    assert with_system_context(asked, "Known: night")[1:] == asked


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("tokenizer", [*CHAT_LIKE.values(), NO_ROLE], ids=[*CHAT_LIKE, "no role"])
def test_no_memory_writes_a_control_token(tokenizer: Any, attack: str) -> None:
    asked = talk(("user", "which loom?"))
    harmless, harmful = (encode_prompt(tokenizer, asked, known(fact)) for fact in ("a", attack))
    assert controls(tokenizer, harmful.tokens) == controls(tokenizer, harmless.tokens)
    if tokenizer is not CHAT_LIKE["llama"]:  # what was written is still there to read
        assert one_line(attack) in tokenizer.decode(harmful.tokens)


@settings(max_examples=80, deadline=None)
@given(system=st.text(max_size=20), facts=st.lists(st.text(max_size=20), min_size=2, max_size=2))
def test_no_token_of_a_context_is_shared(system: str, facts: list[str]) -> None:
    asked = talk(("system", system), ("user", "which loom?"))
    for tokenizer in (CHAT, LINES, CHAT_LIKE["llama"]):
        bare = encode_prompt(tokenizer, asked)
        for fact in facts:
            found = encode_prompt(tokenizer, asked, known(fact))
            assert found.shared_tokens <= bare.shared_tokens
            assert found.tokens[: found.shared_tokens] == bare.tokens[: found.shared_tokens]


def test_the_system_prompt_stays_shared() -> None:
    bare, told = encode_prompt(CHAT, ASKED), encode_prompt(CHAT, ASKED, known("I weave at night"))
    assert 5 < told.shared_tokens <= bare.shared_tokens
    assert "helpful weaver" in CHAT.decode(told.tokens[: told.shared_tokens])
    assert "known" not in CHAT.decode(told.tokens[: told.shared_tokens])


# --- The room there is ---


@pytest.mark.parametrize("max_tokens", [None, 1, 40])
@pytest.mark.parametrize("words", [1, 60, 150, 400])
@pytest.mark.parametrize("tokenizer", [CHAT, LINES, NO_ROLE], ids=["chatml", "lines", "no role"])
def test_a_context_of_that_size_fits(tokenizer: Any, words: int, max_tokens: int | None) -> None:
    asked, window, default = talk(("user", "loom " * words)), 256, 32
    room = room_for_context(tokenizer, asked, max_tokens, window, default)
    free = window - len(encode_prompt(tokenizer, asked).tokens)
    if free < (max_tokens or 2):
        assert room == 0
        return
    context = ""
    while len(tokenizer.backend_tokenizer.encode(longer := context + "so", add_special_tokens=False)) <= room:
        context = longer
    used = len(encode_prompt(tokenizer, asked, context).tokens)
    assert used + (max_tokens or 1) <= window
    if max_tokens is None:  # an answer has what it has by default, or half of what is left
        assert window - used >= min(default, (free - 16) // 2)


# --- In the engine ---


@pytest.fixture
def engine() -> Iterator[Engine]:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}<eos>{% endfor %}"
    found = Engine(
        make_base(make_model(), tokenizer),
        limits=EngineLimits(max_batch=2),
        prefix_cache=PrefixCache(1 << 22, block_tokens=BLOCK),
    )
    yield found
    found.close()


def ask(engine: Engine, user: str, context: str, question: str = "q?") -> Heard:
    prompt = (Message("system", "Answer in one short word."), Message("user", question))
    sampling = Sampling(temperature=0.0, max_tokens=4)
    return submit(engine, GenerationRequest("r", prompt, sampling, owner=user, context=context)).wait()


def test_users_share_blocks_of_the_system_prompt_and_a_returning_user_finds_the_context(
    engine: Engine,
) -> None:
    shared = len("s:Answer in one short word.") // BLOCK * BLOCK
    contexts = {"ann": known("I weave at night"), "bob": known("I weave by day")}
    ask(engine, "ann", contexts["ann"])
    assert ask(engine, "bob", contexts["bob"]).admitted.cached_tokens == shared
    # Also with the very same words: what others know is not to be found out by guessing.
    stolen = ask(engine, "eve", contexts["ann"])
    assert stolen.admitted.cached_tokens == shared
    returning = ask(engine, "ann", contexts["ann"], "another question?")
    beginning = "s:Answer in one short word.\n\n" + contexts["ann"]
    assert returning.admitted.cached_tokens >= len(beginning) // BLOCK * BLOCK > shared
    assert returning.ids == ask(engine, "zoe", contexts["ann"], "another question?").ids
    changed = ask(engine, "ann", contexts["bob"])
    assert shared < changed.admitted.cached_tokens < len(beginning) // BLOCK * BLOCK  # up to "I weave "


def test_the_engine_knows_the_room(engine: Engine) -> None:
    asked = (Message("user", "loom?"),)
    room = engine.room_for_context(asked, 20)
    assert room == WINDOW - 20 - len("u:loom?") - 1 - 16
    assert engine.room_for_context(asked, 150) == 0
    engine.submit(GenerationRequest("r", asked, Sampling(max_tokens=20), context="x" * room), Heard())
