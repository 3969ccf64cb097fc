"""`weft memories`: what users said, in the running service."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from deployments.cli_output import AsJson, messages, print_json
from deployments.settings import Settings

commands = typer.Typer(no_args_is_help=True)

User = Annotated[str, typer.Argument(help="The user's id.")]
MemoryId = Annotated[str, typer.Argument(help="The memory's id.")]
Text = Annotated[str, typer.Argument(help="What there is to remember, in a sentence.")]
ValidAt = Annotated[str | None, typer.Option(help="It holds from then on: 2026-03-01, or with a time.")]
InvalidAt = Annotated[str | None, typer.Option(help="It no longer holds from then on.")]
Source = Annotated[str, typer.Option(help="Where it comes from, in your words.")]
ItemOption = Annotated[str | None, typer.Option("--item", help="Id of the item it leads to.")]
MemoryOption = Annotated[str | None, typer.Option("--memory", help="Id of the memory it leads to.")]
_PAGE = 1_000


@commands.command()
def add(
    user: User,
    text: Text,
    memory_id: Annotated[str | None, typer.Option("--id", help="An id of your choice.")] = None,
    about: Annotated[
        list[str] | None, typer.Option(help="Id of an item it is about; may be repeated.")
    ] = None,
    valid_at: ValidAt = None,
    invalid_at: InvalidAt = None,
    source: Source = "",
    as_json: AsJson = False,
) -> None:
    """Remember a fact; prints its id."""
    with _client() as client:
        written = client.remember(
            user,
            text,
            memory_id=memory_id,
            valid_at=valid_at,
            invalid_at=invalid_at,
            source=source,
            about=about or (),
        )
    if as_json:
        print_json(asdict(written))
    else:
        print(written.memory_ids[0])


@commands.command()
def put(
    user: User,
    memory_id: MemoryId,
    text: Text,
    valid_at: ValidAt = None,
    invalid_at: InvalidAt = None,
    source: Source = "",
    as_json: AsJson = False,
) -> None:
    """Write a fact under an id, or replace it; its relations stay."""
    with _client() as client:
        written = client.put_memory(
            user, memory_id, text, valid_at=valid_at, invalid_at=invalid_at, source=source
        )
    _tell(asdict(written), f"{memory_id} is written.", as_json)


@commands.command("list")
def list_memories(user: User, as_json: AsJson = False) -> None:
    """Everything that is remembered of a user, oldest first."""
    with _client() as client:
        page = client.list_memories(user, _PAGE)
        found = list(page.records)
        while page.next is not None:
            page = client.list_memories(user, _PAGE, page.next)
            found += page.records
    if as_json:
        print_json([asdict(memory) for memory in found])
        return
    if not found:
        messages.print(f"Nothing is remembered of {escape(user)}: weft memories add USER TEXT does.")
        return
    Console().print(_table(found))


@commands.command()
def search(
    user: User,
    query: Annotated[str, typer.Argument(help="What they should be about.")],
    n: Annotated[int, typer.Option(help="Memories at most.", min=1)] = 10,
    valid_only: Annotated[bool, typer.Option("--valid", help="Only what holds now.")] = False,
    as_json: AsJson = False,
) -> None:
    """A user's memories that mean what a text says."""
    with _client() as client:
        found = client.search_memories(user, query, n, valid_only=valid_only)
    if as_json:
        print_json(asdict(found))
        return
    if found.text_model is None:
        messages.print("No text model took part: words alone decided.")
    Console().print(_table([memory for memory, _ in found.memories], [score for _, score in found.memories]))


@commands.command()
def delete(user: User, memory_id: MemoryId, as_json: AsJson = False) -> None:
    """Forget a fact, and its relations."""
    with _client() as client:
        written = client.delete_memory(user, memory_id)
    _tell(asdict(written), f"{memory_id} is deleted.", as_json)


@commands.command()
def relate(
    user: User,
    memory_id: MemoryId,
    name: Annotated[str, typer.Argument(help="What the relation is: about, contradicts, ...")],
    item: ItemOption = None,
    memory: MemoryOption = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove it instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """Relate a memory to an item or to another memory of the user."""
    from graph.errors import InvalidInput

    if (item is None) == (memory is None):
        raise InvalidInput("name one end: --item ID or --memory ID")
    with _client() as client:
        write = client.unrelate if remove else client.relate
        written = write(user, memory_id, name, item_id=item, to_memory_id=memory)
    verb = "no longer" if remove else "now"
    _tell(asdict(written), f"{memory_id} is {verb} related: {name} {item or memory}.", as_json)


@commands.command()
def graph(
    user: User,
    depth: Annotated[int, typer.Option(help="Edges from the user at most.", min=1)] = 2,
    limit: Annotated[int, typer.Option(help="Nodes at most.", min=1)] = 100,
    as_json: AsJson = False,
) -> None:
    """A user's own part of the graph."""
    with _client() as client:
        found = client.user_graph(user, depth, limit)
    if as_json:
        print_json(asdict(found))
        return
    labels = {(node.kind, node.id): node.label for node in found.nodes}
    table = Table("from", "relation", "to")
    for edge in found.edges:
        name = edge.name if edge.value is None else f"{edge.name} {edge.value:g}"
        table.add_row(*(escape(text) for text in (labels[edge.source], name, labels[edge.target])))
    Console().print(table)
    if not found.complete:
        messages.print(f"There is more than {limit} nodes: --limit shows it.")


@commands.command()
def context(
    user: User,
    query: Annotated[str, typer.Argument(help="The question a prompt would end with.")] = "",
    max_tokens: Annotated[int | None, typer.Option(help="Tokens at most.", min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """What a prompt with a question would say about the user, and where every line comes from."""
    with _client() as client:
        found = client.context(user, query, max_tokens=max_tokens)
    if as_json:
        print_json(asdict(found))
        return
    table = Table("line", "source", "why")
    for line in found.lines:
        source = f"{line.source[0]} {line.source[1]}"
        table.add_row(*(escape(text) for text in (f"{line.kind}: {line.text}", source, line.why)))
    Console().print(table)
    missing = f"; without {', '.join(found.missing)}" if found.missing else ""
    messages.print(
        f"{found.tokens} of {found.max_tokens} tokens, counted by {escape(found.counted_by)}{missing}"
    )


def _client() -> Any:
    from deployments.service_client import service_client

    return service_client(Settings())


def _tell(written: dict[str, Any], sentence: str, as_json: bool) -> None:
    if as_json:
        print_json(written)
    else:
        messages.print(escape(sentence))


def _table(memories: list[Any], scores: list[float] | None = None) -> Table:
    titles = ["text", "holds", "related to", "source"]
    table = Table(Column("memory", no_wrap=True), *titles, *([] if scores is None else ["score"]))
    for place, memory in enumerate(memories):
        related = ", ".join(f"{r.name} {r.title}" for r in memory.relations)
        cells = [memory.memory_id, memory.text, _period(memory), related, memory.source]
        if scores is not None:
            cells.append(f"{scores[place]:.2f}")
        table.add_row(*map(escape, cells))
    return table


def _period(memory: Any) -> str:
    parts = []
    if memory.valid_at:
        parts.append(f"from {_day(memory.valid_at)}")
    if memory.invalid_at:
        parts.append(f"until {_day(memory.invalid_at)}")
    return " ".join(parts) or "always"


def _day(time: str) -> str:
    return time.removesuffix("T00:00:00Z")
