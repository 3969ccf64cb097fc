"""`weft cache`: what is in the cache of text embeddings, and moving it about."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deployments.cache_address import file_of
from deployments.cli_output import AsJson, messages, print_json, progress_bar
from deployments.settings import Settings
from graph.errors import InvalidInput, Unavailable
from models.embedding_cache.store import EmbeddingStore

if TYPE_CHECKING:
    from deployments.client import WeftClient

commands = typer.Typer(no_args_is_help=True)

Place = Annotated[
    str, typer.Argument(help="jsonl:///DIR, parquet:///DIR, datasets:///DIR, sqlite:///FILE or redis://...")
]
Model = Annotated[str | None, typer.Option("--model", help="Entries of this model alone; see `stats`.")]

_WARM_TEXTS = 512
_TIMEOUT_S = 5.0
"""For moving entries: nobody waits for an answer meanwhile, as they do for the service."""
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@commands.command()
def stats(as_json: AsJson = False) -> None:
    """Entries and bytes by model; of a running service also its hits and misses."""
    settings = Settings()
    service: dict[str, Any] | None = None
    with _service(settings) as client:
        if client is not None:
            service = client.cache_statistics()
    for reason in dict.fromkeys(r.get("degraded") for r in (service or {}).get("replicas", ())):
        if reason:
            messages.print(f"[yellow]warning:[/yellow] the service's cache: {escape(reason)}", soft_wrap=True)
    store, namespaces = None, {}
    try:
        with _store(settings) as opened:
            store, namespaces = asdict(opened.statistics()), opened.namespaces()
    except _NoCache as error:
        messages.print(escape(error.message), soft_wrap=True)
    if as_json:
        print_json({"store": store, "models": namespaces, "service": service})
        return
    table = Table("fact", "value")
    for name, value in (store or {}).items():
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
        copied = _copy(store, other, model)
    _tell(copied, "copied", as_json)


@commands.command("import")
def import_entries(source: Place, model: Model = None, as_json: AsJson = False) -> None:
    """Copy entries in; those that have expired are left out."""
    path = file_of(source)
    if path is not None and not path.exists():
        raise InvalidInput(f"{path} does not exist: there is nothing to import")
    with _store(Settings()) as store, _opened(source) as other:
        copied = _copy(other, store, model)
    _tell(copied, "copied", as_json)


@commands.command()
def invalidate(
    texts: Annotated[list[str] | None, typer.Argument(help="Drop these texts' entries.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Drop every entry.")] = False,
    model: Annotated[str | None, typer.Option("--model", help="Drop the entries of this model.")] = None,
    as_json: AsJson = False,
) -> None:
    """Drop entries; what is asked for again is embedded again."""
    from deployments.text_preparation import cached_encoder

    if sum((bool(texts), everything, model is not None)) != 1:
        raise InvalidInput("say what to drop: texts, --model NAME or --all")
    settings = Settings()
    with _service(settings) as client:
        if client is not None:
            # Its replicas hold entries in memory too.
            dropped = client.invalidate_cache(everything=everything, model=model, texts=texts or ())
        elif texts:
            with _store(settings), cached_encoder(settings) as encoder:
                dropped = encoder.invalidate(texts)
        else:
            with _store(settings) as store:
                names = [None] if model is None else _names(store, model)
                dropped = sum(store.clear(name) for name in names)
    _tell(dropped, "dropped", as_json)


@commands.command()
def prune(
    older_than: Annotated[str, typer.Option(help="Age, such as 90s, 12h, 30d or 4w.")],
    as_json: AsJson = False,
) -> None:
    """Drop entries written longer ago than that."""
    age_s = seconds(older_than)
    with _store(Settings()) as store:
        dropped = store.prune(age_s)
    _tell(dropped, "dropped", as_json)


@commands.command()
def warm(
    texts: Annotated[
        Path | None,
        typer.Argument(help="File with one text per line; default: every item and memory of the store."),
    ] = None,
    queries: Annotated[
        bool, typer.Option("--queries", help="The lines are search queries, which may have their own prompt.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Embed texts ahead of time, so that later questions are hits."""
    from deployments.text_preparation import cached_encoder, encode_accepted

    settings = Settings()
    if queries and texts is None:
        raise InvalidInput("--queries is about the lines of a file: name one")
    wanted = _texts_of_store(settings) if texts is None else _lines(texts)
    prompt = settings.text_embedder.query_prompt if queries else None
    refused = 0
    # A cache that keeps nothing is an error before the model is loaded.
    with _store(settings), cached_encoder(settings) as encoder, progress_bar() as report:
        for first in range(0, len(wanted), _WARM_TEXTS):
            report("warming", first, len(wanted), "")
            batch = wanted[first : first + _WARM_TEXTS]
            for text, found in zip(batch, encode_accepted(encoder, batch, prompt), strict=True):
                if isinstance(found, InvalidInput):
                    refused += 1
                    messages.print(escape(f"refused: {text[:60]!r}: {found.message}"), soft_wrap=True)
        report("warming", len(wanted), len(wanted), "")
        encoder.flush()
        counted = encoder.statistics()
    if counted.writes_dropped:
        raise Unavailable(
            f"{counted.writes_dropped:,} of {len(wanted):,} entries were not written: the cache did not "
            "answer in time; run the command again"
        )
    # Not the hits it counted: a batch with a refused text is looked up again in part.
    embedded = counted.encoded
    hits = len(wanted) - refused - embedded
    if as_json:
        print_json({"texts": len(wanted), "hits": hits, "encoded": embedded, "refused": refused})
    else:
        ending = f", {refused:,} refused" if refused else ""
        print(f"{len(wanted):,} texts: {hits:,} were there, {embedded:,} embedded{ending}")


