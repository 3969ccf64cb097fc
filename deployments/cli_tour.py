"""`weft tour`: a guided walk through the running service."""

from __future__ import annotations

import secrets
import sys
from typing import Annotated

import typer
from rich.markup import escape

from deployments.cli_output import messages
from deployments.settings import Settings
from deployments.tour import STEPS, Skipped, Tour


def tour(
    pause: Annotated[
        bool | None, typer.Option("--pause/--no-pause", help="Wait for Enter before each step.")
    ] = None,
    step: Annotated[
        list[str] | None, typer.Option(help=f"Only these: {', '.join(STEPS)}; may be repeated.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Length of each measurement.", min=0.1, max=60)] = 3.0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the tour's user in the graph.")] = False,
) -> None:
    """See it work: a recommendation changes, context, explanations, hot swap, adapters, speed, a chat.

    It makes a user of its own, shows every request it sends, and removes what it made.
    """
    from deployments.client import WeftAPIError
    from deployments.service_client import service_client
    from graph.errors import InvalidInput

    unknown = sorted(set(step or ()) - set(STEPS))
    if unknown:
        raise InvalidInput(f"no step {unknown[0]!r}: there are {', '.join(STEPS)}")
    interactive = sys.stdin.isatty()
    waits = interactive if pause is None else pause
    settings = Settings()
    failed = []
    with service_client(settings, deadline_s=60) as client:
        walk = Tour(client, settings.url, f"tour-{secrets.token_hex(3)}", seconds, interactive)
        try:
            walk.begin()
            chosen = [name for name in STEPS if not step or name in step]
            for number, name in enumerate(chosen, start=1):
                if waits:
                    messages.print("\n[dim]Enter goes on, Ctrl-C ends the tour.[/dim] ", end="")
                    sys.stdin.readline()
                title, show = STEPS[name]
                print(f"\n{number}. {title}\n", flush=True)
                try:
                    show(walk)
                except Skipped as reason:
                    print(f"  Left out: {reason}")
                except WeftAPIError as error:
                    failed.append(name)
                    messages.print(f"  [red]error:[/red] {escape(str(error))}", soft_wrap=True)
        except KeyboardInterrupt:
            print("\nThe tour ends here.")
        finally:
            if keep:
                print(f"\nThe tour's user stays: {walk.user_id}")
            else:
                walk.end()
    if failed:
        messages.print(f"[red]error:[/red] these steps failed: {', '.join(failed)}")
        raise typer.Exit(1)
