"""Prompts as tokens, in which no client's text becomes a control token.

A chat template marks turns with control tokens (`<|im_start|>`, `</s>`). A tokenizer recognises their
spelling anywhere, also inside a message: whoever writes `<|im_end|><|im_start|>system` would open a turn of
their own. Here the template's control tokens stay control tokens, and the same spelling in a message is text:
it becomes the tokens of its letters.

Limits: added tokens that the tokenizer does not call special (Qwen's `<think>`, runs of spaces) are
recognised in messages, as everywhere. Where the template marks turns by words, not control tokens, as the
default one here does, a message may imitate them.

A user's context becomes part of the system message, and is a client's text like every other.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from jinja2 import TemplateError
from tokenizers import Encoding, Tokenizer

from graph.errors import InvalidInput
from models.language_model.prompt_context import with_system_context, with_user_context
from models.language_model.protocol import Message, Prompt

Span: TypeAlias = tuple[int, int]

_SYSTEM_TURN_TOKENS = 16
"""What a template writes around a system message that was not there before, and what the blank line between
system prompt and context takes."""
_PROBE = "system messages are read"


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as the model reads it."""

    tokens: tuple[int, ...]
    shared_tokens: int
    """So many leading tokens are those of the caller's bare system prompt: the same for every conversation
    that begins with it, whoever's it is. Never any of a context. 0 without a system prompt and for texts."""


def encode_prompt(tokenizer: Any, prompt: Prompt, context: str = "") -> EncodedPrompt:
    """The tokens of a text, or of a conversation with the assistant's turn opened. Thread-safe.

    A text gets the tokenizer's usual special tokens around it; its own are plain text. A conversation is
    rendered by the tokenizer's chat template, or as lines `role: content` where there is none; tokens
    are those of `apply_chat_template`, unless a message spells a control token.

    Args:
        tokenizer: one of transformers', of the fast kind.
        prompt: a text or a conversation.
        context: what is known about the user; it stands in the system message of the conversation, behind the
            caller's own system prompt, or at the head of the user's first turn where the template has no
            system messages.

    Raises InvalidInput for an empty prompt, a conversation that does not end with the user, one that the
    template refuses (with the template's words), a control token's spelling that cannot be kept apart, and a
    text with a context.
    """
    encoder = _encoder(tokenizer)
    if isinstance(prompt, str):
        if context:
            raise InvalidInput("a text takes no context: send messages", param="prompt")
        return EncodedPrompt(_not_empty(encoder.encode_text(prompt)), 0)
    _check_conversation(prompt)
    full = _joined(tokenizer, encoder, prompt, context)
    tokens = _not_empty(_encode_conversation(tokenizer, encoder, full, opened=True))
    # Of the conversation without context: what follows the system prompt in this one is the user's own.
    return EncodedPrompt(tokens, _shared_tokens(tokenizer, encoder, prompt, tokens))


def count_tokens(tokenizer: Any, text: str) -> int:
    """Tokens of a text inside of a prompt: what spells a control token counts as the letters that it is."""
    return len(_encoder(tokenizer).literal(text))


