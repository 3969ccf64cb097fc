"""A LoRA adapter in memory, and how its files are read (PEFT layout, safetensors)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, deserialize

from graph.errors import InvalidAdapter, UnknownAdapter
from models.language_model.base_spec import BaseModelSpec
from models.language_model.lora_config import MAX_CONFIG_BYTES, LoraConfig, parse_config

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
MAX_ADAPTER_BYTES = 256 << 20

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_GREATEST = torch.finfo(torch.float16).max  # a model in float16 would see infinity above it
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


@dataclass(frozen=True, eq=False)
class AdapterWeights:
    """An adapter as the slots take it. On the CPU; never changed after it was made."""

    digest: str
    rank: int
    """The greatest of its modules."""
    modules: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = field(repr=False)
    """Full module name in the base model to (A [r, in], B [out, r]), contiguous, scaling folded into B: a
    linear answers `base(x) + x A^T B^T`. In the files' dtype (float32, float16, bfloat16), but B is float32
    where the scaled values have no exact form in it."""
    nbytes: int


def read_adapter(
    folder: Path,
    spec: BaseModelSpec | None,
    digest: str,
    *,
    max_rank: int,
    max_bytes: int = MAX_ADAPTER_BYTES,
) -> AdapterWeights:
    """Read a folder in PEFT's layout; `spec` None leaves out what cannot be checked without a base model.

    Raises UnknownAdapter when a file is missing and InvalidAdapter for everything that is wrong with one. The
    folder is trusted to be ours; what clients name is read by `models.adapter_import`.
    """
    config = parse_config(_read(folder / CONFIG_FILE, MAX_CONFIG_BYTES))
    return parse_weights(
        _read(folder / WEIGHTS_FILE, max_bytes), config, spec, digest=digest, max_rank=max_rank
    )


def parse_weights(
    data: bytes, config: LoraConfig, spec: BaseModelSpec | None, *, digest: str, max_rank: int
) -> AdapterWeights:
    """An adapter out of the bytes of its safetensors file; raises InvalidAdapter."""
    _check_base(config, spec)
    pairs = _pairs(data)
    modules = {}
    for module, (a, b) in sorted(pairs.items()):
        _check_module(module, a, b, config, spec, max_rank)
        modules[module] = (a, _scaled(module, a, b, config.scaling(module)))
    rank = max(a.shape[0] for a, _ in modules.values())
    nbytes = sum(tensor.nbytes for pair in modules.values() for tensor in pair)
    return AdapterWeights(digest, rank, modules, nbytes)


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise UnknownAdapter(f"the adapter's file {path.name} is missing") from error
    if len(data) > max_bytes:
        raise InvalidAdapter(f"{path.name} has more than {max_bytes} bytes")
    return data


def _check_base(config: LoraConfig, spec: BaseModelSpec | None) -> None:
    if spec is None or not config.base_model:
        return
    if config.base_model.casefold() != spec.name.casefold():
        raise InvalidAdapter(
            f"the adapter was made for the base model {config.base_model[:80]!r}; {spec.name!r} is running"
        )


def _pairs(data: bytes) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A and B of every module, as the file has them."""
    try:
        found = deserialize(data)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise InvalidAdapter(f"{WEIGHTS_FILE} is no whole safetensors file: {str(error)[:200]}") from error
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for key, entry in found:
        match = _KEY.fullmatch(key)
        if match is None:
            if ".lora_" not in key:
                # PEFT does it for lm_head and embed_tokens unless it is told not to.
                raise InvalidAdapter(
                    f"tensor {key[:120]!r} is one of the base model, which an adapter must not bring along; "
                    "save it with save_pretrained(..., save_embedding_layers=False)"
                )
            raise InvalidAdapter(
                f"tensor {key[:120]!r}: only base_model.model.MODULE.lora_A.weight and lora_B.weight of "
                "linear layers are supported"
            )
        halves.setdefault(match[1], {})[match[2]] = _tensor(key, entry)
    if not halves:
        raise InvalidAdapter(f"{WEIGHTS_FILE} holds no tensors")
    for module, pair in halves.items():
        if len(pair) < 2:
            raise InvalidAdapter(
                f"module {module[:120]!r} has lora_{next(iter(pair))} without its counterpart"
            )
    return {module: (pair["A"], pair["B"]) for module, pair in halves.items()}


def _tensor(key: str, entry: Mapping[str, object]) -> torch.Tensor:
    dtype, shape, data = entry["dtype"], entry["shape"], entry["data"]
    if dtype not in DTYPES:
        raise InvalidAdapter(f"tensor {key[:120]!r} is {dtype}; must be float32, float16 or bfloat16")
    if not isinstance(shape, list) or len(shape) != 2 or 0 in shape:
        raise InvalidAdapter(f"tensor {key[:120]!r} has shape {shape}; must have two sides of at least 1")
    # A bytearray of its own per tensor, which the tensor keeps.
    return torch.frombuffer(data, dtype=DTYPES[str(dtype)]).reshape(shape)


def _check_module(
    module: str,
    a: torch.Tensor,
    b: torch.Tensor,
    config: LoraConfig,
    spec: BaseModelSpec | None,
    max_rank: int,
) -> None:
    name, rank = repr(module[:120]), config.rank_of(module)
    if not config.targets(module):
        raise InvalidAdapter(f"there are tensors for module {name}, which target_modules does not name")
    if a.shape[0] != rank or b.shape[1] != rank:
        raise InvalidAdapter(
            f"module {name}: A is {list(a.shape)} and B {list(b.shape)}, where rank {rank} is configured"
        )
    if rank > max_rank:
        raise InvalidAdapter(f"module {name} has rank {rank}; at most {max_rank} is allowed")
    if spec is None:
        return
    if module not in spec.linears:
        raise InvalidAdapter(f"the base model {spec.name!r} has no linear layer {name}")
    wide, deep = spec.linears[module]
    if (a.shape[1], b.shape[0]) != (wide, deep):
        raise InvalidAdapter(
            f"module {name}: the adapter maps {a.shape[1]} to {b.shape[0]} features, "
            f"the base model {wide} to {deep}"
        )


def _scaled(module: str, a: torch.Tensor, b: torch.Tensor, scaling: float) -> torch.Tensor:
    """B times the scaling, exact where its dtype allows; checks that nothing overflows."""
    scaled = b.float() * scaling
    # A comparison that is false for NaN.
    if not all(bool((t.abs().max() <= _GREATEST).item()) for t in (a, b, scaled)):
        raise InvalidAdapter(
            f"module {module[:120]!r} has values that are not finite, or beyond {_GREATEST:g} when scaled"
        )
    narrow = scaled.to(b.dtype)
    return narrow if torch.equal(narrow.float(), scaled) else scaled
