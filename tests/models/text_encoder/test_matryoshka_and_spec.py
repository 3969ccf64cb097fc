"""Shortened vectors, and which model specifications are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graph.errors import InvalidInput
from models.text_encoder.hashing_encoder import HashingEncoder
from models.text_encoder.matryoshka import shortened
from models.text_encoder.opening import TextModelSpec, open_encoder


def test_shortened_is_first_components_at_unit_length() -> None:
    vectors = np.array([[3, 4, 12], [0, 0, 1], [-2, 0, 0]], np.float32)
    short = shortened(vectors, 2)
    assert short.dtype == np.float32
    np.testing.assert_allclose(short, [[0.6, 0.8], [0, 0], [-1, 0]], atol=1e-7)
    assert shortened(vectors[:0], 2).shape == (0, 2)
    for dimensions in (0, 4):
        with pytest.raises(InvalidInput, match="1 to 3"):
            shortened(vectors, dimensions)


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": ""},
        {"model": "  "},
        {"backend": "onnx"},
        {"dtype": "int8"},
        {"dimensions": 0},
        {"max_tokens": 0},
        {"num_threads": 0},
        {"timeout_s": 0.0},
        {"timeout_s": float("nan")},
        {"backend": "openai"},
        {"url": "http://host/v1"},
    ],
)
def test_refused_specs_name_their_field(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        TextModelSpec(**wrong)
    assert caught.value.param in {*wrong, "url"}


def test_the_key_is_not_shown() -> None:
    spec = TextModelSpec("m", "openai", url="http://host/v1", api_key="sk-secret")
    assert "sk-secret" not in repr(spec)


def test_prompt_and_window_reach_the_encoder() -> None:
    spec = TextModelSpec("words", "hashing", prompt="query ", dimensions=8, max_tokens=3)
    fingerprint = open_encoder(spec).fingerprint
    assert (fingerprint.prompt, fingerprint.dimensions, fingerprint.max_tokens) == ("query ", 8, 3)


def test_credentials_do_not_go_into_the_url() -> None:
    with pytest.raises(InvalidInput, match="api_key") as caught:
        TextModelSpec("m", "openai", "http://me:secret@host/v1")
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("model", "public"),
    [("all-MiniLM-L6-v2", "all-MiniLM-L6-v2"), ("org/name", "org/name"), ("/srv/models/mine", "mine")],
)
def test_what_clients_call_a_model(model: str, public: str) -> None:
    assert HashingEncoder(8, model).fingerprint.public_model == public


def test_clients_see_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for model in ("models/mine", "./models/mine", str(tmp_path / "models" / "mine")):
        assert HashingEncoder(8, model).fingerprint.public_model == "mine"
