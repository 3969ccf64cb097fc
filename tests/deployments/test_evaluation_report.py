"""`weft evaluate`: from a data set to a report, and from a report to a table."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict

import pytest
from rich.console import Console

from deployments import evaluation_report
from deployments.evaluation_report import as_table, evaluate_dataset
from graph.datasets import DemoDataset
from graph.errors import InvalidInput
from models.cold_start import ColdReport
from models.evaluation import Report
from models.graph_encoder.fitting import FitConfig
from models.graph_encoder.parameters import EncoderKind
from models.graph_encoder.training import Progress, TrainingConfig
from models.text_encoder.hashing_encoder import HashingEncoder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    def config(encoder: EncoderKind, seed: int) -> TrainingConfig:
        return TrainingConfig(encoder, seed=seed, search=False, fit=FitConfig(dim=4, steps=3))

    monkeypatch.setattr(evaluation_report, "TrainingConfig", config)


def shown(report: Report | ColdReport) -> str:
    written = io.StringIO()
    Console(width=200, file=written).print(as_table(report))
    return written.getvalue()


def ignore(_: Progress) -> None:
    pass


def run(
    protocol: str, progress: Callable[[Progress], None] = ignore, text: bool = True
) -> Report | ColdReport:
    encoder = HashingEncoder(16, "words") if text else None
    return evaluate_dataset(DemoDataset(), protocol, False, 0, progress, encoder)


@pytest.mark.usefixtures("quick")
def test_cold_is_measured_on_words_and_on_text_vectors() -> None:
    steps: list[Progress] = []
    report = run("cold", steps.append)
    assert isinstance(report, ColdReport)
    assert steps[0].stage == "embedding"
    json.dumps(asdict(report), allow_nan=False)
    table = shown(report)
    for system in report.systems:
        assert table.count(system.system) == len(report.sizes) + 1
    for size in report.sizes:
        assert f"{size.bucket}: {size.num_items:,} items" in table
    # Popularity tells unrated items apart by nothing.
    first = next(line for line in table.splitlines() if "popularity" in line)
    assert first.count(" - ") == 3


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("text", [True, False])
def test_a_text_encoder_takes_the_place_of_words(text: bool) -> None:
    report = run("recommenders", text=text)
    assert not isinstance(report, ColdReport)
    assert report.training["features"] == ("text" if text else "hashed")
    assert "weft" in shown(report)


def test_another_protocol_is_refused() -> None:
    with pytest.raises(InvalidInput, match="recommenders, temporal, cold"):
        run("weekly")
