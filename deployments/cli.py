"""`weft`: the command line. stdout is data, stderr is progress; status 1 is an error a user can mend."""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deployments import (
    cli_adapters,
    cli_backup,
    cli_cache,
    cli_encoders,
    cli_generation,
    cli_keys,
    cli_memories,
    cli_tour,
)
from deployments.cli_output import AsJson, messages, print_json, progress_bar, settings_rows
from deployments.settings import Settings
from graph.errors import WeftError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
imports = typer.Typer(no_args_is_help=True)
app.add_typer(imports, name="import", help="Bring data in.")
app.add_typer(cli_encoders.commands, name="encoder", help="Trained encoders.")
app.add_typer(cli_cache.commands, name="cache", help="The cache of text embeddings.")
app.add_typer(cli_memories.commands, name="memories", help="What is remembered of a user.")
app.add_typer(cli_keys.commands, name="keys", help="API keys.")
app.add_typer(cli_adapters.commands, name="adapters", help="LoRA adapters of the language model.")

Strict = Annotated[bool, typer.Option(help="Refuse everything if one row is bad.")]
RejectsFile = Annotated[Path, typer.Option("--rejects", help="Where bad rows are listed.")]


def main() -> None:
    """Entry point of the `weft` command."""
    # Read when torch loads: on a busy machine, threads that spin at barriers make training ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except WeftError as error:
        _say_error(error.message)
        sys.exit(1)
    except SettingsError as error:
        _say_error(str(error))
        sys.exit(1)
    except ValidationError as error:
        for problem in error.errors():
            path = "__".join(str(part) for part in problem["loc"]).upper()
            where = f"WEFT_{path}: " if path else ""
            text = problem["msg"].removeprefix("Value error, ")
            _say_error(f"{where}{text}")
        sys.exit(1)
    except _client_errors() as error:
        _say_error(f"{error}{_advice(error)}")
        sys.exit(1)


def _say_error(text: str) -> None:
    messages.print(f"[red]error:[/red] {escape(text)}", soft_wrap=True)


def _advice(error: Exception) -> str:
    """What to do about a refusal by the service, where a command can do something."""
    from deployments.client import AuthenticationError, PermissionDeniedError

    if isinstance(error, AuthenticationError | PermissionDeniedError):
        return ". Commands send the key in WEFT_API_KEY (docs/security.md)"
    return ""


def _client_errors() -> tuple[type[Exception], ...]:
    from deployments.client import WeftAPIError

    return (WeftAPIError,)


# ------------------------------------------------------------------------------------------------ the service


@app.command()
def run(
    data: Annotated[
        Path | None, typer.Option(help="MovieLens folder to start from; default: the generated catalogue.")
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Listen beyond loopback without keys, for everybody."),
    ] = False,
    verbose: Annotated[bool, typer.Option(help="Show Ray's own messages.")] = False,
) -> None:
    """Fill an empty store, train an encoder if there is none, and serve until Ctrl-C."""
    from deployments.launcher import check_port, check_store, exit_on_sigterm, running, wait_for_signal

    exit_on_sigterm()
    settings = Settings(insecure=True) if insecure else Settings()
    check_port(settings)
    check_store(settings)
    cli_keys.warn_of_access(settings)
    try:
        prepare(settings, data)
        messages.print("Starting the service ...")
        with running(settings, quiet=not verbose) as metrics_url:
            _welcome(settings, metrics_url)
            wait_for_signal()
            messages.print("Stopping ...")
    except KeyboardInterrupt:
        messages.print("Interrupted; what was written is kept.")
        sys.exit(130)
    messages.print("Stopped.")


def prepare(settings: Settings, data: Path | None) -> None:
    """Make sure that the store has data and an encoder, so that a service can start on it."""
    from deployments.store_access import active_encoder

    _fill_if_empty(settings, data)
    if active_encoder(settings) is None:
        messages.print("No encoder yet: training one.")
        cli_encoders.train_and_activate(settings, seed=0)


