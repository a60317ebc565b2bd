"""Which orders of roles a chat template keeps, and messages put into such an order.

Agents write instructions between the turns: Claude Code sends a system message after the first
question, and Codex sends two messages of the user in a row. Of the chat templates that models have,
some refuse that, and some leave such a message out without a word (gpt-oss, SmolLM3 and MiniMax a
later system message, for example). What a template does is found by rendering small chats.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["Roles", "roles_of"]

Message = Mapping[str, Any]
Render = Callable[[Sequence[Message]], str]


@dataclass(frozen=True)
class Roles:
    """What a template keeps. system: a system message at the beginning. later_system: one after
    it. user_after_user, user_after_tool: the user's words right after these."""

    system: bool = True
    later_system: bool = True
    user_after_user: bool = True
    user_after_tool: bool = True

    def ordered(self, messages: Sequence[Message]) -> list[Message]:
        """The messages in an order that the template keeps. No word is lost, and what messages
        become does not depend on those after them, so that prompts go on beginning alike."""
        ordered: list[Message] = []
        for message in messages:
            role, last = message["role"], ordered[-1]["role"] if ordered else None
            if role == "system" and not (self.system if last is None else self.later_system):
                message, role = {**message, "role": "user"}, "user"
            joins = (last == "user" and not self.user_after_user) or (
                last == "tool" and not self.user_after_tool
            )
            if role == "user" and joins:
                texts = [ordered[-1]["content"], message["content"]]
                ordered[-1] = {**ordered[-1], "content": "\n\n".join(filter(None, texts))}
            else:
                ordered.append(message)
        return ordered


def roles_of(render: Render) -> Roles:
    """What a template keeps. render: a chat to its text. Where neither the usual order nor another
    is kept, the usual one stays: the error is then the template's own."""
    roles = Roles()

    def learn(chat: Sequence[Message], *others: Roles) -> Roles:
        return next((one for one in (roles, *others) if _keeps(render, one.ordered(chat))), roles)

    begin, more = [_SYSTEM, _QUESTION], [_ANSWER, _said("user", "Epsilon")]
    roles = learn(begin, replace(roles, system=False, user_after_user=False))
    again = [*begin, _said("user", "Zeta"), *more]
    roles = learn(again, replace(roles, user_after_user=False))
    later = [*begin, _said("system", "Eta"), *more]
    roles = learn(later, replace(roles, later_system=False))
    return learn([*begin, _CALL, _RESULT, more[1]], replace(roles, user_after_tool=False))


def _said(role: str, text: str) -> Message:
    return {"role": role, "content": text}


_SYSTEM, _QUESTION = _said("system", "Alpha"), _said("user", "Beta")
_ANSWER = _said("assistant", "Gamma")
_CALL: Message = {
    **_said("assistant", ""),
    "tool_calls": [
        {
            "id": "call00000",
            "type": "function",
            "function": {"name": "look", "arguments": {"at": "it"}},
        }
    ],
}
_RESULT: Message = {**_said("tool", "Delta"), "tool_call_id": "call00000", "name": "look"}


def _keeps(render: Render, chat: Sequence[Message]) -> bool:
    """Whether all words of a chat are in its text."""
    try:
        text = render(chat)
    except ValueError:  # the template refuses it
        return False
    return all(word in text for message in chat for word in str(message["content"]).split())
