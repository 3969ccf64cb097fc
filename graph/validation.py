"""What ids, texts, tags and attributes may be: the rules of `graph.schema`, as typed errors."""

from __future__ import annotations

import math
import re
from typing import get_args

import numpy as np

from graph.api_keys import KEY_ID_RULE, is_key_id
from graph.errors import InvalidInput
from graph.schema import (
    ID_RULE,
    LABEL_RULE,
    MAX_ATTRIBUTES,
    MAX_KEY_LABEL_CHARS,
    MAX_RELATION_CHARS,
    MAX_SOURCE_CHARS,
    MAX_TAG_CHARS,
    MAX_TAGS,
    MAX_TEXT_CHARS,
    MAX_TITLE_CHARS,
    MAX_UNIX_S,
    TEXT_RULE,
    Attributes,
    PutApiKey,
    PutItem,
    PutMemory,
    PutRelation,
    PutTextVector,
    Role,
    is_id,
    is_label,
    is_text,
)

_DIGEST = re.compile(r"[0-9a-f]{32}")
_SECRET_DIGEST = re.compile(r"[0-9a-f]{64}")


def checked_id(value: str, param: str) -> str:
    """`value`, if it can be an id; raises InvalidInput naming `param`."""
    if not is_id(value):
        raise InvalidInput(f"{param} {value[:80]!r} is refused: {ID_RULE}", param=param)
    return value


def check_item(item: PutItem) -> None:
    """Raise InvalidInput for metadata that no item may have."""
    checked_id(item.item_id, "item_id")
    if not is_label(item.title, MAX_TITLE_CHARS):
        raise InvalidInput(
            f"title {item.title[:80]!r}: a title has 1 to {MAX_TITLE_CHARS} characters and {LABEL_RULE}",
            param="title",
        )
    check_text(item.text, "text")
    if len(item.tags) > MAX_TAGS:
        raise InvalidInput(f"at most {MAX_TAGS} tags, got {len(item.tags)}", param="tags")
    for tag in item.tags:
        if not is_label(tag, MAX_TAG_CHARS):
            raise InvalidInput(
                f"tag {tag[:80]!r}: a tag has 1 to {MAX_TAG_CHARS} characters and {LABEL_RULE}", param="tags"
            )
    if item.year is not None and not -9999 <= item.year <= 9999:
        raise InvalidInput(f"year {item.year}: a number from -9999 to 9999", param="year")


def check_text(text: str, param: str) -> None:
    """Raise InvalidInput for a text that is too long or that no database takes."""
    # A text with half a surrogate pair would fail the whole group of writes.
    if not is_text(text):
        raise InvalidInput(
            f"{param} of {len(text)} characters: a text has at most {MAX_TEXT_CHARS} and {TEXT_RULE}",
            param=param,
        )


def check_memory(memory: PutMemory) -> None:
    """Raise InvalidInput for what cannot be a memory."""
    checked_id(memory.memory_id, "memory_id")
    if not memory.text.strip():
        raise InvalidInput(
            f"a memory has a text of 1 to {MAX_TEXT_CHARS} characters that is not blank", param="text"
        )
    check_text(memory.text, "text")
    for name, time in (("valid_at", memory.valid_at), ("invalid_at", memory.invalid_at)):
        if time is not None and not 0 <= time <= MAX_UNIX_S:
            raise InvalidInput(f"{name} {time!r}: Unix seconds from 0 to {MAX_UNIX_S}", param=name)
    begin, end = memory.valid_at, memory.invalid_at
    if begin is not None and end is not None and end <= begin:
        raise InvalidInput(
            f"invalid_at {end} is not after valid_at {begin}: the memory would never hold", param="invalid_at"
        )
    if memory.source and not is_label(memory.source, MAX_SOURCE_CHARS):
        raise InvalidInput(
            f"source {memory.source[:80]!r}: a source has at most {MAX_SOURCE_CHARS} characters and "
            f"{LABEL_RULE}",
            param="source",
        )


