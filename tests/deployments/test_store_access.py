"""Commands write under the store's lock; importing twice changes nothing."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from deployments.encoder_pointers import ACTIVE, digest_of
from deployments.settings import Settings
from deployments.store_access import activate, active_encoder, open_writer, read_view, service_url
from graph.datasets import DemoDataset, MovieLensDataset, Rejects, run_import
from graph.datasets.records import Dataset, ImportSummary
from graph.errors import InvalidInput, StoreLocked, UnknownItem
from graph.lock import lock_of
from graph.schema import PutItem, PutRating, WriteRequest


@pytest.fixture
def settings(tmp_path: Path, store_url: str) -> Settings:
    return Settings.model_validate({"data_dir": tmp_path / "data", "store": {"url": store_url}})


def imported(settings: Settings, dataset: Dataset, rejects: Path, strict: bool = False) -> ImportSummary:
    with open_writer(settings, "test") as write:
        return run_import(dataset, write, Rejects(rejects), strict)


def test_importing_the_demo_twice_changes_nothing(settings: Settings, tmp_path: Path) -> None:
    first = imported(settings, DemoDataset(), tmp_path / "rejects.csv")
    view = read_view(settings)
    assert (view.num_items, view.num_users, view.num_ratings) == (first.items, 900, first.ratings)
    assert view.num_memories == first.memories > 900
    again = imported(settings, DemoDataset(), tmp_path / "rejects.csv")
    assert again.changed == 0
    assert again.version == first.version == read_view(settings).version


def test_importing_movielens_twice_changes_nothing(
    settings: Settings, tmp_path: Path, shared_data: Path
) -> None:
    dataset = MovieLensDataset(shared_data / "ml-latest-small")
    first = imported(settings, dataset, tmp_path / "rejects.csv")
    assert (first.ratings, read_view(settings).num_ratings) == (100_836, 100_836)
    assert imported(settings, dataset, tmp_path / "rejects.csv").changed == 0


def movielens_with_bad_rows(folder: Path) -> MovieLensDataset:
    folder.mkdir()
    (folder / "movies.csv").write_text("movieId,title,genres\n1,One (1999),Drama\n2,Two (2001),Comedy\n")
    (folder / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n7,1,4.0,100\n7,99,4.0,101\n7,2,nan,102\n7,2,9,103\n8,1,2.5,104\n8,1,3,105\n"
    )
    return MovieLensDataset(folder)


def test_bad_rows_are_listed_and_the_rest_is_kept(settings: Settings, tmp_path: Path) -> None:
    rejects = tmp_path / "rejects.csv"
    summary = imported(settings, movielens_with_bad_rows(tmp_path / "ml"), rejects)
    assert (summary.ratings, summary.rejected, read_view(settings).num_ratings) == (2, 4, 2)
    with rejects.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(Path(r["file"]).name, int(r["line"])) for r in rows] == [
        ("ratings.csv", n) for n in (3, 4, 5, 7)
    ]
    assert all(r["reason"] for r in rows)


def test_strict_writes_nothing(settings: Settings, tmp_path: Path) -> None:
    dataset = movielens_with_bad_rows(tmp_path / "ml")
    with pytest.raises(InvalidInput, match="nothing was imported"):
        imported(settings, dataset, tmp_path / "rejects.csv", strict=True)
    assert read_view(settings).version == 0


def test_a_store_in_use_is_refused_with_its_holder(settings: Settings) -> None:
    with lock_of(settings.store_url, settings.data_dir, "a test"):
        assert service_url(settings) is None
        with pytest.raises(StoreLocked, match=r"a test \(pid \d+\)"), open_writer(settings, "test"):
            pass


def test_a_refused_operation_is_raised(settings: Settings) -> None:
    with open_writer(settings, "test") as write, pytest.raises(UnknownItem):
        write(WriteRequest((PutRating("u", "nowhere", 3.0),)))


def test_activating_without_a_service_moves_the_pointer(settings: Settings) -> None:
    with open_writer(settings, "test") as write:
        write(WriteRequest((PutItem("a", "A"),)))
    assert active_encoder(settings) is None
    activate(settings, "0123456789abcdef")
    assert digest_of(read_view(settings), ACTIVE) == "0123456789abcdef"
    assert active_encoder(settings) is None, "there is no such directory"
    (settings.encoder_dir / "0123456789abcdef").mkdir(parents=True)
    assert active_encoder(settings) == settings.encoder_dir / "0123456789abcdef"
