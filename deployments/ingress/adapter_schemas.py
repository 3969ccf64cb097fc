"""Names, bodies and answers of the adapter routes."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, cast

from pydantic import AfterValidator, BaseModel, Field, model_validator

from deployments.ingress.schemas import Body
from graph.errors import InvalidInput
from models.adapter_pointers import (
    MAX_ARMS,
    AdapterScope,
    check_adapter_name,
    check_inbox_path,
    check_version_label,
)


def check_pointer(scope: str, name: str) -> AdapterScope:
    """The scope. Raises InvalidInput naming the one of the two that is wrong."""
    check_adapter_name(scope, name)
    return cast(AdapterScope, scope)


def _label(text: str) -> str:
    try:
        check_version_label(text)
    except InvalidInput as error:
        raise ValueError(error.message) from None
    return text


def _inside(path: str) -> str:
    check_inbox_path(path)  # names the parameter itself
    return path


Label: TypeAlias = Annotated[str, AfterValidator(_label)]


class PutAdapterBody(Body):
    """A folder or a `.pt` file in the inbox."""

    path: Annotated[str, AfterValidator(_inside)]


class ArmBody(Body):
    """`weight` is the share of users that get this version, in proportion to those of the others."""

    version: Label
    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0


class ActivateBody(Body):
    """One version, several that are compared, or with `{"version": null}` none."""

    version: Label | None = None
    arms: Annotated[list[ArmBody], Field(min_length=1, max_length=MAX_ARMS)] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> ActivateBody:
        if ("version" in self.model_fields_set) == (self.arms is not None):
            raise InvalidInput("send exactly one of version and arms", param="version")
        labels = [arm.version for arm in self.arms or ()]
        if len(set(labels)) != len(labels):
            raise InvalidInput("a version is named twice in arms", param="arms")
        return self

    def shares(self) -> tuple[tuple[str, float], ...]:
        if self.arms is not None:
            return tuple((arm.version, arm.weight) for arm in self.arms)
        return () if self.version is None else ((self.version, 1.0),)


class NothingBody(Body):
    pass


PUT_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": PutAdapterBody.model_json_schema()},
            "application/x-tar": {
                "schema": {
                    "type": "string",
                    "format": "binary",
                    "description": "adapter_config.json and adapter_model.safetensors",
                }
            },
        },
    }
}
"""The body of a put, in OpenAPI: parsed by hand, because it has two content types."""


# -------------------------------------------------------------------------------------------------- answers


class ArmEntry(BaseModel):
    version: str
    digest: str
    weight: float


class AdapterEntry(BaseModel):
    """`active`: a pointer names it; `resident`: in the memory of the replica that answered."""

    scope: Literal["user", "domain", "global"]
    name: str
    version: str
    digest: str
    size_bytes: int
    rank: int
    modules: list[str]
    created_at: float
    active: bool
    resident: bool


class StateEntry(BaseModel):
    """`previous` is what a rollback makes active again; `version` is the token of the last change."""

    scope: Literal["user", "domain", "global"]
    name: str
    arms: list[ArmEntry]
    previous: list[ArmEntry]
    action: str
    version: str


class CandidateEntry(BaseModel):
    """What lies in the inbox; `problem` says why it cannot be put, null when it can."""

    path: str
    digest: str | None
    size_bytes: int
    problem: str | None


class AdaptersAnswer(BaseModel):
    adapters: list[AdapterEntry]
    states: list[StateEntry]
    candidates: list[CandidateEntry]
    next: str | None
    version: str


class AdapterWriteAnswer(BaseModel):
    """`replayed`: it was so before, and nothing was written."""

    version: str
    changed: int
    replayed: bool


class PutAdapterAnswer(AdapterWriteAnswer):
    adapter: AdapterEntry


class AdapterStateAnswer(AdapterWriteAnswer):
    state: StateEntry


class HistoryAnswer(BaseModel):
    """Oldest first."""

    history: list[StateEntry]
