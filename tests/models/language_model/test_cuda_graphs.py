"""The step of fixed shapes that graphs repeat, run on the CPU: the same logits, and nothing else touched."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from models.language_model import model_steps
from models.language_model.batch import Batch, Sequence
from models.language_model.cuda_graphs import DecodeGraphs, StaticStep, bucket
from models.language_model.engine import Engine, EngineLimits
from models.language_model.forward import Forward
from models.language_model.kv_cache import KVCache
from models.language_model.lora import LoraSlots
from models.language_model.prompt import EncodedPrompt
from models.language_model.protocol import AdapterChoice, AdapterPart, GenerationRequest, Sampling
from models.language_model.resident_adapters import ResidentAdapters
from models.language_model.sampling import RowSampler
from models.language_model.text_stream import TextStream
from tests.models.language_model.tiny_models import (
    ARCHITECTURES,
    WINDOW,
    generate,
    linears_of,
    make_adapter,
    make_base,
    make_model,
    make_tokenizer,
    submit,
)

CPU = torch.device("cpu")
TOKENIZER = make_tokenizer()


def make_batch(model: Any, prompts: list[str], num_decoding: int) -> tuple[Batch, Forward]:
    """The first rows read to the end, with a token after it; the others but for their last five tokens."""
    cache = KVCache(2, max_rows=6, max_tokens=WINDOW)
    batch, forward = Batch(cache), Forward(model, cache, CPU, torch.float32)
    for i, prompt in enumerate(prompts):
        tokens = tuple(TOKENIZER.backend_tokenizer.encode(prompt).ids)
        row = Sequence(
            GenerationRequest("r", prompt),
            lambda event: None,
            EncodedPrompt(tokens, 0),
            9,
            RowSampler(Sampling(), tokens, 264),
            TextStream(TOKENIZER, ()),
            lambda: None,
        )
        batch.add(row)
        count = len(tokens) - (5 if i >= num_decoding else 0)
        forward.prefill(batch, [row], count)
        row.length = count
    for row in batch.rows[:num_decoding]:
        batch.start_decoding(row)
        row.tokens.append(33 + row.length % 7)
    return batch, forward


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("num_decoding", [1, 3, 5])
@torch.inference_mode()
def test_fixed_shapes_give_the_same(architecture: str, num_decoding: int) -> None:
    model = make_model(architecture)
    prompts = ["one", "a second one", "y" * 40, "x" * 140, "the last of them"]
    batch, forward = make_batch(model, prompts, num_decoding)
    before = [batch.cache.read(i, 0, row.length) for i, row in enumerate(batch.rows)]
    expected = forward.decode(batch.decoding)
    step = StaticStep(forward, batch.cache, CPU)
    shape = step.shape(batch)
    assert shape == ({1: 1, 3: 4, 5: 6}[num_decoding], 128 if num_decoding == 1 else WINDOW)
    for _ in range(2):  # as when it is captured: run and then replayed
        step.fill(batch, shape)
        logits = step.run(shape)
        assert logits.shape == (shape[0], 264)
        torch.testing.assert_close(logits[:num_decoding], expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(logits[:num_decoding].argmax(-1), expected.argmax(-1))
    for i, held in enumerate(before):  # those that decode, and those whose prompt is still being read
        for got, old in zip(batch.cache.read(i, 0, batch.rows[i].length), held, strict=True):
            assert torch.equal(got[0], old[0]) and torch.equal(got[1], old[1])


def test_buckets() -> None:
    assert [bucket(n, 1, 12) for n in (1, 2, 3, 5, 8, 9, 12)] == [1, 2, 4, 8, 8, 12, 12]
    assert [bucket(n, 128, 1000) for n in (1, 128, 129, 600)] == [128, 128, 256, 1000]


@torch.inference_mode()
def test_without_a_gpu_steps_run_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    """Where capturing fails, one warning says so and nothing else happens."""
    if torch.cuda.is_available():
        pytest.skip("capturing works here")
    batch, forward = make_batch(make_model(), ["one", "two"], 2)
    graphs = DecodeGraphs(forward, batch.cache, CPU)
    with caplog.at_level(logging.WARNING):
        assert [graphs.decode(batch) for _ in range(10)] == [None] * 10
    assert (
        [r.message for r in caplog.records].count("decoding goes on without CUDA graphs: one failed")
        == len(caplog.records)
        == 1
    )
    assert not graphs.enabled and graphs.num_captured == 0


class Recorded:
    """Does as a graph does: the same step again on the same tensors, for as long as they stay in place."""

    def __init__(self, graphs: Any, shape: tuple[int, int], out: Tensor) -> None:
        self.graphs, self.shape, self.out = graphs, shape, out
        self.version = graphs._cache.version
        self.replays = 0

    def replay(self) -> None:
        assert self.version == self.graphs._cache.version, "replayed over tensors that are gone"
        self.out.copy_(self.graphs._step.run(self.shape))
        self.replays += 1


class Graphs(DecodeGraphs):
    """Records steps in place of capturing them."""

    def __init__(self, forward: Forward, cache: KVCache) -> None:
        super().__init__(forward, cache, CPU)
        self.captured: list[Recorded] = []
        self.fails_at = -1

    def _capture(self, shape: tuple[int, int]) -> Any:
        if len(self.captured) == self.fails_at:
            self.fails_at = -1
            raise torch.OutOfMemoryError("CUDA out of memory")
        recorded = Recorded(self, shape, self._step.run(shape).clone())
        self.captured.append(recorded)
        return recorded, recorded.out


@torch.inference_mode()
def test_graphs_over_tensors_that_are_gone_are_captured_anew() -> None:
    batch, forward = make_batch(make_model(), ["one", "a second one", "y" * 40], 3)
    graphs = Graphs(forward, batch.cache)

    def step() -> bool:
        expected = forward.decode(batch.decoding)
        logits = graphs.decode(batch)
        if logits is not None:
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        for row, token in zip(batch.rows, expected.argmax(-1).tolist(), strict=True):
            row.length += 1
            row.tokens.append(token)
        return logits is not None

    assert [step() for _ in range(6)] == [False] * 3 + [True] * 3
    assert (len(graphs.captured), graphs.num_captured) == (1, 1)
    batch.cache.reserve(6, WINDOW)
    assert step() and step()
    assert (len(graphs.captured), graphs.num_captured) == (2, 1)
    assert [c.replays for c in graphs.captured] == [3, 2]
    graphs.drop()
    assert not step() and graphs.enabled


def test_an_engine_with_graphs_equals_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.language_model.cuda_graphs._REST", 5)
    whole, made = model_steps.ModelSteps.__init__, []

    def with_graphs(self: Any, base: Any, batch: Batch, lora: Any) -> None:
        whole(self, base, batch, lora)
        self._graphs = Graphs(self._forward, batch.cache)
        self._graphs.fails_at = 2
        made.append(self._graphs)

    monkeypatch.setattr(model_steps.ModelSteps, "__init__", with_graphs)
    model = make_model()
    linears = linears_of(model)
    prompts = ["p" * n for n in (3, 50, 8, 125, 1, 30, 70, 2, 9)]
    expected = [generate(model, TOKENIZER, p, 25) for p in prompts]
    residents = ResidentAdapters(lambda d: make_adapter(d, linears), max_count=2, max_bytes=1 << 24)
    engine = Engine(
        make_base(model, TOKENIZER),
        limits=EngineLimits(max_batch=4, prefill_chunk_tokens=16),
        lora=LoraSlots(model, linears, num_slots=2, max_rank=8),
        residents=residents,
    )
    sampling = Sampling(temperature=0.0, max_tokens=25)
    adapted = AdapterChoice((AdapterPart("a1"),), "x", "user", "")
    for _ in range(2):  # the second time with all linears wrapped
        heard = [submit(engine, GenerationRequest("r", p, sampling)) for p in prompts]
        assert [h.wait().ids for h in heard] == expected
        other = [
            submit(engine, GenerationRequest("r", "p", sampling, lambda failed: adapted)) for _ in range(2)
        ]
        assert other[0].wait().ids == other[1].wait().ids != expected[0]
    assert engine.status()["cuda_graphs"] != 0
    engine.close()
    residents.close()
    (graphs,) = made
    assert graphs.enabled and len(graphs.captured) > 3 and graphs.fails_at == -1
    assert sum(c.replays for c in graphs.captured) > 20
