"""Runs every benchmark, each in a process of its own; results go to benchmarks/results/."""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = (
    "incremental",
    "encoder",
    "ranking",
    "store",
    "store_backends",
    "service",
    "quality",
    "cold_start",
    "text_encoder",
    "search",
    "cache",
    "generation",
    "adapters",
    "quantization",
    "context",
    "chat",
    "small_model",
    "metrics",
)

if __name__ == "__main__":
    for name in sys.argv[1:] or BENCHMARKS:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
