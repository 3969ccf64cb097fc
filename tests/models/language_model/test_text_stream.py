"""Texts shown piece by piece are the texts decoded at once, for two kinds of tokenizer and random tokens."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from models.language_model.text_stream import TextStream

TEXTS = [
    "The weaver sat at the loom; the shuttle flew, and the cloth grew.",
    "Der Schuß fällt, die Kette hält — über Öl und Wärme.",
    "織り機の前に座る。糸は細い。",
    "Ткачиха ткёт полотно 🧵🪡 и поёт 🎶",
    "👩‍👩‍👧 family, 🇩🇪 flag, naïve café, 한국어 텍스트",
    "def weave(a, b):\n    return a  +  b\n",
] * 4


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2, Llama 3 and Qwen: no token is bound to character borders."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=["<|end|>", "<|im_start|>"], initial_alphabet=alphabet
    )
    core.train_from_iterator(TEXTS, trainer)
    core.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|end|>")


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama 2 and Mistral: spaces are marks of words, the first is dropped, the unknown is bytes."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    specials = ["<unk>", "<s>", "</s>"]
    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=specials + spelled, limit_alphabet=60)
    core.train_from_iterator([text.replace(" ", "▁") for text in TEXTS], trainer)
    # Training makes the bytes special; they are ordinary pieces.
    state = json.loads(core.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in specials]
    core = Tokenizer.from_str(json.dumps(state))
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def metaspace() -> PreTrainedTokenizerFast:
    """As T5's family: Unigram pieces, the Metaspace decoder."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.train_from_iterator(
        TEXTS, trainers.UnigramTrainer(vocab_size=200, special_tokens=["<unk>", "</s>"], unk_token="<unk>")
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {"byte_level": byte_level(), "byte_fallback": byte_fallback(), "metaspace": metaspace()}


@pytest.fixture(params=list(TOKENIZERS))
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]


def whole(tokenizer: PreTrainedTokenizerFast, tokens: list[int]) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def streamed(
    tokenizer: PreTrainedTokenizerFast, tokens: list[int], stop: tuple[str, ...] = ()
) -> tuple[list[str], bool]:
    stream = TextStream(tokenizer, stop)
    pieces = [stream.push(token) for token in tokens]
    pieces.append(stream.flush())
    return pieces, stream.stopped


def cut(text: str, stop: tuple[str, ...]) -> str:
    """The text before the stop text that is complete first, found by trying every beginning of the text."""
    for length in range(len(text) + 1):
        ends = [s for s in stop if text[:length].endswith(s)]
        if ends:
            return text[: length - max(map(len, ends))]
    return text


def token_lists(name: str) -> st.SearchStrategy[list[int]]:
    """Random tokens, and tokens of random texts, in turn."""
    tokenizer = TOKENIZERS[name]
    text = st.one_of(st.text(max_size=12), st.sampled_from(TEXTS))
    encoded = text.map(lambda t: tokenizer.encode(t, add_special_tokens=False))
    some = st.lists(st.integers(0, len(tokenizer) - 1), max_size=8)
    return st.lists(st.one_of(encoded, encoded, some), max_size=6).map(lambda parts: list(chain(*parts)))


@pytest.mark.parametrize("name", ["byte_level", "metaspace"])
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_pieces_are_the_whole_text_for_any_tokens(name: str, data: st.DataObject) -> None:
    tokens = data.draw(token_lists(name))
    assert "".join(streamed(TOKENIZERS[name], tokens)[0]) == whole(TOKENIZERS[name], tokens)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_pieces_are_the_whole_text_where_byte_fallback_finds_characters(data: st.DataObject) -> None:
    tokenizer = TOKENIZERS["byte_fallback"]
    tokens = data.draw(token_lists("byte_fallback"))
    pieces, _ = streamed(tokenizer, tokens)
    text = whole(tokenizer, tokens)
    if "\ufffd" not in text:
        assert "".join(pieces) == text
    else:  # text outside of the broken runs is the same, in the same order
        remaining = iter("".join(pieces))
        assert all(char in remaining for char in text if char != "\ufffd")


