"""Options that several commands share, and the parsers of their values.

A value that a parser refuses is a usage error (exit status 2).
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeAlias, cast, get_args

from airllm.cli.command_line import HelpFormatter, epilog
from airllm.engine.settings import AnswerOptions, Limits, OnFull, Sampling
from airllm.util.errors import AirllmError
from airllm.util.shown import shown

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


# What quantises, from the most bits to the fewest, as airllm.formats.mixes has them.
QUANTIZED_TYPES = (
    *("q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1", "q4_0"),
    *("iq4_nl", "mxfp4", "mxfp4_moe", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k", "q2_k_s"),
)


class UsageError(AirllmError):
    """Options that are valid one by one but not together; exit status 2."""


def add_command(
    subparsers: Subparsers,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    help: str,
    description: str,
    examples: list[str],
) -> argparse.ArgumentParser:
    """Adds a command. Its help shows what it does, its options, examples and the exit status."""
    parser = subparsers.add_parser(
        name,
        help=help,
        description=description,
        epilog=epilog(*examples),
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def add_output(parser: argparse.ArgumentParser, *, json: str | None = None) -> None:
    """Adds the options of all commands, last in the help. json: what --json prints, if any."""
    group = parser.add_argument_group("output")
    if json is not None:
        group.add_argument("--json", action="store_true", help=f"print one JSON object: {json}")
    group.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        help="write only errors to stderr, no notes and no progress",
    )
    group.add_argument(
        "--debug",
        action="store_true",
        help="log details, and show where an error came from (also AIRLLM_DEBUG=1)",
    )


def add_model(
    parser: argparse.ArgumentParser, *, positional: bool = False, required: bool = True
) -> None:
    what = (
        "a GGUF file (for a split model, its first file), a Hugging Face folder, or the name of a "
        "model: smollm2-135m, or hf.co/ORG/REPO:QUANT for one of the Hugging Face Hub; a named "
        "model that is not here is fetched after a question"
    )
    if positional:
        parser.add_argument("model", metavar="MODEL", help=what)
    else:
        parser.add_argument("-m", "--model", required=required, metavar="M", help=what)
    parser.add_argument(
        "-y",
        "--yes",
        action="store_true",
        help="fetch a named model that is not here without asking",
    )


def add_engine(parser: argparse.ArgumentParser, *, context: bool = True) -> None:
    """Options for how the model runs. context=False if the command sets the context itself."""
    group = parser.add_argument_group("how it runs")
    group.add_argument(
        "--backend",
        choices=["auto", "cpp", "numpy"],
        default="auto",
        help="cpp uses the compiled kernels; numpy is slow and needs no compiler; auto uses "
        "AIRLLM_BACKEND if it is set, otherwise cpp where it works (default: %(default)s)",
    )
    if context:
        group.add_argument(
            "--context",
            type=positive,
            metavar="N",
            help="number of tokens that prompt and answer may have together; the KV cache grows "
            "with it (default: the model's limit, at most 4096)",
        )
    group.add_argument(
        "--kv-type",
        type=str.lower,
        choices=["f32", "f16", "q8_0"],
        default="f16",
        help="type of the keys and values in the KV cache: f32 is exact, f16 takes half the "
        "memory, q8_0 about a quarter (default: %(default)s)",
    )
    group.add_argument(
        "--ram",
        type=size,
        metavar="SIZE",
        help="memory for weights, KV cache and buffers, for instance 2GiB or 500MB; layers that "
        "do not fit are streamed from the disk for each token, see `airllm plan` (default: "
        "AIRLLM_RAM, or 90%% of the available memory)",
    )
    group.add_argument(
        "--activations",
        choices=["auto", "q8", "q16", "f32"],
        default="auto",
        help="rounding of activations that are multiplied by quantised weights: q8 (8 bits) is "
        "fast, q16 (16 bits) is as good as exact, f32 is exact and slow; auto uses q16 for up "
        "to 64 tokens at once and q8 for more (default: %(default)s)",
    )
    group.add_argument(
        "--quantize",
        type=str.lower,
        choices=QUANTIZED_TYPES,
        metavar="TYPE",
        help="quantise the matrices of a float model each time they are read; TYPE is one of "
        "%(choices)s (default: do not quantise; `airllm convert` does it once)",
    )


def add_threads(parser: "argparse._ActionsContainer", *, decode: bool = True) -> None:
    """decode=False if nothing is evaluated token by token."""
    parser.add_argument(
        "-t",
        "--threads",
        type=positive,
        metavar="N",
        help="number of threads (default: the number that `airllm info` shows)",
    )
    if decode:
        parser.add_argument(
            "--decode-threads",
            type=positive,
            metavar="N",
            help="use at most N of the threads for the answer, because an answer waits for "
            "memory while a prompt waits for arithmetic (default: all threads)",
        )


def add_template(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--chat-template-kwargs",
        type=json_object,
        default={},
        metavar="JSON",
        help="variables for the model's chat template, for instance "
        '\'{"enable_thinking": false}\' or \'{"reasoning_effort": "high", "tools": [...]}\'; the '
        "template decides which names have a meaning",
    )


THINK = ("show", "hide", "off")


def add_think(
    parser: argparse.ArgumentParser,
    *,
    show: str = "show writes them to stderr, dim on a terminal",
    default: str = "show if both stdout and stderr are a terminal, else hide",
) -> None:
    """show: what `show` does. default: what is done without the option."""
    parser.add_argument(
        "--think",
        choices=THINK,
        help="what becomes of the thoughts that some models write before the answer: "
        f"{show}; hide leaves them out; off asks the model not to think, if its chat template has "
        f"a switch for that (default: {default})",
    )


def template_variables(given: Mapping[str, object], think: str | None) -> dict[str, object]:
    """given: by --chat-template-kwargs. think: --think. The switches are those that Qwen's and
    DeepSeek's templates read, and that the server sets for its clients, too."""
    off = {"enable_thinking": False, "thinking": False} if think == "off" else {}
    return {**off, **given}


