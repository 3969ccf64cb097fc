"""Bodies and answers of /v1/keys."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, model_validator

from deployments.ingress.identifiers import Id
from deployments.ingress.schemas import Body, check_label
from deployments.ingress.times import Time
from graph.schema import MAX_KEY_LABEL_CHARS, Role


def _check_label(text: str) -> str:
    return check_label(text) if text else text


class KeyBody(Body):
    """A key to be made."""

    role: Role = Field(description="admin, write, read, or user: that user's own things alone.")
    user_id: Id | None = Field(None, description="Whose key it is; for the role user.")
    label: Annotated[str, Field(max_length=MAX_KEY_LABEL_CHARS), AfterValidator(_check_label)] = Field(
        "", description="What it is for."
    )
    expires_at: Time | None = Field(None, description="Refused from then on; null: never.")

    @model_validator(mode="after")
    def _of_a_user(self) -> KeyBody:
        if (self.role == "user") != (self.user_id is not None):
            raise ValueError("user_id says whose key it is: the role user needs it, no other role takes it")
        return self


class KeyEntry(BaseModel):
    key_id: str
    role: Role
    user_id: str | None
    label: str
    created_at: str
    expires_at: str | None
    expired: bool


class NewKeyAnswer(KeyEntry):
    """`key` is what to send as `Authorization: Bearer KEY`."""

    key: str
    version: str


class KeysAnswer(BaseModel):
    keys: list[KeyEntry]
    next: str | None
    version: str
