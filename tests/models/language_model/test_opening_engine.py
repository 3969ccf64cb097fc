"""From a specification to answers: what is put together, what happens when a part fails, what is left."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from graph.errors import InvalidInput, Unavailable, UnknownAdapter, WeftError
from models.adapter_cascade import MemoryPointers
from models.adapter_pointers import AdapterArm
from models.language_model import opening_engine
from models.language_model.engine_limits import EngineLimits
from models.language_model.opening import LanguageModelSpec
from models.language_model.opening_engine import (
    AdapterPlaces,
    EngineOptions,
    LocalGenerator,
    open_engine,
    open_generator,
)
from models.language_model.protocol import Sampling
from models.model_files import quiet
from tests.lora_folders import write_adapter
from tests.models.language_model.tiny_models import generate, make_model, make_tokenizer

GREEDY = Sampling(temperature=0.0, max_tokens=12, ignore_eos=True)
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    with quiet():
        make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def adapters(folder: Path, tmp_path: Path) -> Path:
    """A store's folder whose inbox has an adapter "one"."""
    write_adapter(tmp_path / "adapters" / "inbox" / "one", folder, seed=1)
    return tmp_path / "adapters"


def spec(folder: Path, **fields: Any) -> LanguageModelSpec:
    return LanguageModelSpec(str(folder), device="cpu", **fields)


def opened(folder: Path, adapters: Path | None = None, pointers: Any = None) -> LocalGenerator:
    return open_generator(str(folder), adapters, pointers, LanguageModelSpec("-", device="cpu"))


def our_threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name.startswith(("weft-engine", "load-adapter"))}


def test_without_adapters(folder: Path) -> None:
    with opened(folder) as generator:
        answer = generator.run("alice", "hello", "Be brief.", sampling=GREEDY)
        assert (answer.adapter, answer.digest, answer.source, answer.model) == (None, None, "base", "tiny")
        assert len(answer.output) > 0
        assert answer.completion_tokens == 12
        for named in ({"adapter": "d" * 64}, {"blend": (("d" * 64, 0.5),)}):
            with pytest.raises(InvalidInput, match="runs without adapters"):
                generator.run("alice", "hello", sampling=GREEDY, **named)
        assert generator.run("alice", "hello", "Be brief.", sampling=GREEDY).output == answer.output
        status = generator.backend.status()
        assert status["adapters"] == {"slots": 0, "in_slots": []}


def test_an_imported_adapter_by_digest_and_by_pointer(folder: Path, adapters: Path) -> None:
    pointers = MemoryPointers()
    with opened(folder, adapters, lambda: pointers) as generator:
        store = generator.opened.store
        assert store is not None
        digest = store.import_folder("one").digest
        base = generator.run("alice", "hello", sampling=GREEDY)
        named = generator.run("alice", "hello", adapter=digest, sampling=GREEDY)
        assert (named.digest, named.source) == (digest, "request")
        assert named.output != base.output
        pointers.activate("user", "alice", AdapterArm("v1", digest))
        active = generator.run("alice", "hello", sampling=GREEDY)
        assert (active.output, active.adapter, active.source) == (named.output, "user/alice/v1", "user")
        assert generator.run("bob", "hello", sampling=GREEDY).output == base.output
        pieces = generator.stream("alice", "hello", sampling=GREEDY)
        assert "".join(pieces) == named.output
        with pytest.raises(UnknownAdapter, match="gone"):
            generator.run("alice", "hello", adapter="0" * 64, sampling=GREEDY)


def test_the_base_model_is_exact_beside_adapters(folder: Path, adapters: Path) -> None:
    with opened(folder, adapters) as generator:
        store = generator.opened.store
        assert store is not None
        digest = store.import_folder("one").digest
        streams = [
            generator.stream(None, "hello", adapter=adapter, sampling=GREEDY)
            for adapter in (digest, "base", digest, None)
        ]
        texts = ["".join(stream) for stream in streams]
    tokenizer: Any = make_tokenizer()
    rendered = "user: hello\nassistant:"
    expected = tokenizer.decode(generate(make_model(), tokenizer, rendered, 12))
    assert texts[1].startswith(expected)
    assert texts[1] == texts[3] and texts[0] == texts[2] != texts[1]


def test_closing_ends_every_thread_and_frees_the_model(folder: Path, adapters: Path) -> None:
    before = our_threads()
    generator = opened(folder, adapters)
    store = generator.opened.store
    assert store is not None
    digest = store.import_folder("one").digest
    generator.run(None, "hello", adapter=digest, sampling=GREEDY)
    assert our_threads() > before
    model = weakref.ref(generator.opened.base.model)
    generator.close()
    generator.close()
    assert our_threads() == before
    with pytest.raises(Unavailable, match="closed"):
        generator.run(None, "hello", sampling=GREEDY)
    del generator, store
    gc.collect()
    assert model() is None


def test_an_engine_that_cannot_start_leaves_no_threads(
    folder: Path, adapters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    residents: list[Any] = []

    def fail(*_: object, residents_: list[Any] = residents, **parts: Any) -> None:
        parts["residents"].request("0" * 64)  # so that there is a thread to leave behind
        residents_.append(parts["residents"])
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(opening_engine, "Engine", fail)
    before = our_threads()
    with pytest.raises(torch.OutOfMemoryError):
        open_engine(spec(folder), AdapterPlaces(adapters, adapters / "inbox"))
    assert our_threads() == before
    assert isinstance(residents[0].request("1" * 64), Unavailable)


def test_a_folder_of_adapters_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    before = our_threads()
    with pytest.raises(Unavailable, match="folder of adapters"):
        opened(folder, tmp_path / "file")
    assert our_threads() == before


@pytest.mark.parametrize("name", ["slots", "max_rank", "max_adapter_bytes", "max_resident"])
def test_sizes_are_checked(name: str) -> None:
    with pytest.raises(InvalidInput, match=f"{name} is 0; must be at least 1") as caught:
        AdapterPlaces(Path("a"), Path("b"), **{name: 0})
    assert caught.value.param == name


def test_options_reach_the_engine(folder: Path, adapters: Path) -> None:
    places = AdapterPlaces(adapters, adapters / "inbox", slots=3, max_rank=2, max_resident=5)
    opened = open_engine(spec(folder), places, EngineOptions(EngineLimits(max_batch=2), 0))
    try:
        status: Any = opened.engine.status()
        assert (status["max_batch"], status["adapters"]["slots"]) == (2, 3)
        assert status["adapters"]["max_resident"] == 5
        assert status["prefix_cache"]["max_bytes"] == 0
        assert opened.store is not None
        with pytest.raises(WeftError, match="rank 4"):
            opened.store.import_folder("one")
    finally:
        opened.close()


def test_what_needs_no_service_is_not_needed() -> None:
    """The library runs where Ray, FAISS, Redis and FastAPI are not installed."""
    program = (
        "import importlib, pkgutil, sys\n"
        "for name in ('ray', 'faiss', 'redis', 'fastapi', 'sentence_transformers', 'peft', 'openai'):\n"
        "    sys.modules[name] = None\n"
        "import models.language_model as package\n"
        "for module in pkgutil.iter_modules(package.__path__, 'models.language_model.'):\n"
        "    importlib.import_module(module.name)\n"
        "    print(module.name)\n"
        "import models.adapters, models.adapter_cascade\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert {"models.language_model.engine", "models.language_model.opening_engine"} <= set(
        found.stdout.split()
    )