def add_lookahead(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lookahead",
        type=count,
        metavar="N",
        help="guess up to N next tokens from the text so far and check them in one pass; N is "
        "at most 63; the answer stays the same, and comes sooner where text repeats and passes "
        "are slow (default: 3 with --mtp, 8 with --draft and where layers are streamed from the "
        "disk, otherwise 0)",
    )
    parser.add_argument(
        "--draft",
        metavar="M2",
        help="a smaller model with the same vocabulary, which makes the guesses; --ram is the "
        "memory for both models",
    )
    add_mtp(parser)


def add_mtp(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mtp",
        action=argparse.BooleanOptionalAction,
        help="let the model's own next-token head make the guesses, if it was trained with one; "
        "the head stays in memory (default: AIRLLM_MTP, or --no-mtp)",
    )


def add_answer(
    parser: argparse.ArgumentParser, *, max_tokens: int = Limits.max_new_tokens
) -> "argparse._ArgumentGroup":
    """Options for the fields of Sampling and Limits, except `keep`."""
    group = parser.add_argument_group("what it says")
    group.add_argument(
        "-n",
        "--max-tokens",
        dest="max_new_tokens",
        type=positive,
        default=max_tokens,
        metavar="N",
        help="largest number of tokens of an answer (default: %(default)s)",
    )
    add_sampling(group)
    group.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="STR",
        type=not_empty,
        help="end the answer before this text; the option may be given more than once",
    )
    group.add_argument(
        "--on-full",
        choices=get_args(OnFull),
        default=Limits.on_full,
        help="what to do when the context is full: stop ends the answer, shift forgets the "
        "older half of the tokens and goes on, error fails (default: %(default)s)",
    )
    return group


