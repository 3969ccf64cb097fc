"""Networks over one id table: fitted to any part of its ratings, and asked for scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from models.graph_encoder.fitting import EncoderNetwork, FitConfig, FitData, fit_network
from models.graph_encoder.network import EdgeList
from models.graph_encoder.parameters import EdgeWeights, EncoderKind
from models.graph_encoder.training_features import TrainingFeatures
from models.interactions import Interactions

Float32: TypeAlias = npt.NDArray[np.float32]
Int64: TypeAlias = npt.NDArray[np.int64]
Bool: TypeAlias = npt.NDArray[np.bool_]


class Progress(NamedTuple):
    """How far training is. `done` of `total` units of about equal length."""

    stage: str
    done: int
    total: int
    message: str


class NetworkFitter:
    """Counts the steps it takes and reports them.

    Args:
        features: of the items of the id table and of all users.
        device: where networks live.
        report: called every few steps.
        kind: of the networks.
    """

    def __init__(
        self,
        features: TrainingFeatures,
        device: str,
        report: Callable[[Progress], None],
        kind: EncoderKind = "linear",
    ) -> None:
        self.total = 1
        """Steps planned."""
        self._features, self._device, self._report, self._kind = features, device, report, kind
        self._done = 0

    def fit(
        self,
        stage: str,
        ratings: Interactions,
        fit: FitConfig,
        weights: EdgeWeights,
        measure: Callable[[int, EncoderNetwork], None] | None = None,
    ) -> EncoderNetwork:
        """A network fitted to `ratings`; `measure` is called after each step with the steps taken."""

        def after_step(step: int, network: EncoderNetwork) -> None:
            if measure is not None:
                measure(step, network)
            self._done += 1
            if step % 10 == 0 or step == fit.steps_taken:
                self.say(stage, f"step {step} of {fit.steps_taken}")

        return fit_network(self._data(ratings, weights), fit, after_step, self._kind)

    def scores(
        self,
        network: EncoderNetwork,
        ratings: Interactions,
        weights: EdgeWeights,
        users: Int64,
        unknown: Bool | None = None,
    ) -> Float32:
        """Encoder scores float32 [len(users), n] from all messages of `ratings`.

        Where `unknown` (bool [n]) holds, items are as if made after training: nobody has rated them, and
        their vectors come from features alone.
        """
        kept = None
        if unknown is not None:
            ratings = ratings.select(~unknown[ratings.items])
            kept = torch.from_numpy(~unknown).to(self._device)
        data = self._data(ratings, weights)
        with torch.no_grad():
            vectors, items, bias = network(
                data.edges.matrices(), data.item_features, data.user_features, kept
            )
            chosen = vectors[torch.from_numpy(users).to(vectors.device)]
            scores: Float32 = torch.addmm(bias, chosen, items.T).cpu().numpy()
        return scores

    def say(self, stage: str, message: str) -> None:
        self._report(Progress(stage, min(self._done, self.total), self.total, message))

    def finish(self) -> None:
        self._done = self.total
        self.say("done", "")

    def edges(self, ratings: Interactions, weights: EdgeWeights) -> EdgeList:
        """Ratings as weighted edges on the device."""
        return EdgeList(
            ratings.users,
            ratings.items,
            weights(ratings.values),
            ratings.num_users,
            ratings.num_items,
            self._device,
        )

    def _data(self, ratings: Interactions, weights: EdgeWeights) -> FitData:
        edges = self.edges(ratings, weights)
        item_features, user_features = self._features.rows(self._device)
        # What `sage` learns of attributes is fitted behind it: no item may learn from them.
        return FitData(edges, item_features, user_features if self._kind == "linear" else None)
