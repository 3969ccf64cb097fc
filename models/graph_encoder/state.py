"""What serves of every kind of encoder: a state over a live graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from graph.delta import Delta
from graph.errors import InvalidInput
from graph.view import GraphView
from models.graph_encoder.features import FeatureExtractor, extractor_from_config
from models.graph_encoder.incremental import LinearState
from models.graph_encoder.maintained_items import Float32, Float64, Int32, Int64
from models.graph_encoder.parameters import EncoderParameters, LinearParameters
from models.graph_encoder.sage import SageState
from models.graph_encoder.sage_parameters import SageParameters


class EncoderState(Protocol):
    """Vectors by one encoder over one `GraphView`, exact at `version`.

    A user scores an item with `user @ target + bias`; `source` says what each liked item adds to its user.
    Not thread-safe; arrays handed out are views, valid until the next `apply`.
    """

    version: int

    @property
    def parameters(self) -> EncoderParameters:
        """The trained encoder."""

    @property
    def extractor(self) -> FeatureExtractor:
        """Of the nodes' features."""

    @property
    def num_item_rows(self) -> int:
        """Length of the tables of items."""

    @property
    def source(self) -> Float32:
        """float32 [rows, D]; a user's vector is their weighted mean over what is liked, and more."""

    @property
    def target(self) -> Float32:
        """float32 [rows, D]."""

    @property
    def bias(self) -> Float32:
        """float32 [rows]."""

    @property
    def degree(self) -> Float64:
        """Weighted degree, float64 [rows]; exactly zero where no edge weighs anything."""

    @property
    def changed_version(self) -> Int64:
        """Version that last changed a row's source, target or bias, int64 [rows]."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""

    def changed_since(self, version: int) -> Int64:
        """Rows of items whose vectors changed after `version`, ascending."""

    def weights(self, values: Float32) -> Float32:
        """Edge weights a(value), float32 [n]; NaN weighs 0."""

    def seen(self, user_row: int) -> tuple[Int32, Float32]:
        """Item rows a user rated and their edge weights, zero weights included."""

    def user_vector(self, user_row: int) -> Float32:
        """float32 [D]."""

    def user_vectors(self, user_rows: Sequence[int] | Int64) -> Float32:
        """float32 [n, D]."""

    def session_vector(self, item_rows: Sequence[int] | Int64, values: Sequence[float] | Float32) -> Float32:
        """The vector, float32 [D], that a new user without anything else would get from these ratings.

        Of repeated items the last counts. Raises IndexError for a row never given out.
        """

    def memory_vectors(self, memory_rows: Sequence[int] | Int64) -> Float32:
        """Vectors of live memories, float32 [n, D].

        Raises InvalidInput where the kind of encoder has none, UnknownMemory for a row without a memory.
        """

    def apply(self, delta: Delta, view: GraphView) -> None:
        """Bring the state to `view.version`; call right after the `view.apply` that returned `delta`."""

    def deviation(self, view: GraphView) -> float:
        """Greatest difference to a rebuild, relative to each table's greatest magnitude."""


def build_state(parameters: EncoderParameters, view: GraphView, device: str = "cpu") -> EncoderState:
    """The state of an encoder of any kind over a view, in full: O(ratings * D).

    `device` is where all ratings are added up. Whatever follows them afterwards is on the CPU: a rating
    touches a few rows, for which a GPU takes longer than they take.
    """
    extractor = extractor_from_config(parameters.features)
    if isinstance(parameters, LinearParameters):
        return LinearState(parameters, extractor, view, device)
    if isinstance(parameters, SageParameters):
        return SageState(parameters, extractor, view, device)
    raise InvalidInput(f"{type(parameters).__name__} are of no kind of encoder that this release serves")