@settings(max_examples=150, deadline=None)
@given(data=st.data(), name=st.sampled_from(["byte_level", "metaspace"]))
def test_stop_texts_cut_where_the_first_is_complete(data: st.DataObject, name: str) -> None:
    tokenizer = TOKENIZERS[name]
    tokens = data.draw(token_lists(name))
    text = whole(tokenizer, tokens)
    inside = st.integers(0, max(0, len(text) - 1)).flatmap(
        lambda start: st.integers(1, 12).map(lambda length: text[start : start + length])
    )
    stop = tuple(data.draw(st.lists(st.one_of(inside, st.sampled_from(["aab", "e ", "\n"])), max_size=3)))
    stop = tuple(s for s in stop if s)
    pieces, stopped = streamed(tokenizer, tokens, stop)
    assert "".join(pieces) == cut(text, stop)
    assert stopped == any(s in text for s in stop)


def test_no_replacement_character_for_a_character_still_to_come(tokenizer: PreTrainedTokenizerFast) -> None:
    for text in TEXTS[:6]:
        pieces, _ = streamed(tokenizer, tokenizer.encode(text, add_special_tokens=False))
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_is_shown_with_its_last_byte() -> None:
    tokenizer = TOKENIZERS["byte_fallback"]
    tokens = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "🪢€".encode()]
    assert streamed(tokenizer, tokens)[0] == ["", "", "", "🪢", "", "", "€", ""]


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
def test_an_incomplete_character_at_the_end_is_replaced(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    tokens = tokenizer.encode("a🪢", add_special_tokens=False)[:-1]
    pieces, _ = streamed(tokenizer, tokens)
    assert "".join(pieces) == whole(tokenizer, tokens)
    assert pieces[-1].startswith("\ufffd")


def test_special_tokens_neither_show_nor_swallow_a_space(tokenizer: PreTrainedTokenizerFast) -> None:
    special = tokenizer.eos_token_id
    word = tokenizer.encode("the loom", add_special_tokens=False)
    tokens = [special, *word, special, special, *tokenizer.encode(" the cloth", add_special_tokens=False)]
    assert "".join(streamed(tokenizer, tokens)[0]) == whole(tokenizer, tokens)


def test_endless_special_tokens_cost_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    stream = TextStream(tokenizer)
    assert {stream.push(tokenizer.eos_token_id) for _ in range(100)} == {""}
    assert stream._window == []


def test_the_beginning_of_a_stop_text_waits_and_is_shown_when_it_is_none() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    stream = TextStream(tokenizer, ("zzq",))
    z, a = (tokenizer.encode(char, add_special_tokens=False)[0] for char in "za")
    assert [stream.push(z), stream.push(z), stream.push(z)] == ["", "", "z"]
    assert stream.push(a) == "zza"
    assert [stream.push(z), stream.flush()] == ["", "z"]
    assert not stream.stopped


def test_of_stop_texts_in_one_token_the_first_complete_cuts() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    token, text = max(
        ((i, token) for token, i in tokenizer.get_vocab().items() if token.isascii() and token.isalpha()),
        key=lambda entry: len(entry[1]),
    )
    assert len(text) >= 4
    for stop, shown in (
        ((text, text[1:3]), text[0]),
        ((text[2], text[1:3]), text[0]),
        ((text[:2], text), ""),
    ):
        assert "".join(streamed(tokenizer, [token], stop)[0]) == shown


def test_nothing_comes_after_a_stop_text() -> None:
    tokenizer = TOKENIZERS["byte_level"]
    stream = TextStream(tokenizer, ("loom",))
    tokens = tokenizer.encode("at the loom; the shuttle", add_special_tokens=False)
    assert "".join(stream.push(token) for token in tokens) == "at the "
    assert stream.stopped
    assert stream.flush() == ""


@pytest.mark.parametrize(
    "make",
    [
        lambda t, r: t.encode(" ".join(r.choices(["the", "loom", "weaver", "cloth", "織", "🧵"], k=600))),
        lambda t, r: r.choices(range(len(t)), k=1500),
    ],
    ids=["text", "garbage"],
)
def test_a_push_decodes_a_bounded_window(
    tokenizer: PreTrainedTokenizerFast, make: Callable[[PreTrainedTokenizerFast, random.Random], list[int]]
) -> None:
    tokens = make(tokenizer, random.Random(7))
    stream = TextStream(tokenizer)
    longest = 0
    for token in tokens:
        stream.push(token)
        longest = max(longest, len(stream._window))
    assert longest <= 64


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
def test_endless_bytes_that_are_no_text_are_shown_as_they_come(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    byte = tokenizer.convert_tokens_to_ids("<0xFF>" if name == "byte_fallback" else "ÿ")
    assert byte is not None
    pieces, _ = streamed(tokenizer, [byte] * 300)
    assert "".join(pieces) == "\ufffd" * 300
    assert pieces[-1] == "\ufffd" * 3
