"""Conversations, in the forms in which rows hold them, become one text by the model's chat template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sere.errors import DataError, MissingDependency, name_some

Message = Mapping[str, Any]
"""``role`` and ``content``, both strings, and whatever else the row's message holds."""

# Names that rows in the ``from``/``value`` form give to the roles that chat templates know.
_ROLES = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
}  # fmt: skip
_FORMS = (("role", "content"), ("from", "value"))


class ChatText(str):
    """A conversation as a chat template writes it, with its special tokens: the tokenizer adds none."""

    __slots__ = ()


def messages_of(value: Any, origin: str) -> tuple[Message, ...]:
    """Return a row's conversation in the form that chat templates take.

    Args:
        value: A list of messages, each with ``role`` and ``content`` or with ``from`` and ``value``. The
            content is a string, a list of text parts (joined by line breaks), or null (an empty string).
        origin: File and line or position that it comes from, for errors.

    Raises:
        DataError: It is not such a list; the text names the origin and the message.
    """
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise DataError(f"texts: {origin}: expected a list of messages, got {type(value).__name__}")
    return tuple(_message(one, f"{origin} message {number}") for number, one in enumerate(value))


def says_nothing(messages: Sequence[Message]) -> bool:
    """Whether no message holds any text or tool call."""
    return not any(message["content"].strip() or message.get("tool_calls") for message in messages)


def has_template(tokenizer: Any) -> bool:
    """Whether a tokenizer has a chat template."""
    return getattr(tokenizer, "chat_template", None) is not None


def render(
    messages: Sequence[Message], tokenizer: Any, origin: str, *, generation_prompt: bool = False
) -> str:
    """Write a conversation as one text.

    Args:
        messages: What `messages_of` returned.
        tokenizer: With its chat template, the text is a `ChatText`. Without a template (or tokenizer) it is
            each message as ``role: content``, with a blank line between messages.
        origin: File and line or position that the conversation comes from, for errors.
        generation_prompt: End with the opening of an answer.

    Raises:
        DataError: The template refuses the conversation, for example two consecutive messages of one role.
        MissingDependency: The template needs a package that is not installed.
    """
    if not has_template(tokenizer):
        parts = [f"{message['role']}: {message['content']}" for message in messages]
        return "\n\n".join([*parts, "assistant:"] if generation_prompt else parts)
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=generation_prompt
        )
    except ImportError as error:
        raise MissingDependency(f"texts: the chat template needs a package: {error}") from error
    except Exception as error:  # a template is a program of the model's author, and may raise anything
        raise DataError(f"texts: {origin}: the model's chat template refuses it: {error}") from error
    return ChatText(text)


def encode(text: str, tokenizer: Any) -> list[int]:
    """Return a text's token ids, with the tokenizer's own special tokens unless it is a `ChatText`."""
    own = not isinstance(text, ChatText)
    return list(tokenizer(str(text), add_special_tokens=own)["input_ids"])


def _message(value: Any, origin: str) -> Message:
    if not isinstance(value, Mapping):
        raise DataError(f"texts: {origin}: expected an object, got {type(value).__name__}")
    for role, content in _FORMS:
        if role in value:
            name = value[role]
            if not isinstance(name, str):
                raise DataError(f"texts: {origin}: expected a string in {role!r}, got {type(name).__name__}")
            rest = {key: other for key, other in value.items() if key not in (role, content)}
            kept = {key: other for key, other in rest.items() if other is not None}
            return kept | {"role": _ROLES.get(name, name), "content": _content(value.get(content), origin)}
    raise DataError(
        f"texts: {origin}: expected 'role' and 'content', or 'from' and 'value'; it has "
        f"{name_some(value) or 'nothing'}"
    )


def _content(value: Any, origin: str) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, Mapping | bytes) or not isinstance(value, Iterable):
        kind = type(value).__name__
        raise DataError(f"texts: {origin}: expected a string or a list of text parts as content, got {kind}")
    return "\n".join(_part(part, origin) for part in value)


def _part(part: Any, origin: str) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, Mapping) else None
    if not isinstance(text, str):
        kind = part.get("type", "unknown") if isinstance(part, Mapping) else type(part).__name__
        raise DataError(f"texts: {origin}: expected only text parts, got one of type {kind!r}")
    return text
