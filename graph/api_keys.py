"""API keys as text: `id.secret`. The id is public and names the key; only a digest of the secret is kept.

The secret has 256 random bits, so that SHA-256 without salt or stretching is enough: there is no dictionary
to try, and the check costs a microsecond on every request.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import NamedTuple

from graph.schema import ApiKey

_ID = re.compile(r"weft_[0-9a-f]{16}")
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")
_SECRET_BYTES = 32

KEY_ID_RULE = "the id of a key is weft_ and 16 hexadecimal digits"


class NewKey(NamedTuple):
    """A key that was just made; `text` is what its owner gets, once."""

    key_id: str
    text: str
    digest: str


def new_key() -> NewKey:
    """A random key."""
    key_id, secret = f"weft_{secrets.token_hex(8)}", secrets.token_urlsafe(_SECRET_BYTES)
    return NewKey(key_id, f"{key_id}.{secret}", digest_of(secret))


def digest_of(secret: str) -> str:
    """SHA-256, 64 hex digits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def is_key_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def split_key(text: str) -> tuple[str, str] | None:
    """Id and secret, None for a text that is no key."""
    key_id, _, secret = text.partition(".")
    if not is_key_id(key_id) or _SECRET.fullmatch(secret) is None:
        return None
    return key_id, secret


def opens(key: ApiKey | None, secret: str, now: float) -> bool:
    """Whether the secret is the key's and it has not expired at `now`, in Unix seconds.

    Takes as long for a key that does not exist as for a wrong secret.
    """
    known = "" if key is None else key.digest
    same = hmac.compare_digest(digest_of(secret), known or "0" * 64)
    return same and key is not None and (key.expires_at is None or now < key.expires_at)