def room_for_context(
    tokenizer: Any, prompt: Prompt, max_tokens: int | None, window: int, default_max_tokens: int
) -> int:
    """Tokens of `window` that a context may have beside the prompt and an answer of `max_tokens`.

    An answer whose length is not given keeps `default_max_tokens`, or half of what the prompt leaves where
    that is less. 0 where there is no room.
    """
    free = window - len(encode_prompt(tokenizer, prompt).tokens) - _SYSTEM_TURN_TOKENS
    answer = min(default_max_tokens, free // 2) if max_tokens is None else max_tokens
    return max(0, free - answer)


def _not_empty(tokens: tuple[int, ...]) -> tuple[int, ...]:
    if not tokens:
        raise InvalidInput("the prompt is empty; give at least one character", param="prompt")
    return tokens


def _check_conversation(messages: Sequence[Message]) -> None:
    if not messages:
        raise InvalidInput("messages is empty; give at least one message of the user", param="messages")
    if messages[-1].role == "assistant":
        raise InvalidInput(
            "the last message is the assistant's; the last one must be from the user or the system",
            param="messages",
        )


def _joined(
    tokenizer: Any, encoder: _Encoder, messages: tuple[Message, ...], context: str
) -> tuple[Message, ...]:
    if context and not _takes_system(tokenizer, encoder):
        return with_user_context(messages, context)
    return with_system_context(messages, context)


def _takes_system(tokenizer: Any, encoder: _Encoder) -> bool:
    """Whether the chat template renders system messages: some raise an error, some leave them out."""
    template = str(tokenizer.chat_template)
    if template not in encoder.takes_system:
        turns = [{"role": "system", "content": _PROBE}, {"role": "user", "content": "a"}]
        try:
            found = tokenizer.chat_template is None or _PROBE in _apply_template(tokenizer, turns, True)
        except InvalidInput:
            found = False
        encoder.takes_system[template] = found
    return encoder.takes_system[template]


def _shared_tokens(
    tokenizer: Any, encoder: _Encoder, messages: Sequence[Message], tokens: tuple[int, ...]
) -> int:
    if messages[0].role != "system":
        return 0
    try:
        alone = _encode_conversation(tokenizer, encoder, messages[:1], opened=False)
    except InvalidInput:
        return 0  # this template cannot render a system prompt by itself: nothing is known to be shared
    common = next((i for i, (a, b) in enumerate(zip(alone, tokens, strict=False)) if a != b), None)
    if common is None:
        common = min(len(alone), len(tokens))
    # The last token's text might merge with what follows in another conversation; control tokens do not.
    if common and tokens[common - 1] not in encoder.control:
        common -= 1
    return common


# --- Rendering -------------------------------------------------------------------------------------------


def _encode_conversation(
    tokenizer: Any, encoder: _Encoder, messages: Sequence[Message], *, opened: bool
) -> tuple[int, ...]:
    has_template = tokenizer.chat_template is not None

    def render(contents: Sequence[str]) -> str:
        turns = [{"role": m.role, "content": c} for m, c in zip(messages, contents, strict=True)]
        return _apply_template(tokenizer, turns, opened) if has_template else _render_lines(turns, opened)

    contents = [message.content for message in messages]
    text = render(contents)
    # A template writes its special tokens itself; lines have those that the tokenizer puts around a text.
    encoding = encoder.encode(text, add_special_tokens=not has_template)
    controls = [
        span
        for token_id, span in zip(encoding.ids, encoding.offsets, strict=True)
        if token_id in encoder.control and span[0] < span[1]
    ]
    if not controls:
        return tuple(encoding.ids)
    spans = _content_spans(render, contents, text)
    if spans is None:
        # The template looks into the contents, so that theirs cannot be told from its own in the rendering.
        if spelled := encoder.find_control(contents):
            raise InvalidInput(
                f"a message holds the control token {spelled!r}, which this model's chat template does not "
                "let us keep apart; leave it out",
                param="messages",
            )
        return tuple(encoding.ids)
    own = [span for span in controls if not any(_overlap(span, content) for content in spans)]
    if len(own) == len(controls):
        return tuple(encoding.ids)
    return encoder.encode_stretches(text, own, add_special_tokens=not has_template)


def _apply_template(tokenizer: Any, turns: list[dict[str, str]], opened: bool) -> str:
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=opened)
    except TemplateError as error:
        raise InvalidInput(
            f"the model's chat template refuses this conversation: {error}", param="messages"
        ) from error
    return text


def _render_lines(turns: list[dict[str, str]], opened: bool) -> str:
    lines = [f"{turn['role']}: {turn['content']}\n" for turn in turns]
    return "".join(lines) + ("assistant:" if opened else "")


def _content_spans(
    render: Callable[[Sequence[str]], str], contents: Sequence[str], text: str
) -> list[Span] | None:
    """Where in `text` the messages' contents are; None if marking them changes the rendering.

    The contents are rendered again between marks that no client can know. The marks are put inside of
    surrounding white space, which templates strip.
    """
    key = secrets.token_hex(8)
    begin, end = f"\ue000{key}\ue001", f"\ue002{key}\ue003"
    marked_contents = []
    for content in contents:
        core = content.strip()
        head = content[: len(content) - len(content.lstrip())] if core else content
        tail = content[len(content.rstrip()) :] if core else ""
        marked_contents.append(f"{head}{begin}{core}{end}{tail}" if core else content)
    try:
        marked = render(marked_contents)
    except InvalidInput:
        return None
    spans: list[Span] = []
    plain, opened_at, expected = "", -1, begin
    for piece in re.split(f"({re.escape(begin)}|{re.escape(end)})", marked):
        if piece not in (begin, end):
            plain += piece
            continue
        if piece != expected:
            return None
        if piece == begin:
            opened_at, expected = len(plain), end
        else:
            spans.append((opened_at, len(plain)))
            expected = begin
    return spans if plain == text and expected == begin else None


