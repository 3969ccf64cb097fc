"""`weft adapters`: LoRA adapters of the running service."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from deployments.cli_adapter_training import train
from deployments.cli_output import AsJson, messages, print_json
from deployments.settings import Settings
from graph.errors import InvalidInput

commands = typer.Typer(no_args_is_help=True)
commands.command()(train)

Target = Annotated[str, typer.Argument(help="user/ID, domain/NAME or global/default.")]
_PAGE = 1_000


@commands.command("list")
def list_adapters(
    target: Annotated[str | None, typer.Argument(help="user/ID, domain/NAME or global/default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Versions, what is active, and candidates in the inbox."""
    from deployments.service_client import service_client

    scope, name = (None, None) if target is None else parts(target)
    with service_client(Settings()) as client:
        first = page = client.list_adapters(scope, name, _PAGE)
        versions = list(page.versions)
        while page.next is not None:
            page = client.list_adapters(scope, name, _PAGE, page.next)
            versions += page.versions
    if as_json:
        print_json(
            {
                "adapters": [asdict(v) for v in versions],
                "states": [asdict(s) for s in first.states],
                "candidates": [asdict(c) for c in first.candidates],
            }
        )
        return
    if not versions:
        messages.print("There is no adapter yet: weft adapters put TARGET VERSION FOLDER puts one.")
    # What is to be copied into other commands is not wrapped.
    names, digests = (Column(title, no_wrap=True) for title in ("adapter", "digest"))
    table = Table(names, "active", "rank", "modules", "size", "put", digests)
    for version in versions:
        table.add_row(
            escape(f"{version.scope}/{version.name}/{version.version}"),
            "yes" if version.active else "",
            str(version.rank),
            escape(", ".join(version.modules)),
            f"{version.size_bytes:,}",
            time.strftime("%Y-%m-%d", time.gmtime(version.created_at)),
            version.digest[:8],
        )
    if versions:
        Console().print(table)
    for candidate in first.candidates:
        state = "ready to be put" if candidate.problem is None else candidate.problem
        Console().print(f"inbox: {escape(candidate.path)}: {escape(state)}", soft_wrap=True)


@commands.command()
def put(
    target: Target,
    version: Annotated[str, typer.Argument(help="A label of your choice, such as v2.")],
    folder: Annotated[
        Path | None, typer.Argument(help="PEFT folder: adapter_config.json, adapter_model.safetensors.")
    ] = None,
    inbox: Annotated[str | None, typer.Option(help="A path in the service's inbox instead.")] = None,
    activate: Annotated[bool, typer.Option("--activate", help="Make it the active version too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check an adapter and give it a label."""
    from deployments.service_client import service_client

    scope, name = parts(target)
    if (folder is None) == (inbox is None):
        raise InvalidInput("name one source: a folder here, or --inbox PATH")
    with service_client(Settings()) as client:
        try:
            found = client.put_adapter(scope, name, version, folder, inbox=inbox)
        except OSError as error:
            raise InvalidInput(str(error)) from error
        state = client.activate_adapter(scope, name, version) if activate else None
    if as_json:
        print_json({"adapter": asdict(found), "state": None if state is None else asdict(state)})
        return
    print(f"{scope}/{name}/{version}: {found.digest}")
    if state is not None:
        _tell(state, as_json)


@commands.command("activate")
def activate_version(
    target: Target,
    versions: Annotated[
        list[str] | None,
        typer.Argument(help="A version, or several to compare, as VERSION=SHARE."),
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="Let no version be active.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a version active for the next requests; running ones finish on the old one."""
    from deployments.service_client import service_client

    scope, name = parts(target)
    if bool(versions) == none:
        raise InvalidInput("name a version, several as VERSION=SHARE, or --none")
    shares = dict(_share(text) for text in versions or ())
    if len(shares) < len(versions or ()):
        raise InvalidInput("a version is named twice")
    with service_client(Settings()) as client:
        if len(shares) > 1:
            state = client.activate_adapter(scope, name, arms=shares)
        else:
            state = client.activate_adapter(scope, name, next(iter(shares), None))
    _tell(state, as_json)


@commands.command()
def rollback(target: Target, as_json: AsJson = False) -> None:
    """Make what was active before active again."""
    from deployments.service_client import service_client

    with service_client(Settings()) as client:
        state = client.roll_back_adapter(*parts(target))
    _tell(state, as_json)


@commands.command()
def history(target: Target, as_json: AsJson = False) -> None:
    """Every state of a pointer, oldest first."""
    from deployments.service_client import service_client

    with service_client(Settings()) as client:
        states = client.adapter_history(*parts(target))
    if as_json:
        print_json([asdict(state) for state in states])
        return
    table = Table("version", "action", "active", "before")
    for state in states:
        table.add_row(
            state.version, state.action, escape(_labels(state.arms)), escape(_labels(state.previous))
        )
    Console().print(table)


@commands.command()
def delete(target: Target, version: str, as_json: AsJson = False) -> None:
    """Remove a version that is neither active nor the one to roll back to."""
    from deployments.service_client import service_client

    with service_client(Settings()) as client:
        client.delete_adapter(*parts(target), version)
    if as_json:
        print_json({"deleted": f"{target}/{version}"})
    else:
        messages.print(f"{escape(target)}/{escape(version)} is deleted.")


def parts(target: str) -> tuple[str, str]:
    """Scope and name. Raises InvalidInput."""
    scope, slash, name = target.partition("/")
    if scope == "global" and not slash:
        return "global", "default"
    if scope not in ("user", "domain", "global") or not name or "/" in name:
        raise InvalidInput(f"{target!r} is no place of adapters: use user/ID, domain/NAME or global/default")
    return scope, name


def _share(text: str) -> tuple[str, float]:
    version, equals, share = text.partition("=")
    try:
        return version, float(share) if equals else 1.0
    except ValueError:
        raise InvalidInput(f"{text!r}: a share is a number, as in v2=0.1") from None


def _labels(arms: Any) -> str:
    if len(arms) == 1:
        return str(arms[0].version)
    return ", ".join(f"{arm.version}={arm.weight:g}" for arm in arms) or "none"


def _tell(state: Any, as_json: bool) -> None:
    if as_json:
        print_json(asdict(state))
        return
    shared = ", shares of the users" if len(state.arms) > 1 else ""
    messages.print(escape(f"Active for {state.scope}/{state.name}: {_labels(state.arms)}{shared}."))
