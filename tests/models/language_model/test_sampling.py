"""Tokens are drawn from the distribution that transformers' processors give, each row for itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from models.language_model.protocol import Sampling
from models.language_model.sampling import NOT_FINITE, RowSampler, SampledToken, sample

PROMPT = (3, 5, 5, 8)


def random_logits(n: int, vocab_size: int, seed: int = 0) -> Tensor:
    return torch.randn(n, vocab_size, generator=torch.Generator().manual_seed(seed)) * 3


def reference(logits: Tensor, sampling: Sampling, seen: tuple[int, ...]) -> Tensor:
    """The distribution [V] that `generate` draws from, by transformers' own classes; float64."""
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature not in (0.0, 1.0):
        processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.temperature > 0.0:
        if sampling.top_k:
            processors.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1.0:
            processors.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p > 0.0:
            processors.append(MinPLogitsWarper(sampling.min_p))
    scores = processors(torch.tensor([seen]), logits.clone().unsqueeze(0))[0]
    return torch.softmax(scores.double(), dim=-1)


class Dial(RowSampler):
    """A row whose next number is set by hand."""

    def __init__(self, sampling: Sampling, vocab_size: int, number: float) -> None:
        super().__init__(sampling, PROMPT, vocab_size)
        self._number = number

    def uniform(self) -> float:
        return self._number


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 2.0]),
    top_k=st.sampled_from([0, 0, 1, 4, 30, 5000]),
    top_p=st.sampled_from([1.0, 1.0, 0.05, 0.5, 0.93]),
    min_p=st.sampled_from([0.0, 0.0, 0.02, 0.4, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 0.6, 1.3]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(samplings, min_size=1, max_size=5), st.integers(0, 1000), st.sampled_from([11, 257, 3000]))
def test_the_distribution_is_transformers(rows: list[Sampling], seed: int, vocab_size: int) -> None:
    """The same number picks the same token from the reference's cumulative distribution."""
    logits = random_logits(len(rows), vocab_size, seed)
    before = logits.clone()
    cumulative = torch.stack(
        [reference(row, s, PROMPT).cumsum(0) for row, s in zip(logits, rows, strict=True)]
    )
    for number in np.random.default_rng(seed).random(12):
        sampled = sample(logits, [Dial(s, vocab_size, number) for s in rows])
        for i, token in enumerate(t.token_id for t in sampled):
            low = cumulative[i, token - 1] if token else 0.0
            assert low - 1e-6 <= number <= cumulative[i, token] + 1e-6
            assert cumulative[i, token] - low > 0  # never a token that a filter left out
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(seed=1),
        Sampling(seed=2, temperature=0.5),
        Sampling(seed=3, top_p=0.8),
        Sampling(seed=4, temperature=1.5, top_k=12, top_p=0.9, min_p=0.01, repetition_penalty=1.2),
    ],
)
def test_draws_follow_the_distribution(sampling: Sampling) -> None:
    """A chi-square test with fixed seeds; tokens that are expected less than five times count as one."""
    logits = random_logits(1, 40, seed=5)
    row = RowSampler(replace(sampling, repetition_penalty=1.0), PROMPT, 40)
    draws = 4000
    counts = np.bincount([sample(logits, [row])[0].token_id for _ in range(draws)], minlength=40)
    expected = reference(logits[0], row.sampling, PROMPT).numpy() * draws
    assert counts[expected == 0].sum() == 0
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    assert chisquare(observed, wanted * draws / wanted.sum()).pvalue > 0.01


EVERY_KIND = [
    Sampling(temperature=0.0),
    Sampling(temperature=0.0, repetition_penalty=1.4),
    Sampling(seed=1),
    Sampling(seed=2, temperature=0.7, logprobs=3),
    Sampling(seed=3, top_k=5),
    Sampling(seed=4, top_k=2500, top_p=0.97, temperature=2.0),
    Sampling(seed=5, top_p=0.9),
    Sampling(seed=6, top_p=0.999, temperature=2.0),
    Sampling(seed=7, min_p=0.05, repetition_penalty=1.1),
    Sampling(seed=-8, temperature=0.9, top_k=20, top_p=0.8, min_p=0.01, logprobs=0),
]


