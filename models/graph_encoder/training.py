"""Training of an encoder, the item-item matrix and the ranking settings that go with them.

Whatever has to be chosen is chosen on a cut of the given ratings, by what the two stages recommend together;
then everything is fitted again on all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graph.errors import InvalidInput
from graph.schema import Item, User
from graph.view import GraphView
from models.ease import DEFAULT_CUT, fit_ease
from models.graph_encoder.features import FeatureExtractor, HashedFeatures, TextFeatures
from models.graph_encoder.fitting import EncoderNetwork, FitConfig
from models.graph_encoder.item_tables import text_vectors_of
from models.graph_encoder.network_fitter import NetworkFitter
from models.graph_encoder.network_fitter import Progress as Progress
from models.graph_encoder.outside_items import choose_outside
from models.graph_encoder.parameters import EdgeWeights, EncoderParameters
from models.graph_encoder.private_fitting import STEPS, fit_private, memories_of
from models.graph_encoder.sage_parameters import SageParameters
from models.graph_encoder.selection import Outcome, Validation
from models.graph_encoder.training_config import ALL_POSITIVE as ALL_POSITIVE
from models.graph_encoder.training_config import LIKED as LIKED
from models.graph_encoder.training_config import TrainingConfig as TrainingConfig
from models.graph_encoder.training_features import TrainingFeatures
from models.interactions import Interactions, sample_users, validation_cut
from models.item_similarity import MAX_DENSE_ITEMS, ItemSimilarity
from models.ranking_settings import RankingSettings

Float32: TypeAlias = npt.NDArray[np.float32]

_LEAST_LIKED = 0.2
_LEAST_WITH_TEXT = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class TrainedEncoder:
    """One generation: what is exported and served together."""

    parameters: EncoderParameters
    similarity: ItemSimilarity
    settings: RankingSettings
    metadata: Mapping[str, object]
    """Plain JSON: seed, counts, features, seconds, what was tried, what was chosen, validation figures."""


def train(
    view: GraphView,
    config: TrainingConfig | None = None,
    progress: Callable[[Progress], None] | None = None,
    extractor: FeatureExtractor | None = None,
) -> TrainedEncoder:
    """Train on all ratings of a view; without an extractor, on hashed words (see `default_extractor`).

    Deterministic by `config.seed` on a CPU with a fixed number of threads. Raises InvalidInput when there are
    fewer than two items with ratings.
    """
    users, items = list(view.users()), list(view.items())
    extractor = extractor or HashedFeatures()
    vectors = text_vectors_of(view, extractor, items)
    ratings = ratings_of(view, users, items)
    return train_on(ratings, items, users, config, progress, extractor, vectors, view)


def train_on(
    ratings: Interactions,
    items: Sequence[Item],
    users: Sequence[User],
    config: TrainingConfig | None = None,
    progress: Callable[[Progress], None] | None = None,
    extractor: FeatureExtractor | None = None,
    item_vectors: Float32 | None = None,
    graph: GraphView | None = None,
) -> TrainedEncoder:
    """The same on flat arrays; `ratings` index `items` and `users`.

    `item_vectors` float32 [len(items), d] are text vectors of the extractor's model, a row of zeros where an
    item has none; an extractor that takes none ignores them. `graph` is where users and items are from; the
    memories in it, if any, teach `sage` what to make of memories.
    """
    return _Training(
        ratings,
        items,
        users,
        config or TrainingConfig(),
        progress,
        extractor or HashedFeatures(),
        item_vectors,
        graph,
    ).run()


def default_extractor(view: GraphView, text_model: str | None) -> FeatureExtractor:
    """What to train a view with: its text vectors of that model, or hashed words while most items lack one.

    Text features know nothing of the words of an item without a vector.
    """
    if text_model is not None:
        table = view.text_vectors("item", text_model)
        if len(table) > 0 and len(table) >= _LEAST_WITH_TEXT * view.num_items:
            return TextFeatures(text_model, table.dim)
    return HashedFeatures()


def ratings_of(view: GraphView, users: Sequence[User], items: Sequence[Item]) -> Interactions:
    """A view's ratings, by places in `users` and `items`; each user's in the order they were written."""
    place = np.full(view.num_item_rows, -1, np.int64)
    place[[item.row for item in items]] = np.arange(len(items))
    if not users:
        raise InvalidInput("training needs ratings, there are no users: import ratings first")
    found = [view.ratings_of(user.row) for user in users]
    owners = np.repeat(np.arange(len(users)), [len(ratings.item_rows) for ratings in found])
    return Interactions(
        owners.astype(np.int64),
        place[np.concatenate([r.item_rows for r in found]).astype(np.int64)],
        np.concatenate([r.values for r in found]).astype(np.float32),
        np.concatenate([r.timestamps for r in found]).astype(np.int64),
        len(users),
        len(items),
    )


_Trial: TypeAlias = tuple[float, FitConfig, EdgeWeights]
"""Validation figure and what reached it."""


class _Training:
    """One run; the id table is the items with ratings, and everything here counts in its positions."""

    def __init__(
        self,
        ratings: Interactions,
        items: Sequence[Item],
        users: Sequence[User],
        config: TrainingConfig,
        progress: Callable[[Progress], None] | None,
        extractor: FeatureExtractor,
        vectors: Float32 | None,
        graph: GraphView | None = None,
    ) -> None:
        rated = np.unique(ratings.items)
        if len(rated) < 2:
            raise InvalidInput(
                f"training needs ratings of at least two items, there are {len(rated)}: import ratings first"
            )
        place = np.full(ratings.num_items, -1, np.int64)
        place[rated] = np.arange(len(rated))
        self.config = config
        self.item_ids = [items[row].item_id for row in rated.tolist()]
        self.ratings = replace(ratings, items=place[ratings.items], num_items=len(rated))
        self.items, self.users, self.graph = [items[row] for row in rated.tolist()], users, graph
        self.vectors = None if vectors is None else vectors[rated]
        self.features = TrainingFeatures(extractor, self.items, users, self.vectors, config.text_columns)
        self.trials: list[dict[str, object]] = []
        self.fitter = NetworkFitter(
            self.features, config.device, progress or (lambda _: None), config.encoder
        )
        self._started = time.monotonic()

    def run(self) -> TrainedEncoder:
        fit, weights = replace(self.config.fit, seed=self.config.seed), self._usable_weights()[0]
        # Without a search: what was chosen most often on the data sets at hand.
        settings, cut, strength = RankingSettings(10.0), self._default_cut(), 200.0
        chosen: dict[str, Any] = {}
        searched = self.config.search and self._searchable()
        self._plan(searched)
        if searched:
            fit, weights = self._search(fit, weights)
            fit, strength, cut, settings, chosen = self._settle(fit, weights)
        self.fitter.say("final", "fitting on all ratings")
        network = self.fitter.fit("final", self.ratings, fit, weights)
        liked = weights(self.ratings.values) > 0
        similarity = fit_ease(
            self.ratings.users[liked],
            self.ratings.items[liked],
            self.ratings.num_items,
            strength,
            entries_per_column=cut,
        )
        metadata = self._metadata(fit, strength, cut, settings, chosen)
        parameters = self.features.to_parameters(network, self.item_ids, weights)
        if isinstance(parameters, SageParameters):
            parameters, metadata["private"] = self._fit_private(parameters, fit)
        self.fitter.finish()
        return TrainedEncoder(parameters, similarity, settings, metadata)

    def _fit_private(
        self, parameters: SageParameters, fit: FitConfig
    ) -> tuple[SageParameters, dict[str, object]]:
        """What is private to users comes last, so that nothing shared learns from it."""
        extractor = self.features.extractor
        memories = None
        if self.graph is not None and self.graph.num_memories:
            memories = memories_of(parameters, extractor, self.graph, self.users)
        return fit_private(
            parameters,
            extractor,
            self.fitter.edges(self.ratings, parameters.edge_weights),
            self.items,
            self.users,
            self.vectors,
            memories,
            fit,
            lambda step: self.fitter.say("attributes and memories", f"step {step} of {STEPS}"),
        )

    # --------------------------------------------------------------------------------------------- search

    def _searchable(self) -> bool:
        """Whether a validation cut would say anything."""
        return len(self.ratings) >= 100

    def _search(self, fit: FitConfig, weights: EdgeWeights) -> tuple[FitConfig, EdgeWeights]:
        """One coordinate after another, on a sample of users where there are many."""
        sample = sample_users(self.ratings, self.config.max_search_ratings, self.config.seed)
        cut = validation_cut(sample, self.config.seed)
        validation = Validation(cut, weights, self.config.similarity_l2, self.config.similarity_weights)
        best = self._trial(validation, fit, weights)
        for l2 in self.config.l2:
            best = self._better(best, self._trial(validation, replace(fit, l2=l2), weights))
        for dim in self.config.dims:
            best = self._better(best, self._trial(validation, replace(best[1], dim=dim), weights))
        for other in self._usable_weights()[1:]:
            again = Validation(cut, other, self.config.similarity_l2, self.config.similarity_weights)
            best = self._better(best, self._trial(again, best[1], other))
        return best[1], best[2]

    def _trial(self, validation: Validation, fit: FitConfig, weights: EdgeWeights) -> _Trial:
        name = f"l2 {fit.l2:g}, rank {fit.dim}, " + (
            "all positive" if weights == ALL_POSITIVE else "weighted"
        )
        shorter = replace(fit, steps=self.config.search_steps, stop_after=None)
        network = self.fitter.fit(f"trying {name}", validation.cut.train, shorter, weights)
        figure = validation.measure(
            self.fitter.scores(network, validation.cut.train, weights, validation.users)
        ).figure
        self.trials.append(
            {"l2": fit.l2, "dim": fit.dim, "edge_weights": _plain(weights), "validation_ndcg": figure}
        )
        return figure, fit, weights

    def _settle(
        self, fit: FitConfig, weights: EdgeWeights
    ) -> tuple[FitConfig, float, int | None, RankingSettings, dict[str, Any]]:
        """Steps, strength and cut of the item-item matrix and its weight, on a cut of all ratings."""
        cut = validation_cut(self.ratings, self.config.seed + 1)
        validation = Validation(cut, weights, self.config.similarity_l2, self.config.similarity_weights)
        found: dict[int, tuple[Outcome, Float32, dict[str, Any]]] = {}
        stops = self._stops(fit)

        def measure(step: int, network: EncoderNetwork) -> None:
            if step in stops:
                scores = self.fitter.scores(network, validation.cut.train, weights, validation.users)
                found[step] = (validation.measure(scores), scores, deepcopy(network.state_dict()))

        network = self.fitter.fit("choosing the item-item term", cut.train, fit, weights, measure)
        stop = max(found, key=lambda step: found[step][0].figure)
        outcome, scores, state = found[stop]
        whole = fit_ease(
            validation.liked_users,
            validation.liked_items,
            self.ratings.num_items,
            outcome.strength,
            entries_per_column=self._default_cut(),
        )
        cuts: list[tuple[int | None, Any]] = []
        for entries in self._cuts():
            similarity = whole if entries == self._default_cut() else whole.strongest(entries or 0)
            cuts.append((entries, validation.measure(scores, similarity)))
            self.fitter.say("choosing the item-item term", f"{entries or 'all'} entries per item")
        greatest = max(measured.figure for _, measured in cuts)
        entries, settled = next(
            (entries, measured)
            for entries, measured in cuts
            if measured.figure >= greatest * (1 - self.config.tolerance)
        )
        network.load_state_dict(state)
        self.fitter.say("choosing the item-item term", "items outside the matrix")
        outside = choose_outside(
            validation,
            whole if entries == self._default_cut() else whole.strongest(entries or 0),
            settled.weight,
            lambda unknown: self.fitter.scores(network, cut.train, weights, validation.users, unknown),
            self.config.outside_factors,
            self.config.tolerance,
            self.config.seed,
        )
        chosen = {
            "validation_ndcg": settled.figure,
            "validation_parts": list(settled.parts),
            "encoder_alone": settled.encoder_alone,
            "item_item_alone": settled.similarity_alone,
            "cuts": {str(entries): measured.figure for entries, measured in cuts},
            "outside": {
                "factor": outside.factor,
                "ndcg": {str(factor): figure for factor, figure in outside.ndcg.items()},
                "recall": {str(factor): figure for factor, figure in outside.recall.items()},
            },
        }
        settings = RankingSettings(
            settled.weight, outside_scores=outside.scores, outside_addends=outside.addends
        )
        return replace(fit, stop_after=stop), outcome.strength, entries, settings, chosen

    def _better(self, incumbent: _Trial, other: _Trial) -> _Trial:
        return other if other[0] > incumbent[0] * (1 + self.config.margin) else incumbent

    def _usable_weights(self) -> list[EdgeWeights]:
        """Those that tell ratings apart from the others before them and leave enough to learn from."""
        usable: list[EdgeWeights] = []
        for weights in self.config.edge_weights:
            weighed = weights(self.ratings.values)
            if np.mean(weighed > 0) >= _LEAST_LIKED and not any(
                np.array_equal(weighed, other(self.ratings.values)) for other in usable
            ):
                usable.append(weights)
        return usable or [ALL_POSITIVE]

    def _default_cut(self) -> int | None:
        """The most entries per column that this catalogue may keep; None for all."""
        if self.ratings.num_items <= MAX_DENSE_ITEMS:
            return None
        return max(entries or DEFAULT_CUT for entries in self.config.entries_per_column)

    def _cuts(self) -> list[int | None]:
        """The cuts to choose from that differ in this catalogue, ascending."""
        size, most = self.ratings.num_items, self._default_cut()
        smaller = {e for e in self.config.entries_per_column if e is not None and e < (most or size)}
        return [*sorted(smaller), most]

    def _stops(self, fit: FitConfig) -> set[int]:
        return {max(1, round(share * fit.steps_taken)) for share in self.config.stops}

    # ------------------------------------------------------------------------------------------ reporting

    def _plan(self, searched: bool) -> None:
        trials = 1 + len(self.config.l2) + len(self.config.dims) + len(self.config.edge_weights) - 1
        final = self.config.fit.steps_taken
        self.fitter.total = trials * self.config.search_steps + 2 * final if searched else final

    def _metadata(
        self,
        fit: FitConfig,
        strength: float,
        cut: int | None,
        settings: RankingSettings,
        chosen: Mapping[str, object],
    ) -> dict[str, object]:
        return {
            "seed": self.config.seed,
            "users": self.ratings.num_users,
            "items": self.ratings.num_items,
            "ratings": len(self.ratings),
            **self.features.metadata(),
            "seconds": round(time.monotonic() - self._started, 1),
            "fit": asdict(fit),
            "similarity": {"l2": strength, "entries_per_column": cut, "weight": settings.similarity_weight},
            "chosen": dict(chosen),
            "trials": self.trials,
        }


def _plain(weights: EdgeWeights) -> dict[str, list[float]]:
    return {"levels": list(weights.levels), "weights": list(weights.weights)}
