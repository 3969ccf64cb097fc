"""Which folders open as a base model, as exact copies, and how the others are refused."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from graph.errors import InvalidInput, OutOfMemory, UnknownModel
from models.devices import choose_device
from models.language_model.base_model import (
    BaseModel,
    choose_dtype,
    linear_layers,
    open_base_model,
)
from models.language_model.opening import LanguageModelSpec
from models.model_files import quiet
from tests.models.language_model.tiny_models import ARCHITECTURES, EOS, WINDOW, make_model, make_tokenizer

WEIGHTS = "model.safetensors"
SMALL: dict[str, Any] = {"vocab_size": 264, "hidden_size": 32, "num_hidden_layers": 1}


def save(folder: Path, model: Any = None) -> Path:
    with quiet():
        (make_model() if model is None else model).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("saved") / "tiny-llama")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(saved, tmp_path / "tiny-llama")


def opened(folder: Path | str, **fields: Any) -> BaseModel:
    return open_base_model(LanguageModelSpec(str(folder), **{"device": "cpu", **fields}))


def change(path: Path, **fields: Any) -> None:
    """Change fields of a JSON file; None removes one."""
    values = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_exact_copy(architecture: str, tmp_path: Path) -> None:
    model = make_model(architecture, seed=3)
    base = opened(save(tmp_path / architecture, model))
    expected = model.state_dict()
    found = base.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    ids = torch.arange(20).view(2, 10)
    assert torch.equal(base.model(ids).logits, model(ids).logits)
    assert type(base.model) is type(model)
    assert not base.model.training and not any(p.requires_grad for p in base.model.parameters())
    assert (base.name, base.max_tokens, base.eos_token_ids) == (architecture, WINDOW, {EOS})
    assert (base.device, base.dtype, base.quantization) == (torch.device("cpu"), torch.float32, "none")
    assert base.spec.linears == linear_layers(model)
    assert len(base.spec.linears) == 2 * 7 + 1
    assert base.tokenizer.encode("né") == make_tokenizer().encode("né")


def test_tied_embeddings(tmp_path: Path) -> None:
    model = make_model()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    base = opened(save(tmp_path / "tied", model))
    ids = torch.arange(10).view(1, 10)
    assert torch.equal(base.model(ids).logits, model(ids).logits)
    assert base.model.lm_head.weight is base.model.model.embed_tokens.weight


def test_dtype_and_window(saved: Path) -> None:
    base = opened(saved, dtype="bfloat16", max_context_tokens=50)
    assert (base.dtype, base.max_tokens) == (torch.bfloat16, 50)
    assert {p.dtype for p in base.model.parameters()} == {torch.bfloat16}
    assert opened(saved, max_context_tokens=WINDOW + 1).max_tokens == WINDOW
    assert torch.get_default_dtype() == torch.float32


def test_the_digest_is_of_every_byte_that_counts(folder: Path) -> None:
    seen = [opened(folder).digest]
    assert opened(shutil.copytree(folder, folder.parent / "elsewhere")).digest == seen[0]
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    seen.append(opened(folder).digest)
    change(folder / "config.json", rms_norm_eps=1e-5)
    seen.append(opened(folder).digest)
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text + "\n")
    seen.append(opened(folder).digest)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    seen.append(opened(folder).digest)
    assert len(set(seen)) == 5


@pytest.mark.parametrize(
    "generation, config, expected",
    [
        (7, 3, {7}),
        ([7, 8], 3, {7, 8}),
        (None, [3, 4], {3, 4}),
        (None, None, {EOS}),
    ],
    ids=["generation", "list", "config", "tokenizer"],
)
def test_tokens_that_end(folder: Path, generation: Any, config: Any, expected: set[int]) -> None:
    change(folder / "generation_config.json", eos_token_id=generation)
    # Left out it would be Llama's own, 2, as `generate` has it; null is none.
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "eos_token_id": config}))
    assert opened(folder).eos_token_ids == expected


def test_in_memory() -> None:
    one, other = make_model(seed=1), make_model(seed=2)
    base = BaseModel.of(one, make_tokenizer(), name="x")
    assert base.digest == BaseModel.of(make_model(seed=1), make_tokenizer(), name="y").digest
    assert base.digest != BaseModel.of(other, make_tokenizer(), name="x").digest
    assert BaseModel.of(one.bfloat16(), make_tokenizer(), name="x").digest != base.digest


# --- Refusals ---


def no_safetensors(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def cut(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def one_tensor_missing(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def another_shape(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["model.norm.weight"] = torch.ones(8)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def tokenizer_too_large(folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<{n}>" for n in range(7)])
    tokenizer.save_pretrained(folder)


def slow_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text('{"a": 0}')
    (folder / "merges.txt").write_text("#version: 0.2\n")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (no_safetensors, "pickle.*safetensors"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "no weights"),
    "cut": (cut, "cannot be opened.*SafetensorError"),
    "empty weights": (lambda f: (f / WEIGHTS).write_bytes(b""), "cannot be opened"),
    "tensor missing": (one_tensor_missing, "they lack model.layers.1.mlp.up_proj.weight;"),
    "tensors left": (
        lambda f: change(f / "config.json", num_hidden_layers=1),
        "they have besides model.layers.1.* and 6 more",
    ),
    "another shape": (another_shape, "cannot be opened"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no fast tokenizer"),
    "slow tokenizer": (slow_tokenizer, "no fast tokenizer"),
    "tokenizer too large": (tokenizer_too_large, "tokens up to 264, the model from 0 to 263"),
    "tokenizer no JSON": (lambda f: (f / "tokenizer.json").write_text("{"), "cannot be opened"),
    "tokenizer of nothing": (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot be opened"),
    "no config": (lambda f: (f / "config.json").unlink(), "no configuration"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{model"), "cannot be opened"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "cannot be opened"),
    "config no text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "cannot be opened"),
    "no heads": (lambda f: change(f / "config.json", num_attention_heads=0), "cannot be opened"),
    "wrong kind": (lambda f: change(f / "config.json", vocab_size="many"), "cannot be opened"),
    "no window": (lambda f: change(f / "config.json", max_position_embeddings=1), "window of 1 tokens"),
    "unknown type": (lambda f: change(f / "config.json", model_type="nothing"), "cannot be opened"),
    "another type": (lambda f: change(f / "config.json", model_type="mistral"), "'mistral'.*not served"),
    "quantised": (
        lambda f: change(f / "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        "quantised already",
    ),
    "dynamic rotary": (
        lambda f: change(
            f / "config.json", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
        ),
        "'dynamic' is not served",
    ),
    "an adapter's folder": (
        lambda f: (f / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": str(f.parent / "other")})
        ),
        "folder of an adapter",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged(name: str, folder: Path) -> None:
    damage, words = DAMAGE[name]
    damage(folder)
    with pytest.raises(InvalidInput, match=words) as caught:
        opened(folder)
    assert caught.value.param == "model"
    assert len(caught.value.message) < 500 and "\n" not in caught.value.message
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    "model, words",
    [
        (lambda: GPT2LMHeadModel(GPT2Config(vocab_size=264, n_embd=16, n_layer=1, n_head=2)), "GPT2LMHead"),
        (
            lambda: MistralForCausalLM(MistralConfig(**SMALL, intermediate_size=16, num_attention_heads=4)),
            "MistralForCausalLM",
        ),
    ],
    ids=["gpt2", "mistral"],
)
def test_other_architectures(model: Callable[[], Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=f"{words}.*not served"):
        opened(save(tmp_path / "other", model()))
    with pytest.raises(InvalidInput, match=f"{words}.*not served"):
        BaseModel.of(model(), make_tokenizer(), name="other")


def test_sliding_windows(tmp_path: Path) -> None:
    folder = save(tmp_path / "qwen2", make_model("qwen2"))
    change(
        folder / "config.json",
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=1,
        layer_types=["full_attention", "sliding_attention"],
    )
    with pytest.raises(InvalidInput, match="sliding_attention is not served"):
        opened(folder)


def test_a_pickle_below_does_not_matter(folder: Path) -> None:
    """Llama's folders have the original checkpoint as well; nothing reads it."""
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.00.pth").write_bytes(b"no pickle at all")
    (folder / "training_args.bin").write_bytes(b"nor this")
    assert opened(folder).name == "tiny-llama"


