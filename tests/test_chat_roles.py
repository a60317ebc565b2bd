"""Messages come in an order that the chat template keeps, and no word of them is lost."""

import os
from pathlib import Path
from typing import Any

import pytest

from airllm.server.chat_roles import Roles, roles_of
from airllm.text.chat_template import ChatTemplate, ChatTemplateError

_EACH = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
_ALTERNATING = (
    "{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<{{ message.role }}>{{ message.content }}{% endfor %}"
)

TEMPLATES = {
    "all": (_EACH, Roles()),
    "a first system message only, others refused": (
        "{% for message in messages %}"
        "{% if message.role == 'system' and not loop.first %}"
        "{{ raise_exception('system must be first') }}{% endif %}"
        "<{{ message.role }}>{{ message.content }}{% endfor %}",
        Roles(later_system=False),
    ),
    "a first system message only, others left out": (
        "{% for message in messages %}{% if message.role != 'system' or loop.first %}"
        "<{{ message.role }}>{{ message.content }}{% endif %}{% endfor %}",
        Roles(later_system=False),
    ),
    "the last system message only": (
        "{% set ns = namespace(system='') %}{% for message in messages %}"
        "{% if message.role == 'system' %}{% set ns.system = message.content %}{% endif %}"
        "{% endfor %}{{ ns.system }}{% for message in messages %}"
        "{% if message.role != 'system' %}<{{ message.role }}>{{ message.content }}{% endif %}"
        "{% endfor %}",
        Roles(later_system=False),
    ),
    "user and assistant in turn": (
        _ALTERNATING,
        Roles(system=False, later_system=False, user_after_user=False),
    ),
    "a user's words after a tool's refused": (
        "{% for message in messages %}"
        "{% if message.role == 'user' and not loop.first and loop.previtem.role == 'tool' %}"
        "{{ raise_exception('the assistant must answer a tool') }}{% endif %}"
        "<{{ message.role }}>{{ message.content }}{% endfor %}",
        Roles(user_after_tool=False),
    ),
    "nothing at all": ("{{ raise_exception('never') }}", Roles()),
}


@pytest.mark.parametrize(("template", "roles"), TEMPLATES.values(), ids=TEMPLATES)
def test_what_a_template_keeps_is_found(template: str, roles: Roles) -> None:
    assert roles_of(ChatTemplate(template).render) == roles


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CHAT = [
    said("system", "First."),
    said("user", "Second."),
    said("system", "Third."),
    said("assistant", "Fourth.", tool_calls=[]),
    said("tool", "Fifth."),
    said("user", "Sixth."),
    said("user", "Seventh."),
]


def test_an_order_that_is_kept_stays() -> None:
    assert Roles().ordered(CHAT) == CHAT


def test_a_later_system_message_becomes_the_users() -> None:
    ordered = Roles(later_system=False).ordered(CHAT)
    assert [one["role"] for one in ordered[:3]] == ["system", "user", "user"]
    assert ordered[3:] == CHAT[3:]


def test_words_of_the_user_in_a_row_become_one_message() -> None:
    ordered = Roles(False, False, False, False).ordered(CHAT)
    assert ordered == [
        said("user", "First.\n\nSecond.\n\nThird."),
        CHAT[3],
        said("tool", "Fifth.\n\nSixth.\n\nSeventh."),
    ]


def test_what_messages_become_does_not_depend_on_later_ones() -> None:
    roles = Roles(later_system=False, user_after_tool=False)
    whole = roles.ordered(CHAT)
    for n in range(1, len(CHAT)):
        part = roles.ordered(CHAT[:n])
        joined = "".join(one["content"] for one in whole)
        assert joined.startswith("".join(one["content"] for one in part))
        assert part[:-1] == whole[: len(part) - 1]


FOLDER = os.environ.get("AIRLLM_TEST_TEMPLATES")


@pytest.mark.skipif(not FOLDER, reason="AIRLLM_TEST_TEMPLATES names no templates")
def test_no_real_template_loses_what_agents_say_between_the_turns() -> None:
    chat = [*CHAT[:3], said("assistant", "Fourth."), said("user", "Fifth."), said("user", "Sixth.")]
    n_changed = 0
    for path in sorted(Path(FOLDER or "").glob("*.jinja")):
        template = ChatTemplate(path.read_text(), {"bos_token": "<s>", "eos_token": "</s>"})
        roles = roles_of(template.render)
        n_changed += roles != Roles()
        try:
            text = template.render(roles.ordered(chat))
        except ChatTemplateError:
            with pytest.raises(ChatTemplateError):  # it needs other variables, as for any chat
                template.render(CHAT[:2])
            continue
        assert all(one["content"] in text for one in chat), path.name
    assert n_changed
