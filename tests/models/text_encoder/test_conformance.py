"""What every text encoder promises, asked of each of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graph.errors import InvalidInput
from models.text_encoder.hashing_encoder import HashingEncoder
from models.text_encoder.opening import TextModelSpec, open_encoder
from models.text_encoder.protocol import Fingerprint, TextEncoder
from models.text_encoder.sentence_transformer import SentenceTransformerEncoder
from tests.models.text_encoder.embeddings_server import EmbeddingsServer

KINDS = ["hashing", "openai", "tiny", "minilm"]
TEXTS = ["a story", "b", "", "a  story", "c d e", "b", "😀", "line\nbreak", "z" * 300]


@pytest.fixture(params=KINDS)
def encoder(request: pytest.FixtureRequest, tiny_model: Path) -> Iterator[TextEncoder]:
    if request.param == "minilm":
        yield request.getfixturevalue("minilm")
    elif request.param == "openai":
        with EmbeddingsServer() as server:
            opened: Any = open_encoder(TextModelSpec("remote", "openai", url=server.url))
            yield opened
            opened.close()
    elif request.param == "tiny":
        yield open_encoder(TextModelSpec(str(tiny_model), device="cpu", dtype="float32"))
    else:
        yield open_encoder(TextModelSpec("words", "hashing"))


def test_shapes_order_and_duplicates(encoder: TextEncoder) -> None:
    vectors, tokens = encoder.encode_counted(TEXTS)
    assert vectors.shape == (len(TEXTS), encoder.fingerprint.dimensions)
    assert vectors.dtype == np.float32 and tokens.dtype == np.int32 and tokens.shape == (len(TEXTS),)
    assert np.isfinite(vectors).all()
    assert (vectors[1] == vectors[5]).all()
    np.testing.assert_allclose(encoder.encode(TEXTS[::-1])[::-1], vectors, atol=2e-6)
    np.testing.assert_allclose(np.concatenate([encoder.encode([t]) for t in TEXTS]), vectors, atol=2e-6)


def test_no_texts(encoder: TextEncoder) -> None:
    vectors, tokens = encoder.encode_counted([])
    assert vectors.shape == (0, encoder.fingerprint.dimensions) and vectors.dtype == np.float32
    assert tokens.shape == (0,)


def test_prompt_stands_before_the_text(encoder: TextEncoder) -> None:
    assert not np.allclose(encoder.encode(["a b"], "query "), encoder.encode(["a b"]), atol=1e-3)
    assert (encoder.encode(["a b"], "") == encoder.encode(["a b"], None)).all()


@pytest.mark.parametrize("texts", ["one string", ["ok", "\ud800"], ["ok", 5], [None]])
def test_refused_texts(encoder: TextEncoder, texts: Any) -> None:
    with pytest.raises(InvalidInput):
        encoder.encode(texts)
    with pytest.raises(InvalidInput):
        encoder.encode(["ok"], "\udfff")


def test_threads_get_their_own_answers(encoder: TextEncoder) -> None:
    expected = encoder.encode(TEXTS)
    found: dict[int, Any] = {}

    def ask(shift: int) -> None:
        order = np.roll(np.arange(len(TEXTS)), shift)
        found[shift] = encoder.encode([TEXTS[row] for row in order])[np.argsort(order)]

    threads = [threading.Thread(target=ask, args=(shift,)) for shift in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for shift in range(4):
        np.testing.assert_allclose(found[shift], expected, atol=2e-6)


def test_nameless_models_are_refused() -> None:
    for make in (HashingEncoder, SentenceTransformerEncoder):
        with pytest.raises(InvalidInput, match="no name"):
            make(model=" ")


def test_every_field_changes_digest_and_name() -> None:
    base = Fingerprint("org/Some Model", "ab", "mean", True, "", 8, 16, "float32")
    assert base.name.startswith("some-model-")
    seen = {(base.digest, base.name)}
    for field in fields(base):
        value = getattr(base, field.name)
        other = (not value) if isinstance(value, bool) else value + (1 if isinstance(value, int) else "x")
        changed = replace(base, **{field.name: other})
        seen.add((changed.digest, changed.name))
    assert len({digest for digest, _ in seen}) == len({name for _, name in seen}) == len(fields(base)) + 1