def _fill_if_empty(settings: Settings, data: Path | None) -> None:
    from graph.datasets import DemoDataset, MovieLensDataset
    from graph.store import GraphStore

    store = GraphStore(settings.store_url)
    empty = store.is_empty()
    # A file goes by the folder that a user chose.
    where = settings.data_dir if settings.store.url is None else store.location
    store.close()
    if not empty:
        if data is not None:
            messages.print(
                f"The store in {where} has data already: {data} is not imported. Choose another "
                "WEFT_DATA_DIR for a fresh start, or use `weft import movielens`."
            )
        return
    dataset = DemoDataset() if data is None else MovieLensDataset(data)
    messages.print(f"The store in {where} is empty: importing {dataset.name}.")
    _import(settings, dataset, Path("rejects.csv"), strict=False, as_json=None)


def _welcome(settings: Settings, metrics_url: str) -> None:
    user, item = _somebody(settings)
    key = "" if settings.auth == "off" else ' -H "authorization: Bearer $WEFT_API_KEY"'
    post = f"curl{key} -X POST {settings.url}"
    print(f"Weft is ready at {settings.url} (API: {settings.url}/docs). Try:\n")
    print(f"  curl{key} '{settings.url}/v1/users/{user}/recommendations?n=3'")
    print(
        f"  {post}/v1/ratings -H 'content-type: application/json' \\\n"
        f'       -d \'{{"user_id": "{user}", "item_id": "{item}", "value": 5}}\''
    )
    print(f"  curl{key} '{settings.url}/v1/users/{user}/recommendations?n=3'")
    print(
        f"  {post}/v1/search -H 'content-type: application/json' \\\n"
        '       -d \'{"query": "a love story at sea", "n": 3}\''
    )
    print(
        f"  {post}/v1/users/{user}/memories -H 'content-type: application/json' \\\n"
        '       -d \'{"text": "I watch films with my daughter."}\''
    )
    model = settings.language_model
    if model.enabled:
        print(
            f"  {post}/v1/generate -H 'content-type: application/json' \\\n"
            f'       -d \'{{"user_id": "{user}", "temperature": 0, '
            '"text": "What should I watch next, and who do I watch films with?"}\''
        )
    print("\nOr all of it, step by step, in another terminal: .venv/bin/weft tour\n")
    if model.enabled and not model.model:
        print(
            "The language model is the small one that comes with Weft, for demonstration: it answers\n"
            "from what is known about a user and knows nothing else.\n"
            "WEFT_LANGUAGE_MODEL__MODEL=path/to/model sets a real one (docs/generation.md).\n"
        )
    print(f"Metrics for Prometheus: {metrics_url} (docs/metrics.md).\n")
    print("Ctrl-C stops it.", flush=True)


def _somebody(settings: Settings) -> tuple[str, str]:
    """Ids of a user and of an item that is recommended to that user; placeholders where no key shows any."""
    from deployments.client import AuthenticationError, PermissionDeniedError
    from deployments.service_client import service_client

    try:
        with service_client(settings) as client:
            user = client.list_users(limit=1).records[0].user_id
            return user, client.recommend(user, n=1).recommendations[0].item_id
    except (AuthenticationError, PermissionDeniedError):
        return "USER", "ITEM"


@app.command()
def status(as_json: AsJson = False) -> None:
    """What the running service says of itself."""
    from deployments.service_client import service_client

    settings = Settings()
    with service_client(settings) as client:
        found = client.status()
    if as_json:
        print_json(found)
        return
    table = Table("part", "fact", "value")
    for part, facts in found.items():
        for name, value in facts.items() if isinstance(facts, dict) else [("", facts)]:
            table.add_row(part, name, json.dumps(value) if isinstance(value, dict | list) else str(value))
    Console().print(table)


@app.command()
def config(as_json: AsJson = False) -> None:
    """Every setting: its value, where it came from, what it means."""
    rows = list(settings_rows(Settings()))
    if as_json:
        print_json({row["variable"]: row for row in rows})
        return
    table = Table("variable", "value", "from", "meaning")
    for row in rows:
        table.add_row(row["variable"], row["value"], row["from"], row["meaning"])
    Console().print(table)


# ------------------------------------------------------------------------------------------------------ data


@imports.command("movielens")
def import_movielens(
    path: Annotated[Path, typer.Argument(help="Folder of ml-latest-small, ml-100k, ml-1m or ml-25m.")],
    strict: Strict = False,
    rejects: RejectsFile = Path("rejects.csv"),
    as_json: AsJson = False,
) -> None:
    """Import a MovieLens folder."""
    from graph.datasets import MovieLensDataset

    _import(Settings(), MovieLensDataset(path), rejects, strict, as_json)


