"""`weft keys`: who may call the service. Through the service when one runs, in the store otherwise."""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from deployments.cli_output import AsJson, messages, print_json
from deployments.settings import Settings
from graph.errors import InvalidInput, UnknownApiKey
from graph.times import iso_time, unix_seconds

commands = typer.Typer(no_args_is_help=True)

_SPAN = re.compile(r"(\d{1,6})([smhd])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_PAGE = 1_000


@commands.command()
def create(
    role: Annotated[str, typer.Argument(help="admin, write, read, or user.")],
    user: Annotated[str | None, typer.Option(help="Whose key it is, for the role user.")] = None,
    label: Annotated[str, typer.Option(help="What it is for.")] = "",
    expires: Annotated[
        str | None, typer.Option(help="30d, 12h, 15m, or a time such as 2027-01-31; default: never.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, this once."""
    settings = Settings()
    made = _create(settings, role, user, label, None if expires is None else _expiry(expires, time.time()))
    if as_json:
        print_json(made)
        return
    print(made["key"])
    whose = f" of {escape(made['user_id'])}" if made["user_id"] else ""
    until = f" until {made['expires_at']}" if made["expires_at"] else ""
    messages.print(f"A key with the role {made['role']}{whose}{until}. Keep it: it is not shown again.")
    if settings.auth == "off":
        messages.print("The service asks for keys when WEFT_AUTH=required is set where it starts.")


@commands.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """Keys that were not revoked, oldest first; without their secrets, which nobody has."""
    found = sorted(_list(Settings()), key=lambda key: (key["created_at"], key["key_id"]))
    if as_json:
        print_json(found)
        return
    if not found:
        messages.print("There is no key: weft keys create ROLE makes one.")
        return
    table = Table(Column("key", no_wrap=True), "role", "user", "label", "made (UTC)", "expires (UTC)")
    for key in found:
        expires = f"{_short(key['expires_at'] or 'never')}{' (expired)' if key['expired'] else ''}"
        made = _short(key["created_at"])
        texts = (key["key_id"], key["role"], key["user_id"] or "", key["label"], made, expires)
        table.add_row(*map(escape, texts))
    Console().print(table)


@commands.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, or the whole key.")], as_json: AsJson = False
) -> None:
    """Make a key open nothing any more: on every replica within a second."""
    key_id = key_id.partition(".")[0]
    written = _revoke(Settings(), key_id)
    if as_json:
        print_json(written)
    else:
        messages.print(f"{escape(key_id)} is revoked.")


def warn_of_access(settings: Settings) -> None:
    """Say it, before a service starts, if nobody could use it, or everybody."""
    if settings.insecure and settings.auth == "off":
        messages.print(
            f"[red]insecure:[/red] whoever reaches {settings.http.host}:{settings.http.port} may read and "
            "change everything."
        )
    if settings.auth == "required" and not any(_usable(key) for key in _list(settings)):
        raise InvalidInput(
            "WEFT_AUTH=required and there is no valid key with the role admin, so that nobody could make "
            "one: run `weft keys create admin` first"
        )


def _short(time: str) -> str:
    """A time to the minute, without what is the same in all: they are UTC."""
    return time[:16].replace("T", " ")


def _usable(key: dict[str, Any]) -> bool:
    return key["role"] == "admin" and not key["expired"]


def _expiry(text: str, now: float) -> int:
    """Unix seconds of `30d`, counted from `now`, or of a time. Raises InvalidInput."""
    span = _SPAN.fullmatch(text)
    if span is not None:
        return int(now) + int(span[1]) * _UNIT_S[span[2]]
    try:
        seconds = unix_seconds(text)
    except ValueError as error:
        raise InvalidInput(f"--expires {text[:80]!r}: 30d, 12h, 15m, or {error}", param="expires") from None
    if seconds <= now:
        raise InvalidInput(f"--expires {text!r} lies in the past", param="expires")
    return seconds


# ------------------------------------------------------------------------------ through the service, or not


def _create(
    settings: Settings, role: str, user: str | None, label: str, expires_at: int | None
) -> dict[str, Any]:
    from deployments.service_client import service_client
    from deployments.store_access import open_writer, service_url
    from graph.api_keys import new_key
    from graph.schema import PutApiKey, WriteRequest

    url = service_url(settings)
    if url is not None:
        with service_client(settings, url) as client:
            return asdict(client.create_key(role, user, label, expires_at))
    made, now = new_key(), int(time.time())
    with open_writer(settings, "weft keys create") as write:
        operation = PutApiKey(made.key_id, role, made.digest, now, user or "", label, expires_at)  # type: ignore[arg-type]
        write(WriteRequest((operation,)))
    return {"key": made.text} | _entry(made.key_id, role, user, label, now, expires_at)


def _list(settings: Settings) -> list[dict[str, Any]]:
    from deployments.service_client import service_client
    from deployments.store_access import read_api_keys, service_url

    url = service_url(settings)
    if url is None:
        return [
            _entry(key.key_id, key.role, key.user_id or None, key.label, key.created_at, key.expires_at)
            for key in read_api_keys(settings)
        ]
    with service_client(settings, url) as client:
        page = client.list_keys(_PAGE)
        found = list(page.records)
        while page.next is not None:
            page = client.list_keys(_PAGE, page.next)
            found += page.records
    return [asdict(key) for key in found]


def _revoke(settings: Settings, key_id: str) -> dict[str, Any]:
    from deployments.service_client import service_client
    from deployments.store_access import open_writer, service_url
    from graph.api_keys import is_key_id
    from graph.schema import DeleteApiKey, WriteRequest

    if not is_key_id(key_id):
        raise UnknownApiKey(f"no key {key_id[:80]!r}: weft keys list shows them all", param="key_id")
    url = service_url(settings)
    if url is not None:
        with service_client(settings, url) as client:
            return asdict(client.revoke_key(key_id))
    with open_writer(settings, "weft keys revoke") as write:
        result = write(WriteRequest((DeleteApiKey(key_id),)))
    return asdict(result)


def _entry(
    key_id: str, role: str, user_id: str | None, label: str, created_at: int, expires_at: int | None
) -> dict[str, Any]:
    return {
        "key_id": key_id,
        "role": role,
        "user_id": user_id,
        "label": label,
        "created_at": iso_time(created_at),
        "expires_at": None if expires_at is None else iso_time(expires_at),
        "expired": expires_at is not None and expires_at <= time.time(),
    }
