"""LoRA adapters on disk: directories that are named by the digest of their content and never change."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import stat
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from graph.errors import InvalidAdapter, Unavailable, UnknownAdapter, WeftError
from models.adapter_archive import read_archive
from models.adapter_import import RawAdapter, read_inbox, read_regular
from models.adapter_pointers import AdapterFiles, is_adapter_digest
from models.language_model.base_spec import BaseModelSpec
from models.language_model.lora_config import MAX_CONFIG_BYTES, canonical_config, parse_config
from models.language_model.lora_weights import CONFIG_FILE, WEIGHTS_FILE, AdapterWeights, parse_weights

_INCOMING, _TRASH = ".incoming-", ".trash-"
_LEFTOVER_S = 3_600.0
_MAX_CANDIDATES = 1_000


@dataclass(frozen=True, slots=True)
class Candidate:
    """What lies in the inbox: an adapter that can be imported by its path, or something with a problem."""

    path: str
    digest: str | None
    size_bytes: int
    problem: str | None


class AdapterStore:
    """Imports, loads and removes adapters. Thread-safe; several processes may share the folders."""

    def __init__(
        self, root: Path, inbox: Path, spec: BaseModelSpec | None, *, max_rank: int, max_bytes: int
    ) -> None:
        """`spec` None leaves out what cannot be checked without a base model; `max_bytes` is per adapter."""
        self._root, self._inbox, self._spec = root, inbox, spec
        self._max_rank, self._max_bytes = max_rank, max_bytes
        self._listed: dict[str, tuple[tuple[object, ...], Candidate]] = {}
        self._listing = threading.Lock()
        root.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()

    def import_folder(self, relative: str) -> AdapterFiles:
        """Import a folder or `.pt` file of the inbox; the same content again changes nothing.

        Raises InvalidInput for the path, InvalidAdapter for the files.
        """
        return self._keep(read_inbox(self._inbox, relative, self._max_bytes))

    def import_archive(self, path: Path) -> AdapterFiles:
        """Import a tar archive; raises what `models.adapter_archive.read_archive` does."""
        return self._keep(read_archive(path, self._max_bytes))

    def load(self, digest: str) -> AdapterWeights:
        """Read and verify an adapter; UnknownAdapter when it is gone, InvalidAdapter when it is damaged."""
        raw = self._read(digest)
        if content_digest(raw.config, raw.weights) != digest:
            raise InvalidAdapter(f"the files of adapter {digest} are damaged; import them again")
        config = parse_config(raw.config)
        return parse_weights(raw.weights, config, self._spec, digest=digest, max_rank=self._max_rank)

    def info(self, digest: str) -> AdapterFiles:
        """What the store has under a digest, weights unread; raises as `load`."""
        folder = self._open(digest)
        try:
            data = read_regular(folder, CONFIG_FILE, MAX_CONFIG_BYTES)
            facts = os.stat(WEIGHTS_FILE, dir_fd=folder, follow_symlinks=False)
        except (FileNotFoundError, InvalidAdapter) as error:
            raise self._incomplete(digest, error) from error
        finally:
            os.close(folder)
        config = parse_config(data)
        ends = {module.rpartition(".")[2] for module in config.target_modules or ()}
        return AdapterFiles(
            digest, len(data) + facts.st_size, config.rank, tuple(sorted(ends)), facts.st_mtime
        )

    def delete(self, digest: str) -> bool:
        """Remove an adapter; False when there was none. Whoever has loaded it keeps it."""
        _check_digest(digest)
        trash = self._root / f"{_TRASH}{secrets.token_hex(8)}"
        try:
            os.rename(self._root / digest, trash)
        except FileNotFoundError:
            return False
        _sync_folder(self._root)
        shutil.rmtree(trash)
        return True

    def digests(self) -> tuple[str, ...]:
        """All adapters of the store, sorted."""
        return tuple(sorted(name for name in os.listdir(self._root) if is_adapter_digest(name)))

    # -------------------------------------------------------------------------------------------- candidates

    def candidates(self) -> list[Candidate]:
        """Adapters of the inbox and of its folders, by path; read only if their files changed since."""
        with self._listing:
            found: dict[str, tuple[tuple[object, ...], Candidate]] = {}
            for path in self._paths()[:_MAX_CANDIDATES]:
                print_ = self._fingerprint(path)
                if print_ is None:  # gone meanwhile
                    continue
                known = self._listed.get(path)
                same = known is not None and known[0] == print_
                found[path] = known if same and known is not None else (print_, self._candidate(path, print_))
            self._listed = found
            return [candidate for _, candidate in found.values()]

    def _paths(self) -> list[str]:
        """Folders with an adapter's file in them, `.pt` files and links, at most two levels down."""
        paths = []
        for path, entry in _entries(self._inbox, ""):
            if entry.is_dir(follow_symlinks=False) and not _is_adapter(Path(entry.path)):
                paths += [
                    inner
                    for inner, below in _entries(Path(entry.path), f"{path}/")
                    if below.name.endswith(".pt") or below.is_symlink() or below.is_dir(follow_symlinks=False)
                ]
            elif entry.name.endswith(".pt") or entry.is_symlink() or entry.is_dir(follow_symlinks=False):
                paths.append(path)
        return sorted(paths)

    def _fingerprint(self, path: str) -> tuple[object, ...] | None:
        """Changes when an adapter's files do."""
        place = self._inbox / path
        files = [place.parent / CONFIG_FILE, place] if path.endswith(".pt") else [place]
        try:
            if stat.S_ISDIR(place.lstat().st_mode):
                files += [place / name for name in sorted(os.listdir(place))]
        except OSError:
            return None
        facts: list[object] = []
        for file in files:
            try:
                found = file.lstat()
            except OSError:
                facts.append(None)
            else:
                size = found.st_size if stat.S_ISREG(found.st_mode) else 0
                facts.append((file.name, found.st_ino, size, found.st_mtime_ns, found.st_ctime_ns))
        return tuple(facts)

    def _candidate(self, path: str, print_: tuple[object, ...]) -> Candidate:
        size = sum(facts[2] for facts in print_ if isinstance(facts, tuple))
        try:
            config, weights, _ = self._validate(read_inbox(self._inbox, path, self._max_bytes))
        except WeftError as error:
            return Candidate(ascii(path)[1:-1] if not path.isprintable() else path, None, size, error.message)
        return Candidate(path, content_digest(config, weights), len(config) + len(weights), None)

    # ----------------------------------------------------------------------------------------------- writing

    def _validate(self, raw: RawAdapter) -> tuple[bytes, bytes, AdapterWeights]:
        config = parse_config(raw.config)
        weights = parse_weights(raw.weights, config, self._spec, digest="", max_rank=self._max_rank)
        ranks = {module: a.shape[0] for module, (a, _) in weights.modules.items()}
        canonical = canonical_config(config, ranks)
        if len(canonical) > MAX_CONFIG_BYTES:
            raise InvalidAdapter(f"the adapter has {len(ranks)} modules, whose names are too long")
        return canonical, raw.weights, weights

    def _keep(self, raw: RawAdapter) -> AdapterFiles:
        config, weights, _ = self._validate(raw)
        digest = content_digest(config, weights)
        incoming = self._root / f"{_INCOMING}{secrets.token_hex(8)}"
        try:
            incoming.mkdir()
            _write_synced(incoming / CONFIG_FILE, config)
            _write_synced(incoming / WEIGHTS_FILE, weights)
            _sync_folder(incoming)
            self._place(incoming, digest)
        except OSError as error:
            raise Unavailable(f"the adapter cannot be stored: {error.strerror}; try again") from error
        finally:
            shutil.rmtree(incoming, ignore_errors=True)  # it was renamed, if all went well
        return self.info(digest)

    def _place(self, incoming: Path, digest: str) -> None:
        """Give new files their name, unless the same are there; damaged ones are replaced."""
        for _ in range(8):
            try:
                os.rename(incoming, self._root / digest)
            except OSError:
                if not (self._root / digest).exists():
                    raise
            else:
                _sync_folder(self._root)
                return
            try:
                raw = self._read(digest)
            except (UnknownAdapter, InvalidAdapter):
                self.delete(digest)
                continue
            if content_digest(raw.config, raw.weights) == digest:
                return
            self.delete(digest)
        raise InvalidAdapter(f"adapter {digest} was replaced and removed again and again meanwhile")

    # ----------------------------------------------------------------------------------------------- reading

    def _open(self, digest: str) -> int:
        _check_digest(digest)
        try:
            return os.open(self._root / digest, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise UnknownAdapter(f"the files of adapter {digest} are gone; import them again") from error
            raise Unavailable(f"adapter {digest} cannot be read: {error.strerror}") from error

    def _read(self, digest: str) -> RawAdapter:
        folder = self._open(digest)
        try:
            return RawAdapter(
                read_regular(folder, CONFIG_FILE, MAX_CONFIG_BYTES),
                read_regular(folder, WEIGHTS_FILE, self._max_bytes),
            )
        except InvalidAdapter as error:
            raise self._incomplete(digest, error) from error
        finally:
            os.close(folder)

    def _incomplete(self, digest: str, error: Exception) -> WeftError:
        folder = self._root / digest
        if all((folder / name).exists() for name in (CONFIG_FILE, WEIGHTS_FILE)):
            return InvalidAdapter(f"the files of adapter {digest} are damaged: {error}; import them again")
        return UnknownAdapter(f"files of adapter {digest} are gone; import them again")

    def _remove_leftovers(self) -> None:
        """What importers and deleters left that did not come to their end."""
        for entry in os.scandir(self._root):
            if entry.name.startswith((_INCOMING, _TRASH)):
                try:
                    age = time.time() - entry.stat(follow_symlinks=False).st_mtime
                except FileNotFoundError:
                    continue
                if age > _LEFTOVER_S:
                    shutil.rmtree(entry.path, ignore_errors=True)


def content_digest(config: bytes, weights: bytes) -> str:
    """SHA-256, hex, over the two files of an adapter as the store has them."""
    sha = hashlib.sha256(b"weft adapter 1\0" + len(config).to_bytes(8))
    sha.update(config)
    sha.update(weights)
    return sha.hexdigest()


def _entries(folder: Path, prefix: str) -> list[tuple[str, os.DirEntry[str]]]:
    try:
        with os.scandir(folder) as entries:
            return [(prefix + entry.name, entry) for entry in entries if not entry.name.startswith(".")]
    except OSError:  # not made yet, or gone meanwhile
        return []


def _is_adapter(folder: Path) -> bool:
    return any(path.startswith("adapter_") for path, _ in _entries(folder, ""))


def _check_digest(digest: str) -> None:
    if not is_adapter_digest(digest):
        raise UnknownAdapter(f"no adapter {digest[:80]!r}: a digest has 64 hex digits")


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
