"""What is saved comes back bit for bit; what is damaged does not come back at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from graph.errors import Corrupt, InvalidInput
from models.graph_encoder.checkpoint import load_checkpoint, save_checkpoint
from models.graph_encoder.features import HashedFeatures, TextFeatures, extractor_from_config
from models.graph_encoder.parameters import EdgeWeights, LinearParameters
from models.item_similarity import ItemSimilarity
from models.ranking_settings import RankingSettings

ITEMS, DIM = 6, 4
EXTRACTOR = HashedFeatures(item_buckets=8, user_buckets=4)
ARRAYS = [f.name for f in dataclasses.fields(LinearParameters) if "Float32" in str(f.type)]


def make_parameters(seed: int = 0) -> LinearParameters:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return LinearParameters(
        item_ids=tuple(f"item {n} é" for n in range(ITEMS)),
        id_source=draw(ITEMS, DIM),
        id_target=draw(ITEMS, DIM),
        id_bias=draw(ITEMS),
        feature_source=draw(8, DIM),
        feature_target=draw(8, DIM),
        feature_bias=draw(8),
        user_attributes=draw(4, DIM),
        mix=draw(5),
        degree_exponent=0.6,
        edge_weights=EdgeWeights((0.5, 3.5), (0.0, 1.0)),
        features=EXTRACTOR.config(),
    )


def make_similarity() -> ItemSimilarity:
    dense = np.arange(ITEMS * ITEMS, dtype=np.float32).reshape(ITEMS, ITEMS)
    np.fill_diagonal(dense, 0)
    return ItemSimilarity(dense)


def save_one(root: Path, **metadata: object) -> Path:
    return save_checkpoint(root, make_parameters(), make_similarity(), RankingSettings(2.5), metadata)


def rewrite(path: Path, change: Callable[[dict], None], *, sign: bool = True) -> None:
    """Change encoder.json, and sign it again as a careless or hostile writer would."""
    manifest = json.loads((path / "encoder.json").read_bytes())
    change(manifest)
    if sign:
        manifest["tensors_sha256"] = hashlib.sha256((path / "tensors.safetensors").read_bytes()).hexdigest()
        body = {k: v for k, v in manifest.items() if k != "digest"}
        manifest["digest"] = hashlib.sha256(canonical(body)).hexdigest()
    (path / "encoder.json").write_bytes(canonical(manifest))


def canonical(manifest: dict) -> bytes:
    return json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize("mmap", [True, False])
def test_everything_comes_back(tmp_path: Path, mmap: bool) -> None:
    path = save_one(tmp_path / "encoders", seed=3, note="n")
    loaded, expected = load_checkpoint(path, mmap=mmap), make_parameters()
    for field in dataclasses.fields(LinearParameters):
        mine, theirs = getattr(loaded.parameters, field.name), getattr(expected, field.name)
        if isinstance(theirs, np.ndarray):
            assert mine.dtype == np.float32
            np.testing.assert_array_equal(mine, theirs)
        else:
            assert mine == theirs, field.name
    assert loaded.similarity is not None
    for name, tensor in make_similarity().tensors().items():
        np.testing.assert_array_equal(loaded.similarity.tensors()[name], tensor)
    assert loaded.ranking == RankingSettings(2.5)
    assert loaded.metadata == {"seed": 3, "note": "n"}
    assert len(loaded.digest) == 64
    assert path.name == loaded.digest[:16]


def test_text_features_come_back(tmp_path: Path) -> None:
    extractor = TextFeatures("minilm-0123456789ab", 5, item_buckets=8, user_buckets=4, text_weight=0.7)
    rng = np.random.default_rng(1)
    tables = {
        "feature_source": rng.normal(size=(14, DIM)).astype(np.float32),
        "feature_target": rng.normal(size=(14, DIM)).astype(np.float32),
        "feature_bias": rng.normal(size=14).astype(np.float32),
    }
    parameters = dataclasses.replace(make_parameters(), features=extractor.config(), **tables)
    path = save_checkpoint(tmp_path, parameters, None, RankingSettings(0.0))
    loaded = load_checkpoint(path).parameters
    assert extractor_from_config(loaded.features) == extractor
    np.testing.assert_array_equal(loaded.feature_source, tables["feature_source"])
    # A table for another number of columns than these features have is no encoder.
    rewrite(path, lambda manifest: manifest["features"].update(text_dim=6))
    with pytest.raises(Corrupt, match="expected float32"):
        load_checkpoint(path)


def test_the_second_stage_is_optional(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, make_parameters(), None, RankingSettings(0.0))
    assert load_checkpoint(path).similarity is None


def test_an_encoder_from_before_there_were_amounts_outside_keeps_its_digest(tmp_path: Path) -> None:
    path = save_one(tmp_path)
    manifest = json.loads((path / "encoder.json").read_bytes())
    assert manifest["ranking"] == {
        "similarity_weight": 2.5,
        "num_candidates": 500,
        "num_recent": 5,
        "neighbours_per_recent": 50,
    }
    assert load_checkpoint(path).ranking.expected_addend() is None


def test_amounts_outside_come_back(tmp_path: Path) -> None:
    ranking = RankingSettings(2.5, outside_scores=(-0.1, 1 / 3), outside_addends=(0.0, 0.7))
    path = save_checkpoint(tmp_path, make_parameters(), make_similarity(), ranking)
    assert load_checkpoint(path).ranking == ranking
    assert path != save_one(tmp_path)


def test_equal_content_has_one_directory_and_other_content_another(tmp_path: Path) -> None:
    first = save_one(tmp_path, seed=1)
    assert save_one(tmp_path, seed=1) == first
    assert save_one(tmp_path, seed=2) != first
    assert len(list(tmp_path.iterdir())) == 2


def test_saving_replaces_a_damaged_directory(tmp_path: Path) -> None:
    path = save_one(tmp_path)
    (path / "tensors.safetensors").write_bytes(b"")
    assert save_one(tmp_path) == path
    load_checkpoint(path)


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_one(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_every_flipped_byte_of_the_manifest_is_noticed(tmp_path: Path) -> None:
    path = save_one(tmp_path)
    file = path / "encoder.json"
    content = file.read_bytes()
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 0x01]) + content[place + 1 :])
        with pytest.raises((Corrupt, InvalidInput)):
            load_checkpoint(path)


def test_another_spelling_of_the_manifest_is_noticed(tmp_path: Path) -> None:
    path = save_one(tmp_path)
    file = path / "encoder.json"
    content = file.read_bytes()
    for changed in (
        content + b" ",
        content.replace(b'{"d', b'{"kind":"linear","d', 1),
        b'["a"]',
        b"[" * 100_000,
    ):
        assert changed != content
        file.write_bytes(changed)
        with pytest.raises(Corrupt):
            load_checkpoint(path)


def test_flipped_bytes_of_the_tensors_are_noticed(tmp_path: Path) -> None:
    path = save_one(tmp_path)
    file = path / "tensors.safetensors"
    content = file.read_bytes()
    for place in [*range(0, len(content), 37), len(content) - 1]:
        file.write_bytes(content[:place] + bytes([content[place] ^ 0x80]) + content[place + 1 :])
        with pytest.raises(Corrupt, match="SHA-256"):
            load_checkpoint(path)


@pytest.mark.parametrize("name", ["encoder.json", "tensors.safetensors"])
@pytest.mark.parametrize("left", [0, 1, 9, 200])
def test_truncated_files_are_noticed(tmp_path: Path, name: str, left: int) -> None:
    path = save_one(tmp_path)
    (path / name).write_bytes((path / name).read_bytes()[:left])
    with pytest.raises(Corrupt):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["encoder.json", "tensors.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = save_one(tmp_path)
    (path / name).unlink()
    with pytest.raises(Corrupt, match=name):
        load_checkpoint(path)


def test_a_path_without_encoder_is_the_callers_mistake(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no encoder at"):
        load_checkpoint(tmp_path / "nothing")


@pytest.mark.parametrize("sign", [True, False])
def test_a_foreign_format_version_is_said_so(tmp_path: Path, sign: bool) -> None:
    path = save_one(tmp_path)
    rewrite(path, lambda manifest: manifest.update(format_version=2), sign=sign)
    with pytest.raises(InvalidInput, match="format version 2"):
        load_checkpoint(path)


@pytest.mark.parametrize("sign", [True, False])
def test_an_unknown_kind_is_named(tmp_path: Path, sign: bool) -> None:
    path = save_one(tmp_path)
    rewrite(path, lambda manifest: manifest.update(kind="transformer"), sign=sign)
    with pytest.raises(InvalidInput, match="of kind 'transformer', which this release does not know"):
        load_checkpoint(path)


def test_one_kind_is_not_taken_for_the_other(tmp_path: Path) -> None:
    path = save_one(tmp_path)
    rewrite(path, lambda manifest: manifest.update(kind="sage"))
    with pytest.raises(Corrupt, match="user_bias"):
        load_checkpoint(path)


def test_an_encoder_saved_before_there_were_kinds_keeps_its_name(tmp_path: Path) -> None:
    """The manifest of `linear` is what it was: the same content, the same digest."""
    manifest = json.loads((save_one(tmp_path) / "encoder.json").read_bytes())
    assert manifest["kind"] == "linear"
    assert sorted(manifest) == [
        "degree_exponent",
        "digest",
        "edge_weights",
        "features",
        "format",
        "format_version",
        "has_similarity",
        "item_ids",
        "kind",
        "metadata",
        "ranking",
        "tensors",
        "tensors_sha256",
    ]


@pytest.mark.parametrize("name", ["encoder.json", "tensors.safetensors"])
def test_a_pickle_is_never_run(tmp_path: Path, name: str) -> None:
    path = save_one(tmp_path)
    target = tmp_path / "ran"
    (path / name).write_bytes(pickle.dumps(_Bomb(str(target))))
    if name == "tensors.safetensors":
        rewrite(path, lambda manifest: None)
    with pytest.raises(Corrupt):
        load_checkpoint(path)
    assert not target.exists()


class _Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (self.path, "w"))


def change_tensor(
    name: str, change: Callable[[np.ndarray], np.ndarray], *, describe: bool = True
) -> Callable:
    def apply(path: Path) -> None:
        tensors = load_file(path / "tensors.safetensors")
        tensors[name] = change(tensors[name])
        save_file(tensors, path / "tensors.safetensors")
        described = {n: {"shape": list(t.shape), "dtype": t.dtype.str} for n, t in tensors.items()}
        rewrite(path, lambda manifest: manifest.update(tensors=described) if describe else None)

    return apply


def change_manifest(**entries: object) -> Callable[[Path], None]:
    return lambda path: rewrite(path, lambda manifest: manifest.update(entries))


def with_nan(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flat[0] = np.nan
    return array


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (change_tensor("id_bias", with_nan), "'id_bias' holds NaN"),
        (change_tensor("mix", lambda a: a[:4]), "'mix' is float32"),
        (change_tensor("id_source", lambda a: a.astype(np.float64)), "'id_source' is float64"),
        (change_tensor("feature_bias", lambda a: a[:-1]), "'feature_bias' is"),
        (change_tensor("id_target", lambda a: a[:, :-1].copy()), "'id_target' is"),
        (change_tensor("id_bias", lambda a: a[:-1], describe=False), "other names, shapes or dtypes"),
        (change_manifest(item_ids=["a"] * ITEMS), "names an item twice"),
        (change_manifest(item_ids=["a"]), "is float32"),
        (change_manifest(item_ids=[1] * ITEMS), "must hold strings"),
        (change_manifest(features={"kind": "other"}), "feature kind"),
        (change_manifest(features={**EXTRACTOR.config(), "item_buckets": 9}), "expected float32"),
        (change_manifest(edge_weights={"levels": [0.5], "weights": [-1.0]}), "non-negative"),
        (change_manifest(ranking={"similarity_weight": -1}), "similarity_weight"),
        (change_manifest(ranking={"surprise": 1}), "surprise"),
        *(
            (
                change_manifest(ranking={"similarity_weight": 1, "outside_scores": x, "outside_addends": y}),
                says,
            )
            for x, y, says in (
                ([1.0], [], "1 scores, 0 addends"),
                ([1.0, 1.0], [0.0, 1.0], "must ascend"),
                ([1.0, 2.0], [1.0, 0.5], "must not fall"),
                ([1.0, 2.0], [-1.0, 0.5], "not be negative"),
                ([1.0, "2"], [0.0, 0.5], "real number"),
            )
        ),
        (change_manifest(degree_exponent="0.5"), "degree_exponent"),
        (change_manifest(metadata=[]), "metadata"),
    ],
)
def test_signed_nonsense_is_refused(tmp_path: Path, damage: Callable[[Path], None], says: str) -> None:
    path = save_one(tmp_path)
    load_checkpoint(path)
    damage(path)
    with pytest.raises(Corrupt, match=says):
        load_checkpoint(path)


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    for change in (
        {"id_bias": np.full(ITEMS, np.inf, np.float32)},
        {"item_ids": ("a",) * ITEMS},
        {"mix": np.zeros(5)},
        {"features": {}},
    ):
        parameters = dataclasses.replace(make_parameters(), **change)
        with pytest.raises(InvalidInput, match="cannot be saved"):
            save_checkpoint(tmp_path, parameters, None, RankingSettings(0.0))
    with pytest.raises(InvalidInput, match="plain JSON"):
        save_checkpoint(tmp_path, make_parameters(), None, RankingSettings(0.0), {"score": float("nan")})
    assert list(tmp_path.iterdir()) == []
