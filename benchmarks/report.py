"""What every benchmark prints and writes: figures with their spread, and where they were measured."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median, extremes and count of repeated measurements."""
    array = np.asarray(values, np.float64)
    figures = {"median": np.median(array), "min": array.min(), "max": array.max()}
    return {name: float(f"{value:.{digits}g}") for name, value in figures.items()} | {"n": len(array)}


def percentiles(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """p50, p99 and count of many single measurements."""
    array = np.asarray(values, np.float64)
    figures = {"p50": np.percentile(array, 50), "p99": np.percentile(array, 99)}
    return {name: float(f"{value:.{digits}g}") for name, value in figures.items()} | {"n": len(array)}


def environment() -> dict[str, Any]:
    """Commit, versions and hardware."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    dirty = subprocess.run(
        ["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False
    )
    return {
        "commit": commit + ("+changes" if dirty.stdout.strip() else ""),
        "python": platform.python_version(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
    }


def write(name: str, figures: dict[str, Any]) -> Path:
    """Print the figures and keep them as `results/<name>.json` (or where --out says)."""
    found = {"benchmark": name, "environment": environment(), "figures": figures}
    path = _arguments().out or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    json.dump(figures, sys.stdout, indent=1)
    print(f"\nwritten to {path}")
    return path


def shared_data(name: str) -> Path:
    """Folder of a real data set; WEFT_TEST_DATA names the folder that holds them."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("WEFT_TEST_DATA", default)) / name
    if not path.is_dir():
        raise SystemExit(f"no {path}: set WEFT_TEST_DATA to a folder that holds {name}")
    return path


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    return parser.parse_known_args()[0]


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
