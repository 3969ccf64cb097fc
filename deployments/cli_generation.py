"""`weft generate` and `weft chat`: the language model of the running service."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape

from deployments.cli_output import AsJson, messages, print_json
from deployments.settings import Settings
from graph.errors import InvalidInput

User = Annotated[str | None, typer.Option("--user", "-u", help="Whose adapter answers.")]
Domain = Annotated[str | None, typer.Option(help="Whose adapter answers for users without their own.")]
Adapter = Annotated[
    str | None, typer.Option(help="user/ID, domain/NAME, one with /VERSION, a digest, or base.")
]
System = Annotated[str | None, typer.Option("--system", help="System prompt.")]
MaxTokens = Annotated[int, typer.Option(help="New tokens at most.", min=1)]
Temperature = Annotated[float, typer.Option(help="0: always the most likely word.", min=0, max=2)]
Seed = Annotated[int | None, typer.Option(help="The same seed, the same answer.")]


def generate(
    text: Annotated[str | None, typer.Argument(help="The question; default: standard input.")] = None,
    user: User = None,
    domain: Domain = None,
    adapter: Adapter = None,
    system: System = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.7,
    seed: Seed = None,
    as_json: AsJson = False,
) -> None:
    """One answer, printed as it comes."""
    from deployments.client import WeftClient

    question = text if text is not None else sys.stdin.read()
    if not question.strip():
        raise InvalidInput("there is nothing to answer: give a text")
    options = {
        "user_id": user,
        "domain": domain,
        "adapter": adapter,
        "system_prompt": system,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
    }
    with WeftClient(Settings().url) as client:
        if as_json:
            print_json(asdict(client.generate(question, **options)))
            return
        _show(client, {"text": question, **options})


def chat(
    user: User = None,
    domain: Domain = None,
    adapter: Adapter = None,
    system: System = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.7,
) -> None:
    """Talk to the model; an empty line or Ctrl-D ends it."""
    from deployments.client import WeftAPIError, WeftClient

    turns: list[dict[str, str]] = [] if system is None else [{"role": "system", "content": system}]
    options = {
        "user_id": user,
        "domain": domain,
        "adapter": adapter,
        "max_tokens": max_tokens,
        "temperature": temperature,
    }
    with WeftClient(Settings().url) as client:
        model = client.list_models()[0]
        messages.print(f"Model {escape(model.id)}; an empty line ends the conversation.")
        if not model.meaningful:
            messages.print(
                "[yellow]It is a stand-in: its words mean nothing.[/yellow] "
                "WEFT_LANGUAGE_MODEL__MODEL gives the service a real one.",
                soft_wrap=True,
            )
        while question := _asked():
            turns.append({"role": "user", "content": question})
            try:
                answer = _show(client, {"messages": turns, **options})
            except WeftAPIError as error:
                messages.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
                turns.pop()
                continue
            turns.append({"role": "assistant", "content": answer})


def _asked() -> str:
    messages.print("[bold]>[/bold] ", end="")
    return sys.stdin.readline().strip()


def _show(client: Any, request: dict[str, Any]) -> str:
    """Print an answer while it is made; Ctrl-C ends the answer, not the conversation."""
    with client.stream(**request) as stream:
        said = []
        try:
            for piece in stream:
                said.append(piece)
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            print()
            messages.print("(interrupted)")
            return "".join(said)
        print(flush=True)
        found = stream.result
    adapter = found.adapter or "base model"
    messages.print(
        f"[dim]{escape(adapter)}: {escape(found.why)}; {found.tokens['completion']} tokens, "
        f"{found.latency_ms:.0f} ms[/dim]",
        soft_wrap=True,
    )
    return str(found.output)
