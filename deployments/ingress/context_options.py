"""How a request of generation says what of its user's graph goes into the prompt."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from deployments.ingress.generation_fields import refused
from deployments.ingress.identifiers import Id
from deployments.ingress.memory_queries import MAX_CONTEXT_TOKENS
from deployments.ingress.schemas import Body
from graph.errors import InvalidInput


class ContextOptions(Body):
    """Without any of it: as the service is set, for a user who is named."""

    use_context: Annotated[
        bool | None, Field(description="Whether the prompt holds what is known about the user.")
    ] = None
    max_context_tokens: Annotated[
        int | None, Field(ge=1, le=MAX_CONTEXT_TOKENS, description="Tokens of it at most.")
    ] = None
    explain_item: Annotated[
        Id | None, Field(description="An item that comes first in it, with the reasons for suggesting it.")
    ] = None

    def is_wanted(self, default: bool) -> bool:
        """Whether a named user's context is used; `default` is for requests that do not say."""
        if self.use_context is None:
            return default or self.explain_item is not None or self.max_context_tokens is not None
        return self.use_context

    def check(self, user_id: str | None, place: str = "") -> None:
        """Raise InvalidInput for what contradicts itself; `place` is what stands before the fields' names."""
        if user_id is None:
            for name in ("use_context", "max_context_tokens", "explain_item"):
                if getattr(self, name) not in (None, False):
                    raise InvalidInput(
                        f"{place}{name} needs a user: context is a user's own", param=place + name
                    )
        elif self.use_context is False:
            for name in ("max_context_tokens", "explain_item"):
                if getattr(self, name) is not None:
                    raise InvalidInput(
                        f"{place}{name} needs the context that {place}use_context refuses", param=place + name
                    )


NO_CONTEXT = ContextOptions(use_context=False)

_NO_CONTEXT_HERE = "there is no context in a text that is continued as it is; use /v1/chat/completions"


def _asks_for_none(value: Any) -> Any:
    return None if value is False else value


class NoContextOptions(Body):
    """The same fields where they are refused."""

    use_context: Annotated[None, refused(_NO_CONTEXT_HERE), BeforeValidator(_asks_for_none)] = None
    max_context_tokens: Annotated[None, refused(_NO_CONTEXT_HERE)] = None
    explain_item: Annotated[None, refused(_NO_CONTEXT_HERE)] = None
