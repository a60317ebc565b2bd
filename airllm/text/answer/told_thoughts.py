"""The thoughts of earlier answers, as chat templates take them."""

from collections.abc import Mapping
from typing import Any

__all__ = ["PROMPT_END", "with_thought"]

# Tokens of a prompt's end in which a thought may begin, for AnswerFormat.begins_in_thought.
PROMPT_END = 32


def with_thought(message: Mapping[str, Any], template: str) -> Mapping[str, Any]:
    """A message whose thought, its `reasoning_content`, has the name that the template reads, or is
    left out if the template reads none. The template decides which thoughts the model sees again:
    most of them show none."""
    thought = message.get("reasoning_content")
    if not thought or "reasoning_content" in template:
        return message
    rest = {key: value for key, value in message.items() if key != "reasoning_content"}
    if "message.reasoning" in template:  # Solar
        return {**rest, "reasoning": thought}
    if "thinking" in template and not (rest.get("content") and rest.get("tool_calls")):
        return {**rest, "thinking": thought}
    return rest
