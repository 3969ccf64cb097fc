"""Where data comes from: MovieLens folders, tables and knowledge graphs of one's own, a generated catalogue.

Every source is a `Dataset`: `load` parses and checks it wholly, bad rows go to `Rejects`, and the rest comes
out of `Records.batches()` as write operations in dependency order. `run_import` puts the two together.
"""

from graph.datasets.demo import PERSONA, DemoDataset
from graph.datasets.mesh import MeshDataset
from graph.datasets.movielens import MovieLensDataset
from graph.datasets.records import Dataset, ImportSummary, Progress, RatingColumns, Records, run_import
from graph.datasets.rejects import Reject, Rejects
from graph.datasets.table import TableDataset, TableOptions

__all__ = [
    "PERSONA",
    "Dataset",
    "DemoDataset",
    "ImportSummary",
    "MeshDataset",
    "MovieLensDataset",
    "Progress",
    "RatingColumns",
    "Records",
    "Reject",
    "Rejects",
    "TableDataset",
    "TableOptions",
    "run_import",
]
