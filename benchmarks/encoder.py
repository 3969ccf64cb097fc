"""`StructuralEncoder` as a library on the demo graph: full encode, one node, one node from the cache.

python -m benchmarks.encoder
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="2")

from dataclasses import asdict

from benchmarks.graphs import demo_view, random_parameters
from benchmarks.report import write
from models.graph_encoder.benchmark import benchmark_encoder
from models.graph_encoder.encoder import StructuralEncoder

if __name__ == "__main__":
    view = demo_view()
    encoder = StructuralEncoder(random_parameters(view)).attach(view)
    write("encoder", asdict(benchmark_encoder(encoder, 1000)))
