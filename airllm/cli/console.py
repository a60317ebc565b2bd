"""Output of the commands: results on stdout; notes, logs and progress on stderr."""

import contextlib
import json
import logging
import math
import os
import sys
import textwrap
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

from airllm.util.durable import naming
from airllm.util.printable import printable_lines
from airllm.util.progress import Progress
from airllm.weights.budget import format_bytes as format_bytes

log = logging.getLogger("airllm")

LEAST_WIDTH = 20  # of a terminal whose lines are filled by words

# A model may write anything, even escape sequences. C0 controls except tab and newline, DEL, C1.
_CONTROLS = dict.fromkeys(
    {*range(0x20), *range(0x7F, 0xA0)} - {0x09, 0x0A}, "\N{REPLACEMENT CHARACTER}"
)


@contextlib.contextmanager
def logging_to_stderr(*, quiet: bool, debug: bool) -> Iterator[None]:
    """Writes the "airllm" logger's records to stderr: from INFO on; quiet: errors; debug: all."""
    handler = _StderrHandler()
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.ERROR if quiet else logging.DEBUG if debug else logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def open_missing_streams() -> None:
    """Opens /dev/null in place of each standard stream that was closed (`>&-`).

    Python leaves None in its place, and the next file that is opened would get its number.
    """
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode)  # noqa: SIM115
            os.dup2(stream.fileno(), number)
            setattr(sys, name, stream)


def replace_what_stdout_cannot_show() -> None:
    """Shows ? for a character that stdout's encoding lacks, instead of ending the program."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # a replaced stdout may have none
    if reconfigure is not None:
        reconfigure(errors="replace")


def note(message: str) -> None:
    """Writes a line to stderr, even with --quiet; it is lost if stderr cannot take it. All notes,
    errors and log records come here, so the text that they quote is escaped here. On a terminal, no
    word is cut at the end of a line."""
    with contextlib.suppress(OSError):
        print(wrapped(f"airllm: {printable_lines(message)}"), file=sys.stderr, flush=True)


def described(error: Exception) -> str:
    """An error in a line, for a person."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        wanted = str(error).removeprefix("std::bad_alloc")  # the whole text of the C++ error
        return f"out of memory: {wanted}" if wanted else "out of memory"
    return str(error) or repr(error)


def width() -> int | None:
    """The columns of the terminal that stderr is; None if it is none, or does not say. stdout may
    be a pipe meanwhile."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):  # no terminal
        return None
    return columns if columns >= LEAST_WIDTH else None  # some terminals say 0


def wrapped(text: str) -> str:
    """The text in lines that fit the terminal, if stderr is one."""
    columns = width()
    if columns is None:
        return text
    lines = (
        textwrap.wrap(line, columns, break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n")
    )
    return "\n".join("\n".join(line) for line in lines)


def ask(question: str) -> None:
    """Writes a question to stderr; the answer follows on the same line."""
    with contextlib.suppress(OSError):
        print(f"airllm: {printable_lines(question)}", file=sys.stderr, end="", flush=True)


def show_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A sys.excepthook that escapes the text that errors quote."""
    lines = "".join(traceback.format_exception(kind, error, trace))
    with contextlib.suppress(OSError):
        sys.stderr.write(printable_lines(lines))


def write(text: str) -> None:
    """Writes a model's text to stdout at once; on a terminal, replaces control characters."""
    with naming("stdout"):
        sys.stdout.write(text.translate(_CONTROLS) if sys.stdout.isatty() else text)
        sys.stdout.flush()


def show(text: str, *, dim: bool = False) -> None:
    """Writes text for a person, which is no result, to stderr; it is lost if stderr cannot take
    it. dim: on a terminal that can."""
    text = text.translate(_CONTROLS)
    with contextlib.suppress(OSError):
        sys.stderr.write(f"\x1b[2m{text}\x1b[22m" if dim and has_styles() else text)
        sys.stderr.flush()


def has_styles() -> bool:
    """Whether stderr is a terminal on which text can be dim, and its user wants that: NO_COLOR
    (no-color.org) turns styles off."""
    return (
        sys.stderr.isatty()
        and (os.environ.get("TERM") or "dumb") != "dumb"
        and not os.environ.get("NO_COLOR")
    )


def write_json(value: Mapping[str, object]) -> None:
    """One JSON object on a line of stdout; infinities and NaN, which JSON lacks, become null.

    The json module escapes C0 controls. A terminal also obeys DEL, C1 and the like: escaped here.
    """
    text = json.dumps(_finite(value), ensure_ascii=False)
    print("".join(map(_json_escaped, text)) if not text.isprintable() else text)


def _json_escaped(char: str) -> str:
    return char if char.isprintable() else json.dumps(char)[1:-1]


def abandon_stdout() -> None:
    """Drops output that stdout cannot take (reader gone, disk full): exit must not fail again."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def progress(label: str, unit: str) -> Progress:
    """Progress on stderr, unless --quiet."""
    return Progress(label, unit, shown=shows_progress())


def shows_progress() -> bool:
    return log.isEnabledFor(logging.INFO)


def prompt_progress() -> Progress:
    """Progress of a prompt's evaluation. It disappears before the answer begins."""
    return progress("reading the prompt", "layers")


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        note(level + self.format(record))


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
