"""Prompts in a file, and their answers in another, which says what is still to be done.

Prompts are lines of JSON:

    {"prompt": "Once upon a time"}
    {"messages": [{"role": "user", "content": "Why is the sky blue?"}], "id": "sky", "seed": 1}

An answer is a line of JSON too, appended in one piece and on the disk before the next one begins:

    {"index": 1, "id": "sky", "prompt_sha256": "5a...", "run_sha256": "c0...", "text": ...}

`index` counts the prompts from 0 on. The hashes are those of the prompt with its settings, and of
the model and the settings of all: with them, a file of answers that belongs to something else is
recognised before anything is added to it.
"""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_args

from airllm.engine.settings import AnswerOptions
from airllm.util.durable import sync_directory

__all__ = ["SETTINGS", "Answers", "BatchError", "Job", "digest", "read_jobs"]

MAX_LINE_BYTES = 64 * 2**20


def _json_types(kind: object) -> tuple[type, ...]:
    """What JSON has for an option: null is as good as nothing, and 1 is a number, too."""
    kinds = get_args(kind) or (kind,)
    return (int, float) if float in kinds else tuple({int, str}.intersection(kinds))


# What a line may set for itself, and the types it may have; `stop` may be a list of them.
SETTINGS: Mapping[str, tuple[type, ...]] = {
    name: _json_types(kind)
    for name, kind in AnswerOptions.__annotations__.items()
    if name not in ("on_full", "keep")
}


class BatchError(ValueError):
    """A line of one of the files is not what it should be. "<file>:<line>: <fault>"."""


@dataclass(frozen=True)
class Job:
    """A prompt: text or messages, and what its line sets beside it."""

    index: int
    line: int  # in the file, from 1 on
    id: str | int | None
    prompt: str | list[dict[str, str]]
    settings: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        return digest({"prompt": self.prompt, "settings": self.settings})


def digest(value: object) -> str:
    """A short hash of anything that JSON can say."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def read_jobs(path: Path) -> list[Job]:
    """All prompts, each checked, before any is answered. Lines without text are skipped.

    BatchError for a line that is none, or an id that is there twice; OSError.
    """
    jobs: list[Job] = []
    lines: dict[str | int, int] = {}
    with path.open("rb") as file:
        for number, raw in enumerate(_lines(file, path), 1):
            if not raw.strip():
                continue
            job = _job(raw, f"{path}:{number}", len(jobs), number)
            if job.id is not None and lines.setdefault(job.id, number) != number:
                raise BatchError(
                    f"{path}:{number}: the id {job.id!r} is that of line {lines[job.id]}, too"
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
    entry = _parse(raw, where)
    unknown = entry.keys() - {"prompt", "messages", "id"} - SETTINGS.keys()
    if unknown:
        known = ", ".join(["prompt", "messages", "id", *SETTINGS])
        raise BatchError(f"{where}: has {min(unknown)[:80]!r}; known are {known}")
    if ("prompt" in entry) == ("messages" in entry):
        raise BatchError(f'{where}: expected either "prompt" or "messages"')
    id = entry.get("id")
    if id is not None and (isinstance(id, bool) or not isinstance(id, (str, int))):
        raise BatchError(f"{where}: id is {id!r}; expected a string or an integer")
    settings = {name: entry[name] for name in SETTINGS if entry.get(name) is not None}
    for name, value in settings.items():
        if name == "stop" and _are_strings(value):
            continue
        if isinstance(value, bool) or not isinstance(value, SETTINGS[name]):
            kinds = " or ".join(kind.__name__ for kind in SETTINGS[name])
            raise BatchError(f"{where}: {name} is {str(value)[:80]!r}; expected {kinds}")
    prompt = entry["prompt"] if "prompt" in entry else entry["messages"]
    if "prompt" in entry and not isinstance(prompt, str):
        raise BatchError(f"{where}: prompt is no string")
    if "messages" in entry and not _are_messages(prompt):
        raise BatchError(f'{where}: messages is no list of objects with "role" and "content"')
    return Job(index, line, id, prompt, settings)


def _parse(raw: bytes, where: str) -> dict[str, Any]:
    try:
        entry = json.loads(raw)
        json.dumps(entry, ensure_ascii=False).encode()  # no halves of characters
    except (ValueError, RecursionError) as error:
        raise BatchError(f"{where}: no line of JSON in UTF-8: {error}") from None
    if not isinstance(entry, dict):
        raise BatchError(f"{where}: expected an object, found a {type(entry).__name__}")
    return entry


def _are_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _are_messages(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(each, dict)
            and each.keys() >= {"role", "content"}
            and all(isinstance(text, str) for text in each.values())
            for each in value
        )
    )


_BEGINNING = b'{"index": '  # of each answer


class Answers:
    """with Answers.open(path, jobs, run) as answers:
        for job in answers.left: answers.append(job, {"text": ...})

    A file of answers that no other process writes. left: the jobs it has no answer for.
    """

    left: list[Job]
    _path: Path
    _descriptor: int
    _run: str

    @classmethod
    def open(cls, path: Path, jobs: Sequence[Job], run: str) -> Self:
        """Read what is there; a last line that was torn by a crash is taken away.

        run: the hash of the model and the settings of all. BatchError, and nothing has changed,
        where an answer belongs to another prompt or another run, or another process writes the
        file; OSError.
        """
        self = cls()
        self._path, self._run = path, run
        check_place(path)
        is_new = not path.exists()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            _lock(self._descriptor, path)
            done, whole_bytes = self._read(jobs)
            os.ftruncate(self._descriptor, whole_bytes)
            if is_new:
                sync_directory(path.parent)
        except BaseException:
            os.close(self._descriptor)
            raise
        self.left = [job for job in jobs if job.index not in done]
        return self

    def append(self, job: Job, answer: Mapping[str, object]) -> None:
        """Add the answer to a job, and return when it is on the disk. OSError where it cannot be
        written, and the file is as it was."""
        entry: dict[str, object] = {"index": job.index}  # see _BEGINNING
        entry |= {} if job.id is None else {"id": job.id}
        entry |= {"prompt_sha256": job.sha256, "run_sha256": self._run, **answer}
        left = memoryview(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        before = os.fstat(self._descriptor).st_size
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
            os.fsync(self._descriptor)
        except BaseException as error:
            os.ftruncate(self._descriptor, before)
            if isinstance(error, OSError):
                raise OSError(error.errno, error.strerror, str(self._path)) from None
            raise

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, jobs: Sequence[Job]) -> tuple[set[int], int]:
        """The jobs that are done, and where the last whole line ends."""
        done: set[int] = set()
        end = 0
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            for number, raw in enumerate(_lines(file, self._path), 1):
                where = f"{self._path}:{number}"
                is_ours = raw.startswith(_BEGINNING) or _BEGINNING.startswith(raw)
                if is_ours and not raw.endswith(b"\n"):  # torn by a crash
                    break
                self._check(_parse(raw, where), where, jobs, done)
                end += len(raw)
        return done, end

    def _check(
        self, entry: Mapping[str, Any], where: str, jobs: Sequence[Job], done: set[int]
    ) -> None:
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


def check_place(path: Path) -> None:
    """BatchError where no answers could be kept, OSError where there is no such folder."""
    if path.exists() and not path.is_file():
        raise BatchError(f"{path}: is no regular file, so nothing could go on from it")
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))


def _lock(descriptor: int, path: Path) -> None:
    with contextlib.suppress(ImportError):  # Windows: two processes are not kept apart
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BatchError(f"{path}: another process is writing it") from None
