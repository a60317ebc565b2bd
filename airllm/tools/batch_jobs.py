"""Reads the prompts of a batch from a file, each with the settings of its line.

Prompts are lines of JSON:

    {"prompt": "Once upon a time"}
    {"messages": [{"role": "user", "content": "Why is the sky blue?"}], "id": "sky", "seed": 1}
    {"messages": [...], "tools": [...], "chat_template_kwargs": {"enable_thinking": false}}

or of OpenAI's batch files, see openai_lines.py.
"""

import codecs
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

from airllm.engine.settings import AnswerOptions
from airllm.tools import openai_lines
from airllm.tools.json_lines import BatchError, check_text, check_values, parse_line, raw_lines
from airllm.util.durable import naming
from airllm.util.shown import shown

__all__ = ["SETTINGS", "Job", "digest", "read_jobs"]

_MOST_ID_DIGITS = 10  # of a token's id


def _json_types(kind: object) -> tuple[type, ...]:
    """The types of an option's values in JSON. Without null, which counts as absent; an integer may
    stand for a float."""
    kinds = get_args(kind) or (kind,)
    if any(get_origin(each) is Mapping for each in kinds):
        return (dict,)
    return (int, float) if float in kinds else tuple({int, str}.intersection(kinds))


# The options that a line may set, and their types.
SETTINGS: Mapping[str, tuple[type, ...]] = {
    name: _json_types(kind)
    for name, kind in AnswerOptions.__annotations__.items()
    if name not in ("on_full", "keep", "max_tokens")
}
_MAY_BE_LISTS = ("stop", "dry_breakers")  # of strings


@dataclass(frozen=True)
class Job:
    """A prompt, as text or messages, and the settings of its line."""

    index: int
    line: int  # in the file, from 1 on
    id: str | int | None
    prompt: str | list[dict[str, Any]]
    settings: Mapping[str, Any]
    variables: Mapping[str, Any]  # of the chat template
    url: str | None = None  # of an OpenAI line, whose result is one, too
    model: str = ""  # the name in an OpenAI line

    @property
    def sha256(self) -> str:
        said = {"prompt": self.prompt, "settings": self.settings}
        return digest({**said, "variables": self.variables} if self.variables else said)


def digest(value: object) -> str:
    """The first 32 hex digits of the SHA-256 of a value of JSON types."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def read_jobs(path: Path) -> list[Job]:
    """Reads and checks all prompts. Blank lines are skipped.

    BatchError names the line, and the field if one is at fault, for a line that is no prompt, a
    name that is twice in a line, or an id that is twice in the file. OSError names the file.
    """
    jobs: list[Job] = []
    lines: dict[str | int, int] = {}
    with naming(path), path.open("rb") as file:
        for number, raw in enumerate(raw_lines(file, path), 1):
            raw = raw.removeprefix(codecs.BOM_UTF8)
            if not raw.strip():
                continue
            job = _job(raw, f"{path}:{number}", len(jobs), number)
            if job.id is not None and lines.setdefault(job.id, number) != number:
                raise BatchError(
                    f"{path}:{number}: the id {shown(job.id)} is that of line {lines[job.id]}, too"
                )
            jobs.append(job)
    return jobs


def _job(raw: bytes, where: str, index: int, line: int) -> Job:
    entry, url, model = parse_line(raw, where), None, ""
    if openai_lines.is_request(entry):
        check_text(f"{where}: it", entry)
        try:
            own = openai_lines.body_of(entry)
        except ValueError as error:
            raise BatchError(f"{where}: {error}") from None
        url, model = entry["url"], str(entry["body"].get("model", ""))
        entry = own
    elif "max_tokens" in entry:
        if "max_new_tokens" in entry:
            raise BatchError(f"{where}: max_tokens and max_new_tokens are the same setting")
        entry["max_new_tokens"] = entry.pop("max_tokens")
    names = ["prompt", "messages", "id", "tools", "chat_template_kwargs", *SETTINGS, "max_tokens"]
    unknown = entry.keys() - set(names)
    if unknown:
        known = ", ".join(names)
        raise BatchError(f"{where}: has {shown(min(unknown))}; known are {known}")
    for name, value in entry.items():
        check_text(f"{where}: {name}", value)
    if ("prompt" in entry) == ("messages" in entry):
        raise BatchError(f'{where}: expected either "prompt" or "messages"')
    id = entry.get("id")
    if id is not None and (isinstance(id, bool) or not isinstance(id, (str, int))):
        raise BatchError(f"{where}: id is {shown(id)}; expected a string or an integer")
    settings = {name: entry[name] for name in SETTINGS if entry.get(name) is not None}
    for name, value in settings.items():
        if name in _MAY_BE_LISTS and _are_strings(value):
            continue
        if isinstance(value, bool) or not isinstance(value, SETTINGS[name]):
            kinds = " or ".join(kind.__name__ for kind in SETTINGS[name])
            raise BatchError(f"{where}: {name} is {shown(value)}; expected {kinds}")
    if "logit_bias" in settings:
        settings["logit_bias"] = _biases(settings["logit_bias"], f"{where}: logit_bias")
    prompt = entry["prompt"] if "prompt" in entry else entry["messages"]
    if "prompt" in entry and not isinstance(prompt, str):
        raise BatchError(f"{where}: prompt is no string")
    if "messages" in entry and not _are_messages(prompt):
        raise BatchError(f'{where}: messages is no list of objects with "role" and "content"')
    for name in ("messages", "tools", "chat_template_kwargs"):
        check_values(f"{where}: {name}", entry.get(name))
    return Job(index, line, id, prompt, settings, _variables(entry, where), url, model)


def _biases(value: Mapping[str, Any], what: str) -> dict[int, float]:
    """Names of JSON are strings: {"15": -100} is of token 15."""
    for token, bias in value.items():
        if not (token.isascii() and token.isdecimal() and len(token) <= _MOST_ID_DIGITS):
            raise BatchError(f"{what} has {shown(token)}; expected the id of a token")
        if isinstance(bias, bool) or not isinstance(bias, (int, float)):
            raise BatchError(f"{what} of token {token} is {shown(bias)}; expected a number")
    return {int(token): bias for token, bias in value.items()}


def _variables(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The variables of the chat template. As in OpenAI's format, `tools` is a field of its own."""
    variables, tools = entry.get("chat_template_kwargs"), entry.get("tools")
    if not isinstance(variables, (dict, NoneType)):
        raise BatchError(f"{where}: chat_template_kwargs is {shown(variables)}; expected an object")
    if not isinstance(tools, (list, NoneType)):
        raise BatchError(f"{where}: tools is {shown(tools)}; expected a list")
    found = {**(variables or {}), **({} if tools is None else {"tools": tools})}
    if found and "messages" not in entry:
        raise BatchError(f'{where}: {min(found)} is for "messages"; a prompt has no template')
    return found


def _are_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _are_messages(value: object) -> bool:
    """Whether it looks like messages. A content that is a list is not checked here: the chat
    template reports its faults, as an error of this prompt."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(each, dict)
            and isinstance(each.get("role"), str)
            and isinstance(each.get("content", 0), (str, list, NoneType))
            for each in value
        )
    )
