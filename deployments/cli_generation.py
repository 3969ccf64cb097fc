"""`weft generate` and `weft chat`: the language model of the running service."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape

from deployments.cli_output import AsJson, messages, print_json
from deployments.settings import Settings
from graph.errors import InvalidInput
from models.small_model.folder import small_model_folder

User = Annotated[str | None, typer.Option("--user", "-u", help="Whose adapter answers.")]
Domain = Annotated[str | None, typer.Option(help="Whose adapter answers for users without their own.")]
Adapter = Annotated[
    str | None, typer.Option(help="user/ID, domain/NAME, one with /VERSION, a digest, or base.")
]
System = Annotated[str | None, typer.Option("--system", help="System prompt.")]
MaxTokens = Annotated[int, typer.Option(help="New tokens at most.", min=1)]
Temperature = Annotated[float, typer.Option(help="0: always the most likely word.", min=0, max=2)]
Context = Annotated[
    bool | None,
    typer.Option("--context/--no-context", help="Whether the prompt says what is known about the user."),
]
MaxContextTokens = Annotated[int | None, typer.Option(help="Tokens of that at most.", min=1)]
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
    context: Context = None,
    max_context_tokens: MaxContextTokens = None,
    explain: Annotated[
        str | None, typer.Option(help="Id of an item: say why it is suggested to the user.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """One answer, printed as it comes."""
    from deployments.service_client import service_client

    question = text if text is not None or explain is not None else sys.stdin.read()
    if explain is None and not (question or "").strip():
        raise InvalidInput("there is nothing to answer: give a text")
    options = {
        "user_id": user,
        "domain": domain,
        "adapter": adapter,
        "system_prompt": system,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "use_context": context,
        "max_context_tokens": max_context_tokens,
        "explain_item": explain,
    }
    with service_client(Settings()) as client:
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
    context: Context = None,
    max_context_tokens: MaxContextTokens = None,
) -> None:
    """Talk to the model; an empty line or Ctrl-D ends it."""
    from deployments.client import WeftAPIError
    from deployments.service_client import service_client

    turns: list[dict[str, str]] = [] if system is None else [{"role": "system", "content": system}]
    options = {
        "user_id": user,
        "domain": domain,
        "adapter": adapter,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "use_context": context,
        "max_context_tokens": max_context_tokens,
    }
    with service_client(Settings()) as client:
        model = client.list_models()[0]
        messages.print(f"Model {escape(model.id)}; an empty line ends the conversation.")
        if model.id == small_model_folder().name:
            messages.print(
                "It comes with Weft, for demonstration: it answers from its context and knows nothing else. "
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
    if found.context is not None:
        messages.print(f"[dim]{escape(_context_line(found.context))}[/dim]", soft_wrap=True)
    return str(found.output)


def _context_line(context: Mapping[str, Any]) -> str:
    """What an answer was told about the user: "context: memory mem_1, item film-0211; 57 tokens"."""
    sources = ", ".join(f"{source['kind']} {source['id']}" for source in context["sources"]) or "nothing"
    missing = f"; without {', '.join(context['missing'])}" if context["missing"] else ""
    return f"context: {sources}; {context['tokens']} tokens{missing}"
