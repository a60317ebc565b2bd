"""Renders chat templates in a separate process, which runs template_child.py."""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from multiprocessing import spawn
from pathlib import Path
from typing import IO

from airllm.text.template_frames import FAULT, MEMORY, TEXT, read_frame, write_frame
from airllm.util.errors import AirllmError

__all__ = ["TemplateFaultError", "TemplateProcess", "render"]

# A template without variables gets SECONDS of CPU time, and MEMORY_BYTES beyond the memory of
# Python and Jinja. Each value and character of its variables adds to that. Of 70 templates in use,
# none takes longer than 10 ms for ten messages. Templates that visit all messages once for each
# message take 1.1 s for 400 messages of 3 to 7 values.
SECONDS = 1.0
SECONDS_PER_VALUE = 0.001  # for each value in lists and mappings
SECONDS_PER_CHARACTER = 1e-6
MEMORY_BYTES = 256 << 20
MEMORY_BYTES_PER_CHARACTER = 16
CHARACTERS = 4 << 20
CHARACTERS_PER_CHARACTER = 8

# The limit of wall-clock time is generous. It ends a process that gets no CPU time: a stopped one.
_WALL_SECONDS = 60.0
_WALL_PER_CPU = 20.0

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    " from airllm.text.template_child import main; main()"
)


class TemplateFaultError(AirllmError):
    """The fault of a template that cannot be rendered."""


class TemplateProcess:
    """A process that renders templates, one at a time. It is started for the first template, and
    again for the first one after a template that ended it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def forget(self) -> None:
        """For a forked child: forget the process, which belongs to the parent."""
        self.__init__()  # type: ignore[misc]

    @property
    def process_id(self) -> int | None:
        return None if self._process is None else self._process.pid

    def ask(self, source: str, variables: Mapping[str, object] | None) -> str:
        """Renders a template with variables, which must be JSON values. Without variables (None) it
        is only compiled, and the text is empty.

        TemplateFaultError if the template is faulty or takes too much time or memory; TypeError,
        ValueError and RecursionError of json.dumps for the variables; OSError if the process
        cannot be started.
        """
        given = json.dumps(variables, ensure_ascii=False)
        n_values, n_characters = _n_values(variables), len(given)
        seconds = SECONDS + n_values * SECONDS_PER_VALUE + n_characters * SECONDS_PER_CHARACTER
        characters = CHARACTERS + n_characters * CHARACTERS_PER_CHARACTER
        limits = {
            "seconds": seconds,
            "memory": MEMORY_BYTES + n_characters * MEMORY_BYTES_PER_CHARACTER,
            "characters": characters,
        }
        request = f'{{"source": {json.dumps(source)}, "limits": {json.dumps(limits)}, '
        request += f'"variables": {given}}}'
        with self._lock:
            process = self._started()
            with self._ended_unless_it_answers(process, _WALL_SECONDS + seconds * _WALL_PER_CPU):
                body = request.encode("utf-8", "surrogatepass")
                answer = _exchange(process, body, most=4 * characters + 1)
                if answer is None:
                    raise TemplateFaultError(_why_ended(process))
                kind, text = answer[:1], answer[1:].decode("utf-8", "surrogatepass")
                if kind == MEMORY:
                    raise TemplateFaultError("it takes more memory than a chat template needs")
        if kind == FAULT:
            raise TemplateFaultError(text)
        if kind != TEXT:
            raise TemplateFaultError("it has taken over the process that renders it")
        return text

    def close(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                _pipe(stream).close()

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is not None:
            return self._process
        places = [str(Path(__file__).parents[2]), *map(os.path.abspath, sys.path)]
        self._process = subprocess.Popen(
            [os.fsdecode(spawn.get_executable()), "-I", "-c", _BOOT, json.dumps(places)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C does not reach it
        )
        return self._process

    @contextlib.contextmanager
    def _ended_unless_it_answers(
        self, process: "subprocess.Popen[bytes]", wall_seconds: float
    ) -> Iterator[None]:
        """Ends the process after any exception inside the `with`, an interrupt included, and after
        `wall_seconds`. A process that went on could answer the next request with the answer to
        this one."""
        timer = threading.Timer(wall_seconds, process.kill)
        timer.daemon = True
        timer.start()
        try:
            yield
        except BaseException:
            self.close()
            raise
        finally:
            timer.cancel()


def _exchange(process: "subprocess.Popen[bytes]", request: bytes, most: int) -> bytes | None:
    """The answer; None if the process has ended or the answer is longer than `most` bytes."""
    try:
        write_frame(_pipe(process.stdin), request)
    except BrokenPipeError:
        return None
    return read_frame(_pipe(process.stdout), most)


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None  # it is a pipe
    return stream


def _why_ended(process: "subprocess.Popen[bytes]") -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        status = process.wait(1)
        if status == -signal.SIGPROF:
            return "it takes too long; it may loop without end"
        if status < 0:
            return f"it crashed the process that renders it (signal {-status})"
        return (
            f"{spawn.get_executable()!r}, the process that renders it, ended with status {status};"
            " is that Python? multiprocessing.set_executable chooses another"
        )
    return "it has taken over the process that renders it"


def _n_values(value: object) -> int:
    """The number of values in lists and mappings, at any depth."""
    n, left = 0, [value]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            n += len(value)
            left += value.values()
        elif isinstance(value, (list, tuple)):
            n += len(value)
            left += value
    return n


_shared = TemplateProcess()
atexit.register(_shared.close)
os.register_at_fork(after_in_child=_shared.forget)
render = _shared.ask
