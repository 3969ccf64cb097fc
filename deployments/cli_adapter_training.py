"""`weft adapters train`: an adapter from somebody's texts, trained in this process."""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from deployments.cli_output import AsJson, messages, print_json, progress_bar
from deployments.settings import Settings
from graph.errors import InvalidInput
from models.small_model.folder import small_model_folder


def train(
    target: Annotated[str, typer.Argument(help="user/ID, domain/NAME or global/default.")],
    texts: Annotated[
        list[str], typer.Option("--texts", help="File with a text on each line; - is standard input.")
    ],
    version: Annotated[
        str | None, typer.Option(help="Put it into the running service under this label, such as v1.")
    ] = None,
    activate: Annotated[bool, typer.Option("--activate", help="Make it the active version too.")] = False,
    out: Annotated[Path | None, typer.Option(help="Keep the trained folder here.")] = None,
    base: Annotated[
        str | None, typer.Option(help="Folder or name of the model; default: that of the settings.")
    ] = None,
    rank: Annotated[int, typer.Option(help="Of the adapter's matrices.", min=1)] = 8,
    epochs: Annotated[
        float | None, typer.Option(help="How often each text is seen; default: about a hundred steps.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed and texts, the same adapter.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train an adapter that writes as these texts do; here, not in the service."""
    from deployments.cli_adapters import parts
    from deployments.service_client import service_client

    scope, name = parts(target)
    if version is None and (out is None or activate):
        raise InvalidInput("give --version to put the adapter into the service, or --out to keep its folder")
    settings = Settings()
    if base is None and settings.language_model.backend != "local":
        raise InvalidInput("the service's model runs elsewhere: give --base, a folder of the same weights")
    base = base or settings.language_model.model or str(small_model_folder())
    lines = [line for source in texts for line in _lines(source)]
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        client = None
        if version is not None:
            client = stack.enter_context(service_client(settings))
            # Before the work, not after it: a service that is away or has no place for the adapter.
            if version in {one.version for one in client.list_adapters(scope, name, 1_000).versions}:
                raise InvalidInput(f"{target} has a version {version}: choose another label")
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "adapter"
        found["training"] = _train(base, lines, folder, rank, epochs, seed, settings.language_model.device)
        if out is not None:
            found["folder"] = str(out)
        if client is not None and version is not None:
            put = client.put_adapter(scope, name, version, folder)
            found["adapter"] = asdict(put)
            messages.print(escape(f"{scope}/{name}/{version}: {put.digest}"), soft_wrap=True)
            if activate:
                found["state"] = asdict(client.activate_adapter(scope, name, version))
                messages.print(escape(f"Active for {scope}/{name}: {version}."))
    if as_json:
        print_json(found)


def _train(
    base: str, texts: list[str], out: Path, rank: int, epochs: float | None, seed: int, device: str
) -> dict[str, Any]:
    from models.adapter_training import AdapterProgress, examples_from_texts, train_adapter
    from models.small_model.voices import train_voice

    with progress_bar() as report:

        def on_progress(progress: AdapterProgress) -> None:
            report("training", progress.step, progress.steps, f"loss {progress.loss:.3f}")

        if epochs is None and Path(base).resolve() == small_model_folder().resolve():
            trained = train_voice(texts, out, rank=rank, seed=seed, device=device, on_progress=on_progress)
        else:
            trained = train_adapter(
                base,
                examples_from_texts(texts),
                out,
                rank=rank,
                epochs=epochs,
                seed=seed,
                device=device,
                on_progress=on_progress,
            )
    messages.print(
        f"{trained.examples:,} examples, {trained.steps:,} steps, {trained.parameters:,} parameters in "
        f"{trained.seconds:.1f} s; loss {trained.loss_before:.3f} before, {trained.loss_after:.3f} after."
    )
    row = asdict(trained)
    del row["folder"]
    return row


def _lines(source: str) -> list[str]:
    """The texts of a file, one on each line; empty lines are none. Raises InvalidInput."""
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"{source} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{source} is not UTF-8 text: byte {error.start}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
