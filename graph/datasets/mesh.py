"""A folder of knowledge graphs, one user's in each file, as memories and relations.

`DIR/*.json`, each one JSON object in UTF-8:

    {
      "user_id": "ada-lind",
      "nodes": [
        {"id": "n1", "text": "I watch films with my daughter.", "source": "chat"},
        {"id": "n2", "text": "We live in Lisbon.", "valid_at": "2024-05-01", "invalid_at": 1772366400},
        {"id": "n3", "item": "film-0211"}
      ],
      "edges": [
        {"from": "n1", "to": "n2", "name": "follows"},
        {"from": "n1", "to": "n3", "name": "about"},
        {"from": "n2", "item": "film-0007", "name": "about"}
      ]
    }

The user is `user_id`, else the name of the file without `.json`; a user that is not there yet is created.

A node is a memory: `id` (text or a whole number, unique in the file) and `text`, optionally `valid_at` and
`invalid_at` (ISO 8601, UTC unless it says otherwise, or Unix seconds) and `source`. The order of nodes is
their age, oldest first. A node with `item` (or `item_id`) is no memory: it stands for that item of the
catalogue, so that edges can lead to it.

An edge leaves the memory `from` and leads to the node `to` or to the item `item` (or `item_id`); `name` is
"related" when left out. An edge that is there twice counts once.

What other programs write is taken too: `links` for `edges`, `content` or `label` for a node's `text`,
`source` and `target` for an edge's `from` and `to`, `relation`, `type` or `label` for its `name`; the first
of them that is there counts. Other fields are passed over.

A memory's id in the store is `<user id>.<node id>`, or `mem_` and 20 hex digits of both where that could be
no id or another user's (the user id has a dot, the node id a slash, both together are too long). It is the
same at every import, so a file that was imported before changes what it now says differently; a node or an
edge that is no longer in the file stays in the store.

Rejected are files that hold no such object or are a second one of their user, nodes and edges that break
these rules, nodes whose memory's id another user has, edges whose node was rejected or is missing, edges to
items that the catalogue lacks, and those beyond the 1,000th that leaves a node. Each
node and each edge counts as a row, and so does a file that is rejected as a whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from graph.datasets.json_file import JsonFile, NoObject
from graph.datasets.ratings import BadValue, checked_id
from graph.datasets.records import Progress, RatingColumns, Records, no_progress
from graph.datasets.rejects import MAX_RAW_CHARS, Rejects
from graph.errors import InvalidInput
from graph.schema import MAX_RELATIONS, PutMemory, PutRelation, TargetKind, is_id
from graph.times import unix_seconds
from graph.validation import check_memory, check_relation

DEFAULT_NAME = "related"

_EDGES = ("edges", "links")
_TEXT = ("text", "content", "label")
_ITEM = ("item", "item_id")
_FROM = ("from", "source")
_TO = ("to", "target")
_NAME = ("name", "relation", "type", "label")

_Target: TypeAlias = tuple[TargetKind, str]
"""What a node stands for: a memory or an item, by its id in the store."""


class MeshDataset:
    """The knowledge graphs of one folder, see the module.

    `known_items`, the ids of the catalogue, tells edges to unknown items from others; without it every item
    counts as known, and the store refuses the whole write that holds such an edge. `owners` says whose the
    memories of the store are, by id, and so which ids are another user's.
    """

    def __init__(
        self,
        path: Path,
        known_items: Container[str] | None = None,
        owners: Mapping[str, str] | None = None,
    ) -> None:
        self._path = path
        self._known_items = known_items
        self._owners = owners or {}

    @property
    def name(self) -> str:
        return f"the knowledge graphs in {self._path}"

    def load(self, rejects: Rejects, progress: Progress = no_progress) -> Records:
        """Parse and check every file, in the order of their names.

        Raises InvalidInput for a folder that is not there or holds no `.json` file.
        """
        sizes = self._files()
        total = sum(sizes.values())
        stage, done, rows = f"reading {self._path.name}", 0, 0
        memories: list[PutMemory] = []
        relations: list[PutRelation] = []
        files: dict[str, str] = {}  # of each user
        progress(stage, done, total)
        for path, size in sizes.items():
            mesh = _Mesh(rejects, self._known_items, self._owners)
            mesh.read(path, files)
            memories += mesh.memories
            relations += dict.fromkeys(mesh.relations)
            rows += mesh.rows
            done += size
            progress(stage, done, total)
        return Records((), (), _no_ratings(), memories, rows, relations)

    def _files(self) -> dict[Path, int]:
        """Files with their sizes in bytes, by name."""
        try:
            found = {
                path: path.stat().st_size
                for path in sorted(self._path.iterdir())
                if path.suffix.lower() == ".json" and path.is_file()
            }
        except OSError as error:
            raise InvalidInput(
                f"cannot read the folder {self._path}: {error.strerror}", param="dir"
            ) from error
        if not found:
            raise InvalidInput(
                f"{self._path} holds no .json file, one for each user is expected", param="dir"
            )
        return found


@dataclass(slots=True)
class _Mesh:
    """What one file holds."""

    rejects: Rejects
    known_items: Container[str] | None
    owners: Mapping[str, str]
    rows: int = 0
    user_id: str = ""
    memories: list[PutMemory] = field(default_factory=list)
    relations: list[PutRelation] = field(default_factory=list)
    targets: dict[str, _Target] = field(default_factory=dict)  # by node id
    leaving: dict[str, set[tuple[str, _Target]]] = field(default_factory=dict)  # by memory id

    def read(self, path: Path, files: dict[str, str]) -> None:
        """Read a file of a user who is not in `files` yet, and add it there."""
        try:
            file = JsonFile(path)
            found = file.object
            edges = next((key for key in _EDGES if key in found), _EDGES[0])
            for key in ("nodes", edges):
                if not isinstance(found.get(key, []), list):
                    raise NoObject(f"no array: {key!r} is a {type(found[key]).__name__}")
            self.user_id = _user_id(found, path)
            if self.user_id in files:
                raise NoObject(f"second file: {files[self.user_id]} is of user {self.user_id!r} already")
        except (OSError, BadValue) as error:
            reason = f"unreadable file: {error.strerror}" if isinstance(error, OSError) else str(error)
            self.rows = 1
            self.rejects.add(path.name, error.line if isinstance(error, NoObject) else 1, reason, "")
            return
        files[self.user_id] = file.name
        self._each(file, "nodes", self._node)
        self._each(file, edges, self._edge)

    def _each(self, file: JsonFile, key: str, take: Callable[[dict[str, Any]], None]) -> None:
        for place, element in enumerate(file.object.get(key, [])):
            self.rows += 1
            try:
                if not isinstance(element, dict):
                    raise BadValue(f"no object: {key}[{place}] is a {type(element).__name__}")
                take(element)
            except BadValue as bad:
                raw = json.dumps(element, ensure_ascii=False)[:MAX_RAW_CHARS]
                self.rejects.add(file.name, file.line(key, place), str(bad), raw)

    def _node(self, node: dict[str, Any]) -> None:
        node_id = _id(node.get("id"), "node")
        if node_id in self.targets:
            raise BadValue(f"duplicate node: {node_id!r} stands before it in the file")
        item = _first(node, _ITEM)
        if item is not None:
            self.targets[node_id] = ("item", self._item(item))
            return
        text = _first(node, _TEXT)
        if text is None:
            raise BadValue(f"no text: node {node_id!r} has neither a text nor an item to stand for")
        memory = PutMemory(
            memory_id(self.user_id, node_id),
            self.user_id,
            _text(text, "text"),
            _time(node, "valid_at"),
            _time(node, "invalid_at"),
            _text(node.get("source") or "", "source"),
        )
        try:
            check_memory(memory)
        except InvalidInput as error:
            raise BadValue(f"bad node: {error.message}") from error
        if self.owners.get(memory.memory_id, self.user_id) != self.user_id:
            raise BadValue(f"taken id: another user has a memory {memory.memory_id!r}; rename the node")
        self.memories.append(memory)
        self.targets[node_id] = ("memory", memory.memory_id)

    def _edge(self, edge: dict[str, Any]) -> None:
        start, target = self._end(edge, _FROM), self._target(edge)
        if start[0] == "item":
            raise BadValue(f"bad edge: it leaves the item {start[1]!r}, and only memories have relations")
        if start == target:
            raise BadValue("bad edge: it leads to the node that it leaves")
        name = _text(_first(edge, _NAME) or DEFAULT_NAME, "name")
        relation = PutRelation(self.user_id, start[1], name, *target)
        try:
            check_relation(relation)
        except InvalidInput as error:
            raise BadValue(f"bad edge: {error.message}") from error
        leaving = self.leaving.setdefault(start[1], set())
        leaving.add((name, target))
        if len(leaving) > MAX_RELATIONS:
            leaving.discard((name, target))
            raise BadValue(f"bad edge: {MAX_RELATIONS:,} others leave its node, and no memory has more")
        self.relations.append(relation)

    def _target(self, edge: dict[str, Any]) -> _Target:
        item = _first(edge, _ITEM)
        if item is None:
            return self._end(edge, _TO)
        if _first(edge, _TO) is not None:
            raise BadValue("bad edge: it has both a node and an item to lead to")
        return ("item", self._item(item))

    def _end(self, edge: dict[str, Any], keys: Sequence[str]) -> _Target:
        """What a node id of an edge stands for."""
        value = _first(edge, keys)
        if value is None:
            raise BadValue(f"bad edge: it has no {keys[0]!r}")
        node_id = _id(value, "node")
        if node_id not in self.targets:
            raise BadValue(f"unknown node: {node_id!r} is not in the file, or was rejected")
        return self.targets[node_id]

    def _item(self, value: object) -> str:
        item_id = checked_id(_id(value, "item"), "item")
        if self.known_items is not None and item_id not in self.known_items:
            raise BadValue(f"unknown item: {item_id!r} is not in the catalogue")
        return item_id


def memory_id(user_id: str, node_id: str) -> str:
    """Id in the store of the memory that a node of a user's file becomes; see the module."""
    joined = f"{user_id}.{node_id}"
    # Up to the first dot is the user, so no two nodes of two users share an id.
    if "." not in user_id and is_id(joined):
        return joined
    return "mem_" + hashlib.sha256(f"{user_id}\0{node_id}".encode(errors="surrogatepass")).hexdigest()[:20]


def _user_id(found: dict[str, Any], path: Path) -> str:
    value = found.get("user_id")
    return checked_id(path.stem if value is None else _id(value, "user"), "user")


def _id(value: object, kind: str) -> str:
    """An id as text: exports number their nodes as often as they name them."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadValue(f"bad {kind} id: {value!r} is neither a text nor a whole number")
    text = str(value).strip()
    if not text:
        raise BadValue(f"empty {kind} id: every {kind} needs one")
    return text


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise BadValue(f"bad {name}: {value!r} is no text")
    return value.strip()


def _time(node: dict[str, Any], name: str) -> int | None:
    value = node.get(name)
    try:
        return None if value is None else unix_seconds(value)
    except ValueError as error:
        raise BadValue(f"bad time: {name} {value!r} {error}") from error


def _first(element: dict[str, Any], keys: Iterable[str]) -> Any:
    """The value of the first key that has one."""
    return next((element[key] for key in keys if element.get(key) is not None), None)


def _no_ratings() -> RatingColumns:
    none = np.empty(0, np.int32)
    return RatingColumns((), (), none, none, np.empty(0, np.float32), np.empty(0, np.uint32))