def add_sampling(group: "argparse._ArgumentGroup") -> None:
    """Options for the fields of Sampling."""
    group.add_argument(
        "--temperature",
        type=not_negative,
        default=argparse.SUPPRESS,
        metavar="T",
        help="0 always chooses the likeliest token; higher values give livelier answers "
        f"(default: {_default('temperature')})",
    )
    group.add_argument(
        "--top-k",
        type=count,
        default=argparse.SUPPRESS,
        metavar="K",
        help="choose among the K likeliest tokens; 0 means all tokens "
        f"(default: {_default('top_k')})",
    )
    group.add_argument(
        "--top-p",
        type=share,
        default=argparse.SUPPRESS,
        metavar="P",
        help="choose among the likeliest tokens that together have the probability P; 1 means "
        f"all tokens (default: {_default('top_p')})",
    )
    group.add_argument(
        "--min-p",
        type=share,
        default=argparse.SUPPRESS,
        metavar="P",
        help="leave out tokens that are less than P times as likely as the likeliest token "
        f"(default: {_default('min_p')})",
    )
    group.add_argument(
        "--repeat-penalty",
        type=above_zero,
        default=argparse.SUPPRESS,
        metavar="R",
        help="a value above 1 makes tokens less likely that the text already has "
        f"(default: {_default('repeat_penalty')})",
    )
    group.add_argument(
        "--seed",
        type=count,
        default=argparse.SUPPRESS,
        metavar="S",
        help="the same seed gives the same answer (default: a new seed each time)",
    )
    _add_sampling(group)


def _default(name: str) -> str:
    return f"what the model's file says, else {getattr(Sampling, name)}"


def _add_sampling(group: "argparse._ArgumentGroup") -> None:
    """The rarer options of Sampling."""

    def add(flag: str, type: Callable[[str], object], metavar: str, help: str) -> None:
        name = flag.removeprefix("--").replace("-", "_")
        default = getattr(Sampling, name)
        group.add_argument(
            flag,
            type=type,
            metavar=metavar,
            default=argparse.SUPPRESS,
            help=f"{help} (default: {default})",
        )

    add(
        "--typical-p",
        share,
        "P",
        "choose among the tokens whose surprise is nearest to the expected one and that together "
        "have the probability P; 1 means all tokens",
    )
    add(
        "--presence-penalty",
        number,
        "X",
        "subtract X from the logits of tokens that the text already has",
    )
    add(
        "--frequency-penalty",
        number,
        "X",
        "subtract X from the logits of tokens for each time that the text already has them",
    )
    add(
        "--penalty-window",
        count_or_all,
        "N",
        "how many of the last tokens the penalties and DRY look at; -1 means all of them",
    )
    add(
        "--dry-multiplier",
        not_negative,
        "X",
        "make tokens less likely that would continue a repetition, by X for the shortest that "
        "counts; 0 means no such penalty",
    )
    add(
        "--dry-base",
        at_least_one,
        "B",
        "each further token of a repetition multiplies the penalty by B",
    )
    add(
        "--dry-allowed-length",
        positive,
        "N",
        "the shortest repetition that counts, in tokens",
    )
    group.add_argument(
        "--dry-breaker",
        dest="dry_breakers",
        action="append",
        metavar="STR",
        type=text,
        default=argparse.SUPPRESS,
        help="a text over which no repetition reaches; the option may be given more than once, and "
        "'' means none (default: a newline, a colon, a quotation mark, an asterisk)",
    )
    group.add_argument(
        "--logit-bias",
        type=bias,
        action=_ByToken,
        metavar="TOKEN=X",
        default=argparse.SUPPRESS,
        help="add X to the logit of the token with this id; -inf rules it out; the option may be "
        "given more than once",
    )


class _ByToken(argparse.Action):
    """Collects pairs in a dictionary."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        token, value = values
        setattr(namespace, self.dest, {**getattr(namespace, self.dest, {}), token: value})


def answer_options(args: argparse.Namespace) -> AnswerOptions:
    """The options of add_answer as keyword arguments of the engine's generate()."""
    given = {name: at for name, at in vars(args).items() if name in AnswerOptions.__annotations__}
    return cast(AnswerOptions, given)


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of add_sampling that were given."""
    return {
        field.name: getattr(args, field.name)
        for field in fields(Sampling)
        if hasattr(args, field.name)
    }


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


def at_least_one(text: str) -> float:
    value = _number(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def number(text: str) -> float:
    return _number(text)


def bias(text: str) -> tuple[int, float]:
    """ "15=-1.5" -> (15, -1.5); also -inf"""
    token, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no TOKEN=NUMBER")
    return count(token), -math.inf if value == "-inf" else _number(value)


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
