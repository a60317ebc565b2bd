"""Compares `airllm serve` with llama.cpp's server: many requests at once, a long prompt beside
answers, and conversations that are continued.

    python benchmarks/compare_servers.py --model model.gguf --llama-server build/bin/llama-server

The servers take turns; one runs at a time. Answers are greedy, with a fixed number of tokens. The
answers of `airllm serve` are compared with those of LayerWiseInferenceEngine.generate, alone and
among all others, before anything is timed.
"""

import contextlib
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

from common import machine, options, process, table
from common.chat_client import SECONDS, Answer, Server
from common.verify import WrongResultError

from airllm.layer_engine import LayerWiseInferenceEngine

TOPICS = (
    *("rivers", "bridges", "the history of bread", "comets", "sailing", "violins", "tea", "maps"),
    *("bees", "glaciers", "clocks", "the colour blue", "mountains", "printing", "salt", "chess"),
)
COLUMNS = table.Columns(**{"what": -58, "airllm": 12, "llama.cpp": 12, "ratio": 7})


@dataclass(frozen=True)
class Setup:
    model: str
    threads: int
    parallel: int
    tokens: int
    context: int
    activations: str
    rounds: int


@dataclass(frozen=True)
class Row:
    """A figure of both servers. ratio: how much better this one is; None without a peer."""

    what: str
    airllm: float
    llama_cpp: float | None
    unit: str
    more_is_better: bool

    @property
    def ratio(self) -> float | None:
        if not self.llama_cpp or not self.airllm:
            return None
        ratio = self.airllm / self.llama_cpp
        return ratio if self.more_is_better else 1 / ratio

    def cells(self) -> list[str]:
        def shown(value: float | None) -> str:
            return "" if value is None else f"{value:.4g} {self.unit}".rstrip()

        ratio = "" if self.ratio is None else f"{self.ratio:.2f}x"
        return [self.what, shown(self.airllm), shown(self.llama_cpp), ratio]


Command = Callable[[Setup, int], list[str]]


def airllm_command(setup: Setup, port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "airllm", "serve", "-m", setup.model, "--port", str(port)),
        *("--threads", str(setup.threads), "--parallel", str(setup.parallel)),
        *("--context", str(setup.context), "--activations", setup.activations, "--quiet"),
    ]


def llama_command(binary: str) -> Command:
    def command(setup: Setup, port: int) -> list[str]:
        # Its context is shared by all slots.
        return [
            *(binary, "-m", setup.model, "--port", str(port), "--threads", str(setup.threads)),
            *("--parallel", str(setup.parallel), "-c", str(setup.context * setup.parallel)),
            *("--flash-attn", "on", "--log-disable"),
        ]

    return command


