"""The base model: found, checked and loaded onto a device."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graph.errors import InvalidInput, OutOfMemory, UnknownModel, WeftError
from models.devices import choose_device
from models.language_model.architectures import check_architecture
from models.language_model.base_spec import BaseModelSpec
from models.language_model.memory_recovery import is_out_of_memory
from models.language_model.opening import LanguageModelSpec
from models.model_files import LOADING, from_hub, public_name, quiet, refuse_pickled, weights_digest


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

        The model is changed in place: no gradients, and int8 if asked for. Raises InvalidInput for an
        architecture that is not served, and for a tokenizer without a fast core or with tokens that the model
        does not have.
        """
        config = model.config
        check_architecture(config, type(model).__name__)
        embeddings = model.get_input_embeddings().weight
        _check_tokenizer(tokenizer, name, num_tokens=embeddings.shape[0])
        window = config.max_position_embeddings
        if not isinstance(window, int) or window < 2:
            raise InvalidInput(
                f"{name} has a window of {window} tokens (max_position_embeddings); must be at least 2",
                param="model",
            )
        # Before quantisation: adapters are checked against the layers that were trained.
        spec = BaseModelSpec(name, digest or _digest_of(model), linear_layers(model))
        if quantization == "int8":
            from models.language_model.quantization import quantize_int8

            quantize_int8(model)
        model.eval().requires_grad_(False)
        return cls(
            model=model,
            tokenizer=tokenizer,
            device=embeddings.device,
            dtype=embeddings.dtype,
            quantization=quantization,
            max_tokens=min(window, max_tokens or window),
            eos_token_ids=_ends(model, tokenizer),
            spec=spec,
        )


def open_base_model(spec: LanguageModelSpec) -> BaseModel:
    """Load the model of a specification; blocks for as long as reading its weights takes.

    Weights are safetensors and all there, code that comes with a model is never run, and nothing is fetched
    unless the specification allows it. Raises UnknownModel when it is not on this machine, Unavailable when
    the hub does not answer, OutOfMemory when it is too large for the device, InvalidInput for what cannot be
    served, as the messages say.
    """
    if spec.backend != "local":
        raise InvalidInput(f'a model of backend "{spec.backend}" is not loaded here', param="backend")
    folder = _folder(spec)
    _check_files(folder, spec.model)
    device = choose_device(spec.device)
    dtype = choose_dtype(spec.dtype, device)
    if spec.num_threads is not None:
        torch.set_num_threads(spec.num_threads)
    try:
        model, tokenizer = _load(folder, dtype, spec.model)
        model = model.to(device)
        return BaseModel.of(
            model,
            tokenizer,
            name=public_name(spec.model),
            digest=weights_digest(folder),
            max_tokens=spec.max_context_tokens,
            quantization=spec.quantization,
        )
    except WeftError:
        raise
    except Exception as error:  # transformers and torch raise whatever the files lead them to
        if is_out_of_memory(error):
            raise OutOfMemory(
                f"{spec.model} does not fit into the memory of {device} as {str(dtype)[6:]}; give a smaller "
                'one, or set quantization to "int8"'
            ) from error
        lines = str(error).strip().splitlines() or ["no reason given"]
        raise InvalidInput(
            f"{spec.model} cannot be opened as a causal language model on {device} "
            f"({type(error).__name__}): {' '.join(lines[:2])[:300]}",
            param="model",
        ) from error


def _load(folder: Path, dtype: torch.dtype, name: str) -> tuple[Any, Any]:
    """Model, on the CPU, and tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    # Unless told no, transformers asks at the terminal whether to run code that lies beside a model.
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(folder, **local)
    check_architecture(config)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, **local)
    with LOADING, quiet():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation="sdpa",
            output_loading_info=True,
            **local,
        )
    model, report = loaded
    # transformers only warns: it fills what is missing with random numbers.
    for keys, what in ((report["missing_keys"], "lack"), (report["unexpected_keys"], "have besides")):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise InvalidInput(
                f"the weights of {name} do not fit its config.json: they {what} "
                f"{', '.join(sorted(keys)[:3])}{more}; save both together with save_pretrained",
                param="model",
            )
    return model, tokenizer


def linear_layers(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Every linear layer: full name to (in_features, out_features)."""
    return {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    if wanted != "auto":
        found: torch.dtype = getattr(torch, wanted)
        return found
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _folder(spec: LanguageModelSpec) -> Path:
    try:
        folder = Path(spec.model).expanduser()
        if folder.is_dir():
            return folder
    except (OSError, RuntimeError) as error:  # an overlong name, no permission, no such home
        raise UnknownModel(
            f"the folder {spec.model[:120]} cannot be opened: {error}", param="model"
        ) from error
    if "/" not in spec.model or spec.model.startswith(("/", ".", "~")):
        raise UnknownModel(
            f"there is no folder {spec.model}; give the folder of a model, or its name on the Hugging Face "
            "hub (organization/model)",
            param="model",
        )
    hint = "a name such as Qwen/Qwen3-0.6B"
    return from_hub(spec.model, allow_download=spec.allow_download, unknown=UnknownModel, hint=hint)


def _check_files(folder: Path, name: str) -> None:
    """Raise InvalidInput, in words of our own, where files are missing or are another thing's."""
    if (folder / "adapter_config.json").exists():
        # transformers would follow it and load the model that it names.
        raise InvalidInput(
            f"{name} is the folder of an adapter (adapter_config.json); give the base model's, and put the "
            "adapter into the store of adapters",
            param="model",
        )
    for file, what in (("config.json", "configuration"), ("tokenizer.json", "fast tokenizer")):
        if not (folder / file).is_file():
            raise InvalidInput(
                f"{name} has no {what} ({file}); save it into that folder with save_pretrained", param="model"
            )
    refuse_pickled(folder, subfolders=False)
    if not any(folder.glob("*.safetensors")):
        raise InvalidInput(
            f"{name} has no weights (*.safetensors); save them into that folder with save_pretrained",
            param="model",
        )


def _check_tokenizer(tokenizer: Any, name: str, num_tokens: int) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise InvalidInput(f"{name} has no fast tokenizer (tokenizer.json)", param="model")
    # One such token would fail the step of the whole batch, and on CUDA the process.
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if not 0 <= largest < num_tokens:
        raise InvalidInput(
            f"the tokenizer of {name} has tokens up to {largest}, the model from 0 to {num_tokens - 1}: they "
            "do not belong together",
            param="model",
        )


def _digest_of(model: nn.Module) -> str:
    """SHA-256 over names and values of a model's parameters, for models that have no files."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer, from the first of three places that names any."""
    generation = getattr(model, "generation_config", None)
    for source in (generation, model.config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        if ids is not None:
            return frozenset([ids] if isinstance(ids, int) else ids)
    return frozenset()