@imports.command("csv")
def import_csv(
    ratings: Annotated[Path, typer.Option(help="Ratings, one per row, with a header.")],
    items: Annotated[Path | None, typer.Option(help="Items, one per row, with a header.")] = None,
    user_column: Annotated[str, typer.Option()] = "user_id",
    item_column: Annotated[str, typer.Option()] = "item_id",
    rating_column: Annotated[str, typer.Option(help="Empty for implicit feedback.")] = "rating",
    timestamp_column: Annotated[str | None, typer.Option(help="Unix seconds.")] = None,
    scale: Annotated[
        tuple[float, float] | None, typer.Option(help="Lowest and highest rating, mapped onto 0.5 to 5.")
    ] = None,
    item_id_column: Annotated[str, typer.Option()] = "item_id",
    title_column: Annotated[str, typer.Option()] = "title",
    tags_column: Annotated[str | None, typer.Option()] = None,
    tag_separator: Annotated[str, typer.Option()] = "|",
    year_column: Annotated[str | None, typer.Option()] = None,
    text_column: Annotated[str | None, typer.Option()] = None,
    delimiter: Annotated[str, typer.Option()] = ",",
    encoding: Annotated[str, typer.Option()] = "utf-8",
    strict: Strict = False,
    rejects: RejectsFile = Path("rejects.csv"),
    as_json: AsJson = False,
) -> None:
    """Import tables with columns of any name."""
    from graph.datasets import TableDataset, TableOptions

    options = TableOptions(
        ratings=ratings,
        items=items,
        delimiter=delimiter,
        encoding=encoding,
        user_column=user_column,
        item_column=item_column,
        rating_column=rating_column or None,
        timestamp_column=timestamp_column,
        scale=scale,
        item_id_column=item_id_column,
        title_column=title_column,
        tags_column=tags_column,
        tag_separator=tag_separator,
        year_column=year_column,
        text_column=text_column,
    )
    _import(Settings(), TableDataset(options), rejects, strict, as_json)


@imports.command("mesh")
def import_mesh(
    path: Annotated[Path, typer.Argument(help="Folder with one JSON knowledge graph per user.")],
    strict: Strict = False,
    rejects: RejectsFile = Path("rejects.csv"),
    as_json: AsJson = False,
) -> None:
    """Import what users said, with its relations; docs/memory.md has the format."""
    from deployments.store_access import item_ids_and_owners
    from graph.datasets import MeshDataset

    settings = Settings()
    _import(settings, MeshDataset(path, *item_ids_and_owners(settings)), rejects, strict, as_json)


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Another seed, another catalogue.")] = 7, as_json: AsJson = False
) -> None:
    """Import the generated catalogue."""
    from graph.datasets import DemoDataset

    _import(Settings(), DemoDataset(seed), Path("rejects.csv"), strict=False, as_json=as_json)


def _import(settings: Settings, dataset: Any, rejects: Path, strict: bool, as_json: bool | None) -> None:
    """Import with a bar; `as_json` None prints the summary as a message instead of as data."""
    from deployments.store_access import open_writer
    from graph.datasets import Rejects, run_import

    with open_writer(settings, "weft import") as write, progress_bar() as report:
        summary = run_import(
            dataset,
            write,
            Rejects(rejects),
            strict,
            lambda stage, done, total: report(stage, done, total, ""),
        )
    if as_json:
        print_json(asdict(summary))
        return
    line = (
        f"{summary.kept:,} rows kept, {summary.rejected:,} rejected; {summary.items:,} items, "
        f"{summary.ratings:,} ratings, {summary.memories:,} memories, {summary.relations:,} relations; "
        f"{summary.changed:,} rows changed"
    )
    (messages if as_json is None else Console(highlight=False)).print(line, soft_wrap=True)
    if summary.rejected:
        messages.print(f"The rejected rows are in {rejects}.")


app.command()(cli_backup.backup)
app.command()(cli_backup.restore)
app.command()(cli_encoders.train)
app.command()(cli_encoders.evaluate)


# ------------------------------------------------------------------------------------------------ generation

app.command()(cli_generation.generate)
app.command()(cli_generation.chat)
app.command()(cli_tour.tour)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main()
