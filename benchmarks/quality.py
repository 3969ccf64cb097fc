"""Ranking quality of what is served, beside the usual baselines, under both published protocols.

python -m benchmarks.quality
"""

from __future__ import annotations

from dataclasses import asdict

from benchmarks.report import shared_data, write
from deployments.evaluation_report import PROTOCOLS, evaluate_dataset
from graph.datasets import MovieLensDataset

if __name__ == "__main__":
    dataset = MovieLensDataset(shared_data("ml-latest-small"))
    write(
        "quality",
        {p: asdict(evaluate_dataset(dataset, p, baselines=True, seed=0, progress=print)) for p in PROTOCOLS},
    )
