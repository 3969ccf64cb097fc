"""Every error Weft raises on purpose, as one tree.

Each class fixes a stable `code` that clients may switch on, the HTTP status it maps to, and whether
repeating the same request can succeed (`retryable`). A message says what was wrong, which value, and what is
allowed or what to do next; it is safe to show to a client.

    WeftError
    |- InvalidInput            422  a value that can never be accepted
    |  |- TextTooLong               beyond the model's window, and not to be truncated
    |  |- InvalidAdapter            files that are no LoRA adapter of the running base model
    |- NotFound                404
    |  |- UnknownUser, UnknownItem, UnknownRating, UnknownEncoder, UnknownTextModel
    |  |- UnknownModel, UnknownAdapter, UnknownMemory, UnknownRelation, UnknownApiKey
    |- Unauthenticated         401  no API key, or one that is not valid
    |- Forbidden               403  a valid key that does not allow this
    |- Conflict                409
    |  |- IdempotencyConflict       the key was used with another body
    |  |- ForeignToken              a version token of another store
    |  |- StoreLocked               another process holds the store
    |  |- Fenced                    another writer took the store over
    |  |- PointerMoved              a pointer is no longer at the version that the write expected
    |  |- AdapterInUse              an adapter that is active, or the one to roll back to, is not deleted
    |- Unavailable             503  retryable
    |  |- NotYet                    the view has not reached `min_version` in time
    |  |- Overloaded           429
    |  |- ModelUnavailable          the language model is switched off, being opened, or cannot be opened
    |  |- OutOfMemory               the device's memory did not suffice, after everything idle was dropped
    |  |- OutcomeUnknown            the store broke off while it committed: the write may have happened
    |  |- SnapshotRequired          the feed no longer reaches back that far
    |- Corrupt                 500  a file or row that fails its checksum or format
"""

from __future__ import annotations


class WeftError(Exception):
    """Root of the tree."""

    code = "internal"
    status = 500
    retryable = False

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders: the default would drop keyword-only arguments.
        return (_rebuild, (type(self), self.message, self.param))


def _rebuild(kind: type[WeftError], message: str, param: str | None) -> WeftError:
    return kind(message, param=param)


class InvalidInput(WeftError):
    code, status = "invalid_input", 422


class TextTooLong(InvalidInput):
    code = "text_too_long"


class InvalidAdapter(InvalidInput):
    code = "invalid_adapter"


class NotFound(WeftError):
    code, status = "not_found", 404


class UnknownUser(NotFound):
    code = "unknown_user"


class UnknownItem(NotFound):
    code = "unknown_item"


class UnknownRating(NotFound):
    code = "unknown_rating"


class UnknownEncoder(NotFound):
    code = "unknown_encoder"


class UnknownTextModel(NotFound):
    code = "unknown_text_model"


class UnknownModel(NotFound):
    code = "model_not_found"


class UnknownAdapter(NotFound):
    code = "unknown_adapter"


class UnknownMemory(NotFound):
    code = "unknown_memory"


class UnknownApiKey(NotFound):
    code = "unknown_api_key"


class UnknownRelation(NotFound):
    code = "unknown_relation"


class Unauthenticated(WeftError):
    code, status = "unauthenticated", 401


class Forbidden(WeftError):
    code, status = "forbidden", 403


class Conflict(WeftError):
    code, status = "conflict", 409


class IdempotencyConflict(Conflict):
    code = "idempotency_conflict"


class ForeignToken(Conflict):
    code = "foreign_token"


class StoreLocked(Conflict):
    code = "store_locked"


class Fenced(Conflict):
    code = "fenced"


class PointerMoved(Conflict):
    code = "pointer_moved"


class AdapterInUse(Conflict):
    code = "adapter_in_use"


class Unavailable(WeftError):
    code, status, retryable = "unavailable", 503, True


class NotYet(Unavailable):
    code = "not_yet"


class Overloaded(Unavailable):
    code, status = "overloaded", 429


class ModelUnavailable(Unavailable):
    code = "model_unavailable"


class OutOfMemory(Unavailable):
    code = "out_of_memory"


class OutcomeUnknown(Unavailable):
    code = "outcome_unknown"


class SnapshotRequired(Unavailable):
    code = "snapshot_required"


class Corrupt(WeftError):
    code = "corrupt"
