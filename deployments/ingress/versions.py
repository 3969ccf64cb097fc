"""Version tokens at the edge, and what this replica has acknowledged.

A read waits for the highest of three versions: the header `x-weft-min-version`, the query parameter
`min_version`, and what this replica acknowledged for the user or item in question. The last covers clients
that keep no token; with several ingress replicas the header is the guarantee.
"""

from __future__ import annotations

from graph.schema import Token


class Acknowledged:
    """The version of the latest write of each of the most recently written nodes.

    Bounded: the node written longest ago is forgotten first, by when every view has long passed its version.
    """

    def __init__(self, capacity: int = 100_000) -> None:
        self._capacity = capacity
        self._store_id = ""
        self._versions: dict[str, int] = {}

    def remember(self, store_id: str, node_id: str, version: int) -> None:
        if store_id != self._store_id:
            # Another store: its versions are not comparable with those remembered.
            self._versions.clear()
            self._store_id = store_id
        # Two writes may be answered out of order; the later version counts.
        version = max(version, self._versions.pop(node_id, 0))
        self._versions[node_id] = version
        if len(self._versions) > self._capacity:
            del self._versions[next(iter(self._versions))]

    def version_of(self, store_id: str, node_id: str) -> int:
        """What a read of this node has to have seen, 0 if nothing is known."""
        return self._versions.get(node_id, 0) if store_id == self._store_id else 0

    def __len__(self) -> int:
        return len(self._versions)


def required_version(store_id: str, *tokens: str | None) -> int:
    """The highest version among `tokens`; raises InvalidInput and ForeignToken (param `min_version`)."""
    version = 0
    for token in tokens:
        if token is not None:
            version = max(version, Token.parse(token).version_in(store_id))
    return version
