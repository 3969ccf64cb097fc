"""Trained encoders on disk: one immutable directory per encoder, named by its digest.

    <root>/<first 16 hex of the digest>/
        tensors.safetensors    parameters, and the item-item matrix under `similarity.`
        encoder.json           format, kind, shapes and dtypes, settings, id table, SHA-256 of the tensors,
                               digest

The digest is the SHA-256 of encoder.json's canonical form without the digest itself; as that names the
SHA-256 of the tensors, it covers every byte that is read. Nothing here is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from graph.errors import Corrupt, InvalidInput
from models.graph_encoder.checkpoint_parameters import (
    Json,
    Tensors,
    kind_named,
    kind_of,
    object_of,
    restore_parameters,
    settings_of,
    tensors_of,
)
from models.graph_encoder.parameters import EncoderParameters
from models.ranking_settings import RankingSettings

if TYPE_CHECKING:
    from models.item_similarity import ItemSimilarity

FORMAT, FORMAT_VERSION = "weft-encoder", 1
_TENSORS, _MANIFEST = "tensors.safetensors", "encoder.json"
_SIMILARITY = "similarity."
_NAME_CHARS = 16


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """An encoder ready to serve. `similarity` is None where the second stage was not trained."""

    parameters: EncoderParameters
    similarity: ItemSimilarity | None
    ranking: RankingSettings
    metadata: dict[str, object]
    digest: str


def save_checkpoint(
    root: Path,
    parameters: EncoderParameters,
    similarity: ItemSimilarity | None,
    ranking: RankingSettings,
    metadata: Mapping[str, object] | None = None,
) -> Path:
    """Write an encoder below `root` and return its directory, which is there whole or not at all.

    Saving the same content again answers the same directory. Raises InvalidInput for parameters that could
    not be loaded again.
    """
    kind, tensors = kind_of(parameters), tensors_of(parameters)
    if similarity is not None:
        tensors |= {_SIMILARITY + name: array for name, array in similarity.tensors().items()}
    tensors = {name: np.ascontiguousarray(array) for name, array in sorted(tensors.items())}
    content = save(tensors)
    manifest: Json = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "tensors": {n: {"shape": list(t.shape), "dtype": t.dtype.str} for n, t in tensors.items()},
        "tensors_sha256": hashlib.sha256(content).hexdigest(),
        **settings_of(parameters),
        "edge_weights": dataclasses.asdict(parameters.edge_weights),
        "features": dict(parameters.features),
        # Without empty tables: an encoder that has none keeps the digest it had before there were any.
        "ranking": {name: value for name, value in dataclasses.asdict(ranking).items() if value != ()},
        "has_similarity": similarity is not None,
        "metadata": dict(metadata or {}),
        "item_ids": list(parameters.item_ids),
    }
    digest = _digest(manifest)
    # Reading back what is about to be written finds whatever load_checkpoint would refuse.
    try:
        _restore(_parse(_canonical({**manifest, "digest": digest})), tensors)
    except Corrupt as error:
        raise InvalidInput(f"this encoder cannot be saved: {error.message}") from error
    final = root / digest[:_NAME_CHARS]
    if final.exists():
        try:
            load_checkpoint(final)
            return final
        except Corrupt:
            shutil.rmtree(final)
    root.mkdir(parents=True, exist_ok=True)
    staging = root / f".saving-{uuid.uuid4().hex}"
    staging.mkdir()
    try:
        _write(staging / _TENSORS, content)
        _write(staging / _MANIFEST, _canonical({**manifest, "digest": digest}))
        _sync_directory(staging)
        try:
            os.rename(staging, final)
        except OSError:
            # Another process was first with the same content; anything else there is an error.
            load_checkpoint(final)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    _sync_directory(root)
    return final


def load_checkpoint(path: Path, *, mmap: bool = True) -> Checkpoint:
    """Read an encoder's directory and verify all of it.

    The item-item matrix is a read-only memory map unless `mmap` is False; the directory must then stay in
    place while the checkpoint is in use. Raises Corrupt for damage, InvalidInput where there is no encoder of
    this format.
    """
    if not path.is_dir():
        raise InvalidInput(f"no encoder at {path}: give the directory that `save_checkpoint` returned")
    try:
        content = (path / _MANIFEST).read_bytes()
        manifest = _parse(content)
        if manifest.get("format") != FORMAT:
            raise InvalidInput(f"{path / _MANIFEST} does not describe an encoder of Weft")
        if manifest.get("format_version") != FORMAT_VERSION:
            raise InvalidInput(
                f"{path} has format version {manifest.get('format_version')!r}; this release reads "
                f"{FORMAT_VERSION}: train the encoder again"
            )
        if kind_named(manifest.get("kind")) is None:
            raise InvalidInput(
                f"{path} is an encoder of kind {manifest.get('kind')!r}, which this release does not know: "
                "update Weft, or train the encoder again"
            )
        # One content has one spelling: repeated keys do not survive this, nor does any changed byte.
        if content != _canonical(manifest) or manifest.get("digest") != _digest(manifest):
            raise Corrupt(
                f"{path / _MANIFEST} does not match its digest: restore it from a copy or train again"
            )
        with (path / _TENSORS).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != manifest.get("tensors_sha256"):
            raise Corrupt(
                f"{path / _TENSORS} does not match its SHA-256: restore it from a copy or train again"
            )
        return _restore(manifest, _read_tensors(path / _TENSORS, mmap))
    except FileNotFoundError as error:
        raise Corrupt(f"the encoder at {path} lacks {Path(str(error.filename)).name}") from error
    except OSError as error:
        raise Corrupt(f"the encoder at {path} cannot be read: {error.strerror}") from error


def _restore(manifest: Json, tensors: Tensors) -> Checkpoint:
    """Check every field and assemble; raises Corrupt."""
    described = manifest.get("tensors")
    present = {n: {"shape": list(t.shape), "dtype": t.dtype.str} for n, t in tensors.items()}
    if described != present:
        raise Corrupt("the encoder's tensors have other names, shapes or dtypes than encoder.json says")
    for name, tensor in tensors.items():
        if np.issubdtype(tensor.dtype, np.floating) and not np.isfinite(tensor).all():
            raise Corrupt(f"the encoder's tensor {name!r} holds NaN or infinity")
    try:
        kind = kind_named(manifest["kind"])
        if kind is None:
            raise Corrupt(f"encoder.json names the kind {manifest['kind']!r}, which there is not")
        parameters = restore_parameters(kind, manifest, tensors)
        ranking = RankingSettings(**object_of(manifest, "ranking"))  # type: ignore[arg-type]
        similarity = None
        if manifest["has_similarity"]:
            # Imported here: an encoder without a second stage needs none of it.
            from models.item_similarity import ItemSimilarity

            prefix = len(_SIMILARITY)
            similarity = ItemSimilarity.from_tensors(
                {name[prefix:]: t for name, t in tensors.items() if name.startswith(_SIMILARITY)}
            )
            if similarity.size != len(parameters.item_ids):
                raise Corrupt(
                    f"the item-item matrix is for {similarity.size} items, the id table has "
                    f"{len(parameters.item_ids)}"
                )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise Corrupt(f"encoder.json or its tensors are not what this format holds: {error}") from error
    except InvalidInput as error:
        raise Corrupt(f"the encoder's settings are not usable: {error.message}") from error
    metadata = object_of(manifest, "metadata")
    return Checkpoint(parameters, similarity, ranking, metadata, str(manifest["digest"]))


def _read_tensors(path: Path, mmap: bool) -> Tensors:
    try:
        # The library checks the header's offsets; they are used below only once it has accepted them.
        with safe_open(path, framework="np") as file:
            tensors: Tensors = {}
            for name in file.keys():  # noqa: SIM118 - not a mapping
                if not (mmap and name.startswith(_SIMILARITY)):
                    tensors[name] = file.get_tensor(name)
    except SafetensorError as error:
        raise Corrupt(f"{path} is not a safetensors file: {error}") from error
    if mmap:
        with path.open("rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(length))
        for name in header:
            if name.startswith(_SIMILARITY):
                dtype = _DTYPES.get(header[name]["dtype"])
                if dtype is None:
                    raise Corrupt(f"the encoder's tensor {name!r} has the dtype {header[name]['dtype']}")
                shape, first = tuple(header[name]["shape"]), 8 + length + header[name]["data_offsets"][0]
                empty = 0 in shape  # which mmap refuses
                tensors[name] = (
                    np.empty(shape, dtype)
                    if empty
                    else np.memmap(path, dtype, "r", first, shape).view(np.ndarray)
                )
    return tensors


_DTYPES = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U32": "<u4", "I16": "<i2"}


def _canonical(manifest: Mapping[str, object]) -> bytes:
    try:
        text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"metadata and settings of an encoder must be plain JSON: {error}") from error
    return text.encode()


def _digest(manifest: Mapping[str, object]) -> str:
    return hashlib.sha256(_canonical({k: v for k, v in manifest.items() if k != "digest"})).hexdigest()


def _parse(content: bytes) -> Json:
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Corrupt("encoder.json is not JSON: restore it from a copy or train again") from error
    if not isinstance(manifest, dict):
        raise Corrupt("encoder.json is not an object: restore it from a copy or train again")
    return manifest


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
