"""Tiny random models with a tokenizer, and listeners, for tests of what generates."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from graph.errors import InvalidAdapter
from models.language_model.base_model import BaseModel
from models.language_model.engine import Engine
from models.language_model.lora_weights import AdapterWeights
from models.language_model.protocol import (
    Admitted,
    Event,
    Failed,
    Finished,
    GenerationRequest,
    Piece,
    TokenLogprob,
)

ARCHITECTURES = ("llama", "qwen2", "qwen3")
EOS = 256
WINDOW = 160


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, written as in GPT-2, and two special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>")


def make_model(architecture: str = "llama", seed: int = 0) -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": 264,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": WINDOW,
        "eos_token_id": EOS,
        "pad_token_id": EOS + 1,
        "bos_token_id": None,
        "initializer_range": 0.4,
    }
    torch.manual_seed(seed)
    if architecture == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**sizes))
    elif architecture == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**sizes))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zero by default: then a lost bias would not show
                torch.nn.init.normal_(parameter)
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=16))
        for name, parameter in model.named_parameters():
            if "_norm" in name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval().requires_grad_(False)


def linears_of(model: Any) -> dict[str, tuple[int, int]]:
    return {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "layers" in name
    }


def make_adapter(digest: str, linears: dict[str, tuple[int, int]]) -> AdapterWeights:
    """Adapter `aN`: random, of rank N + 1, on every linear. Raises InvalidAdapter for other names."""
    if not digest.startswith("a"):
        raise InvalidAdapter(f"{digest} is damaged")
    # A generator of its own: adapters load on several threads.
    chance = torch.Generator().manual_seed(int(digest[1:]) + 100)
    rank = int(digest[1:]) + 1
    modules = {
        name: (
            torch.randn(rank, inputs, generator=chance) * 0.3,
            torch.randn(outputs, rank, generator=chance) * 0.3,
        )
        for name, (inputs, outputs) in linears.items()
    }
    return AdapterWeights(digest, rank, modules, sum(a.nbytes + b.nbytes for a, b in modules.values()))


def make_base(model: Any, tokenizer: Any) -> BaseModel:
    return BaseModel.of(model, tokenizer, name="tiny", digest="d" * 64)


@dataclass
class Heard:
    """A listener that remembers, and the ticket of its request."""

    events: list[Event] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    ticket: Any = None

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Finished | Failed):
            self.ended.set()

    def wait(self) -> Heard:
        assert self.ended.wait(20), "no end within 20 s"
        return self

    @property
    def text(self) -> str:
        return "".join(e.text for e in self.events if isinstance(e, Piece))

    @property
    def ids(self) -> list[int]:
        return [i for e in self.events if isinstance(e, Piece) for i in e.token_ids]

    @property
    def logprobs(self) -> list[TokenLogprob]:
        return [p for e in self.events if isinstance(e, Piece) for p in e.logprobs]

    @property
    def admitted(self) -> Admitted:
        (event,) = [e for e in self.events if isinstance(e, Admitted)]
        return event

    @property
    def finished(self) -> Finished:
        last = self.events[-1]
        assert isinstance(last, Finished), last
        return last

    @property
    def error(self) -> Any:
        last = self.events[-1]
        assert isinstance(last, Failed), last
        return last.error


def submit(engine: Engine, request: GenerationRequest) -> Heard:
    heard = Heard()
    heard.ticket = engine.submit(request, heard)
    return heard


def generate(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int) -> list[int]:
    """Greedy tokens of transformers' `generate`, without the one that ends them."""
    ids = torch.tensor([tokenizer.backend_tokenizer.encode(prompt).ids])
    out = model.generate(
        ids, max_new_tokens=max_new_tokens, do_sample=False, attention_mask=torch.ones_like(ids)
    )
    return [i for i in out[0, ids.shape[1] :].tolist() if i != EOS]