@contextlib.contextmanager
def running(command: Command, setup: Setup) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen(
        command(setup, port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as running_server:
        try:
            server, until = Server(port), time.monotonic() + SECONDS
            while not server.is_ready():
                if running_server.poll() is not None or time.monotonic() > until:
                    raise process.FailedError(f"{command(setup, port)[0]} did not start")
                time.sleep(0.1)
            yield server
        finally:
            running_server.terminate()
            try:
                running_server.wait(30)
            except subprocess.TimeoutExpired:
                running_server.kill()


# ---- what is measured ---------------------------------------------------------------------------


def prompts(n: int, words: int = 40) -> list[str]:
    """n prompts that begin differently."""
    return [
        f"{number}. An essay on {TOPICS[number % len(TOPICS)]}, with all details. " * (words // 8)
        for number in range(n)
    ]


def throughput(server: Server, setup: Setup, n: int, first: int) -> float:
    """Tokens a second of n answers at once, from the first request to the last token. first: the
    number of the first prompt, so that no prompt was seen before."""
    asked = prompts(first + n)[first:]
    begun = time.perf_counter()
    answers = server.complete_all(asked, setup.tokens)
    return sum(answer.tokens for answer in answers) / (time.perf_counter() - begun)


def longest_gap(server: Server, setup: Setup, n_prompt: int) -> tuple[float, float, float]:
    """While a prompt of n_prompt tokens comes in beside an answer: the longest gap of the answer,
    its usual gap, and the seconds to the prompt's first token."""
    answer: list[Answer] = []
    began = threading.Event()
    beside = threading.Thread(
        target=lambda: answer.append(server.complete("A very long story.", 400, began))
    )
    beside.start()
    began.wait(SECONDS)
    # Many vocabularies have a token for each digit.
    long = server.complete(",".join(str(1000 + n) for n in range(n_prompt // 5)), 4)
    beside.join(SECONDS)
    (told,) = answer
    during = [
        b - a for a, b in pairwise(told.times) if long.begun <= b <= long.times[0]
    ] or told.gaps
    return max(during), statistics.median(told.gaps), long.to_first


def conversation(server: Server, turns: int) -> tuple[float, float]:
    """A conversation whose prompts begin with all that was said before. Returns the seconds to the
    first token of the last turn, and how many tokens of its prompt were evaluated again."""
    messages = [{"role": "system", "content": "You are brief."}]
    for turn in range(turns):
        topic = TOPICS[turn % len(TOPICS)]
        messages.append({"role": "user", "content": f"Tell me about {topic}, in two sentences."})
        answer = server.chat(messages, 40)
        messages.append({"role": "assistant", "content": answer.text})
    return answer.to_first, answer.usage["prompt_tokens"] - answer.reused


def measured(server: Server, setup: Setup, at: int) -> dict[str, float]:
    """All figures of a server. at: the round."""
    found = {"one": throughput(server, setup, 1, 1000 * at)}
    found["many"] = throughput(server, setup, setup.parallel, 1000 * at + 1)
    longest, usual, first = longest_gap(server, setup, min(4000, setup.context - 512))
    found |= {"longest": longest, "usual": usual, "first": first}
    found["turn"], found["evaluated"] = conversation(server, 20)
    return found


# what, figure, unit, whether more is better
FIGURES = (
    ("tokens a second, one answer", "one", "t/s", True),
    ("tokens a second, all answers at once", "many", "t/s", True),
    ("usual gap between two tokens", "usual", "s", False),
    ("longest gap while a prompt of up to 4,000 tokens comes in", "longest", "s", False),
    ("first token after that prompt", "first", "s", False),
    ("first token of the 20th turn of a conversation", "turn", "s", False),
    ("tokens of its prompt that were evaluated again", "evaluated", "", False),
)


def verify(setup: Setup) -> None:
    """WrongResultError unless answers are those of `generate`, alone and among others."""
    asked = prompts(setup.parallel)
    with LayerWiseInferenceEngine(
        setup.model,
        threads=setup.threads,
        context=setup.context,
        activations=setup.activations,  # type: ignore[arg-type]
    ) as engine:
        expected = []
        for prompt in asked[:4]:
            engine.reset()
            expected.append(engine.generate(prompt, max_new_tokens=16, temperature=0).text)
    with running(airllm_command, setup) as server:
        alone = [server.complete(prompt, 16).text for prompt in asked[:4]]
        together = [answer.text for answer in server.complete_all(asked, 16)[:4]]
    if not alone == together == expected:
        raise WrongResultError(f"answers differ: {alone}, {together}, {expected}")


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    setup = Setup(
        *(args.model, args.threads, args.parallel, args.generated_tokens, args.context),
        *(args.activations, args.rounds),
    )
    verify(setup)
    commands: dict[str, Command] = {"airllm": airllm_command}
    if args.llama_server:
        commands["llama.cpp"] = llama_command(args.llama_server)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for at in range(setup.rounds):
        for name, command in commands.items():
            with running(command, setup) as server:
                server.complete("Warm.", 8)
                rounds[name].append(measured(server, setup, at))
    rows = []
    for what, figure, unit, more_is_better in FIGURES:
        best = max if more_is_better else min
        values = {name: best(one[figure] for one in found) for name, found in rounds.items()}
        rows.append(Row(what, values["airllm"], values.get("llama.cpp"), unit, more_is_better))
    if args.json != "-":
        for line in (COLUMNS.head, *(row.cells() for row in rows)):
            print(COLUMNS.line(line))
    if args.json:
        results = [{**asdict(row), "ratio": row.ratio} for row in rows]
        document = {"machine": machine.describe(), "setup": asdict(setup), "results": results}
        options.write_json(args.json, document)
    return 0


def _parser() -> options.Parser:
    parser = options.parser(__doc__)
    parser.add_argument("--model", required=True, metavar="FILE.gguf")
    parser.add_argument("--llama-server", metavar="PATH", help="llama.cpp's server")
    parser.add_argument("--threads", type=options.count, default=2, metavar="N")
    parser.add_argument(
        "--parallel", type=options.count, default=32, metavar="N", help="answers at once"
    )
    parser.add_argument("--generated-tokens", type=options.count, default=64, metavar="N")
    parser.add_argument("--context", type=options.count, default=6144, metavar="N")
    parser.add_argument("--activations", choices=("auto", "q8", "q16", "f32"), default="q8")
    parser.add_argument("--rounds", type=options.count, default=3, metavar="N")
    options.add_json(parser)
    return parser


if __name__ == "__main__":
    process.run_script(main)
