"""Adapters that clients name in the inbox: paths are checked part by part, files are read once and bounded.

Nothing here follows a link: every part is opened relative to the one before (openat with O_NOFOLLOW), so a
folder that is swapped for a link meanwhile is refused, too.
"""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save

from graph.errors import InvalidAdapter, InvalidInput, Unavailable
from models.adapter_pointers import check_inbox_path
from models.language_model.lora_config import MAX_CONFIG_BYTES
from models.language_model.lora_weights import CONFIG_FILE, DTYPES, WEIGHTS_FILE

_PICKLES = ("adapter_model.bin", "adapter_model.pt", "pytorch_model.bin")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO would wait for its writer


@dataclass(frozen=True)
class RawAdapter:
    """The two files of an adapter, as bytes nobody has checked."""

    config: bytes
    weights: bytes


def read_inbox(inbox: Path, relative: str, max_bytes: int) -> RawAdapter:
    """The files of a folder in PEFT's layout, or of a `.pt` LoRA state, which is converted.

    Raises InvalidInput for a path that is refused or leads nowhere, InvalidAdapter for files that are no
    adapter's, Unavailable where the disk fails.
    """
    *folders, last = check_inbox_path(relative)
    with _opened(inbox, folders, relative) as folder:
        if last.endswith(".pt"):
            state = read_regular(folder, last, max_bytes)
            beside = _read_if_there(folder, CONFIG_FILE, MAX_CONFIG_BYTES)
            return convert_state(state, beside, max_bytes)
    with _opened(inbox, (*folders, last), relative) as folder:
        for name in _PICKLES:
            if name in os.listdir(folder):
                raise InvalidAdapter(
                    f"{name} is a pickle, which can run code; save the adapter with safetensors "
                    f"({WEIGHTS_FILE}) and remove {name}"
                )
        return RawAdapter(
            read_regular(folder, CONFIG_FILE, MAX_CONFIG_BYTES), read_regular(folder, WEIGHTS_FILE, max_bytes)
        )


def read_regular(folder: int, name: str, max_bytes: int) -> bytes:
    """Bytes of a regular file in an opened folder; InvalidAdapter where it is missing, odd or too large."""
    try:
        file = os.open(name, _FILE, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise InvalidAdapter(f"{name} is missing") from error
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG, errno.ENOTDIR):
            raise InvalidAdapter(f"{name} is no regular file") from error
        raise Unavailable(f"{name} cannot be read: {os.strerror(error.errno or 0)}") from error
    facts = os.fstat(file)
    if not stat.S_ISREG(facts.st_mode):
        os.close(file)
        raise InvalidAdapter(f"{name} is no regular file")
    with open(file, "rb") as opened:
        # The size is checked before anything is read, and the file may still grow.
        data = b"" if facts.st_size > max_bytes else opened.read(max_bytes + 1)
        if max(facts.st_size, len(data)) > max_bytes:
            raise InvalidAdapter(f"{name} has {facts.st_size} bytes; at most {max_bytes} are allowed")
        return data


def convert_state(data: bytes, config: bytes | None, max_bytes: int) -> RawAdapter:
    """A `.pt` file with a dictionary of LoRA tensors as the two files of PEFT's layout.

    Keys are PEFT's, with or without `base_model.model.` before and `.default` behind `lora_A`. Without an
    `adapter_config.json` ranks are those of the tensors, and alpha is the number under the key "lora_alpha",
    or each module's own rank, that is a scaling of 1.
    """
    state = _load_state(data, max_bytes)
    alpha = state.pop("lora_alpha", None)
    tensors: dict[str, torch.Tensor] = {}
    total = 0
    for key, value in state.items():
        if not isinstance(key, str) or not key.isascii() or not isinstance(value, torch.Tensor):
            raise InvalidAdapter(
                f"the .pt file holds {ascii(key)[:120]} of {type(value).__name__}; must hold tensors only"
            )
        name = f"base_model.model.{key.removeprefix('base_model.model.')}"
        for half in ("lora_A", "lora_B"):
            name = name.replace(f".{half}.default.weight", f".{half}.weight")
        if name in tensors:
            raise InvalidAdapter(f"the .pt file holds {name[:120]!r} twice")
        if value.device.type != "cpu" or value.layout != torch.strided or value.dtype not in DTYPES.values():
            raise InvalidAdapter(
                f"the .pt file holds {name[:120]!r} of {value.dtype}; must be a plain tensor of float32, "
                "float16 or bfloat16"
            )
        total += value.numel() * value.element_size()  # a view may be far larger than what it looks at
        if total > max_bytes:
            raise InvalidAdapter(f"the .pt file holds more than {max_bytes} bytes of tensors")
        tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
    if not tensors:
        raise InvalidAdapter("the .pt file holds no tensors")
    return RawAdapter(_inferred_config(tensors, alpha) if config is None else config, save(tensors))


def _load_state(data: bytes, max_bytes: int) -> dict[object, object]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise InvalidAdapter("the .pt file is no whole file of torch.save") from error
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > max_bytes + MAX_CONFIG_BYTES:
        raise InvalidAdapter(f"the .pt file unpacks to other than its own, or to more than {max_bytes} bytes")
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch raises whatever the bytes lead it to; none of it is our own
        raise InvalidAdapter(
            "the .pt file is damaged, or holds more than tensors; save a dictionary of LoRA tensors"
        ) from error
    if not isinstance(state, dict):
        raise InvalidAdapter(f"the .pt file holds a {type(state).__name__}; must be a dictionary of tensors")
    return dict(state)


def _inferred_config(tensors: Mapping[str, torch.Tensor], alpha: object) -> bytes:
    ranks = {
        key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): tensor.shape[0]
        for key, tensor in tensors.items()
        if key.endswith(".lora_A.weight") and tensor.dim() == 2
    }
    if not ranks:
        raise InvalidAdapter("the .pt file holds no tensor whose name ends with lora_A.weight")
    if alpha is not None and (isinstance(alpha, bool) or not isinstance(alpha, int | float)):
        raise InvalidAdapter(f"lora_alpha of the .pt file is a {type(alpha).__name__}; must be a number")
    values: dict[str, object] = {
        "peft_type": "LORA",
        "r": max(ranks.values()),
        "lora_alpha": max(ranks.values()) if alpha is None else alpha,
        "target_modules": sorted(ranks),
        "rank_pattern": {f"^{module}$": rank for module, rank in sorted(ranks.items())},
        "alpha_pattern": {f"^{m}$": rank for m, rank in sorted(ranks.items())} if alpha is None else {},
    }
    return json.dumps(values).encode()


def _read_if_there(folder: int, name: str, max_bytes: int) -> bytes | None:
    with suppress(FileNotFoundError):
        os.stat(name, dir_fd=folder, follow_symlinks=False)
        return read_regular(folder, name, max_bytes)
    return None


@contextmanager
def _opened(inbox: Path, folders: list[str] | tuple[str, ...], relative: str) -> Iterator[int]:
    """A descriptor of a folder below the inbox."""
    try:
        folder = os.open(inbox, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidInput(
            "there is no inbox folder; see the setting adapters.inbox", param="path"
        ) from error
    try:
        for part in folders:
            try:
                inner = os.open(part, _FOLDER, dir_fd=folder)
            except OSError as error:
                raise InvalidInput(
                    f"path {relative[:120]!r}: there is no folder {part!r}, or it is a link; "
                    "GET /v1/adapters lists what the inbox has",
                    param="path",
                ) from error
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)
