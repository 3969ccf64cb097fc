"""The fake: similar words, similar vectors; failing and blocking on command."""

from __future__ import annotations

import threading
import time

import pytest

from graph.errors import InvalidInput, TextTooLong, Unavailable
from models.text_encoder.hashing_encoder import HashingEncoder


def test_shared_words_make_texts_similar() -> None:
    query, near, far = HashingEncoder(256).encode(["red dragon", "a red dragon sleeps", "tax law"])
    assert query @ near > 0.6 > query @ far


def test_failing_and_recovering_is_counted() -> None:
    encoder = HashingEncoder()
    encoder.fail()
    with pytest.raises(Unavailable):
        encoder.encode(["a"])
    encoder.recover()
    encoder.encode(["a", "b"])
    assert (encoder.calls, encoder.texts_encoded) == (2, 2)


def test_a_closed_gate_blocks() -> None:
    encoder = HashingEncoder()
    encoder.gate.clear()
    thread = threading.Thread(target=encoder.encode, args=(["a"],))
    thread.start()
    deadline = time.monotonic() + 5
    while not encoder.waiting and time.monotonic() < deadline:
        time.sleep(0.001)
    assert encoder.waiting == 1 and encoder.texts_encoded == 0
    encoder.gate.set()
    thread.join()
    assert encoder.waiting == 0 and encoder.texts_encoded == 1


def test_window() -> None:
    encoder = HashingEncoder(max_tokens=2)
    assert (encoder.encode(["a b c"]) == encoder.encode(["a b"])).all()
    assert encoder.encode_counted(["a b c"]).tokens.tolist() == [3]
    with pytest.raises(TextTooLong, match=r"text 1 has 3 tokens.*window is 2"):
        encoder.encode_counted(["a", "a b c"], truncate=False)
    with pytest.raises(InvalidInput):
        HashingEncoder(0)
