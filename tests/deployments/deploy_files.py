"""The files that start Weft elsewhere, as tests read them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import yaml

from deployments.settings import Settings

ROOT = Path(__file__).parents[2]
LOCAL, GPU = "serve_config.yaml", "serve_config.gpu.yaml"
OF_INSTALLATIONS = {
    "WEFT_DATA_DIR": "/mnt/weft",
    "WEFT_GRAPH_STATE__RESOURCES": '{"graph_state": 1}',
    "WEFT_CLUSTER__GROWS": "true",
    "WEFT_CLUSTER__MAX_GPU_NODES": "2",
    "WEFT_CLUSTER__GPUS_PER_NODE": "1",
}
"""What nodes have in their environment beside Ray's variables, wherever they run."""


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    return found


def settings_of(config: dict[str, Any]) -> Settings:
    (application,) = config["applications"]
    return Settings.model_validate(application["args"])


def built_from() -> set[str]:
    """Files and folders that building the package takes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {
        name.removesuffix("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]
    }
    return packages | {"pyproject.toml", "constraints.txt", project["project"]["readme"]}
