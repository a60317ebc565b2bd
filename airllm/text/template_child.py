"""The process in which chat templates run; template_process.py starts it.

A template is a program inside a model's file that nobody has read. Jinja's sandbox keeps it away
from Python's internals, but does not stop `'a' * 10**10`, a hundred nested loops, or one call into
C that takes an hour. So templates run in a separate process. The kernel enforces its limits, and
a template cannot evade them:

- CPU time: a timer whose signal ends the process. It counts CPU time of the process, so that a busy
  machine changes nothing. It also ends a call into C.
- address space: an allocation beyond the limit fails.
- files, processes and core dumps: the limits are 0, in case a template escapes from the sandbox.

Requests and answers are frames on stdin and stdout, see `template_frames`. A request is JSON: the
template's `source`, its `variables` (null: only compile it), and `limits`: `seconds` of CPU time,
`memory` in bytes beyond the current address space, and `characters` of the rendered text. An
answer is its kind (TEXT, FAULT or MEMORY) and a text in UTF-8.
"""

import contextlib
import json
import resource
import signal
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

from airllm.text.template_frames import FAULT, MEMORY, TEXT, read_frame, write_frame
from airllm.text.template_sandbox import Sandbox

_KEPT = 8  # the most compiled templates to keep

# Jinja and Python import some modules on first use: for a literal, wordwrap, pprint, lipsum, a date
# and an error. That fails once no file can be opened, so this template uses all of them before.
_WARM_UP = """{{ 'é' | wordwrap | pprint }}{{ lipsum(1) }}{{ strftime_now('%c') }}{{ 1 / 0 }}"""


def main() -> None:
    """Answer requests until stdin ends or a template runs out of memory."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    with contextlib.suppress(ZeroDivisionError):
        Sandbox().template(_WARM_UP).render()
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))
    with contextlib.suppress(AttributeError):  # some systems lack this limit
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    compiled: dict[str, Any] = {}
    while (raw := read_frame(requests)) is not None:
        request = json.loads(raw.decode("utf-8", "surrogatepass"))
        del raw
        limits = request["limits"]
        signal.setitimer(signal.ITIMER_PROF, limits["seconds"])
        with _at_most(limits["memory"]):
            kind, text = _answer(request, limits["characters"], compiled)
        signal.setitimer(signal.ITIMER_PROF, 0)
        write_frame(answers, kind + text.encode("utf-8", "surrogatepass"))
        if kind == MEMORY:
            return


def _answer(
    request: dict[str, Any], characters: int, compiled: dict[str, Any]
) -> tuple[bytes, str]:
    source, variables = request["source"], request["variables"]
    try:
        if source not in compiled:
            if len(compiled) == _KEPT:
                del compiled[next(iter(compiled))]
            compiled[source] = Sandbox().template(source)
        pieces, left = [], characters
        for piece in () if variables is None else compiled[source].generate(variables):
            pieces.append(piece)
            left -= len(piece)
            if left < 0:
                return FAULT, f"it writes more than {characters:,} characters"
        return TEXT, "".join(pieces)
    except MemoryError:
        return MEMORY, ""
    except RecursionError as error:
        return FAULT, f"it is nested too deeply ({error})"
    except Exception as error:  # a template can raise any exception
        return FAULT, f"{error}"[:1000] or type(error).__name__


@contextlib.contextmanager
def _at_most(n_bytes: int) -> Iterator[None]:
    """Inside the `with`, the process can get n_bytes more address space than it has now."""
    soft, hard = before = resource.getrlimit(resource.RLIMIT_AS)
    limit = _ADDRESS_SPACE.used() + n_bytes
    with contextlib.suppress(OSError, ValueError):  # some systems lack this limit
        resource.setrlimit(
            resource.RLIMIT_AS,
            (limit if soft == resource.RLIM_INFINITY else min(soft, limit), hard),
        )
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_AS, before)


class _AddressSpace:
    """The size of this process's address space, from a file that is opened before RLIMIT_NOFILE
    is 0."""

    def __init__(self) -> None:
        self._file: BinaryIO | None = None
        with contextlib.suppress(OSError):
            self._file = open("/proc/self/statm", "rb", buffering=0)  # noqa: SIM115, PTH123

    def used(self) -> int:
        if self._file is None:  # not Linux
            return 2**30
        self._file.seek(0)
        return int(self._file.read(100).split()[0]) * resource.getpagesize()


_ADDRESS_SPACE = _AddressSpace()
