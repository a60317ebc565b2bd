"""The options for how tokens are chosen and where an answer ends."""

import argparse
from collections.abc import Callable
from dataclasses import fields
from typing import Any, cast, get_args

from airllm.cli import values
from airllm.engine.settings import AnswerOptions, Limits, OnFull, Sampling

_SAID_BY_FILES = ("--temperature", "--top-k", "--top-p", "--min-p", "--repeat-penalty")


def add_answer(
    parser: argparse.ArgumentParser, *, max_tokens: int = Limits.max_new_tokens
) -> "argparse._ArgumentGroup":
    """Options for the fields of Sampling and Limits, except `keep`."""
    group = parser.add_argument_group("what it says")
    group.add_argument(
        "-n",
        "--max-tokens",
        dest="max_new_tokens",
        type=values.positive,
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
        type=values.not_empty,
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

    def add(flag: str, type: Callable[[str], object], metavar: str, help: str) -> None:
        default = getattr(Sampling, flag.removeprefix("--").replace("-", "_"))
        if flag in _SAID_BY_FILES:
            default = f"what the model's file says, else {default}"
        group.add_argument(
            flag,
            type=type,
            metavar=metavar,
            default=argparse.SUPPRESS,
            help=f"{help} (default: {default})",
        )

    add(
        "--temperature",
        values.not_negative,
        "T",
        "0 always chooses the likeliest token; higher values give livelier answers",
    )
    add(
        "--top-k",
        values.count,
        "K",
        "choose among the K likeliest tokens; 0 means all tokens",
    )
    add(
        "--top-p",
        values.share,
        "P",
        "choose among the likeliest tokens that together have the probability P; 1 means all "
        "tokens",
    )
    add(
        "--min-p",
        values.share,
        "P",
        "leave out tokens that are less than P times as likely as the likeliest token",
    )
    add(
        "--repeat-penalty",
        values.above_zero,
        "R",
        "a value above 1 makes tokens less likely that the text already has",
    )
    group.add_argument(
        "--seed",
        type=values.count,
        default=argparse.SUPPRESS,
        metavar="S",
        help="the same seed gives the same answer (default: a new seed each time)",
    )
    add(
        "--typical-p",
        values.share,
        "P",
        "choose among the tokens whose surprise is nearest to the expected one and that together "
        "have the probability P; 1 means all tokens",
    )
    add(
        "--presence-penalty",
        values.number,
        "X",
        "subtract X from the logits of tokens that the text already has",
    )
    add(
        "--frequency-penalty",
        values.number,
        "X",
        "subtract X from the logits of tokens for each time that the text already has them",
    )
    add(
        "--penalty-window",
        values.count_or_all,
        "N",
        "how many of the last tokens the penalties and DRY look at; -1 means all of them",
    )
    add(
        "--dry-multiplier",
        values.not_negative,
        "X",
        "make tokens less likely that would continue a repetition, by X for the shortest that "
        "counts; 0 means no such penalty",
    )
    add(
        "--dry-base",
        values.at_least_one,
        "B",
        "each further token of a repetition multiplies the penalty by B",
    )
    add(
        "--dry-allowed-length",
        values.positive,
        "N",
        "the shortest repetition that counts, in tokens",
    )
    group.add_argument(
        "--dry-breaker",
        dest="dry_breakers",
        action="append",
        metavar="STR",
        type=values.text,
        default=argparse.SUPPRESS,
        help="a text over which no repetition reaches; the option may be given more than once, and "
        "'' means none (default: a newline, a colon, a quotation mark, an asterisk)",
    )
    group.add_argument(
        "--logit-bias",
        type=values.bias,
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
