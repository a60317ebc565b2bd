"""Reads prompts from a file and appends their answers to another, which tells what is left to do.

Prompts are lines of JSON:

    {"prompt": "Once upon a time"}
    {"messages": [{"role": "user", "content": "Why is the sky blue?"}], "id": "sky", "seed": 1}
    {"messages": [...], "tools": [...], "chat_template_kwargs": {"enable_thinking": false}}

or of OpenAI's batch files, see openai_lines.py.

An answer is a line of JSON, too. It is on the disk before the next answer is written:

    {"index": 1, "id": "sky", "prompt_sha256": "5a...", "run_sha256": "c0...", "text": ...}

`index` counts the prompts from 0 on. prompt_sha256 is the hash of the prompt with its settings;
run_sha256 is the hash of the model and the settings of all prompts. They reveal answers to other
prompts or of another run before anything is added to the file.
"""

import codecs
import contextlib
import errno
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Self, get_args, get_origin

from airllm.engine.settings import AnswerOptions
from airllm.tools import openai_lines
from airllm.util.closing import Closing
from airllm.util.durable import naming, sync_directory
from airllm.util.errors import AirllmError
from airllm.util.shown import shown

__all__ = ["SETTINGS", "Answers", "BatchError", "Job", "digest", "read_jobs"]

MAX_LINE_BYTES = 64 * 2**20
_MOST_ID_DIGITS = 10  # of a token's id
MAX_DIGITS = 1000  # of an integer, in an id or a seed; Python's own limit is 4,300


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


class BatchError(AirllmError, ValueError):
    """One of the files, or a line of it, is not usable: "<file>:<line>: <fault>"."""


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
        for number, raw in enumerate(_lines(file, path), 1):
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


def _lines(file: Any, path: Path) -> Iterator[bytes]:
    number = 1
    while raw := file.readline(MAX_LINE_BYTES + 1):
        if len(raw) > MAX_LINE_BYTES:
            raise BatchError(f"{path}:{number}: longer than {MAX_LINE_BYTES:,} bytes")
        yield raw
        number += 1


def _job(raw: bytes, where: str, index: int, line: int) -> Job:
    entry, url, model = _parse(raw, where), None, ""
    if openai_lines.is_request(entry):
        _check_text(f"{where}: it", entry)
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
        _check_text(f"{where}: {name}", value)
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
        _check_values(f"{where}: {name}", entry.get(name))
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


@dataclass(frozen=True)
class _NoValue:
    """Stands for NaN, Infinity, or a number that is too large. No field accepts it, so that the
    error can name the field."""

    text: str

    def __repr__(self) -> str:
        return self.text


def _number(digits: str) -> float | _NoValue:
    value = float(digits)
    return value if math.isfinite(value) else _NoValue(shown(digits))


def _integer(digits: str) -> int | _NoValue:
    n = len(digits)
    return int(digits) if n <= MAX_DIGITS else _NoValue(f"an integer of {n} digits")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = sorted(name for name, _ in pairs)
        twice = next(name for name, other in pairwise(names) if name == other)
        raise ValueError(f"{shown(twice)} is there twice")
    return found


_JSON = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_NoValue, parse_float=_number, parse_int=_integer
)


def _parse(raw: bytes, where: str) -> dict[str, Any]:
    try:
        entry = _JSON.decode(raw.decode())
    except (ValueError, RecursionError) as error:
        raise BatchError(f"{where}: no line of JSON in UTF-8: {error}") from None
    if not isinstance(entry, dict):
        raise BatchError(f"{where}: expected an object, found a {type(entry).__name__}")
    return entry


def _check_text(what: str, value: object) -> None:
    """Refuses unpaired surrogates, which no tokeniser takes and UTF-8 cannot encode."""
    for text in _texts(value):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise BatchError(f"{what} has half of a character, {half!r}") from None


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _texts(item)


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


def _check_values(what: str, value: object) -> None:
    """Refuses a _NoValue at any depth, as a chat template would accept it."""
    if isinstance(value, _NoValue):
        raise BatchError(f"{what} has {value!r}")
    if isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            _check_values(what, item)


