"""Where a user's context stands in a conversation."""

from __future__ import annotations

from dataclasses import replace

from graph.context_lines import with_context
from models.language_model.protocol import Message


def with_system_context(messages: tuple[Message, ...], context: str) -> tuple[Message, ...]:
    """The conversation with `context` behind the caller's system prompt, or as one where there is none."""
    if not context:
        return messages
    if messages and messages[0].role == "system":
        return (replace(messages[0], content=with_context(messages[0].content, context)), *messages[1:])
    return (Message("system", with_context("", context)), *messages)


def with_user_context(messages: tuple[Message, ...], context: str) -> tuple[Message, ...]:
    """The conversation with `context` at the head of the user's first turn, for models without a system role.

    As it is where the user has no turn.
    """
    for place, message in enumerate(messages):
        if message.role == "user":
            told = replace(message, content=with_context(context, message.content))
            return (*messages[:place], told, *messages[place + 1 :])
    return messages
