"""What commands print: JSON, progress bars, and the settings in force."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_USERINFO = re.compile(r"//[^/@\s]*@")

messages = Console(stderr=True, highlight=False)
"""Progress and errors; stdout is for data."""


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int, str], None]]:
    """A progress bar on stderr; the function inside takes stage, done, total and a message."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[message]}"),
    )
    with Progress(*columns, console=messages) as progress:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int, message: str) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total, message="")
            progress.update(tasks[stage], completed=done, total=total, message=message)

        yield report


def settings_rows(settings: Any, prefix: str = "") -> Iterator[dict[str, str]]:
    """One row per setting: variable, value, where it came from, meaning."""
    for name, field in type(settings).model_fields.items():
        value, path = getattr(settings, name), f"{prefix}{name}"
        if hasattr(value, "model_fields_set"):
            yield from settings_rows(value, f"{path}__")
            continue
        variable = f"WEFT_{path.upper()}"
        origin = "environment" if any(variable == key.upper() for key in os.environ) else "default"
        yield {
            "variable": variable,
            "value": _USERINFO.sub("//***@", str(value)),
            "from": origin,
            "meaning": field.description or "",
        }


def settings_markdown(settings: Any) -> str:
    """The table of docs/settings.md."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for row in settings_rows(settings):
        default = "`.weft`" if row["variable"] == "WEFT_DATA_DIR" else f"`{row['value']}`"
        lines.append(f"| `{row['variable']}` | {default} | {row['meaning']} |")
    return "\n".join(lines) + "\n"
