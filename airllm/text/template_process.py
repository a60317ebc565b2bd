"""The other side of `template_child`: starts the process that renders templates, and asks it."""

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

__all__ = ["TemplateFaultError", "TemplateProcess", "render"]

# A template that is given nothing gets SECONDS of CPU time, and MEMORY_BYTES beside what Python and
# Jinja take; what it is given buys more. Of 70 templates in use, none takes longer than 10 ms for
# ten messages; those that go through all messages for each one of them take 1.1 s for 400 messages
# of 3 to 7 values.
SECONDS = 1.0
SECONDS_PER_VALUE = 0.001  # of a list or a mapping
SECONDS_PER_CHARACTER = 1e-6
MEMORY_BYTES = 256 << 20
MEMORY_BYTES_PER_CHARACTER = 16
CHARACTERS = 4 << 20
CHARACTERS_PER_CHARACTER = 8

# The clock on the wall counts only where the process does not run at all: stopped, for example.
_WALL_SECONDS = 60.0
_WALL_PER_CPU = 20.0

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    " from airllm.text.template_child import main; main()"
)


class TemplateFaultError(Exception):
    """What a template is refused for."""


class TemplateProcess:
    """A process that renders templates, one at a time, and is started when it is needed: the first
    time, and after a template that took too much."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def forget(self) -> None:
        """In a process that was forked: this is its parent's."""
        self.__init__()  # type: ignore[misc]

    @property
    def process_id(self) -> int | None:
        return None if self._process is None else self._process.pid

    def ask(self, source: str, variables: Mapping[str, object] | None) -> str:
        """The text that a template makes of variables, which must be what JSON has; with None it is
        compiled only, and the text is empty.

        TemplateFaultError for whatever is wrong with the template, or that it takes too much;
        TypeError, ValueError and RecursionError of json.dumps, about the variables; OSError where
        there can be no process.
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
                _open(stream).close()

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is not None:
            return self._process
        places = [str(Path(__file__).parents[2]), *map(os.path.abspath, sys.path)]
        self._process = subprocess.Popen(
            [os.fsdecode(spawn.get_executable()), "-I", "-c", _BOOT, json.dumps(places)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not for it
        )
        return self._process

    @contextlib.contextmanager
    def _ended_unless_it_answers(
        self, process: "subprocess.Popen[bytes]", wall_seconds: float
    ) -> Iterator[None]:
        """Whatever goes wrong inside the `with`, an interrupt too, and when it takes too long, the
        process ends: it would answer the next question with this one's answer."""
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
    """The answer; None where the process has ended."""
    try:
        write_frame(_open(process.stdin), request)
    except BrokenPipeError:
        return None
    return read_frame(_open(process.stdout), most)


def _open(stream: IO[bytes] | None) -> IO[bytes]:
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
    """How many values are in its lists and mappings, at any depth."""
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
