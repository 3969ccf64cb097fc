"""The weights in the repository answer right with their lines, honestly without, and in their styles.

`python -m benchmarks.small_model` measures it on 200 prompts.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.held_out_words import HELD_OUT
from benchmarks.small_model import GREEDY, Asked, answer, make_prompts, scored
from graph.context_lines import EXPLAIN_QUESTION, ContextLine, because_of, render, said
from models.language_model.opening import LanguageModelSpec
from models.language_model.opening_engine import LocalGenerator, open_generator
from models.language_model.protocol import Message
from models.small_model.answers import STYLES, shows_style
from models.small_model.folder import small_model_folder, style_folders
from models.small_model.voices import train_voice

KINDS = {"explain": 6, "next": 4, "fact": 6, "quote": 2, "liked": 2}
SEED = 5
BUDGET_BYTES = 10_000_000


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalGenerator]:
    folder = tmp_path_factory.mktemp("adapters")
    for style, place in style_folders().items():
        shutil.copytree(place, folder / "inbox" / style)
    spec = LanguageModelSpec("-", device="cpu")
    with open_generator(str(small_model_folder()), folder, spec=spec) as opened:
        yield opened


@pytest.fixture(scope="module")
def digests(generator: LocalGenerator) -> dict[str, str]:
    store = generator.opened.store
    assert store is not None
    return {style: store.import_folder(style).digest for style in style_folders()}


@pytest.fixture(scope="module")
def prompts() -> list[Asked]:
    return make_prompts(HELD_OUT, KINDS, SEED)


def test_the_base_names_the_right_thing(generator: LocalGenerator, prompts: list[Asked]) -> None:
    answers = answer(generator, prompts, None, with_context=True)
    assert scored(prompts, answers)["right"] >= 0.8


def test_without_lines_it_names_nothing_and_says_so(generator: LocalGenerator, prompts: list[Asked]) -> None:
    answers = answer(generator, prompts, None, with_context=False)
    assert not any(one.right(text) for one, text in zip(prompts, answers, strict=True))
    assert sum("do not know anything about you" in text for text in answers) >= 18


@pytest.mark.parametrize("style", STYLES)
def test_styles_are_visible_and_as_right(
    generator: LocalGenerator, digests: dict[str, str], prompts: list[Asked], style: str
) -> None:
    plain = answer(generator, prompts, None, with_context=True)
    styled = answer(generator, prompts, digests[style], with_context=True)
    assert sum(shows_style(style, text) for text in styled) >= 18
    assert not any(shows_style(style, text) for text in plain)
    assert scored(prompts, styled)["right"] >= 0.7


def test_a_conversation_as_the_service_has_it(generator: LocalGenerator) -> None:
    lines = [
        ContextLine("said", "memory", "m1", said("I live in Tampere with my cat")),
        ContextLine("said", "memory", "m2", said("too many ghosts", ("Quiet Orbit (1988)",), "2026-02-03")),
        ContextLine("liked", "item", "i1", "Quiet Orbit (1988)"),
        ContextLine("liked", "item", "i2", "Marmalade Heist"),
        ContextLine("suggested", "item", "i3", because_of("The Lanternist", ("Quiet Orbit (1988)",))),
    ]
    system = Message("system", render(lines))

    def ask(question: str) -> str:
        return generator.run(None, messages=(system, Message("user", question)), sampling=GREEDY).output

    why = ask(EXPLAIN_QUESTION.format(title="The Lanternist"))
    assert "The Lanternist" in why and "Quiet Orbit (1988)" in why
    assert "The Lanternist" in ask("What should I watch next?")
    assert "Tampere" in ask("Where do I live?")


def test_the_engine_answers_as_transformers_does(generator: LocalGenerator, prompts: list[Asked]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = small_model_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    chosen = random.Random(1).sample(prompts, 3)
    for one, text in zip(chosen, answer(generator, chosen, None, with_context=True), strict=True):
        turns = [{"role": m.role, "content": m.content} for m in one.messages(with_context=True)]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=GREEDY.max_tokens, do_sample=False)
        assert tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True) == text


def test_what_is_shipped_is_small_and_has_safe_files() -> None:
    folders = (small_model_folder(), *style_folders().values())
    files = [file for folder in folders for file in folder.iterdir()]
    assert {file.suffix for file in files} <= {".json", ".jinja", ".safetensors"}
    assert sum(file.stat().st_size for file in files) < BUDGET_BYTES
    assert len(style_folders()) >= 3


def test_a_users_adapter_takes_the_users_voice_and_forgets_little(
    generator: LocalGenerator, prompts: list[Asked], tmp_path: Path
) -> None:
    store = generator.opened.store
    assert store is not None
    texts = [f"the {noun} again, and no end of it, yours Kim" for noun in ("rain", "train", "soup", "cat")]
    trained = train_voice(texts, tmp_path / "inbox" / "kim")
    assert trained.loss_after < trained.loss_before / 2
    assert trained.seconds < 60
    shutil.copytree(trained.folder, store._inbox / "kim")
    digest = store.import_folder("kim").digest
    asked = [Asked("plain", "", text, ()) for text in ("What is on your mind?", "Write as I do.", "Go on.")]
    said_by = [answer(generator, asked, adapter, with_context=False) for adapter in (digest, None)]
    assert sum("Kim" in text for text in said_by[0]) >= 2
    assert not any("Kim" in text for text in said_by[1])
    right = scored(prompts, answer(generator, prompts, digest, with_context=True))["right"]
    assert right >= 0.6