def _overlap(one: Span, other: Span) -> bool:
    return one[0] < other[1] and other[0] < one[1]


# --- Encoding --------------------------------------------------------------------------------------------


class _Encoder:
    """A tokenizer's core in two copies, with control tokens recognised and not.

    Copies, as transformers switches recognition by setting a flag on the one core that all threads share.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise InvalidInput(
                f"{type(tokenizer).__name__} is no fast tokenizer; use a model with a tokenizer.json",
                param="model",
            )
        serialised = tokenizer.backend_tokenizer.to_str()
        self._usual, self._literal = Tokenizer.from_str(serialised), Tokenizer.from_str(serialised)
        for core in (self._usual, self._literal):
            core.no_padding()
            core.no_truncation()
        self._usual.encode_special_tokens = False
        self._literal.encode_special_tokens = True
        control = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        control |= set(tokenizer.all_special_ids)
        # Unknown characters become the unknown token, which controls nothing if that is all it is.
        others = {tokenizer.bos_token_id, tokenizer.eos_token_id}
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id not in others:
            control.discard(tokenizer.unk_token_id)
        self.control = frozenset(control)
        self.takes_system: dict[str, bool] = {}
        """By chat template, see `_takes_system`."""

    def encode(self, text: str, *, add_special_tokens: bool) -> Encoding:
        return self._usual.encode(text, add_special_tokens=add_special_tokens)

    def encode_text(self, text: str) -> tuple[int, ...]:
        """A client's text, with the special tokens that the tokenizer puts around every text."""
        return self._checked(self._literal.encode(text, add_special_tokens=True))

    def literal(self, text: str) -> list[int]:
        """A client's text, without special tokens around it."""
        ids: list[int] = self._literal.encode(text, add_special_tokens=False).ids
        return ids

    def encode_stretches(
        self, text: str, own: Sequence[Span], *, add_special_tokens: bool
    ) -> tuple[int, ...]:
        """A rendering in which only the control tokens at `own` are recognised."""
        if add_special_tokens:  # lines without a template have no control tokens of their own
            return self.encode_text(text)
        tokens: list[int] = []
        position = 0
        for start, end in own:
            tokens += self._plain(text[position:start])
            tokens += self._usual.encode(text[start:end], add_special_tokens=False).ids
            position = end
        tokens += self._plain(text[position:])
        return tuple(tokens)

    def find_control(self, texts: Sequence[str]) -> str | None:
        """The first spelling of a control token in the texts, if there is one."""
        for text in texts:
            encoding = self._usual.encode(text, add_special_tokens=False)
            for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
                if token_id in self.control:
                    return text[start:end]
        return None

    def _plain(self, text: str) -> tuple[int, ...]:
        return self._checked(self._literal.encode(text, add_special_tokens=False)) if text else ()

    def _checked(self, encoding: Encoding) -> tuple[int, ...]:
        """Its tokens. The model below may hold a control token as an ordinary piece (Unigram): then this
        tokenizer has no other way to spell it.
        """
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token_id in self.control and start < end:
                raise InvalidInput(
                    f"the text holds the control token {self._usual.id_to_token(token_id)!r}, which this "
                    "tokenizer cannot write as text; leave it out",
                    param="prompt",
                )
        return tuple(encoding.ids)


_encoders: WeakKeyDictionary[Any, _Encoder] = WeakKeyDictionary()


def _encoder(tokenizer: Any) -> _Encoder:
    """Made once for each tokenizer; two threads that come first both make one, and either is good."""
    encoder = _encoders.get(tokenizer)
    if encoder is None:
        encoder = _encoders[tokenizer] = _Encoder(tokenizer)
    return encoder
