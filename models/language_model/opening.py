"""Which language model to use, as plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from graph.errors import InvalidInput

Backend = Literal["local", "openai"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "int8"]


@dataclass(frozen=True)
class LanguageModelSpec:
    """Everything that opens a language model. Raises InvalidInput when a field is out of range."""

    model: str
    """Folder or name of a causal language model in Hugging Face layout; its name at an endpoint."""
    backend: Backend = "local"
    url: str = ""
    """Base of an OpenAI-compatible endpoint, up to and without "/chat/completions"; "openai" alone."""
    api_key: str | None = field(default=None, repr=False)
    device: str = "auto"
    """"auto" (CUDA when there is one that works, else the CPU), "cpu", "cuda" or "cuda:N"."""
    dtype: Dtype = "auto"
    """Of the weights; auto: bfloat16 on a GPU (float16 where it has none), float32 on a CPU."""
    quantization: Quantization = "none"
    num_threads: int | None = None
    """Threads of torch, for the whole process; None leaves them alone."""
    max_context_tokens: int | None = None
    """A window smaller than the model's own; None is the model's."""
    allow_download: bool = False
    """Let a model that is not on this machine be fetched from the Hugging Face hub."""
    timeout_s: float = 120.0
    """Of one answer of an endpoint."""

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise InvalidInput("the language model has no name; give its folder or name", param="model")
        for name, kind in (("backend", Backend), ("dtype", Dtype), ("quantization", Quantization)):
            value, allowed = getattr(self, name), get_args(kind)
            if value not in allowed:
                raise InvalidInput(f'{name} is "{value}"; allowed are {", ".join(allowed)}', param=name)
        for name, least in (("num_threads", 1), ("max_context_tokens", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InvalidInput(f"{name} is {value}; must be at least {least}, or left out", param=name)
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            raise InvalidInput(f"timeout_s is {self.timeout_s}; must be above 0", param="timeout_s")
        if (self.backend == "openai") != bool(self.url):
            raise InvalidInput(
                'backend "openai" needs a url, such as http://127.0.0.1:8001/v1, and no other takes one',
                param="url",
            )
