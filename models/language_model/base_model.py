"""The base model: found, checked and loaded onto a device."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graph.errors import InvalidInput, UnknownModel
from models.language_model.architectures import check_architecture
from models.language_model.base_spec import BaseModelSpec
from models.language_model.opening import LanguageModelSpec
from models.model_files import LOADING, from_hub, public_name, quiet, refuse_pickled, weights_digest

STAND_IN_MARK = "weft_stand_in"
"""In the configuration of a model whose words mean nothing."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A causal language model in memory, for inference."""

    model: Any
    """A PreTrainedModel in evaluation mode, without gradients."""
    tokenizer: Any
    """A fast tokenizer of transformers."""
    device: torch.device
    dtype: torch.dtype
    quantization: str
    max_tokens: int
    """The window: prompt and answer together."""
    eos_token_ids: frozenset[int]
    meaningful: bool
    """False: a stand-in with random weights."""
    spec: BaseModelSpec

    @property
    def name(self) -> str:
        """As clients name it."""
        return self.spec.name

    @property
    def digest(self) -> str:
        return self.spec.digest

    @classmethod
    def of(
        cls,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        digest: str | None = None,
        max_tokens: int | None = None,
        quantization: str = "none",
    ) -> BaseModel:
        """A model and a tokenizer of transformers that are in memory already.

        Raises InvalidInput for an architecture that is not served and for a tokenizer without a fast core.
        """
        config = model.config
        if not config.architectures:
            config.architectures = [type(model).__name__]
        check_architecture(config)
        if not getattr(tokenizer, "is_fast", False):
            raise InvalidInput(f"{name} has no fast tokenizer (tokenizer.json)", param="model")
        # Before quantisation: adapters are checked against the layers that were trained.
        spec = BaseModelSpec(name, digest or _digest_of(model), linear_layers(model))
        if quantization == "int8":
            from models.language_model.quantization import quantize_int8

            quantize_int8(model)
        model.eval().requires_grad_(False)
        window = int(config.max_position_embeddings)
        embeddings = model.get_input_embeddings().weight
        return cls(
            model=model,
            tokenizer=tokenizer,
            device=embeddings.device,
            dtype=embeddings.dtype,
            quantization=quantization,
            max_tokens=min(window, max_tokens or window),
            eos_token_ids=_ends(model, tokenizer),
            meaningful=not getattr(config, STAND_IN_MARK, False),
            spec=spec,
        )


def open_base_model(spec: LanguageModelSpec) -> BaseModel:
    """Load the model of a specification; blocks for as long as reading its weights takes.

    Weights are safetensors, code that comes with a model is never run, and nothing is fetched unless the
    specification allows it. Raises UnknownModel when it is not on this machine, Unavailable when the hub does
    not answer, InvalidInput for what cannot be served, as the messages say.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = _folder(spec)
    refuse_pickled(folder)
    if spec.num_threads is not None:
        torch.set_num_threads(spec.num_threads)
    device = choose_device(spec.device)
    dtype = choose_dtype(spec.dtype, device)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        check_architecture(config)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        with LOADING, quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                attn_implementation="sdpa",
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InvalidInput(
            f"{spec.model} cannot be opened as a causal language model ({type(error).__name__}): "
            f"{str(error).splitlines()[0][:300] if str(error) else 'no reason given'}",
            param="model",
        ) from error
    return BaseModel.of(
        model.to(device),
        tokenizer,
        name=public_name(spec.model),
        digest=weights_digest(folder),
        max_tokens=spec.max_context_tokens,
        quantization=spec.quantization,
    )


def linear_layers(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Every linear layer: full name to (in_features, out_features)."""
    return {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }


def choose_device(wanted: str) -> torch.device:
    """The device of that name; "auto" is CUDA when it works, else the CPU, with a warning when it is broken.

    Raises InvalidInput for a device that is asked for and is not there.
    """
    if wanted == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        try:
            torch.zeros(1, device="cuda")
        except RuntimeError as error:
            log.warning("there is a CUDA device, but it does not work; going on on the CPU: %s", error)
            return torch.device("cpu")
        return torch.device("cuda")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise InvalidInput(
            f"device {wanted!r} is none; use auto, cpu, cuda or cuda:N", param="device"
        ) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InvalidInput(
            f"device {wanted!r} is not on this machine, which has {torch.cuda.device_count()} CUDA devices; "
            "use auto or cpu",
            param="device",
        )
    return device


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    if wanted != "auto":
        found: torch.dtype = getattr(torch, wanted)
        return found
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _folder(spec: LanguageModelSpec) -> Path:
    folder = Path(spec.model).expanduser()
    if folder.is_dir():
        return folder
    if "/" not in spec.model or spec.model.startswith(("/", ".", "~")):
        raise UnknownModel(
            f"there is no folder {spec.model}; give the folder of a model, or its name on the Hugging Face "
            "hub (organization/model)",
            param="model",
        )
    hint = "a name such as Qwen/Qwen3-0.6B"
    return from_hub(spec.model, allow_download=spec.allow_download, unknown=UnknownModel, hint=hint)


def _digest_of(model: nn.Module) -> str:
    """SHA-256 over names and values of a model's parameters, for models that have no files."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer, from the first of three places that names any."""
    generation = getattr(model, "generation_config", None)
    for source in (generation, model.config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        if ids is not None:
            return frozenset([ids] if isinstance(ids, int) else ids)
    return frozenset()
