"""Ranking quality of what is served, under both published protocols.

    python -m benchmarks.quality                 beside the usual baselines, on hashed words
    python -m benchmarks.quality --text          hashed words against text vectors as item features

The second writes `results/quality_text.json`; its runs on hashed words are those of the first, seed for seed.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from benchmarks.report import shared_data, write
from deployments.evaluation_report import evaluate_dataset
from graph.datasets import MovieLensDataset
from models.text_encoder.opening import TextModelSpec, open_encoder

PROTOCOLS = ("recommenders", "temporal")


def beside_baselines(dataset: MovieLensDataset, seed: int) -> dict[str, Any]:
    return {p: asdict(evaluate_dataset(dataset, p, True, seed, print)) for p in PROTOCOLS}


def words_against_text(dataset: MovieLensDataset, seed: int) -> dict[str, Any]:
    """By protocol and kind of features."""
    encoder = open_encoder(TextModelSpec(num_threads=1))
    return {
        p: {
            "text": asdict(evaluate_dataset(dataset, p, False, seed, print, encoder)),
            "hashed": asdict(evaluate_dataset(dataset, p, False, seed, print)),
        }
        for p in PROTOCOLS
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_known_args()[0]
    small = MovieLensDataset(shared_data("ml-latest-small"))
    if chosen.text:
        write("quality_text", words_against_text(small, chosen.seed))
    else:
        write("quality", beside_baselines(small, chosen.seed))
