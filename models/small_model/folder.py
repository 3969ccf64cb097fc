"""Where the small model and its styles lie; imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
"""Where training writes unless it is told another place."""


def small_model_folder() -> Path:
    """The folder of the base model, as transformers loads it."""
    return PACKAGE / "weft-small"


def style_folders() -> dict[str, Path]:
    """Name of each style that comes with the model, to the folder of its adapter in PEFT's layout."""
    found = (PACKAGE / "styles").glob("*/adapter_config.json")
    return {path.parent.name: path.parent for path in sorted(found)}