@pytest.mark.parametrize("model_type", ["llama", "surprise"])
def test_code_beside_a_model_never_runs(model_type: str, folder: Path, monkeypatch: Any) -> None:
    """Neither when transformers knows the type itself, nor when it would ask at the terminal."""
    ran = folder / "ran"
    code = f"open({str(ran)!r}, 'w').close()\nclass Config: pass\nclass Model: pass\nclass Tokenizer: pass\n"
    (folder / "surprise.py").write_text(code)
    change(
        folder / "config.json",
        model_type=model_type,
        auto_map={"AutoConfig": "surprise.Config", "AutoModelForCausalLM": "surprise.Model"},
    )
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "surprise.Tokenizer"]})
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda *words: asked.append("input") or "y")
    if model_type == "llama":
        assert type(opened(folder).model).__name__ == "LlamaForCausalLM"
    else:
        with pytest.raises(InvalidInput, match="cannot be opened"):
            opened(folder)
    assert not ran.exists() and not asked


# --- Not here ---


@pytest.mark.parametrize(
    "name",
    [
        "/no/such/folder",
        "./none",
        "~none-such-user/model",
        "nothing",
        "x" * 5_000,
        "a\0b",
        "organization/model-that-is-not-here",
        "a/b/c",
    ],
)
def test_not_here(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(UnknownModel) as caught:
        opened(name)
    assert caught.value.param == "model"


def test_an_endpoint_is_not_loaded() -> None:
    with pytest.raises(InvalidInput, match="openai"):
        opened("m", backend="openai", url="http://127.0.0.1:1/v1")


# --- Devices ---


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    for wanted in ("gpu", "meta", "cuda:x", ""):
        with pytest.raises(InvalidInput, match="use auto, cpu, cuda or cuda:N"):
            choose_device(wanted)
    with pytest.raises(InvalidInput, match="CUDA devices can be used here") as caught:
        choose_device(f"cuda:{torch.cuda.device_count()}")
    assert caught.value.param == "device"


def test_cuda_that_is_not_there(monkeypatch: pytest.MonkeyPatch, saved: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InvalidInput, match="0 CUDA devices"):
        opened(saved, device="cuda")
    assert choose_device("auto") == torch.device("cpu")


def test_broken_cuda_falls_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, saved: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available")

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(torch.cuda, "is_available", lambda: True)
        patched.setattr(torch, "zeros", fail)
        assert choose_device("auto") == torch.device("cpu")
    assert "no kernel image" in caplog.text


def test_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_dtype("auto", cpu) == torch.float32
    assert choose_dtype("float16", cpu) == torch.float16
    for has_bfloat16, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda found=has_bfloat16: found)
        assert choose_dtype("auto", cuda) == expected
    assert choose_dtype("float32", cuda) == torch.float32


def test_too_large(monkeypatch: pytest.MonkeyPatch, saved: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(torch.nn.Module, "to", fail)
    with pytest.raises(OutOfMemory, match="does not fit into the memory of cpu as float32"):
        opened(saved)


def test_several_at_once(saved: Path) -> None:
    start = threading.Barrier(6)

    def one(n: int) -> BaseModel:
        start.wait(20)
        return opened(saved, dtype=("float32", "bfloat16")[n % 2])

    with ThreadPoolExecutor(6) as threads:
        bases = list(threads.map(one, range(6)))
    expected = make_model().state_dict()
    for n, base in enumerate(bases):
        dtype = (torch.float32, torch.bfloat16)[n % 2]
        for name, value in base.model.state_dict().items():
            assert torch.equal(value, expected[name].to(dtype))
        # Not a weight: it has to be exact whatever the others' dtype.
        assert torch.equal(base.model.model.rotary_emb.inv_freq, make_model().model.rotary_emb.inv_freq)
    assert torch.get_default_dtype() == torch.float32
    assert len({base.digest for base in bases}) == 1
