"""Parsers of command lines: their help, which fits the terminal, and their errors, which show the
usage of the command at hand.
"""

import argparse
import difflib
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import NoReturn

from airllm.cli.console import wrapped

__all__ = ["CommandParser", "HelpFormatter", "ParserExit", "epilog", "fitted"]


class ParserExit(SystemExit):
    """The end after a command line that a parser has refused, of which it has told stderr."""

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message


EXIT_STATUS = """\
exit status:
  0    it worked
  1    it failed; the last line on stderr gives the reason
  2    the command line is wrong
  130  interrupted by Ctrl-C
  141  the program that read the output stopped reading"""


def epilog(*examples: str) -> str:
    lines = "\n".join(f"  {example}" for example in examples)
    return f"examples:\n{lines}\n\n{EXIT_STATUS}"


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Fills a description, keeps the lines of examples where the terminal has room for them, and
    has room for the longest command's name."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=27)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" not in text:
            return textwrap.fill(text, min(width, 80))
        return fitted(text, width)


def fitted(text: str, width: int | None = None) -> str:
    """Lines with examples, cut for a terminal. width: None for that of the terminal at hand."""
    width = min(width or shutil.get_terminal_size().columns - 2, 100)
    return "\n".join(line for each in text.splitlines() for line in _fitted(each, width))


def _fitted(line: str, width: int) -> Iterator[str]:
    """The line. If it is too long, an example's remark has a line of its own, and the rest several
    lines, as a shell takes them."""
    if len(line) <= width:
        yield line
        return
    command, remark = re.fullmatch(r"(.*?\S)(?:\s{3,}(.+))?", line).groups()  # type: ignore[union-attr]
    indent = re.match(r"\s*", command)[0] + "    "  # type: ignore[index]
    is_command = command.lstrip().startswith("airllm")
    lines = textwrap.wrap(
        command,
        width - 2 * is_command,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    for number, part in enumerate(lines, 1):
        yield part + (" \\" if is_command and number < len(lines) else "")
    if remark:
        yield from textwrap.wrap(
            remark, width, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
        )


def _has_option(words: Sequence[str]) -> bool:
    return any(word.startswith("-") and word != "-" for word in words)


class CommandParser(argparse.ArgumentParser):
    """The parser of one command. An argument that it does not know is its own error, with its own
    usage, and not that of the whole program."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        found, unknown = super().parse_known_args(args, namespace)
        last = self._open_end()
        if last is not None and not getattr(found, last.dest) and not _has_option(unknown):
            # argparse takes an empty list where an option comes before: `run MODEL -n 9 PROMPT`.
            setattr(found, last.dest, [self._get_value(last, word) for word in unknown])
            unknown = []
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._hint(unknown)}")
        return found, unknown

    def format_usage(self) -> str:
        self.usage = self._short_usage()
        return super().format_usage()

    def format_help(self) -> str:
        self.usage = self._short_usage()
        return super().format_help()

    def _short_usage(self) -> str:
        """What must be given. Twenty options in brackets would hide it; the help lists them."""
        words = ["%(prog)s"]
        for action in self._actions:
            if action.required and action.option_strings:
                words.append(f"{action.option_strings[0]} {action.metavar}")
        words.append("[options]")
        for action in self._actions:
            if not action.option_strings:
                shape = {"?": "[{}]", "*": "[{} ...]", "+": "{} ..."}.get(str(action.nargs), "{}")
                words.append(shape.format(action.metavar))
        words += ["..."] if self._subparsers else []
        room = shutil.get_terminal_size().columns - len(f"usage: {self.prog} ")
        lines = textwrap.wrap(" ".join(words[1:]), max(room, 20), break_on_hyphens=False)
        return f"{words[0]} " + ("\n" + " " * 11).join(lines)

    def _open_end(self) -> argparse.Action | None:
        """The positional argument that takes any number of words."""
        ends = (each for each in self._actions if each.nargs == "*" and not each.option_strings)
        return next(ends, None)

    def _hint(self, unknown: Sequence[str]) -> str:
        known = [name for action in self._actions for name in action.option_strings]
        for option in unknown:
            name = option.partition("=")[0]
            near = [each for each in known if len(name) > 4 and each.startswith(name)]
            near += difflib.get_close_matches(name, known, n=1)
            if near and option.startswith("--"):
                return f" (did you mean {near[0]}?)"
        return ""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        text = f"{self.prog} --help lists all options\n{self.prog}: error: {message}"
        sys.stderr.write(f"{wrapped(text)}\n")
        raise ParserExit(message)
