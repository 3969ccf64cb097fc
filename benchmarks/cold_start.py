"""How well items with 0, 1 to 5 and more ratings are found: hashed words against text vectors as features.

python -m benchmarks.cold_start
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from benchmarks.report import shared_data, write
from deployments.evaluation_report import evaluate_dataset
from graph.datasets import MovieLensDataset
from models.text_encoder.opening import TextModelSpec, open_encoder

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_known_args()[0].seed
    dataset = MovieLensDataset(shared_data("ml-latest-small"))
    encoder = open_encoder(TextModelSpec(num_threads=1))
    write("cold_start", asdict(evaluate_dataset(dataset, "cold", False, seed, print, encoder)))
