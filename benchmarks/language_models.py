"""Models, adapters and requests of the generation benchmarks; random weights cost what trained ones do."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.language_model.engine import Engine
from models.language_model.lora_weights import AdapterWeights
from models.language_model.protocol import (
    AdapterChoice,
    AdapterPart,
    Admitted,
    Event,
    Failed,
    Finished,
    GenerationRequest,
    Piece,
    Sampling,
)

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
VOCABULARY = 8192


def random_llama(
    hidden: int = 512, layers: int = 8, intermediate: int = 1408, heads: int = 8, kv_heads: int = 8
) -> LlamaForCausalLM:
    """29.9 million parameters by default, float32; no token ends its answers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=intermediate,
        vocab_size=VOCABULARY,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    model.requires_grad_(False)
    return model


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One word, one token: `w17` is token 17, so that prompts have the length one asks for."""
    vocabulary = {f"w{n}": n for n in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0")


def words(tokens: Sequence[int]) -> str:
    return " ".join(f"w{token}" for token in tokens)


def random_adapter(model: LlamaForCausalLM, digest: str, seed: int, rank: int = 8) -> AdapterWeights:
    """All seven kinds of linear layers, alpha twice the rank."""
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in TARGETS:
            a = torch.randn(rank, module.in_features, generator=generator) * 0.02
            b = torch.randn(module.out_features, rank, generator=generator) * 0.04
            modules[name] = (a, b)
    size = sum(a.nbytes + b.nbytes for a, b in modules.values())
    return AdapterWeights(digest, rank, modules, size)


def chosen(digest: str | None) -> Any:
    """The choice of a request that names its adapter."""
    if digest is None:
        return lambda failed: AdapterChoice()
    return lambda failed: AdapterChoice(
        (AdapterPart(digest),), digest, "request", "the benchmark asks for it"
    )


@dataclass
class Answer:
    """What became of one request."""

    done: threading.Event = field(default_factory=threading.Event)
    started: float = 0.0
    first_s: float = 0.0
    total_s: float = 0.0
    tokens: int = 0
    cached: int = 0
    failed: str | None = None

    def hear(self, event: Event) -> None:
        now = time.perf_counter() - self.started
        match event:
            case Admitted():
                self.cached = event.cached_tokens
            case Piece():
                self.first_s = self.first_s or now
            case Finished():
                self.tokens, self.total_s = event.completion_tokens, now
                self.done.set()
            case Failed():
                self.failed = event.error.message
                self.done.set()


def ask(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    lengths: Sequence[int],
    adapters: Sequence[str | None],
    owners: Sequence[str | None] | None = None,
) -> tuple[list[Answer], float]:
    """Submit all requests at once, wait for all; the answers and the seconds it took."""
    answers = [Answer() for _ in prompts]
    begun = time.perf_counter()
    for n, (prompt, length, adapter, answer) in enumerate(
        zip(prompts, lengths, adapters, answers, strict=True)
    ):
        request = GenerationRequest(
            request_id=str(n),
            prompt=words(prompt),
            sampling=Sampling(max_tokens=length, temperature=0.0, ignore_eos=True),
            choose=chosen(adapter),
            owner=None if owners is None else owners[n],
        )
        answer.started = time.perf_counter()
        engine.submit(request, answer.hear)
    for answer in answers:
        answer.done.wait()
        if answer.failed:
            raise SystemExit(f"a request failed: {answer.failed}")
    return answers, time.perf_counter() - begun
