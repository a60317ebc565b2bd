"""The `airllm` command. Each command has a module; this one chooses it and reports its errors.

A command's module has `add(subparsers)`, which describes it, and `run(args) -> exit status`.
Modules import the engine and NumPy inside `run`, so that --help is fast.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from airllm import __version__
from airllm.cli import (
    batch,
    bench,
    chat,
    console,
    convert,
    demo,
    generate,
    info,
    options,
    perplexity,
    plan,
    pull,
    serve,
    worker,
)
from airllm.util.durable import naming

FAILED = 1
USAGE = 2
INTERRUPTED = 130  # 128 + SIGINT
READER_GONE = 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status, as options.EXIT_STATUS lists them."""
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
        return INTERRUPTED
    except options.UsageError as error:
        console.note(f"error: {error}")
        return USAGE
    except BrokenPipeError:
        return READER_GONE
    except Exception as error:
        sys.excepthook = console.show_traceback  # for errors that are raised again below
        if args.debug or os.environ.get("AIRLLM_DEBUG", "0") not in ("", "0"):
            raise
        if not isinstance(error, _expected_errors()):
            console.note("error: this should not have happened; please report what follows")
            raise
        console.note(f"error: {_describe(error)}")
        return FAILED
    finally:
        console.abandon_stdout()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="airllm",
        description="Run language models on this machine's CPU.",
        epilog=options.epilog(
            "airllm demo                      fetch a small model and ask it a question",
            "airllm chat -m smollm2-135m      talk with that model",
            "airllm generate --help           show a command's options; every command has --help",
        ),
        formatter_class=options.HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-V", "--version", action="version", version=f"airllm {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (
        demo,
        pull,
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


def _expected_errors() -> tuple[type[Exception], ...]:
    """Errors of the input or the machine, with messages that suffice. Others are our faults."""
    from airllm.hub import HubError

    return HubError, ValueError, OSError, ImportError, MemoryError


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        wanted = str(error).removeprefix("std::bad_alloc")  # the whole text of the C++ error
        return f"out of memory: {wanted}" if wanted else "out of memory"
    return str(error) or repr(error)
