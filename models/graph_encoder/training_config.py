"""What training may choose from, and its budget."""

from __future__ import annotations

from dataclasses import dataclass, field

from models.graph_encoder.fitting import FitConfig
from models.graph_encoder.parameters import EdgeWeights, EncoderKind

ALL_POSITIVE = EdgeWeights()
LIKED = EdgeWeights((0.5, 2.5, 3.5, 4.5), (0.0, 0.5, 1.0, 1.25))
"""Below half the scale a rating says what somebody has seen, not what they like."""


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """What training may choose from, and its budget."""

    encoder: EncoderKind = "linear"
    seed: int = 0
    fit: FitConfig = field(default_factory=FitConfig)
    """Where the search starts; without `search` this is what is fitted."""
    search: bool = True
    search_steps: int = 150
    """Of each network tried; the one chosen then takes `fit.steps`."""
    l2: tuple[float, ...] = (0.3, 3.0)
    """Tried besides `fit.l2`."""
    dims: tuple[int, ...] = (128,)
    """Tried besides `fit.dim`."""
    edge_weights: tuple[EdgeWeights, ...] = (LIKED, ALL_POSITIVE)
    """The first that leaves enough to learn from is where the search starts."""
    margin: float = 0.01
    """Share by which another choice must be better than the one it replaces: less is noise."""
    stops: tuple[float, ...] = (0.7, 0.85, 1.0)
    """Shares of the steps after which a network is measured."""
    similarity_l2: tuple[float, ...] = (30.0, 100.0, 200.0, 400.0, 800.0)
    entries_per_column: tuple[int | None, ...] = (100, 300, 1000, None)
    """Cuts of the item-item matrix, ascending; None keeps all entries, in catalogues up to 10,000 items."""
    similarity_weights: tuple[float, ...] = (0, 1, 2, 3.5, 5, 7, 10, 14, 20, 28, 40, 56, 80)
    tolerance: float = 0.002
    """Share of the validation figure worth giving up: for a smaller matrix, or to show unrated items."""
    outside_factors: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    """Shares of what the item-item term is expected to be, for items outside its matrix; besides none."""
    max_search_ratings: int = 200_000
    """The search for strength, rank and edge weights takes a sample of users with about so many ratings."""
    text_columns: int = 64
    """Principal axes of the text vectors that training works with."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.edge_weights or not self.similarity_l2 or not self.entries_per_column or not self.stops:
            raise ValueError("every list to choose from needs at least one entry")
