"""Adapters are trained on answers alone, and come out as the store takes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from graph.errors import InvalidInput, TextTooLong
from models.adapter_training import (
    AdapterProgress,
    Example,
    TrainedAdapter,
    answer_loss,
    examples_from_texts,
    train_adapter,
)
from models.adapters import AdapterStore
from models.language_model.base_model import open_base_model
from models.language_model.opening import LanguageModelSpec
from models.language_model.prompt import encode_prompt
from models.language_model.protocol import Message
from models.model_files import quiet
from tests.models.language_model.tiny_models import WINDOW, make_model, make_tokenizer

EXAMPLES = [Example((Message("user", f"say {n}"),), f"ahoy {n}, matey") for n in range(6)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    with quiet():
        make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedAdapter:
    return train(base, tmp_path_factory.mktemp("adapters") / "inbox" / "pirate")


def train(base: Path, out: Path, examples: list[Example] = EXAMPLES, **options: Any) -> TrainedAdapter:
    options = {"epochs": 12, "rank": 4, "learning_rate": 0.01, "precision": "float32"} | options
    return train_adapter(base, examples, out, **options)


def test_the_answers_become_likelier(trained: TrainedAdapter) -> None:
    assert trained.loss_after < trained.loss_before - 1
    assert (trained.examples, trained.steps) == (6, 12)


def test_the_store_imports_it(trained: TrainedAdapter, base: Path, tmp_path: Path) -> None:
    spec = open_base_model(LanguageModelSpec(str(base), device="cpu")).spec
    store = AdapterStore(tmp_path, trained.folder.parent, spec, max_rank=4, max_bytes=1 << 20)
    found = store.import_folder("pirate")
    weights = store.load(found.digest)
    assert sum(a.numel() + b.numel() for a, b in weights.modules.values()) == trained.parameters
    assert sorted(path.name for path in trained.folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_peft_reads_it_with_the_same_loss(trained: TrainedAdapter, base: Path) -> None:
    """The files hold what was trained: another reader comes to the reported loss."""
    from peft import PeftModel

    opened = open_base_model(LanguageModelSpec(str(base), device="cpu"))
    model: Any = PeftModel.from_pretrained(opened.model, str(trained.folder))
    losses, counts = 0.0, 0
    for example in EXAMPLES:
        prompt = list(encode_prompt(opened.tokenizer, example.prompt).tokens)
        answer = [*opened.tokenizer(example.answer).input_ids, opened.tokenizer.eos_token_id]
        tokens = torch.tensor([prompt + answer])
        targets = torch.full_like(tokens, -100)
        targets[0, len(prompt) - 1 : -1] = tokens[0, len(prompt) :]
        with torch.no_grad():
            losses += len(answer) * float(answer_loss(model.get_base_model(), tokens, targets))
        counts += len(answer)
    assert losses / counts == pytest.approx(trained.loss_after, rel=0.02)  # its weights are float16


def test_the_loss_is_that_of_the_whole_model() -> None:
    model = make_model()
    tokens = torch.randint(0, 250, (3, 17))
    targets = torch.full_like(tokens, -100)
    targets[0, 5:9], targets[2, 16] = 7, 9
    logits = model(tokens).logits.flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, targets.flatten(), ignore_index=-100)
    torch.testing.assert_close(answer_loss(model, tokens, targets), expected)


def test_the_same_seed_gives_the_same_adapter(base: Path, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train(base, tmp_path / name, epochs=2, seed=seed)
    a, b, c = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    assert torch.equal(before, torch.random.get_rng_state())


def test_only_answers_are_learned(base: Path, tmp_path: Path) -> None:
    """Two trainings whose prompts differ, and whose tokens to be learned do not, report as many steps; the
    loss before is that of the answer given its own prompt.
    """
    answer = "ahoy"
    prompts = ("a", "b" * 40)
    losses = [
        train(base, tmp_path / str(n), [Example((Message("user", p),), answer)], epochs=1).loss_before
        for n, p in enumerate(prompts)
    ]
    opened = open_base_model(LanguageModelSpec(str(base), device="cpu"))
    for prompt, loss in zip(prompts, losses, strict=True):
        ids = list(encode_prompt(opened.tokenizer, (Message("user", prompt),)).tokens)
        learned = [*opened.tokenizer(answer).input_ids, opened.tokenizer.eos_token_id]
        logits = opened.model(torch.tensor([ids + learned])).logits[0, len(ids) - 1 : -1]
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(learned))
        assert loss == pytest.approx(float(expected), rel=1e-4)


def test_control_tokens_in_texts_are_text(base: Path, tmp_path: Path) -> None:
    spelled = Example((Message("user", "say <eos>"),), "<eos> never ends <eos>")
    told: list[AdapterProgress] = []
    train(base, tmp_path / "out", [spelled], epochs=3, on_progress=told.append)
    assert [(one.step, one.steps) for one in told] == [(1, 3), (2, 3), (3, 3)]
    from models import adapter_training

    opened = open_base_model(LanguageModelSpec(str(base), device="cpu"))
    (row,) = adapter_training._encode(opened, [spelled])
    end = opened.tokenizer.eos_token_id
    assert [n for n, token in enumerate(row.tokens) if token == end] == [len(row.tokens) - 1]
    assert opened.tokenizer.decode(row.tokens[row.prompt_tokens : -1]) == spelled.answer


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"examples": []}, "examples"),
        ({"examples": [Example("x", " ")]}, "examples"),
        ({"rank": 0}, "rank"),
        ({"alpha": float("nan")}, "alpha"),
        ({"epochs": 0}, "epochs"),
        ({"batch_tokens": 0}, "batch_tokens"),
        ({"learning_rate": 1.5}, "learning_rate"),
        ({"target_modules": ["q_proj", "w_proj"]}, "target_modules"),
        ({"target_modules": []}, "target_modules"),
    ],
)
def test_what_is_refused(base: Path, tmp_path: Path, options: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        train(base, tmp_path / "out", **options)
    assert caught.value.param == param
    assert not (tmp_path / "out").exists()


def test_long_examples_and_foreign_folders_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(TextTooLong, match=f"window of tiny {WINDOW}"):
        train(base, tmp_path / "out", [replace(EXAMPLES[0], answer="x" * WINDOW)])
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "one.txt").write_text("dear")
    with pytest.raises(InvalidInput, match="something else than an adapter"):
        train(base, tmp_path / "letters")
    assert (tmp_path / "letters" / "one.txt").read_text() == "dear"


def test_an_adapter_is_replaced(base: Path, tmp_path: Path) -> None:
    train(base, tmp_path / "out", epochs=1, target_modules=["q_proj"])
    before = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    train(base, tmp_path / "out", epochs=1, target_modules=["v_proj"])
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_texts_become_examples() -> None:
    examples = examples_from_texts(["One here. Two there!", "  ", "Three\nlines.\n\nFour"])
    answers = [example.answer for example in examples]
    assert answers == ["One here. Two there!", "Two there!", "Three lines.", "Four"]
    assert examples[1].prompt == (Message("user", "One here."),)
    long = "word " * 1000
    parts = [example.answer for example in examples_from_texts([long])]
    assert " ".join(parts) == long.strip()
    assert max(map(len, parts)) <= 600
    assert len(examples_from_texts(["x" * 1500])) == 3
    for texts in ([], ["", "\n \n"]):
        with pytest.raises(InvalidInput, match="no text"):
            examples_from_texts(texts)
