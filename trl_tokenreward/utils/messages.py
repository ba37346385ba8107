"""Messages of chats, as people and editors read them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .text import shorten


def without_none(value: Any) -> Any:
    """A value without what Arrow puts where one message lacks a field that others have."""
    if isinstance(value, dict):
        return {key: without_none(part) for key, part in value.items() if part is not None}
    return [without_none(part) for part in value] if isinstance(value, list) else value


def template_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as a chat template gets it: without what Arrow puts into it from other rows, such as the arguments of
    their calls of tools. Its `content` stays, for a null may be meant there."""
    fields = {name: without_none(value) for name, value in message.items()}
    return {name: value for name, value in fields.items() if value is not None or name == "content"}


def other_fields(message: Mapping[str, Any]) -> dict[str, Any]:
    """What a message has beside its role and content, such as calls of tools, without which it is another."""
    return {name: without_none(value) for name, value in message.items() if value and name not in ("role", "content")}


def is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("role") is not None  # as Arrow has it where others have one


def message_text(message: Mapping[str, Any]) -> str:
    """What a message says. What is no text, such as an image or a call of a tool, is JSON."""
    content, more = message.get("content"), other_fields(message)
    parts = [] if content is None and more else [without_none(content)]
    parts += [more] if more else []
    return "\n".join(part if isinstance(part, str) else json.dumps(part, ensure_ascii=False) for part in parts)


def messages_text(messages: Sequence[Any]) -> str:
    """Messages one after the other, each with its role.

    Raises:
        ValueError: If one has no role.
    """
    for message in messages:
        if not is_message(message):
            raise ValueError(f"messages need `role` and `content`, but one is {shorten(message)}.")
    return "\n\n".join(f"{message['role']}: {message_text(message)}" for message in messages)
