"""Messages that somebody types or pastes, or that come from a pipe.

A line is a message. Pasted text is one message, however many lines it has; so are the lines between
two \"\"\", and a line that ends in a backslash together with the next.
"""

import contextlib
import os
import select
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from airllm.cli import console
from airllm.cli.history import History

__all__ = ["Message", "piped_messages", "typed_messages"]

PROMPT, CONTINUED = "> ", "... "
QUOTES = '"""'

# What a terminal in this mode puts around pasted text (xterm's "bracketed paste").
_PASTE_ON, _PASTE_OFF = "\x1b[?2004h", "\x1b[?2004l"
_BEGIN, _END = "\x1b[200~", "\x1b[201~"
# Between the lines of a paste that arrives without these marks.
_PASTE_SECONDS = 0.02


@dataclass(frozen=True)
class Message:
    """quoted: it stood between \"\"\", so that it is never a command."""

    text: str
    quoted: bool = False


def piped_messages() -> Iterator[Message]:
    yield from _messages(lambda prompt: _unmarked(_line_of(sys.stdin.readline())))


def typed_messages(history: History) -> Iterator[Message]:
    """Messages typed at a prompt until Ctrl-D. Ctrl-C drops the message, but not the
    conversation."""
    with _reader(history) as read:
        messages = _messages(read)
        while True:
            try:
                message = next(messages, None)
            except KeyboardInterrupt:
                print(file=sys.stderr)
                console.note("Ctrl-D or /bye ends")
                messages = _messages(read)
                continue
            except UnicodeDecodeError:
                console.note("that line is not UTF-8, and was not understood")
                messages = _messages(read)
                continue
            if message is None:
                print(file=sys.stderr)
                return
            history.append(message.text)
            yield message


def _messages(read: Callable[[str], str]) -> Iterator[Message]:
    """read: takes a prompt and returns a line, or several that were pasted; EOFError at the end."""
    while True:
        try:
            message = read(PROMPT)
        except EOFError:
            return
        is_line = "\n" not in message  # what was pasted means what it says
        quoted = is_line and message.lstrip().startswith(QUOTES)
        with contextlib.suppress(EOFError):  # the end also ends a message
            if quoted:
                message = message.lstrip().removeprefix(QUOTES)
                while not message.rstrip().endswith(QUOTES):
                    message += "\n" + read(CONTINUED)
                message = message.rstrip().removesuffix(QUOTES).strip("\n")
            elif is_line:
                while message.endswith("\\"):
                    message = message.removesuffix("\\") + "\n"
                    message += read(CONTINUED)
        if message.strip():
            yield Message(message.strip(), quoted)


@contextlib.contextmanager
def _reader(history: History) -> Iterator[Callable[[str], str]]:
    """The function that reads a line from the terminal: with readline where Python has it, which
    edits lines and knows the history."""
    readline = _readline() if sys.stdout.isatty() else None
    if readline is not None:
        readline.set_auto_history(False)
        for message in history.messages:
            readline.add_history(message)
        history.added = readline.add_history
        # GNU readline then keeps a paste together, on a terminal that can do it.
        readline.parse_and_bind("set enable-bracketed-paste on")
        marks = "libedit" not in (readline.__doc__ or "") and os.environ.get("TERM") != "dumb"
        yield input if marks else _edited_line
        return
    with contextlib.suppress(OSError):
        sys.stderr.write(_PASTE_ON if sys.stderr.isatty() else "")
    try:
        yield _plain_line
    finally:
        with contextlib.suppress(OSError):
            sys.stderr.write(_PASTE_OFF if sys.stderr.isatty() else "")


def _readline() -> Any:
    try:
        import readline
    except ImportError:
        return None
    return readline


def _edited_line(prompt: str) -> str:
    line = input(prompt)
    while _more_is_waiting():  # a paste, from a library that does not keep it together
        line += "\n" + input(CONTINUED)
    return line


def _plain_line(prompt: str) -> str:
    # If stdout is a file, input() would write the prompt among the answers.
    print(prompt, end="", file=sys.stderr, flush=True)
    line = _line_of(sys.stdin.readline())
    while _BEGIN in line and _END not in line:
        line += "\n" + _line_of(sys.stdin.readline())
    return _unmarked(line)


def _unmarked(line: str) -> str:
    return line.replace(_BEGIN, "").replace(_END, "")


def _line_of(line: str) -> str:
    if not line:
        raise EOFError
    return line.removesuffix("\n").removesuffix("\r")


def _more_is_waiting() -> bool:
    try:
        return bool(select.select([sys.stdin], [], [], _PASTE_SECONDS)[0])
    except (OSError, ValueError):  # no file, as in tests
        return False