@pytest.mark.parametrize("vocab_size", [257, 5001, 32_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_the_same_alone_and_in_any_company(vocab_size: int, dtype: torch.dtype) -> None:
    steps = 6
    n = len(EVERY_KIND)
    logits = [random_logits(n, vocab_size, seed).to(dtype) for seed in range(steps)]

    def run(indices: list[int]) -> list[list[SampledToken]]:
        rows = [RowSampler(EVERY_KIND[i], PROMPT, vocab_size) for i in indices]
        return [sample(step[indices], rows) for step in logits]

    together = run(list(range(n)))
    shuffled = [7, 2, 9, 0, 5, 3]
    assert [[step[i] for i in shuffled] for step in together] == run(shuffled)
    for i in range(n):
        assert [step[i] for step in together] == [step[0] for step in run([i])]


def test_greedy_takes_the_first_of_the_largest() -> None:
    logits = torch.tensor([[0.0, 4.0, 1.0, 4.0], [2.0, 2.0, 2.0, 2.0]])
    rows = [RowSampler(Sampling(temperature=0.0, top_k=3, top_p=0.1), (), 4) for _ in range(2)]
    assert sample(logits, rows) == [SampledToken(1), SampledToken(0)]
    assert [t.token_id for t in sample(logits.bfloat16(), rows)] == logits.argmax(-1).tolist()


def test_greedy_with_a_penalty_is_generates() -> None:
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,
    )
    torch.manual_seed(3)
    model = LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    prompt = [1, 7, 7, 20, 33]
    expected = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        repetition_penalty=1.5,
        max_new_tokens=24,
        pad_token_id=0,
    )[0].tolist()
    row = RowSampler(Sampling(temperature=0.0, repetition_penalty=1.5), prompt, 96)
    tokens = list(prompt)
    with torch.no_grad():
        while len(tokens) < len(expected):
            tokens.append(sample(model(torch.tensor([tokens])).logits[:, -1], [row])[0].token_id)
    assert tokens == expected


def test_equal_scores_at_an_edge_are_all_kept() -> None:
    logits = torch.tensor([[3.0, 1.0, 1.0, 1.0, 0.0]])
    for sampling in (Sampling(top_k=2), Sampling(top_p=0.75), Sampling(top_k=2, top_p=0.8)):
        drawn = {sample(logits, [Dial(sampling, 5, u)])[0].token_id for u in np.linspace(0, 0.999, 200)}
        assert drawn == {0, 1, 2, 3}


@pytest.mark.parametrize("number", [0.0, 1.0 - 2.0**-53])
def test_the_ends_of_the_unit_interval_pick_tokens_that_can_come(number: float) -> None:
    logits = torch.full((1, 9), -torch.inf)
    logits[0, 3], logits[0, 5] = 0.1, 0.7
    token = sample(logits, [Dial(Sampling(), 9, number)])[0].token_id
    assert token == (3 if number == 0.0 else 5)


def test_a_tiny_temperature_is_nearly_greedy() -> None:
    logits = random_logits(1, 300) * 1e4
    row = RowSampler(Sampling(temperature=1e-320, seed=0), (), 300)
    assert sample(logits, [row])[0].token_id == logits.argmax().item()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_row_without_sound_logits_is_marked_and_the_others_are_good(kind: Sampling, bad: float) -> None:
    logits = random_logits(3, 300)
    neighbours = [Sampling(seed=1, top_p=0.9, repetition_penalty=1.1), Sampling(temperature=0.0, logprobs=1)]
    rows = [RowSampler(s, PROMPT, 300) for s in (neighbours[0], kind, neighbours[1])]
    alone = sample(logits[[0, 2]], [RowSampler(s, PROMPT, 300) for s in neighbours])
    logits[1, 17] = bad
    first, marked, last = sample(logits, rows)
    assert marked == SampledToken(NOT_FINITE)
    assert [first, last] == alone
    logits[1] = -torch.inf
    assert sample(logits, rows)[1].token_id == NOT_FINITE


def test_logprobs_are_the_models_own() -> None:
    logits = random_logits(3, 50)
    kinds = [
        Sampling(temperature=0.3, top_k=2, repetition_penalty=1.8, seed=0, logprobs=4),
        Sampling(temperature=0.0, logprobs=0),
        Sampling(temperature=0.0),
    ]
    sampled = sample(logits, [RowSampler(kind, PROMPT, 50) for kind in kinds])
    own = torch.log_softmax(logits, dim=-1)
    for i in (0, 1):
        assert sampled[i].logprob == pytest.approx(own[i, sampled[i].token_id].item())
    best = own[0].argsort(descending=True)[:4].tolist()
    assert [token for token, _ in sampled[0].top] == best
    assert [value for _, value in sampled[0].top] == pytest.approx(own[0, best].tolist())
    assert sampled[1].top == ()
    assert sampled[2] == SampledToken(int(logits[2].argmax()))


def test_a_step_that_failed_is_repeated_with_the_same_number(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = random_logits(1, 60)
    kind = Sampling(seed=9, temperature=2.0, logprobs=1, repetition_penalty=1.1)
    expected = [sample(logits, [row])[0] for row in [RowSampler(kind, PROMPT, 60)] for _ in range(5)]
    row = RowSampler(kind, PROMPT, 60)
    got = []
    for _ in range(5):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "log_softmax", lambda *_, **__: (_ for _ in ()).throw(MemoryError))
            with pytest.raises(MemoryError):
                sample(logits, [row])
        got += sample(logits, [row])
    assert got == expected


def test_without_a_seed_every_answer_differs() -> None:
    logits = torch.zeros(1, 5000)
    answers = {
        tuple(sample(logits, [row])[0].token_id for _ in range(4))
        for row in (RowSampler(Sampling(), (), 5000) for _ in range(3))
    }
    assert len(answers) == 3


def test_logits_and_rows_must_match() -> None:
    assert sample(torch.zeros(0, 5), []) == []
    with pytest.raises(ValueError, match="for 1 rows"):
        sample(torch.zeros(2, 5), [RowSampler(Sampling(), (), 5)])
