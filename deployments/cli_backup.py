"""`weft backup` and `weft restore`: everything that cannot be computed again, out of harm's way and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from deployments.cli_output import AsJson, messages, print_json, progress_bar
from deployments.settings import Settings
from graph.errors import InvalidInput
from graph.times import iso_time


def backup(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the backup goes; it is made.")],
    incomplete: Annotated[
        bool, typer.Option("--incomplete", help="Keep it even if active encoders or adapters are missing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Copy store, encoders, adapters and audit log, of a running service too."""
    from deployments.named_files import folders_of, named_files
    from graph.backup import listed, write_backup
    from graph.store_identity import dump_command

    settings = Settings()
    target = folder.expanduser().resolve()
    if target.is_relative_to(settings.data_dir):
        raise InvalidInput(f"{target} is in the data directory, with which it would be lost: choose another")
    with progress_bar() as report:
        manifest = write_backup(
            target,
            settings.store_url,
            folders_of(settings),
            named_files,
            incomplete=incomplete,
            report=lambda stage, done, total: report(stage, done, total, ""),
        )
    command = dump_command(settings.store_url)
    if as_json:
        print_json(
            {
                "path": str(target),
                "database": manifest.database,
                "store_id": manifest.store_id,
                "version": manifest.version,
                "created_at": iso_time(manifest.created_at),
                "files": len(manifest.files),
                "size_bytes": manifest.size_bytes,
                "missing": manifest.missing,
                "pg_dump": command,
            }
        )
    else:
        messages.print(
            f"{len(manifest.files):,} files, {manifest.size_bytes / 1e6:,.1f} MB, of store "
            f"{manifest.store_id} at version {manifest.version} are in {escape(str(target))}.",
            soft_wrap=True,
        )
    if manifest.missing:
        messages.print(
            f"[yellow]incomplete:[/yellow] not there: {escape(listed(manifest.missing))}.", soft_wrap=True
        )
    if command is not None:
        messages.print(
            "The database is not in it: the other half of the backup is made, before this command, by "
            f"`{escape(command)}`.",
            soft_wrap=True,
        )


def restore(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A backup.")], as_json: AsJson = False
) -> None:
    """Put a backup into a data directory without a store, as a new store."""
    from deployments.named_files import folders_of, named_files
    from graph.backup import listed
    from graph.restore import restore_backup

    settings = Settings()
    with progress_bar() as report:
        restored = restore_backup(
            folder.expanduser().resolve(),
            settings.store_url,
            settings.data_dir,
            folders_of(settings),
            named_files,
            report=lambda stage, done, total: report(stage, done, total, ""),
        )
    manifest = restored.backup
    made_at = iso_time(manifest.created_at)
    if as_json:
        print_json(
            {
                "store_id": restored.store_id,
                "restored_from": manifest.store_id,
                "version": restored.version,
                "created_at": made_at,
                "files": len(manifest.files),
                "size_bytes": manifest.size_bytes,
                "missing": restored.missing,
            }
        )
    else:
        messages.print(
            f"Store {manifest.store_id} at version {restored.version} is restored in "
            f"{escape(str(settings.data_dir))}, as store {restored.store_id}: version tokens of before are "
            "refused with 409 foreign_token.",
            soft_wrap=True,
        )
    messages.print(
        f"What was written after {made_at} is not in it. API keys that were revoked since are valid again: "
        "`weft keys list` shows them.",
        soft_wrap=True,
    )
    if restored.missing:
        messages.print(
            f"[yellow]incomplete:[/yellow] not there: {escape(listed(restored.missing))}.", soft_wrap=True
        )
