"""The store of adapters: imports, damage, races, paths and archives meant to do harm."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from graph.errors import InvalidAdapter, InvalidInput, Unavailable, UnknownAdapter, WeftError
from models.adapters import AdapterStore, content_digest
from models.language_model.base_spec import BaseModelSpec

MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj")
SPEC = BaseModelSpec("tiny", "0" * 64, dict.fromkeys(MODULES, (6, 5)))
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["q_proj"]}
FILES = ("adapter_config.json", "adapter_model.safetensors")


def tensors(seed: int = 0, rank: int = 2) -> dict[str, torch.Tensor]:
    """A LoRA state for both modules."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for module in MODULES:
        made[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, 6, generator=generator)
        made[f"base_model.model.{module}.lora_B.weight"] = torch.randn(5, rank, generator=generator)
    return made


def write(folder: Path, seed: int = 0, config: dict[str, Any] | None = None) -> Path:
    """A folder in PEFT's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILES[0]).write_text(json.dumps(CONFIG if config is None else config))
    (folder / FILES[1]).write_bytes(save(tensors(seed)))
    return folder


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    return write(tmp_path / "inbox" / "alice").parent


@pytest.fixture
def store(tmp_path: Path, inbox: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "root", inbox, SPEC, max_rank=8, max_bytes=1 << 16)


def test_a_folder_is_kept_under_its_digest_and_read_back(store: AdapterStore, tmp_path: Path) -> None:
    files = store.import_folder("alice")
    folder = tmp_path / "root" / files.digest
    assert content_digest(*((folder / name).read_bytes() for name in FILES)) == files.digest
    assert store.digests() == (files.digest,)
    assert (files.rank, files.modules) == (2, ("q_proj",))
    assert files.size_bytes == sum((folder / name).stat().st_size for name in FILES)
    weights = store.load(files.digest)
    given = load_file(folder / FILES[1])
    for module, (a, b) in weights.modules.items():
        key = f"base_model.model.{module}"
        assert torch.equal(a, given[f"{key}.lora_A.weight"])
        torch.testing.assert_close(b, given[f"{key}.lora_B.weight"] * 1.5)
    assert store.import_folder("alice") == files
    assert os.listdir(tmp_path / "root") == [files.digest]


def test_what_changes_nothing_in_the_configuration_changes_no_digest(
    store: AdapterStore, inbox: Path
) -> None:
    write(inbox / "same", config={**CONFIG, "lora_dropout": 0.1, "new_field": {"x": 1}, "lora_alpha": 3.0})
    write(inbox / "other", config={**CONFIG, "lora_alpha": 4})
    digests = [store.import_folder(name).digest for name in ("alice", "same", "other")]
    assert digests[0] == digests[1] != digests[2]


def test_delete(store: AdapterStore, tmp_path: Path) -> None:
    digest = store.import_folder("alice").digest
    assert store.delete(digest)
    assert not store.delete(digest)
    assert os.listdir(tmp_path / "root") == []
    with pytest.raises(UnknownAdapter):
        store.load(digest)
    with pytest.raises(UnknownAdapter):
        store.delete("../alice")


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_vanishes_or_is_damaged(store: AdapterStore, tmp_path: Path, name: str) -> None:
    digest = store.import_folder("alice").digest
    path = tmp_path / "root" / digest / name
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(InvalidAdapter):
        store.load(digest)
    path.unlink()
    with pytest.raises(UnknownAdapter):
        store.load(digest)
    store.import_folder("alice")
    assert store.load(digest).digest == digest


def test_importers_of_the_same_adapter_agree(store: AdapterStore, tmp_path: Path) -> None:
    barrier = threading.Barrier(8)
    digests: list[str] = []

    def run() -> None:
        barrier.wait(10)
        digests.append(store.import_folder("alice").digest)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(digests) == 8
    assert os.listdir(tmp_path / "root") == [digests[0]]


def test_old_leftovers_are_removed_at_start(tmp_path: Path) -> None:
    for name, age in ((".incoming-old", 7200), (".trash-old", 7200), (".incoming-new", 0)):
        folder = tmp_path / "root" / name
        folder.mkdir(parents=True)
        (folder / "x").touch()
        now = folder.stat().st_mtime
        os.utime(folder, (now - age, now - age))
    AdapterStore(tmp_path / "root", tmp_path / "inbox", None, max_rank=8, max_bytes=1 << 16)
    assert os.listdir(tmp_path / "root") == [".incoming-new"]


# --------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize(
    "path",
    [
        "", ".", "..", "/", "/etc", "../inbox/alice", "alice/..", "alice/../alice", "a//b",
        "./alice",
        "alice\0", "al\nice", "alice\\x", "\u202ealice", "a\u0301lice", "\ud800", "al\u200bice", ".hidden",
        "x" * 256, "a/b/c/d/e", "nobody", "alice/adapter_config.json",
    ],
)  # fmt: skip
def test_paths_that_lead_elsewhere_are_refused(store: AdapterStore, path: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        store.import_folder(path)
    assert caught.value.param == "path"


def test_links_pipes_and_pickles_are_refused(store: AdapterStore, inbox: Path, tmp_path: Path) -> None:
    outside = write(tmp_path / "outside")
    (inbox / "link").symlink_to(outside)
    (inbox / "linked_file").mkdir()
    (inbox / "linked_file" / FILES[0]).symlink_to(outside / FILES[0])
    os.mkfifo(write(inbox / "pipe") / "x")
    (inbox / "pipe" / FILES[1]).unlink()
    os.rename(inbox / "pipe" / "x", inbox / "pipe" / FILES[1])
    (write(inbox / "pickle") / "adapter_model.bin").write_bytes(b"\x80")
    (write(inbox / "large") / FILES[1]).write_bytes(bytes(1 << 17))
    (inbox / "link.pt").symlink_to(outside / FILES[1])
    (inbox / "folder.pt").mkdir()
    (inbox / "inner" / FILES[0]).mkdir(parents=True)
    odd = ["link", "linked_file", "pipe", "pickle", "large", "link.pt", "folder.pt", "inner"]
    for name in odd:
        with pytest.raises(InvalidInput):
            store.import_folder(name)
    assert store.digests() == ()
    problems = {c.path: c.problem for c in store.candidates()}
    assert set(problems) == {"alice", *odd} - {"folder.pt"}  # nothing is in that folder
    assert [path for path, problem in problems.items() if problem is None] == ["alice"]


# ------------------------------------------------------------------------------------------------ .pt files


def test_a_state_of_torch_is_converted(store: AdapterStore, inbox: Path) -> None:
    bare = {key.removeprefix("base_model.model."): value for key, value in tensors().items()}
    torch.save({**bare, "lora_alpha": 3}, inbox / "bare.pt")
    torch.save({k.replace(".weight", ".default.weight"): v for k, v in tensors().items()}, inbox / "one.pt")
    alice = store.load(store.import_folder("alice").digest)
    for path, scaling in (("bare.pt", 1.5), ("one.pt", 1.0)):
        found = store.load(store.import_folder(path).digest)
        for module, (a, b) in alice.modules.items():
            assert torch.equal(found.modules[module][0], a)
            torch.testing.assert_close(found.modules[module][1], b / 1.5 * scaling)


class Malicious:
    """Pickles to a call."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_no_pickle_is_ever_run(store: AdapterStore, inbox: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save({"lora_A": Malicious(marker)}, inbox / "zip.pt")
    (inbox / "raw.pt").write_bytes(pickle.dumps(Malicious(marker)))
    (write(inbox / "named") / FILES[1]).write_bytes(pickle.dumps(Malicious(marker)))
    for path in ("zip.pt", "raw.pt", "named"):
        with pytest.raises(InvalidAdapter):
            store.import_folder(path)
    assert not marker.exists()
    pickle.loads((inbox / "raw.pt").read_bytes())
    assert marker.exists()  # the trap works


