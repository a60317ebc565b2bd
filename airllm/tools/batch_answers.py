"""Appends the answers of a batch to a file, which tells what is left to do.

An answer is a line of JSON. It is on the disk before the next answer is written:

    {"index": 1, "id": "sky", "prompt_sha256": "5a...", "run_sha256": "c0...", "text": ...}

`index` counts the prompts from 0 on. prompt_sha256 is the hash of the prompt with its settings;
run_sha256 is the hash of the model and the settings of all prompts. They reveal answers to other
prompts or of another run before anything is added to the file. A request of OpenAI's batch files
has a result of theirs, see openai_lines.py.
"""

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from airllm.tools import openai_lines
from airllm.tools.batch_jobs import Job
from airllm.tools.json_lines import BatchError, parse_line, raw_lines
from airllm.util.closing import Closing
from airllm.util.durable import naming, sync_directory

__all__ = ["Answers", "check_place"]


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
            for number, raw in enumerate(raw_lines(file, self._path), 1):
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
                self._check(parse_line(raw, where), where, jobs, done)
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
