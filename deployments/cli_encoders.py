"""`weft train`, `weft evaluate` and `weft encoder`: making encoders, measuring them, putting them to use."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from deployments.cli_output import AsJson, messages, print_json, progress_bar
from deployments.settings import Settings
from graph.errors import InvalidInput, NotFound, Unavailable

if TYPE_CHECKING:
    from models.graph_encoder.parameters import EncoderKind

commands = typer.Typer(no_args_is_help=True)

Kind = Annotated[
    Literal["linear", "sage"],
    typer.Option("--encoder", help="linear ranks best; sage gives memories vectors too."),
]


def train(
    encoder: Kind = "linear",
    seed: Annotated[int, typer.Option(help="Same seed, same encoder.")] = 0,
    activate: Annotated[bool, typer.Option(help="Make it the running encoder.")] = True,
    as_json: AsJson = False,
) -> None:
    """Train an encoder on the ratings and texts of the store and put it into service."""
    settings = Settings()
    path, metadata = (
        train_and_activate(settings, seed, encoder) if activate else _train(settings, seed, encoder)
    )
    if as_json:
        print_json({"encoder": path.name, "path": str(path), "metadata": metadata})
    else:
        print(path.name)


@commands.command("list")
def list_encoders(as_json: AsJson = False) -> None:
    """Encoders in the data directory."""
    from deployments.store_access import active_encoder
    from models.graph_encoder.checkpoint import load_checkpoint
    from models.graph_encoder.checkpoint_parameters import kind_of

    settings = Settings()
    active = active_encoder(settings)
    folder = settings.encoder_dir
    found = []
    for path in sorted(folder.iterdir() if folder.is_dir() else []):
        parameters = load_checkpoint(path).parameters
        found.append(
            {
                "encoder": path.name,
                "active": path == active,
                "kind": kind_of(parameters),
                "dim": parameters.dim,
            }
        )
    if as_json:
        print_json(found)
        return
    table = Table("encoder", "active", "kind", "dim")
    for row in found:
        table.add_row(str(row["encoder"]), "yes" if row["active"] else "", str(row["kind"]), str(row["dim"]))
    Console().print(table)


@commands.command("activate")
def activate_encoder(digest: str) -> None:
    """Make an encoder the running one, without a failed request."""
    from deployments.store_access import activate
    from models.graph_encoder.checkpoint import load_checkpoint

    settings = Settings()
    if not (settings.encoder_dir / digest).is_dir():
        raise InvalidInput(f"no encoder {digest!r} in {settings.encoder_dir}: see `weft encoder list`")
    load_checkpoint(settings.encoder_dir / digest)
    activate(settings, digest)
    messages.print(f"Encoder {digest} is active.")


def train_and_activate(
    settings: Settings, seed: int, encoder: EncoderKind = "linear"
) -> tuple[Path, dict[str, Any]]:
    from deployments.store_access import activate

    path, metadata = _train(settings, seed, encoder)
    activate(settings, path.name)
    return path, metadata


def _train(settings: Settings, seed: int, encoder: EncoderKind) -> tuple[Path, dict[str, Any]]:
    from deployments.store_access import read_view
    from models.graph_encoder.checkpoint import save_checkpoint
    from models.graph_encoder.training import TrainingConfig, default_extractor
    from models.graph_encoder.training import train as train_encoder

    with progress_bar() as report:
        text_model = _text_vectors(settings, report)
        view = read_view(settings)
        trained = train_encoder(
            view,
            TrainingConfig(encoder=encoder, seed=seed),
            lambda p: report("training", p.done, p.total, ": ".join(filter(None, (p.stage, p.message)))),
            default_extractor(view, text_model),
        )
    metadata = dict(trained.metadata)
    path = save_checkpoint(
        settings.encoder_dir, trained.parameters, trained.similarity, trained.settings, metadata
    )
    return path, metadata


def _text_vectors(settings: Settings, report: Any) -> str | None:
    """The text model whose vectors are item features; None, with a warning, where there are none."""
    from deployments.text_preparation import prepare_text_vectors

    try:
        return prepare_text_vectors(settings, report)
    except (InvalidInput, NotFound, Unavailable) as error:
        # Of the model or its endpoint. What is wrong with the store stays wrong for the training.
        messages.print(
            f"[yellow]warning:[/yellow] training on the words of titles and texts, not on their meaning: "
            f"{error.message}",
            soft_wrap=True,
        )
        return None


def evaluate(
    path: Annotated[Path, typer.Argument(help="MovieLens folder, or a CSV file of ratings.")],
    protocol: Annotated[str, typer.Option(help="recommenders, temporal or cold.")] = "recommenders",
    baselines: Annotated[bool, typer.Option(help="Measure the usual baselines in the same run.")] = False,
    user_column: Annotated[str, typer.Option(help="Of a CSV file.")] = "user_id",
    item_column: Annotated[str, typer.Option(help="Of a CSV file.")] = "item_id",
    rating_column: Annotated[
        str, typer.Option(help="Of a CSV file; empty for implicit feedback.")
    ] = "rating",
    timestamp_column: Annotated[str | None, typer.Option(help="Of a CSV file.")] = None,
    words: Annotated[
        bool, typer.Option("--words", help="Features from the words of items instead of the text model.")
    ] = False,
    kind: Kind = "linear",
    seed: Annotated[int, typer.Option()] = 0,
    as_json: AsJson = False,
) -> None:
    """Ranking quality of what is served, on a data set's own test part."""
    from deployments.evaluation_report import as_table, evaluate_dataset
    from deployments.text_preparation import cached_encoder
    from graph.datasets import Dataset, MovieLensDataset, TableDataset, TableOptions

    dataset: Dataset
    if path.is_file():
        columns = TableOptions(
            ratings=path,
            user_column=user_column,
            item_column=item_column,
            rating_column=rating_column or None,
            timestamp_column=timestamp_column,
        )
        dataset = TableDataset(columns)
    else:
        dataset = MovieLensDataset(path)
    with ExitStack() as stack:
        encoder = None if words else stack.enter_context(cached_encoder(Settings()))
        report = stack.enter_context(progress_bar())
        found = evaluate_dataset(
            dataset,
            protocol,
            baselines,
            seed,
            lambda p: report("evaluating", p.done, p.total, ": ".join(filter(None, (p.stage, p.message)))),
            encoder,
            kind,
        )
    if as_json:
        print_json(asdict(found))
    else:
        Console(width=160).print(as_table(found))
