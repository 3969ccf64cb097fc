"""The file stores: segments instead of a file per entry, compaction, damage, readers beside writers."""

from __future__ import annotations

import gzip
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from base64 import b64decode
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from models.embedding_cache.cached_encoder import CachedEncoder
from models.embedding_cache.datasets_store import DatasetsStore
from models.embedding_cache.jsonl_store import JSONLStore
from models.embedding_cache.parquet_store import ParquetStore
from models.embedding_cache.segment_store import SegmentStore
from models.embedding_cache.store import StoreUnavailable
from models.text_encoder.hashing_encoder import HashingEncoder

KEYS = [bytes([n % 256, n // 256]) * 16 for n in range(1_200)]
VALUES = [key * 25 for key in KEYS]
OPENERS: dict[str, Callable[..., SegmentStore]] = {
    "jsonl": JSONLStore,
    "jsonl.gz": lambda folder, **options: JSONLStore(folder, compressed=True, **options),
    "parquet": ParquetStore,
    "datasets": DatasetsStore,
}


@pytest.fixture(params=OPENERS)
def opener(request: pytest.FixtureRequest) -> Callable[..., SegmentStore]:
    return OPENERS[request.param]


def segments(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name[0].isdigit())


def test_what_is_buffered_is_read_and_written_in_one_segment(
    opener: Callable[..., SegmentStore], tmp_path: Path
) -> None:
    with closing(opener(tmp_path, buffer_rows=1_000)) as store:
        for at in range(0, 900, 100):
            store.put_many("model", KEYS[at : at + 100], VALUES[at : at + 100], None)
        assert store.get_many("model", KEYS) == VALUES[:900] + [None] * 300
        assert segments(tmp_path) == []
        store.put_many("model", KEYS[900:1_100], VALUES[900:1_100], None)
        assert len(segments(tmp_path)) == 1
        store.delete("model", KEYS[:100])
        assert store.get_many("model", KEYS[:101]) == [None] * 100 + VALUES[100:101]
    assert len(segments(tmp_path)) == 2
    with closing(opener(tmp_path)) as store:
        assert store.get_many("model", KEYS) == [None] * 100 + VALUES[100:1_100] + [None] * 100


def test_many_segments_are_compacted_into_one(opener: Callable[..., SegmentStore], tmp_path: Path) -> None:
    with closing(opener(tmp_path, buffer_rows=1, max_segments=5)) as store:
        for turn in range(20):
            store.put_many("model", KEYS[turn : turn + 5], VALUES[turn : turn + 5], None)
            store.delete("model", KEYS[turn + 4 : turn + 5])
            assert len(segments(tmp_path)) <= 5 + 2
        expected = VALUES[:23] + [None] * 3
        assert store.get_many("model", KEYS[:26]) == expected
        store.compact()
        assert len(segments(tmp_path)) == 1
        assert store.get_many("model", KEYS[:26]) == expected
        assert store.clear() == 23
        assert segments(tmp_path) == []
    with closing(opener(tmp_path)) as store:
        assert store.namespaces() == {}


def test_a_reader_follows_writes_compaction_and_clearing(
    opener: Callable[..., SegmentStore], tmp_path: Path
) -> None:
    with closing(opener(tmp_path, buffer_rows=1)) as writer, closing(opener(tmp_path)) as reader:
        for turn in range(3):
            writer.put_many("model", KEYS[:50], VALUES[turn : turn + 50], None)
            assert reader.get_many("model", KEYS[:50]) == VALUES[turn : turn + 50]
        writer.compact()
        assert reader.get_many("model", KEYS[:50]) == VALUES[2:52]
        writer.clear()
        assert reader.get_many("model", KEYS[:50]) == [None] * 50
        writer.put_many("model", KEYS[50:99], VALUES[50:99], None)
        assert reader.get_many("model", KEYS[:99]) == [None] * 50 + VALUES[50:99]


def test_a_reader_beside_a_compacting_writer_sees_no_wrong_value(
    opener: Callable[..., SegmentStore], tmp_path: Path
) -> None:
    stopping = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            with closing(opener(tmp_path)) as reader:
                while not stopping.is_set():
                    found = reader.get_many("model", KEYS[:40])
                    assert all(v in (None, w) for v, w in zip(found, VALUES, strict=False))
        except BaseException as error:
            failures.append(error)

    reading = threading.Thread(target=read)
    with closing(opener(tmp_path, buffer_rows=1, max_segments=2)) as writer:
        reading.start()
        for turn in range(12):
            writer.put_many("model", KEYS[turn : turn + 20], VALUES[turn : turn + 20], None)
            if turn % 5 == 4:
                writer.clear()
        stopping.set()
        reading.join()
    assert failures == []


def cut_short(path: Path) -> None:
    files = [path] if path.is_file() else list(path.glob("*.arrow"))
    for file in files:
        os.truncate(file, file.stat().st_size * 2 // 3 - 7)  # not at the end of a line


def scribbled_over(path: Path) -> None:
    for file in [path] if path.is_file() else list(path.iterdir()):
        with file.open("r+b") as open_file:
            open_file.seek(file.stat().st_size // 3)
            open_file.write(os.urandom(file.stat().st_size // 2))


def emptied(path: Path) -> None:
    for file in [path] if path.is_file() else list(path.iterdir()):
        os.truncate(file, 0)


@pytest.mark.parametrize("damage", [cut_short, scribbled_over, emptied])
def test_a_damaged_segment_is_skipped_counted_and_set_aside(
    opener: Callable[..., SegmentStore],
    tmp_path: Path,
    damage: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for at in range(0, 90, 30):
        with closing(opener(tmp_path)) as store:
            store.put_many("model", KEYS[at : at + 30], VALUES[at : at + 30], None)
    spoilt = segments(tmp_path)[1]
    damage(spoilt)
    with caplog.at_level(logging.WARNING), closing(opener(tmp_path)) as store:
        found = store.get_many("model", KEYS[:90])
        assert found[:30] + found[60:] == VALUES[:30] + VALUES[60:90]
        assert all(v in (None, w) for v, w in zip(found, VALUES, strict=False))
        whole_lines_only = damage is emptied and spoilt.suffix in (".jsonl", ".gz")
        assert store.damaged_segments == (0 if whole_lines_only else 1)
        assert whole_lines_only or spoilt.name in caplog.text
        assert len(list(store.entries())) == sum(value is not None for value in found)
        store.put_many("model", KEYS[30:60], VALUES[30:60], None)
        store.compact()
        assert store.get_many("model", KEYS[:90]) == VALUES[:90]
    assert len(segments(tmp_path)) == 1 + (not whole_lines_only)
    with closing(opener(tmp_path)) as store:
        assert store.damaged_segments == 0
        assert store.get_many("model", KEYS[:90]) == VALUES[:90]


def test_a_segment_damaged_after_it_was_indexed(opener: Callable[..., SegmentStore], tmp_path: Path) -> None:
    if opener is DatasetsStore:
        return  # memory-mapped: what is read later are the pages of the file that was opened
    with closing(opener(tmp_path, buffer_rows=1)) as store:
        store.put_many("model", KEYS[:30], VALUES[:30], None)
        store.put_many("model", KEYS[30:60], VALUES[30:60], None)
        scribbled_over(segments(tmp_path)[0])
        found = store.get_many("model", KEYS[:60])
        assert found[30:] == VALUES[30:60]
        assert all(v in (None, w) for v, w in zip(found, VALUES, strict=False)) and None in found
        assert store.damaged_segments == 1


@pytest.mark.parametrize("opener", [JSONLStore, ParquetStore])
def test_a_value_is_given_out_under_its_own_key_only(
    opener: Callable[..., SegmentStore], tmp_path: Path
) -> None:
    with closing(opener(tmp_path, buffer_rows=1)) as store:
        store.put_many("model", KEYS[:30], VALUES[:30], None)
        store.put_many("model", KEYS[30:60], VALUES[30:60], None)
        first, second = segments(tmp_path)
        shutil.copyfile(second, first)
        assert store.get_many("model", KEYS[:60]) == [None] * 30 + VALUES[30:60]


_WRITER = """
import sys
from models.embedding_cache.cached_encoder import CachedEncoder
from models.embedding_cache.jsonl_store import JSONLStore
with_ = bytes([int(sys.argv[2])])
store = JSONLStore(sys.argv[1], buffer_rows=50, max_segments=4)
for turn in range(20):
    keys = [with_ + bytes([n, turn]) + bytes(29) for n in range(50)]
    store.put_many("model", keys, [key * 25 for key in keys], None)
store.close()
"""


def test_processes_take_turns(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path), str(n)]) for n in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    with closing(JSONLStore(tmp_path)) as store:
        assert store.namespaces() == {"model": 3_000}
        assert all(entry.value == entry.key * 25 for entry in store.entries())


def test_a_writer_that_does_not_let_go_is_waited_for_so_long(tmp_path: Path) -> None:
    with (
        closing(JSONLStore(tmp_path)) as holding,
        closing(JSONLStore(tmp_path, lock_timeout_s=0.05)) as store,
    ):
        store.put_many("model", KEYS[:1], VALUES[:1], None)
        with holding._folder.exclusively(), pytest.raises(StoreUnavailable, match="another process"):
            store.flush()


def test_what_a_crash_left_unfinished_is_no_segment_and_goes(
    opener: Callable[..., SegmentStore], tmp_path: Path
) -> None:
    (tmp_path / ".unfinished-1.jsonl").write_bytes(b"{")
    (tmp_path / ".unfinished-1.dataset").mkdir()
    with closing(opener(tmp_path)) as store:
        assert store.namespaces() == {}
        store.put_many("model", KEYS[:1], VALUES[:1], None)
    assert list(tmp_path.glob(".unfinished-*")) == []


def test_jsonl_is_one_object_per_line(tmp_path: Path) -> None:
    with closing(JSONLStore(tmp_path / "plain", clock=lambda: 100.0)) as store:
        store.put_many("model", KEYS[:2], VALUES[:2], 10.0)
    with closing(JSONLStore(tmp_path / "packed", compressed=True, clock=lambda: 100.0)) as store:
        store.put_many("model", KEYS[:2], VALUES[:2], 10.0)
    text = segments(tmp_path / "plain")[0].read_text()
    assert gzip.decompress(segments(tmp_path / "packed")[0].read_bytes()).decode() == text
    lines = [json.loads(line) for line in text.splitlines()]
    assert [bytes.fromhex(line["key"]) for line in lines] == KEYS[:2]
    assert [b64decode(line["value"]) for line in lines] == VALUES[:2]
    assert {(line["namespace"], line["written_at"], line["expires_at"]) for line in lines} == {
        ("model", 100.0, 110.0)
    }


def test_others_can_read_what_is_written(tmp_path: Path) -> None:
    import datasets
    import pyarrow.parquet

    for opener, folder in ((ParquetStore, tmp_path / "p"), (DatasetsStore, tmp_path / "d")):
        with closing(opener(folder)) as store:
            store.put_many("model", KEYS[:3], VALUES[:3], None)
    table = pyarrow.parquet.read_table(segments(tmp_path / "p")[0])
    found = datasets.load_from_disk(str(segments(tmp_path / "d")[0]))
    for read in (table.to_pylist(), list(found)):
        assert [(row["namespace"], row["key"], row["value"]) for row in read] == [
            ("model", key, value) for key, value in zip(KEYS[:3], VALUES, strict=False)
        ]


def test_writing_a_dataset_shows_no_bar(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import datasets

    with closing(DatasetsStore(tmp_path)) as store:
        store.put_many("model", KEYS[:3], VALUES[:3], None)
    assert capfd.readouterr() == ("", "")
    assert not datasets.utils.are_progress_bars_disabled()


def test_a_place_that_cannot_be_written(opener: Callable[..., SegmentStore], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreUnavailable, match="file"):
            opener(folder)
    store = opener(tmp_path / "going")
    store.put_many("model", KEYS[:1], VALUES[:1], None)
    store.flush()
    removed = tmp_path / "gone"
    (tmp_path / "going").rename(removed)
    with pytest.raises(StoreUnavailable):
        store.get_many("model", KEYS[:1])
    removed.rename(tmp_path / "going")
    assert store.get_many("model", KEYS[:1]) == VALUES[:1]
    store.close()


def test_a_changed_character_makes_a_line_of_json_damaged(tmp_path: Path) -> None:
    with closing(JSONLStore(tmp_path)) as store:
        store.put_many("model", KEYS[:3], VALUES[:3], None)
    (segment,) = segments(tmp_path)
    text = segment.read_text()
    middle = text.index('"value":"') + 12
    other = "B" if text[middle] == "A" else "A"
    segment.write_text(text[:middle] + other + text[middle + 1 :])
    with closing(JSONLStore(tmp_path)) as store:
        assert store.get_many("model", KEYS[:3]) == [None, *VALUES[1:3]]
        assert store.damaged_segments == 1


def test_a_cached_encoder_leaves_nothing_in_the_buffer(
    opener: Callable[..., SegmentStore], tmp_path: Path
) -> None:
    texts = [f"text {n}" for n in range(50)]
    with CachedEncoder(HashingEncoder(16), opener(tmp_path), memory_bytes=0) as cached:
        cached.encode(texts[:20])
        cached.flush()
        with closing(opener(tmp_path)) as other:
            assert sum(other.namespaces().values()) == 20
        cached.encode(texts)
    with closing(opener(tmp_path)) as other:
        assert sum(other.namespaces().values()) == 50