def seconds(duration: str) -> float:
    """`12h` as seconds; raises InvalidInput for anything else."""
    match = _DURATION.fullmatch(duration.strip())
    if match is None:
        raise InvalidInput(f"{duration!r} is no duration: use a number and s, m, h, d or w, such as 30d")
    return float(match[1]) * _SECONDS[match[2]]


class _NoCache(Unavailable):
    """There is nothing that outlasts this command."""


@contextmanager
def _store(settings: Settings) -> Iterator[EmbeddingStore]:
    """The store that the service of these settings uses; raises _NoCache where it uses none."""
    from deployments.embedding_cache import open_cache

    if not settings.cache.enabled:
        raise _NoCache("there is no cache: WEFT_CACHE__ENABLED is false")
    opened = open_cache(settings, timeout_s=max(settings.cache.timeout_s, _TIMEOUT_S))
    store = opened.store
    if store is None:
        raise _NoCache(f"there is no cache: {opened.degraded or 'WEFT_CACHE__URL is none://'}")
    try:
        if store.kind == "memory":
            raise _NoCache("WEFT_CACHE__URL is memory://: every process has its own, and no command sees it")
        yield store
    finally:
        store.close()


@contextmanager
def _opened(url: str) -> Iterator[EmbeddingStore]:
    """The store at the place to move entries to or from."""
    from models.embedding_cache.opening import open_store

    store = open_store(url, timeout_s=_TIMEOUT_S)
    if store is None or store.kind == "memory":
        raise InvalidInput(f"{url!r} keeps nothing: name a place for the entries")
    try:
        yield store
    finally:
        store.close()


@contextmanager
def _service(settings: Settings) -> Iterator[WeftClient | None]:
    """A client of the running service, if one runs."""
    from deployments.service_client import service_client
    from deployments.store_access import service_url

    url = service_url(settings)
    if url is None:
        yield None
        return
    with service_client(settings, url) as client:
        yield client


def _copy(source: EmbeddingStore, target: EmbeddingStore, model: str | None) -> int:
    from models.embedding_cache.moving import copy_entries

    if (source.kind, source.location) == (target.kind, target.location):
        raise InvalidInput(f"{source.location} is the cache itself: name another place")
    copied = 0
    held = source.namespaces()
    names = _names(source, model) if model else sorted(held)
    total = sum(held.get(name, 0) for name in names)
    with progress_bar() as report:
        report("entries", 0, total, "")
        for name in names:
            before = copied

            def shown(done: int, before: int = before) -> None:
                report("entries", before + done, max(before + done, total), "")

            copied += copy_entries(source, target, name, progress=shown)
    return copied


def _names(store: EmbeddingStore, model: str) -> list[str]:
    """Names under which the store has entries of that model, given by such a name or without its digest."""
    held = sorted(store.namespaces())
    found = [name for name in held if model in (name, name.rpartition("-")[0])]
    if not found:
        known = f"there are some of {', '.join(held)}" if held else "there are none at all"
        raise InvalidInput(f"no entries of {model!r}: {known}", param="model")
    return found


def _texts_of_store(settings: Settings) -> list[str]:
    from deployments.store_access import read_view
    from graph.node_text import item_text, memory_text

    view = read_view(settings)
    texts = [item_text(item) for item in view.items()]
    return list(dict.fromkeys(texts + [memory_text(memory) for memory in view.memories()]))


def _lines(path: Path) -> list[str]:
    """Lines of a file as they are, each once, blank ones left out. Raises InvalidInput."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read as UTF-8 text: {error}") from error
    # Not splitlines, which ends a line at signs that a text may hold, such as U+2028.
    return list(dict.fromkeys(line for line in content.split("\n") if line.strip()))


def _tell(count: int, what: str, as_json: bool) -> None:
    if as_json:
        print_json({what: count})
    else:
        print(f"{count:,} entries {what}")


def _shown(value: object) -> str:
    if value is None:
        return "unknown"
    return f"{value:,}" if isinstance(value, int) else str(value)