def test_a_state_larger_than_it_looks_is_refused(store: AdapterStore, inbox: Path) -> None:
    huge = torch.zeros(1).expand(1 << 20, 1 << 20)
    torch.save({f"{MODULES[0]}.lora_A.weight": huge}, inbox / "huge.pt")
    key = f"{MODULES[0]}.lora_A.weight"
    double, meta = torch.ones(2, 6).to(torch.complex64), torch.ones(2, 6, device="meta")
    for content in ([1, 2], {"x": "t"}, {}, {1: huge}, {"\ud800": huge}, {key: double}, {key: meta}):
        torch.save(content, inbox / "odd.pt")
        with pytest.raises(InvalidAdapter):
            store.import_folder("odd.pt")
    with pytest.raises(InvalidAdapter, match="more than"):
        store.import_folder("huge.pt")


# ------------------------------------------------------------------------------------------------- archives


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return path


def member(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def both() -> list[tuple[tarfile.TarInfo, bytes]]:
    return [member(FILES[0], json.dumps(CONFIG).encode()), member(FILES[1], save(tensors()))]


def test_an_archive_is_the_same_adapter_as_the_folder(store: AdapterStore, tmp_path: Path) -> None:
    digest = store.import_folder("alice").digest
    plain = archive(tmp_path / "a.tar", *both(), member("README.md", b"hello"))
    assert store.import_archive(plain).digest == digest
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.add(tmp_path / "inbox" / "alice", ".")
    assert store.import_archive(tmp_path / "b.tar").digest == digest


@pytest.mark.parametrize(
    "extra",
    [
        member("../evil"), member("/etc/passwd"), member("sub/adapter_config.json"), member("evil.py"),
        member(FILES[0], json.dumps(CONFIG).encode()),
        member("README.md", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("README.md", type=tarfile.LNKTYPE, linkname=FILES[0]),
        member("README.md", type=tarfile.CHRTYPE),
        member("README.md", type=tarfile.FIFOTYPE), member("README.md", type=tarfile.GNUTYPE_SPARSE),
        member("README.md", bytes(1 << 17)), member("sub", type=tarfile.DIRTYPE),
    ],
    ids=lambda extra: f"{extra[0].name}-{extra[0].type!r}",
)  # fmt: skip
def test_archives_with_anything_else_are_refused(
    store: AdapterStore, tmp_path: Path, extra: tuple[tarfile.TarInfo, bytes]
) -> None:
    with pytest.raises(InvalidAdapter):
        store.import_archive(archive(tmp_path / "a.tar", *both(), extra))
    assert store.digests() == ()


def test_damaged_archives_are_refused(store: AdapterStore, tmp_path: Path) -> None:
    digest = store.import_folder("alice").digest
    path = tmp_path / "a.tar"
    whole = archive(path, *both()).read_bytes()
    for end in range(0, len(whole), 197):
        path.write_bytes(whole[:end])
        try:
            assert store.import_archive(path).digest == digest
        except InvalidAdapter:
            continue
    info, data = member(FILES[0], b"{}", pax_headers={"size": str(1 << 50)})
    for bad in (archive(path, (info, data)), archive(path, *both(), mode="w:gz")):
        with pytest.raises(InvalidAdapter):
            store.import_archive(bad)


# --------------------------------------------------------------------------------------------- candidates


def test_candidates_are_read_again_only_when_they_change(
    store: AdapterStore, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(inbox / "team" / "bob", seed=1)
    half = write(inbox / "half")
    whole = (half / FILES[1]).read_bytes()
    (half / FILES[1]).write_bytes(whole[:50])
    (inbox / ".hidden").mkdir()
    torch.save(tensors(2), inbox / "state.pt")
    first = {c.path: c for c in store.candidates()}
    assert set(first) == {"alice", "half", "state.pt", "team/bob"}
    assert first["half"].problem and first["half"].digest is None
    for path in ("alice", "state.pt", "team/bob"):
        assert first[path].digest == store.import_folder(path).digest
    read: list[str] = []
    original = store._candidate
    monkeypatch.setattr(
        store, "_candidate", lambda path, facts: (read.append(path), original(path, facts))[1]
    )
    assert {c.path: c for c in store.candidates()} == first
    assert read == []
    (half / FILES[1]).write_bytes(whole)
    assert {c.path: c for c in store.candidates()}["half"].digest == first["alice"].digest
    assert read == ["half"]


def test_a_full_disk_is_no_fault_of_the_adapter(
    store: AdapterStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WeftError, match="No space left") as caught:
        store.import_folder("alice")
    assert caught.value.retryable
    assert os.listdir(tmp_path / "root") == []


def test_a_failing_disk_is_not_a_missing_adapter(
    store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = store.import_folder("alice").digest

    def failing(*args: object, **kwargs: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(Unavailable, match="Too many open files"):
        store.load(digest)


# ---------------------------------------------------------------------------------------------------- fuzz


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from((*FILES, "state.pt")),
    flips=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(1, 255)), max_size=3),
    cut=st.none() | st.integers(0, 1 << 12),
)
def test_random_damage_is_a_typed_error(
    store: AdapterStore, inbox: Path, name: str, flips: list[tuple[int, int]], cut: int | None
) -> None:
    folder = write(inbox / "fuzz")
    torch.save(tensors(), inbox / "state.pt")
    path = inbox / name if name == "state.pt" else folder / name
    content = bytearray(path.read_bytes())
    for place, bits in flips:
        content[place % len(content)] ^= bits
    path.write_bytes(content if cut is None else content[: cut % (len(content) + 1)])
    try:
        digest = store.import_folder("state.pt" if name == "state.pt" else "fuzz").digest
    except InvalidAdapter:
        return
    assert store.load(digest).digest == digest
