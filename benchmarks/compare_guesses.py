"""Measures how much faster answers are with a model's next-token head, if its guesses are right
with a given probability.

    python benchmarks/make_model.py model.gguf --like qwen35 --next-head
    python benchmarks/compare_guesses.py --model model.gguf
    python benchmarks/compare_guesses.py --model model.gguf --ram 500MB --markdown

The models are random, so that no guess would be right. Here the sampler takes the guess with that
probability, and else another token. Rounds with the head take turns with rounds without it.
"""

import random
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from common import machine, options, table

from airllm.engine.continuation import Generation
from airllm.engine.next_tokens import NextTokens
from airllm.engine.sampling import Sampler
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.weights.budget import parse_bytes

PROMPT = "a b c d"
COLUMNS = table.Columns(**{"right": 5, "tokens/pass": 11, "speed": 8})


@dataclass(frozen=True)
class Row:
    """right: the probability of a guess. speed: in multiples of that without guesses."""

    right: float
    tokens_per_pass: float
    speed: float

    def cells(self) -> list[str]:
        return [f"{self.right:.1f}", f"{self.tokens_per_pass:.2f}", f"{self.speed:.2f}x"]


class Luck:
    """Makes guesses right with the probability `right`."""

    def __init__(self) -> None:
        self.right = 0.0
        self._guesses: list[int] = []
        self._random = random.Random(1)
        guess = NextTokens.guess

        def remembered(of: NextTokens, tokens: Sequence[int], n: int) -> list[int]:
            self._guesses = guess(of, tokens, n)
            return [*self._guesses]

        def chosen(of: Sampler, logits: Any, *_: object) -> int:
            likeliest = int(np.argmax(logits))  # takes the time that greedy sampling takes
            guessed = self._guesses.pop(0) if self._guesses else None
            if guessed is not None and self._random.random() < self.right:
                return guessed
            self._guesses = []
            return likeliest if likeliest != guessed else (likeliest + 1) % len(logits)

        NextTokens.guess = remembered  # type: ignore[method-assign]
        Sampler.sample = chosen  # type: ignore[method-assign]


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    ram = None if args.ram is None else parse_bytes(args.ram)
    try:
        engine = LayerWiseInferenceEngine(
            args.model, mtp=True, context=args.tokens + 16, ram_budget=ram, threads=args.threads
        )
    except (ValueError, OSError) as error:
        print(f"compare_guesses: {error}", file=sys.stderr)
        return 1
    rows, quiet = [], args.json == "-" or args.markdown
    if not quiet:
        print(COLUMNS.line(COLUMNS.head), flush=True)
    with engine:
        engine.tokenizer.eos_ids = frozenset()
        for row in _rows(engine, args.guesses, args.tokens, args.rounds, args.right):
            rows.append(row)
            if not quiet:
                print(COLUMNS.line(row.cells()), flush=True)
    if args.markdown:
        print(table.markdown(COLUMNS.head, [row.cells() for row in rows]))
    if args.json:
        results = [asdict(row) for row in rows]
        document = {"machine": machine.describe(), "guesses": args.guesses, "results": results}
        options.write_json(args.json, document)
    return 0


def _rows(
    engine: LayerWiseInferenceEngine, guesses: int, tokens: int, rounds: int, right: Sequence[float]
) -> Iterator[Row]:
    luck = Luck()

    def generated(lookahead: int) -> Generation:
        return engine.generate(PROMPT, max_new_tokens=tokens, lookahead=lookahead)

    generated(guesses)
    for luck.right in right:
        ratios, per_pass = [], []
        for _ in range(rounds):
            plain, ahead = generated(0), generated(guesses)
            ratios.append(ahead.decode_tokens_per_second / plain.decode_tokens_per_second)
            per_pass.append(ahead.tokens_per_pass)
        yield Row(luck.right, statistics.mean(per_pass), statistics.median(ratios))


def _parser() -> options.Parser:
    parser = options.parser(__doc__)
    parser.add_argument("--model", required=True, metavar="FILE.gguf")
    parser.add_argument("--ram", metavar="SIZE", help="memory for the model (default: no limit)")
    parser.add_argument(
        "--right",
        type=_probabilities,
        default=(0.6, 0.8, 0.9),
        metavar="P,...",
        help="probabilities of a guess (default: 0.6,0.8,0.9)",
    )
    for flag, value in (("--guesses", 3), ("--tokens", 64), ("--rounds", 5)):
        parser.add_argument(
            flag, type=options.count, default=value, metavar="N", help="default: %(default)s"
        )
    parser.add_argument("--threads", type=options.count, metavar="N")
    parser.add_argument("--markdown", action="store_true", help="a table for the documentation")
    options.add_json(parser)
    return parser


def _probabilities(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in options.words(text))


if __name__ == "__main__":
    sys.exit(main())