def check_relation(relation: PutRelation) -> None:
    """Raise InvalidInput for a name that no relation may have."""
    if not is_label(relation.name, MAX_RELATION_CHARS):
        raise InvalidInput(
            f"name {relation.name[:80]!r}: the name of a relation has 1 to {MAX_RELATION_CHARS} characters "
            f"and {LABEL_RULE}",
            param="name",
        )


def checked_attributes(attributes: Attributes) -> Attributes:
    """A copy of attributes that a user may have; raises InvalidInput for others."""
    if len(attributes) > MAX_ATTRIBUTES:
        raise InvalidInput(f"at most {MAX_ATTRIBUTES} attributes, got {len(attributes)}", param="attributes")
    for name, value in attributes.items():
        if not is_label(name, MAX_TAG_CHARS):
            raise InvalidInput(
                f"attribute {name[:64]!r}: a name has 1 to {MAX_TAG_CHARS} characters and {LABEL_RULE}",
                param="attributes",
            )
        texts = value if isinstance(value, list) else [value] if isinstance(value, str) else []
        if len(texts) > MAX_TAGS or any(
            not isinstance(text, str) or not is_text(text, MAX_TITLE_CHARS) for text in texts
        ):
            raise InvalidInput(
                f"attribute {name!r}: a text has at most {MAX_TITLE_CHARS} characters and {TEXT_RULE}; "
                f"a list has at most {MAX_TAGS} texts",
                param="attributes",
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidInput(f"attribute {name!r}: {value!r} is not a finite number", param="attributes")
    return dict(attributes)


def check_api_key(key: PutApiKey) -> None:
    """Raise InvalidInput for what cannot be a key."""
    if not is_key_id(key.key_id):
        raise InvalidInput(f"key_id {key.key_id[:80]!r} is refused: {KEY_ID_RULE}", param="key_id")
    if key.role not in get_args(Role):
        raise InvalidInput(f"role {key.role!r}: one of {', '.join(get_args(Role))}", param="role")
    if _SECRET_DIGEST.fullmatch(key.digest) is None:
        raise InvalidInput("the digest of a secret has 64 hexadecimal digits", param="digest")
    if (key.role == "user") != bool(key.user_id):
        raise InvalidInput(
            "user_id says whose key it is: the role user needs it, and no other role takes it",
            param="user_id",
        )
    if key.user_id:
        checked_id(key.user_id, "user_id")
    if key.label and not is_label(key.label, MAX_KEY_LABEL_CHARS):
        raise InvalidInput(
            f"label {key.label[:80]!r}: a label has at most {MAX_KEY_LABEL_CHARS} characters and "
            f"{LABEL_RULE}",
            param="label",
        )
    for name, seconds in (("created_at", key.created_at), ("expires_at", key.expires_at)):
        if seconds is not None and not 0 <= seconds <= MAX_UNIX_S:
            raise InvalidInput(f"{name} {seconds}: Unix seconds up to the year 9999", param=name)


def check_text_vector(vector: PutTextVector) -> None:
    """Raise InvalidInput for what cannot be a vector of any text."""
    checked_id(vector.model, "model")
    if _DIGEST.fullmatch(vector.text_digest) is None:
        raise InvalidInput(
            f"text_digest {vector.text_digest[:80]!r}: 32 hex digits, as graph.node_text.text_digest gives",
            param="text_digest",
        )
    if not vector.vector or len(vector.vector) % 2:
        raise InvalidInput(
            f"a vector of {len(vector.vector)} bytes: one or more float16 values, two bytes each",
            param="vector",
        )
    if not np.isfinite(np.frombuffer(vector.vector, "<f2")).all():
        raise InvalidInput(
            f"the vector of {vector.kind} {vector.node_id!r} holds values that are not finite as float16",
            param="vector",
        )
