"""Command-line options that the scripts share."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from common import table

Parser = argparse.ArgumentParser


def parser(doc: str | None) -> Parser:
    """A parser whose help is the script's docstring."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def words(text: str) -> tuple[str, ...]:
    """ "a, b" -> ("a", "b")."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def counts(text: str) -> tuple[int, ...]:
    """ "1,2" -> (1, 2); an argparse error for anything but positive integers."""
    try:
        numbers = tuple(int(word) for word in words(text))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected integers of at least 1")
    return numbers


def count(text: str) -> int:
    numbers = counts(text)
    if len(numbers) > 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected one integer")
    return numbers[0]


def add_common(parser: argparse.ArgumentParser, *, seconds: float) -> None:
    parser.add_argument(
        "--isa", type=isas, metavar="NAME,...", help="ISAs to run; see the default below"
    )
    parser.add_argument(
        "--only",
        type=words,
        default=(),
        metavar="WORD,...",
        help="only operations with one of these words in their name",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=seconds,
        help="seconds of timing for each row (default: %(default)s)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="use tiny shapes, to test that everything runs"
    )
    add_json(parser)


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        type=output,
        nargs="?",
        const="-",
        metavar="FILE",
        help="write everything as JSON: to FILE, or instead of the table to standard output",
    )


def output(text: str) -> str:
    """The name of a file to write. Its folder must exist, or the error would come after minutes."""
    if not Path(text).parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: there is no folder {Path(text).parent}")
    return text


def marked(text: str) -> Path:
    """A file with the markers of table.replace_marked."""
    try:
        table.around_markers(Path(text))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Path(text)


def isas(text: str) -> tuple[str, ...]:
    """Names of ISAs; an argparse error for an ISA that cannot run here."""

    from common.extension import cpp

    available = cpp.available_isas()
    for name in words(text):
        if name not in available:
            raise argparse.ArgumentTypeError(
                f"{name!r} cannot run here; possible: {', '.join(available)}"
            )
    return words(text)


def write_json(destination: str, document: Mapping[str, object]) -> None:
    """Writes to a file, or for "-" to standard output."""
    text = json.dumps(document, indent=1) + "\n"
    if destination == "-":
        sys.stdout.write(text)
    else:
        Path(destination).write_text(text, encoding="utf-8")
