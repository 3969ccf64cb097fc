"""The parameters of a saved encoder, by kind: which tensors and settings each has, and checking them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from graph.errors import Corrupt, InvalidInput
from graph.schema import MAX_ID_CHARS
from models.graph_encoder.features import extractor_from_config
from models.graph_encoder.parameters import EdgeWeights, EncoderKind, EncoderParameters, LinearParameters
from models.graph_encoder.sage_parameters import SageParameters

Tensors: TypeAlias = dict[str, npt.NDArray[np.generic]]
Json: TypeAlias = dict[str, object]
_Shapes: TypeAlias = Mapping[str, tuple[str, ...]]

_ITEM_SHAPES: _Shapes = {
    "id_source": ("n", "D"),
    "id_target": ("n", "D"),
    "id_bias": ("n",),
    "feature_source": ("F", "D"),
    "feature_target": ("F", "D"),
    "feature_bias": ("F",),
    "user_attributes": ("G", "D"),
}
_VECTORS = ("user_bias", "item_bias")
_SQUARES = (
    "user_neighbours",
    "user_root",
    "item_neighbours",
    "item_root",
    "source_root",
    "source_hidden",
    "target_hidden",
    "memory_root",
    "memory_items",
    "memory_memories",
    "memory_gate",
)
_SHAPES: Mapping[EncoderKind, _Shapes] = {
    "linear": {**_ITEM_SHAPES, "mix": ("5",)},
    "sage": {
        **_ITEM_SHAPES,
        **{name: ("D",) for name in _VECTORS},
        **{name: ("D", "D") for name in _SQUARES},
    },
}


def kind_named(kind: object) -> EncoderKind | None:
    """The kind of that name in a manifest; None for one that this release does not know."""
    return next((known for known in _SHAPES if known == kind), None)


def kind_of(parameters: EncoderParameters) -> EncoderKind:
    """Raises InvalidInput for parameters of no known kind."""
    if isinstance(parameters, LinearParameters):
        return "linear"
    if isinstance(parameters, SageParameters):
        return "sage"
    raise InvalidInput(f"{type(parameters).__name__} are of no kind of encoder that this release knows")


def tensors_of(parameters: EncoderParameters) -> Tensors:
    return {name: np.asarray(getattr(parameters, name)) for name in _SHAPES[kind_of(parameters)]}


def settings_of(parameters: EncoderParameters) -> Json:
    """What a manifest says of the parameters that is not a tensor and that only their kind has."""
    if isinstance(parameters, LinearParameters):
        return {"degree_exponent": float(parameters.degree_exponent)}
    return {}


def restore_parameters(kind: EncoderKind, manifest: Json, tensors: Tensors) -> EncoderParameters:
    """Check every field and assemble; raises Corrupt, or KeyError and its like for what is not there."""
    ids = manifest["item_ids"]
    if not isinstance(ids, list) or not all(isinstance(i, str) and 0 < len(i) <= MAX_ID_CHARS for i in ids):
        raise Corrupt(f"the id table must hold strings of 1 to {MAX_ID_CHARS} characters")
    if len(set(ids)) != len(ids):
        raise Corrupt("the id table names an item twice")
    features = object_of(manifest, "features")
    extractor = extractor_from_config(features)
    sizes = {
        "n": len(ids),
        "D": tensors["id_source"].shape[-1],
        "F": extractor.item_columns,
        # A model trained without users' attributes has no rows for them.
        "G": extractor.user_buckets if len(tensors["user_attributes"]) else 0,
        "5": 5,
    }
    own: dict[str, npt.NDArray[np.float32]] = {}
    for name, axes in _SHAPES[kind].items():
        expected = tuple(sizes[axis] for axis in axes)
        if tensors[name].shape != expected or tensors[name].dtype != np.float32:
            raise Corrupt(
                f"the encoder's tensor {name!r} is {tensors[name].dtype}{list(tensors[name].shape)}, "
                f"expected float32{list(expected)}"
            )
        # Small beside the item-item matrix: copies, so that they outlive the file and can be written to.
        own[name] = np.array(tensors[name], np.float32)
    if sizes["D"] < 1:
        raise Corrupt("the encoder's vectors have no dimensions")
    weights = object_of(manifest, "edge_weights")
    levels, amounts = weights["levels"], weights["weights"]
    if not isinstance(levels, list) or not isinstance(amounts, list):
        raise Corrupt("edge_weights needs the lists `levels` and `weights`")
    edge_weights = EdgeWeights(tuple(map(float, levels)), tuple(map(float, amounts)))
    if kind == "sage":
        return SageParameters(item_ids=tuple(ids), edge_weights=edge_weights, features=features, **own)
    exponent = manifest["degree_exponent"]
    if not isinstance(exponent, float) or not np.isfinite(exponent):
        raise Corrupt(f"degree_exponent is {exponent!r}, expected a finite number")
    return LinearParameters(
        item_ids=tuple(ids),
        degree_exponent=exponent,
        edge_weights=edge_weights,
        features=features,
        **own,
    )


def object_of(manifest: Json, key: str) -> Json:
    """The object under a key of a manifest; raises Corrupt for anything else."""
    value = manifest[key]
    if not isinstance(value, dict):
        raise Corrupt(f"encoder.json has no object {key!r}")
    return value
