"""The `airllm` command. Each command has a module; this one chooses it and reports its errors.

A command's module has `add(subparsers)`, which describes it, and `run(args) -> exit status`.
Modules import the engine and NumPy inside `run`, so that --help is fast.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from functools import partial

from airllm.cli import (
    batch,
    bench,
    chat,
    command_line,
    console,
    convert,
    demo,
    generate,
    info,
    models,
    options,
    perplexity,
    plan,
    pull,
    run,
    serve,
    worker,
)
from airllm.util.durable import naming
from airllm.util.errors import AirllmError
from airllm.util.version import __version__

FAILED = 1
USAGE = 2
INTERRUPTED = 130  # 128 + SIGINT
READER_GONE = 141  # 128 + SIGPIPE

FIRST_STEPS = (
    "airllm demo                       fetch a small model (98 MB) and ask it",
    "airllm run smollm2-135m           talk with that model",
    "airllm serve --demo               serve it to programs and to browsers",
    "airllm run model.gguf             talk with a GGUF file or a folder",
    "airllm run hf.co/ORG/REPO:QUANT   with a model of huggingface.co",
    "airllm list                       show the models that are here",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status, as command_line.EXIT_STATUS lists them."""
    words = sys.argv[1:] if argv is None else argv
    as_json = "--json" in words
    args = argparse.Namespace(debug=False, quiet=False)  # for errors of the parser
    console.open_missing_streams()
    try:
        _parser().parse_args(argv, namespace=args)
        console.replace_what_stdout_cannot_show()
        with console.logging_to_stderr(quiet=args.quiet, debug=args.debug):
            status: int = args.run(args)
        with naming("stdout"):  # a full disk or a closed pipe can still be reported here
            sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        console.note("interrupted")
        return _failed(INTERRUPTED, "KeyboardInterrupt", "interrupted", as_json)
    except options.UsageError as error:
        console.note(f"error: {error}")
        return _failed(USAGE, "UsageError", str(error), as_json)
    except command_line.ParserExit as end:
        _failed(USAGE, "UsageError", end.message, as_json)
        raise
    except BrokenPipeError:
        return READER_GONE
    except Exception as error:
        sys.excepthook = console.show_traceback  # for errors that are raised again below
        if args.debug or os.environ.get("AIRLLM_DEBUG", "0") not in ("", "0"):
            raise
        if not isinstance(error, _expected_errors()):
            console.note("error: this should not have happened; please report what follows")
            raise
        message = console.described(error)
        console.note(f"error: {message}")
        return _failed(FAILED, type(error).__name__, message, as_json)
    finally:
        console.abandon_stdout()


def _parser() -> argparse.ArgumentParser:
    parser = command_line.CommandParser(
        prog="airllm",
        description="Run language models on this machine's CPU.",
        epilog=command_line.epilog(
            *FIRST_STEPS,
            "airllm generate --help            show the options of a command",
        ),
        formatter_class=command_line.HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-V", "--version", action="version", version=f"airllm {__version__}")
    parser.set_defaults(run=partial(_first_steps, parser))  # if no command is given
    commands = parser.add_subparsers(metavar="COMMAND")
    for command in (
        demo,
        run,
        pull,
        models,
        generate,
        chat,
        serve,
        batch,
        convert,
        perplexity,
        bench,
        plan,
        worker,
        info,
    ):
        command.add(commands)
    return parser


def _first_steps(parser: command_line.CommandParser, args: argparse.Namespace) -> int:
    """What to type first. As with every command line that is wrong, it goes to stderr."""
    steps = command_line.fitted("\n".join(["to begin:", *(f"  {step}" for step in FIRST_STEPS)]))
    console.show(f"{parser.format_usage()}\n{steps}\n\n")
    console.note("error: expected a COMMAND; airllm --help lists them all")
    return USAGE


def _failed(status: int, kind: str, message: str, as_json: bool) -> int:
    """The exit status. With --json, the error is on stdout as well, for programs."""
    if as_json:
        with contextlib.suppress(OSError):  # stdout is what failed
            console.write_json({"error": {"type": kind, "message": message, "status": status}})
            sys.stdout.flush()
    return status


def _expected_errors() -> tuple[type[Exception], ...]:
    """Errors of the input or the machine, with messages that suffice. Others are our faults."""
    return AirllmError, ValueError, OSError, ImportError, MemoryError
