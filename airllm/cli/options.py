"""Options that several commands share: the model, how it runs, what becomes of its thoughts."""

import argparse
from collections.abc import Callable, Mapping
from typing import TypeAlias

from airllm.cli import values
from airllm.cli.command_line import HelpFormatter, epilog
from airllm.util.errors import AirllmError

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
            type=values.positive,
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
        type=values.size,
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
        type=values.positive,
        metavar="N",
        help="number of threads (default: the number that `airllm info` shows)",
    )
    if decode:
        parser.add_argument(
            "--decode-threads",
            type=values.positive,
            metavar="N",
            help="use at most N of the threads for the answer, because an answer waits for "
            "memory while a prompt waits for arithmetic (default: all threads)",
        )


def add_template(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--chat-template-kwargs",
        type=values.json_object,
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
        type=values.count,
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
