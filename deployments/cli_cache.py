"""`weft cache`: what is in the cache of text embeddings, and moving it about."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from deployments.cli_output import AsJson, messages, print_json, progress_bar
from deployments.settings import Settings
from graph.errors import InvalidInput, Unavailable
from models.embedding_cache.store import EmbeddingStore

commands = typer.Typer(no_args_is_help=True)

Place = Annotated[
    str, typer.Argument(help="jsonl:///DIR, parquet:///DIR, datasets:///DIR, sqlite:///FILE or redis://...")
]
Model = Annotated[str | None, typer.Option("--model", help="Entries of this model alone; see `stats`.")]

_WARM_TEXTS = 512
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@contextmanager
def _store(settings: Settings) -> Iterator[EmbeddingStore]:
    """The store that the service of these settings uses."""
    from deployments.text_preparation import open_cache

    opened = open_cache(settings)
    if opened.store is None:
        raise Unavailable(f"there is no cache: {opened.degraded or 'WEFT_CACHE__ENABLED is false'}")
    if opened.degraded:
        messages.print(f"[yellow]warning:[/yellow] {opened.degraded}", soft_wrap=True)
    try:
        yield opened.store
    finally:
        opened.store.close()


@commands.command()
def stats(as_json: AsJson = False) -> None:
    """Entries and bytes by model; of a running service also its hits and misses."""
    from deployments.client import WeftClient
    from deployments.store_access import service_url

    settings = Settings()
    url = service_url(settings)
    service: dict[str, Any] | None = None
    if url is not None:
        with WeftClient(url) as client:
            service = client.cache_statistics()
    with _store(settings) as store:
        held, namespaces = store.statistics(), store.namespaces()
    found = {
        "store": {"kind": held.kind, "location": held.location, "entries": held.entries, "bytes": held.bytes}
        | {"server_memory_bytes": held.server_memory_bytes, "server_max_bytes": held.server_max_bytes},
        "models": namespaces,
        "service": service,
    }
    if as_json:
        print_json(found)
        return
    table = Table("fact", "value")
    for name, value in found["store"].items():
        table.add_row(name, _shown(value))
    for name, count in sorted(namespaces.items()):
        table.add_row(f"entries of {name}", _shown(count))
    for name, value in (service or {}).items():
        if not isinstance(value, list | dict):
            table.add_row(f"service: {name}", _shown(value))
    Console().print(table)


@commands.command("export")
def export_entries(target: Place, model: Model = None, as_json: AsJson = False) -> None:
    """Copy entries out, bytes and times as they are."""
    with _store(Settings()) as store, _opened(target) as other:
        _move(store, other, model, as_json)


@commands.command("import")
def import_entries(source: Place, model: Model = None, as_json: AsJson = False) -> None:
    """Copy entries in; those that have expired are left out."""
    with _store(Settings()) as store, _opened(source) as other:
        _move(other, store, model, as_json)


@commands.command()
def invalidate(
    texts: Annotated[list[str] | None, typer.Argument(help="Drop these texts' entries.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Drop every entry.")] = False,
    model: Annotated[str | None, typer.Option("--model", help="Drop the entries of this model.")] = None,
    as_json: AsJson = False,
) -> None:
    """Drop entries; what is asked for again is embedded again."""
    from deployments.client import WeftClient
    from deployments.store_access import service_url
    from deployments.text_preparation import cached_encoder

    if sum((bool(texts), everything, model is not None)) != 1:
        raise InvalidInput("say what to drop: texts, --model NAME or --all")
    settings = Settings()
    url = service_url(settings)
    if url is not None:
        # Its replicas hold entries in memory too.
        with WeftClient(url) as client:
            dropped = client.invalidate_cache(everything=everything, model=model, texts=texts or ())
    elif texts:
        with cached_encoder(settings) as encoder:
            dropped = encoder.invalidate(texts)
    else:
        with _store(settings) as store:
            dropped = store.clear(None if everything else model)
    _tell(dropped, "dropped", as_json)


@commands.command()
def prune(
    older_than: Annotated[str, typer.Option(help="Age, such as 90s, 12h, 30d or 4w.")],
    as_json: AsJson = False,
) -> None:
    """Drop entries written longer ago than that."""
    with _store(Settings()) as store:
        _tell(store.prune(seconds(older_than)), "dropped", as_json)


@commands.command()
def warm(
    texts: Annotated[
        Path | None, typer.Argument(help="File with one text per line; default: every item of the store.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Embed texts ahead of time, so that later questions are hits."""
    from deployments.store_access import read_view
    from deployments.text_preparation import cached_encoder
    from graph.node_text import item_text

    settings = Settings()
    if texts is None:
        lines = [item_text(item) for item in read_view(settings).items()]
    else:
        try:
            lines = [line for line in texts.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{texts} cannot be read as UTF-8 text: {error}") from error
    with cached_encoder(settings) as encoder, progress_bar() as report:
        for first in range(0, len(lines), _WARM_TEXTS):
            report("warming", first, len(lines), "")
            encoder.encode(lines[first : first + _WARM_TEXTS])
        report("warming", len(lines), len(lines), "")
        found = encoder.statistics()
    if as_json:
        print_json({"texts": len(lines), "hits": found.hits, "encoded": found.encoded})
    else:
        print(f"{len(lines):,} texts: {found.hits:,} were there, {found.encoded:,} embedded")


def seconds(duration: str) -> float:
    """`12h` as seconds; raises InvalidInput for anything else."""
    match = _DURATION.fullmatch(duration.strip())
    if match is None:
        raise InvalidInput(f"{duration!r} is no duration: use a number and s, m, h, d or w, such as 30d")
    return float(match[1]) * _SECONDS[match[2]]


@contextmanager
def _opened(url: str) -> Iterator[EmbeddingStore]:
    from models.embedding_cache.opening import open_store

    store = open_store(url)
    if store is None:
        raise InvalidInput(f"{url!r} keeps nothing: name a place for the entries")
    try:
        yield store
    finally:
        store.close()


def _move(source: EmbeddingStore, target: EmbeddingStore, model: str | None, as_json: bool) -> None:
    from models.embedding_cache.moving import copy_entries

    total = source.namespaces()
    wanted = total.get(model, 0) if model else sum(total.values())
    with progress_bar() as report:
        report("entries", 0, wanted, "")
        moved = copy_entries(
            source, target, model, progress=lambda done: report("entries", done, max(done, wanted), "")
        )
    _tell(moved, "copied", as_json)


def _tell(count: int, what: str, as_json: bool) -> None:
    if as_json:
        print_json({what: count})
    else:
        print(f"{count:,} entries {what}")


def _shown(value: object) -> str:
    if value is None:
        return "unknown"
    return f"{value:,}" if isinstance(value, int) else str(value)