class Answers(Closing):
    """with Answers.open(path, jobs, run) as answers:
        for job in answers.left: answers.append(job, {"text": ...})

    A file of answers, locked against other processes that append to it. left: the jobs without an
    answer when it was opened.
    """

    left: list[Job]
    _path: Path
    _descriptor: int
    _run: str

    @classmethod
    def open(cls, path: Path, jobs: Sequence[Job], run: str) -> Self:
        """Read the answers that the file has. An incomplete last line, which a crash leaves, is
        removed, but only if it is the beginning of an answer to one of `jobs` in this run.

        run: the hash of the model and the settings of all prompts. BatchError, and the file is
        unchanged, if an answer belongs to another prompt or another run, a line is no answer, or
        another process is writing the file; OSError names the file.
        """
        self = cls()
        self._path, self._run = path, run
        check_place(path)
        is_new = not path.exists()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            with naming(path):
                _lock(self._descriptor, path)
                done, whole_bytes = self._read(jobs)
                os.ftruncate(self._descriptor, whole_bytes)
            if is_new:
                sync_directory(path.parent)
        except BaseException:
            os.close(self._descriptor)
            raise
        self.left = [job for job in jobs if job.index not in done]
        self.closed = False
        return self

    def append(self, job: Job, answer: Mapping[str, object]) -> None:
        """Append the answer to a job; returns when it is on the disk. OSError, and the file is
        unchanged, if it cannot be written."""
        left = memoryview(_json_line({**_known_fields(job, self._run), **answer}))
        before = os.fstat(self._descriptor).st_size
        with naming(self._path):
            try:
                while left:
                    left = left[os.write(self._descriptor, left) :]
                os.fsync(self._descriptor)
            except BaseException:
                os.ftruncate(self._descriptor, before)
                raise

    def release(self) -> None:
        os.close(self._descriptor)

    def __repr__(self) -> str:
        return f"Answers({str(self._path)!r})"

    def _read(self, jobs: Sequence[Job]) -> tuple[set[int], int]:
        """The indices of the answered jobs, and the offset at which the last whole line ends."""
        done: set[int] = set()
        end = 0
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            for number, raw in enumerate(_lines(file, self._path), 1):
                where = f"{self._path}:{number}"
                if not raw.endswith(b"\n"):  # torn by a crash, or not an answer of ours
                    left = (job for job in jobs if job.index not in done)
                    if self._is_beginning(raw, left, is_known=bool(done)):
                        break
                    raise BatchError(
                        f"{where}: does not end in a newline, and is not the beginning of an "
                        "answer of this run; the file is unchanged. Remove that line, or give "
                        "another --out"
                    )
                self._check(_parse(raw, where), where, jobs, done)
                end += len(raw)
        return done, end

    def _is_beginning(self, raw: bytes, jobs: Iterable[Job], *, is_known: bool) -> bool:
        """Whether `raw` begins as an answer to one of `jobs`: with the fields that are known before
        the answer is generated. is_known: earlier lines are answers of this run, so that a part of
        these fields is enough."""
        for job in jobs:
            first = {"index": job.index} if job.url is None else {"id": f"batch_req_{job.index}-"}
            index = _json_line(first)[: -2 if job.url is None else -3]
            if raw.startswith(index) or index.startswith(raw):
                beginning = _json_line(_known_fields(job, self._run))[:-2]
                if raw.startswith(beginning) or (is_known and beginning.startswith(raw)):
                    return True
        return False

    def _check(
        self, entry: Mapping[str, Any], where: str, jobs: Sequence[Job], done: set[int]
    ) -> None:
        entry = openai_lines.claims(entry) or entry
        index = entry.get("index")
        if type(index) is not int or not 0 <= index < len(jobs):
            raise BatchError(
                f"{where}: is no answer to one of the {len(jobs)} prompts; give another --out"
            )
        job = jobs[index]
        if index in done:
            raise BatchError(f"{where}: a second answer to prompt {index}; the file is damaged")
        if entry.get("prompt_sha256") != job.sha256:
            raise BatchError(
                f"{where}: answers another prompt than number {index}, in line {job.line} of the "
                "input: that has changed since. Restore it, or give another --out"
            )
        if entry.get("run_sha256") != self._run:
            raise BatchError(
                f"{where}: was answered by another model, or with other settings (the context "
                "is one, and follows from --ram unless --context says it). Go on with those, or "
                "give another --out"
            )
        done.add(index)


def _known_fields(job: Job, run: str) -> dict[str, object]:
    """The first fields of an answer, which are known before it is generated."""
    if job.url is not None:
        return openai_lines.known_fields(str(job.id), job.index, job.sha256, run)
    id = {} if job.id is None else {"id": job.id}
    return {"index": job.index, **id, "prompt_sha256": job.sha256, "run_sha256": run}


def _json_line(entry: Mapping[str, object]) -> bytes:
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"


def check_place(path: Path) -> None:
    """BatchError if `path` cannot be a file of answers, OSError if its folder does not exist."""
    if path.exists() and not path.is_file():
        raise BatchError(f"{path}: is no regular file, so that a later run could not resume")
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))


def _lock(descriptor: int, path: Path) -> None:
    with contextlib.suppress(ImportError):  # Windows: two processes are not kept apart
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BatchError(f"{path}: another process is writing it") from None
