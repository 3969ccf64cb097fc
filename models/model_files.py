"""The files of models on this machine: where they come from, and the digest of those that count.

Nothing here imports a model's code or unpickles anything.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graph.errors import InvalidInput, NotFound, Unavailable

LOADING = threading.Lock()
"""transformers sets torch's default dtype, which is the whole process', while it loads: two models at once
would leave each with some of the other's."""


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars, which are no use in a log."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


# Weights, configuration, tokenizer: by the endings that transformers and sentence-transformers read.
_DECIDING = (".safetensors", ".json", ".txt", ".model", ".spm", ".vocab", ".bpe", ".jinja")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_OTHER_RUNTIMES = ("onnx", "openvino")


def weights_digest(folder: Path) -> str:
    """SHA-256, hex, over names and contents of the files that decide what a model says."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        name = path.relative_to(folder)
        ignored = any(part.startswith(".") or part in _OTHER_RUNTIMES for part in name.parts)
        if ignored or path.suffix not in _DECIDING or not path.is_file():
            continue
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{name.as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def public_name(model: str) -> str:
    """What to call a model before clients: its name, of a folder only the last part."""
    path = Path(model)
    if path.is_absolute() or model.startswith((".", "~")) or path.is_dir():
        return path.expanduser().resolve().name or "model"
    return model


def refuse_pickled(folder: Path, *, subfolders: bool = True) -> None:
    """Raise InvalidInput for weights that exist in pickled form alone.

    Without `subfolders` only for the folder's own: Llama's have the original checkpoint below.
    """
    paths = folder.rglob("*") if subfolders else folder.glob("*")
    pickled = {path.parent for path in paths if path.suffix in _PICKLED}
    for parent in sorted(pickled):
        hidden = any(part.startswith(".") for part in parent.relative_to(folder).parts)
        if not hidden and not any(parent.glob("*.safetensors")):
            raise InvalidInput(
                f"{parent} has its weights as a pickle, which can run code when it is read; save the model"
                " with safetensors (save_pretrained does) and give that folder",
                param="model",
            )


def from_hub(repository: str, *, allow_download: bool, unknown: type[NotFound], hint: str) -> Path:
    """Folder of a model in the Hugging Face cache; only with `allow_download` is the hub asked.

    Raises `unknown`, whose message ends in `hint` (what else to give), or Unavailable when the hub does not
    answer.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                repository,
                local_files_only=not allow_download,
                allow_patterns=[f"*{ending}" for ending in _DECIDING],
                ignore_patterns=[f"{runtime}/*" for runtime in _OTHER_RUNTIMES],
            )
        )
    except HFValidationError:
        raise unknown(
            f"no folder {repository}, and it is no name of a model; give an existing folder or {hint}",
            param="model",
        ) from None
    except LocalEntryNotFoundError as error:
        if allow_download:
            raise Unavailable(
                f"the model {repository} is not on this machine and the Hugging Face hub does not answer; try"
                " again, or copy the model here and give its folder"
            ) from error
        raise unknown(
            f"the model {repository} is not on this machine; give the folder that holds it, allow its"
            f" download, or use {hint}",
            param="model",
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 429 or status >= 500:
            raise Unavailable(
                f"the Hugging Face hub answered {status} for {repository}; try again later"
            ) from error
        raise unknown(
            f"the Hugging Face hub answered {status} for {repository}; check the name, and HF_TOKEN if the"
            " model is private",
            param="model",
        ) from error
