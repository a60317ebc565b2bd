"""Options that several commands share, and what a value may be. A bad one is a usage error (2)."""

import argparse
import json
import math
import textwrap
from collections.abc import Callable
from typing import TypeAlias, cast, get_args

from airllm.engine.settings import AnswerOptions, Limits, OnFull, Sampling
from airllm.util.shown import shown

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


class UsageError(Exception):
    """Options that are right one by one and wrong together; exit status 2."""


EXIT_STATUS = """\
exit status:
  0    it worked
  1    it failed; the last line on stderr says why
  2    the command line is wrong
  130  interrupted by Ctrl-C
  141  whatever read our output has stopped reading"""


def epilog(*examples: str) -> str:
    lines = "\n".join(f"  {example}" for example in examples)
    return f"examples:\n{lines}\n\n{EXIT_STATUS}"


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Examples as they are written, and room for the longest command's name."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=27)


def add_command(
    subparsers: Subparsers,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    help: str,
    description: str,
    examples: list[str],
) -> argparse.ArgumentParser:
    """A command with a help that teaches: what it does, its options, examples, exit status."""
    parser = subparsers.add_parser(
        name,
        help=help,
        description=textwrap.fill(description, 80),
        epilog=epilog(*examples),
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def add_output(parser: argparse.ArgumentParser, *, json: str | None = None) -> None:
    """What every command has, last in its help. json: what its --json prints."""
    group = parser.add_argument_group("output")
    if json is not None:
        group.add_argument("--json", action="store_true", help=f"print one JSON object: {json}")
    group.add_argument(
        "-q", "--quiet", action="store_true", help="only errors on stderr, no notes or progress"
    )
    group.add_argument(
        "--debug",
        action="store_true",
        help="log details, and show where an error came from (also AIRLLM_DEBUG=1)",
    )


def add_model(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument(
        "-m",
        "--model",
        required=required,
        metavar="M",
        help="a GGUF file (the first of a split model's), a Hugging Face folder, or the name of a "
        "model that `airllm pull` has fetched",
    )


def add_engine(parser: argparse.ArgumentParser, *, context: bool = True) -> None:
    """How the model runs. context=False where the command sets the context itself."""
    group = parser.add_argument_group("how it runs")
    group.add_argument(
        "--backend",
        choices=["auto", "cpp", "numpy"],
        default="auto",
        help="cpp: the compiled kernels; numpy: slow, needs no compiler (default: %(default)s, "
        "which is cpp where it works, or what AIRLLM_BACKEND says)",
    )
    if context:
        group.add_argument(
            "--context",
            type=positive,
            metavar="N",
            help="tokens that prompt and answer may have together; the KV cache grows with it "
            "(default: the model's own limit, or less where that is large)",
        )
    group.add_argument(
        "--kv-type",
        choices=["f32", "f16", "q8_0"],
        default="f16",
        help="what keys and values are kept as: exact, in 16 bit, or in 8 bit, half of that "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--ram",
        type=size,
        metavar="SIZE",
        help="memory for weights, KV cache and buffers, as in 2GiB or 500MB: what does not fit is "
        "streamed from the disk for each token, see `airllm plan` (default: AIRLLM_RAM, or what "
        "is available)",
    )
    group.add_argument(
        "--activations",
        choices=["auto", "q8", "q16", "f32"],
        default="auto",
        help="what meets quantised weights: 8-bit integers are fast, 16-bit ones as good as exact, "
        "f32 exact and slow; auto is q16 for up to 64 tokens at once, else q8",
    )
    group.add_argument(
        "--quantize",
        choices=["q8_0", "q5_1", "q5_0", "q4_1", "q4_0"],
        metavar="TYPE",
        help="what the matrices of a float model become while they are read: %(choices)s "
        "(default: they stay; `airllm convert` does it once and for all)",
    )


def add_threads(parser: "argparse._ActionsContainer", *, decode: bool = True) -> None:
    """decode=False where nothing is evaluated token by token."""
    parser.add_argument(
        "-t",
        "--threads",
        type=positive,
        metavar="N",
        help="threads to compute with (default: what `airllm info` says)",
    )
    if decode:
        parser.add_argument(
            "--decode-threads",
            type=positive,
            metavar="N",
            help="at most so many of them for the answer, which waits for memory where the prompt "
            "waits for arithmetic (default: all)",
        )


def add_template(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--chat-template-kwargs",
        type=json_object,
        default={},
        metavar="JSON",
        help="what the model's chat template is to know beside the messages, as in "
        '\'{"enable_thinking": false}\' or \'{"reasoning_effort": "high", "tools": [...]}\'; which '
        "names there are is for the template to say",
    )


def add_lookahead(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lookahead",
        type=count,
        metavar="N",
        help="guess up to N next tokens from what was said before and check them in one pass, 63 "
        "at most: the same answer, sooner where text repeats and passes are slow (default: 8 with "
        "--draft and where layers are streamed from the disk, else 0)",
    )
    parser.add_argument(
        "--draft",
        metavar="M2",
        help="a smaller model with the same vocabulary, whose tokens are the guesses; both models "
        "are within --ram",
    )


def add_answer(
    parser: argparse.ArgumentParser, *, max_tokens: int = Limits.max_new_tokens
) -> "argparse._ArgumentGroup":
    """Options for the fields of Sampling and Limits, but for `keep`."""
    group = parser.add_argument_group("what it says")
    group.add_argument(
        "-n",
        "--max-tokens",
        dest="max_new_tokens",
        type=positive,
        default=max_tokens,
        metavar="N",
        help="the longest answer (default: %(default)s)",
    )
    group.add_argument(
        "--temperature",
        type=not_negative,
        default=Sampling.temperature,
        metavar="T",
        help="0 always takes the likeliest token; higher is livelier (default: %(default)s)",
    )
    group.add_argument(
        "--top-k",
        type=count,
        default=Sampling.top_k,
        metavar="K",
        help="choose among the K likeliest tokens; 0: among all (default: %(default)s)",
    )
    group.add_argument(
        "--top-p",
        type=share,
        default=Sampling.top_p,
        metavar="P",
        help="choose among the likeliest that together have probability P; 1: among all "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--min-p",
        type=share,
        default=Sampling.min_p,
        metavar="P",
        help="leave out tokens less than P times as likely as the likeliest (default: %(default)s)",
    )
    group.add_argument(
        "--repeat-penalty",
        type=above_zero,
        default=Sampling.repeat_penalty,
        metavar="R",
        help="above 1 makes what was said less likely to be said again (default: %(default)s)",
    )
    group.add_argument(
        "--seed",
        type=count,
        default=Sampling.seed,
        metavar="S",
        help="the same seed gives the same answer",
    )
    group.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="STR",
        type=not_empty,
        help="end the answer before this text; may be given more than once",
    )
    group.add_argument(
        "--on-full",
        choices=get_args(OnFull),
        default=Limits.on_full,
        help="where the context is full: stop the answer, forget the older half of what was said "
        "and go on (shift), or fail (default: %(default)s)",
    )
    return group


def answer_options(args: argparse.Namespace) -> AnswerOptions:
    """The options of add_answer as keyword arguments of the engine's generate()."""
    given = {name: at for name, at in vars(args).items() if name in AnswerOptions.__annotations__}
    return cast(AnswerOptions, given)


def positive(text: str) -> int:
    return _integer(text, minimum=1)


def count(text: str) -> int:
    return _integer(text, minimum=0)


def count_or_all(text: str) -> int:
    """-1 is all."""
    return _integer(text, minimum=-1)


def counts(text: str) -> list[int]:
    """ "1,2,4" -> [1, 2, 4]"""
    return [count(item) for item in text.split(",")]


def positives(text: str) -> list[int]:
    return [positive(item) for item in text.split(",")]


def size(text: str) -> int:
    """ "2GiB" -> bytes"""
    from airllm.weights.budget import parse_bytes

    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def not_negative(text: str) -> float:
    value = _number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def above_zero(text: str) -> float:
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def share(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def text(value: str) -> str:
    """Python passes a byte that is not UTF-8 as a lone surrogate, which no tokeniser takes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("the text is not UTF-8") from None
    return value


def json_object(text: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{text:.60} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text:.60} is no JSON object, as {{...}} is")
    return value


def not_empty(value: str) -> str:
    if not value:
        raise argparse.ArgumentTypeError("the text is empty")
    return text(value)


def _integer(text: str, minimum: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number") from None
    if value < minimum:
        raise argparse.ArgumentTypeError(f"{shown(value)} is less than {minimum}")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a number") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text[:80]} is not a finite number")
    return value
