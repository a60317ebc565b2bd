"""Opens engines for --model and related options, and describes them."""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypedDict

from airllm.cli import console, options

if TYPE_CHECKING:
    from airllm.cli.engine import Engine
    from airllm.cli.live import StreamLine
    from airllm.engine.continuation import Generation
    from airllm.text.prompts import Message, Prompt
    from airllm.util.progress import Progress
    from airllm.weights.plan import Plan


def find(args: argparse.Namespace, name: str | None = None) -> Path:
    """The file of --model, or of `name`.

    A named model that is not here is fetched if --yes or the user at the terminal says so.
    ValueError, which says how to get the model, if it is not here.
    """
    from airllm import hub

    name = name or args.model
    path = hub.find_model(name)
    if path is not None:
        return path
    if name in hub.KNOWN_MODELS or hub.HubName.parse(name, with_host=True):
        if args.yes or _wanted(name):
            return hub.pull(name, progress=not args.quiet)
        raise ValueError(f"{name} has not been fetched yet. Run: airllm pull {name}")
    on_hub = f"; on the Hugging Face Hub: hf.co/{name}" if hub.HubName.parse(name) else ""
    known = ", ".join(hub.KNOWN_MODELS)
    raise ValueError(
        f"{name}: no such file, and no model of that name is known (known: {known})"
        f"{on_hub or '; a model of the Hugging Face Hub is named hf.co/ORG/REPO'}"
    )


def _wanted(name: str) -> bool:
    """Whether the user at the terminal wants to fetch the model; False without a terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    from airllm import hub

    what, n_bytes = hub.offer(name)
    size = f"{n_bytes / 1e6:,.0f} MB"
    console.ask(f"{name} is not on this machine. Fetch it ({what}, {size})? [Y/n] ")
    answer = sys.stdin.readline()
    if not answer:  # Ctrl-D, which is no answer and leaves the cursor behind the question
        console.show("\n")
        return False
    return answer.strip().lower() in ("", "y", "yes")


def open_engine(
    args: argparse.Namespace, *, context: int | None = None, threads: int | None = None
) -> "Engine":
    """The engine for --model and the options of add_engine; context manager."""
    path = find(args)
    from airllm.layer_engine import LayerWiseInferenceEngine

    console.log.debug("opening %s", path)
    with console.progress("loading", "layers") as progress:
        return LayerWiseInferenceEngine(
            path,
            backend=args.backend,
            threads=threads,
            decode_threads=getattr(args, "decode_threads", None),  # not every command has it
            context=context,
            kv_type=args.kv_type,
            activations=args.activations,
            ram_budget=args.ram,
            quantize=args.quantize,
            mtp=getattr(args, "mtp", False),  # likewise
            on_progress=progress.update,
        )


def evaluation_progress(engine: "Engine", max_tokens: int) -> "StreamLine | Progress":
    """Progress of a prompt's evaluation, which disappears before the answer begins; if the model is
    streamed, progress of each token."""
    if engine.stream_stats() is None:
        return console.prompt_progress()
    from airllm.cli.live import StreamLine

    return StreamLine(
        engine.stream_stats,
        position=lambda: engine.position,
        max_tokens=max_tokens,
        packers=runtime(engine)["threads"],
        shown=console.shows_progress(),
    )


def stream_in_words(stats: Mapping[str, Any]) -> str:
    """ "streamed 9.49 GB at 1.10 GB/s (io_uring, past the page cache)" """
    speed = stats["bytes_read"] / max(stats["disk_seconds"], 1e-9)
    cache = "past" if stats["direct"] else "through"
    return (
        f"streamed {stats['bytes_read'] / 1e9:.2f} GB at {speed / 1e9:.2f} GB/s "
        f"({stats['io']}, {cache} the page cache)"
    )


@contextmanager
def open_with_draft(
    args: argparse.Namespace,
) -> "Iterator[tuple[Engine, Engine | None]]":
    """The engines for --model and for --draft, if there is one, both within --ram."""
    if args.draft is None:
        with open_engine(args, context=args.context, threads=args.threads) as engine:
            yield engine, None
        return
    if args.lookahead == 0:
        raise options.UsageError(
            "--draft makes guesses, and --lookahead 0 turns guesses off; leave one of the two out"
        )
    if args.mtp:
        raise options.UsageError("--draft and --mtp both make the guesses; leave one of them out")
    from airllm.weights.budget import BudgetError, format_bytes, granted_bytes

    granted = granted_bytes(args.ram)
    left = argparse.Namespace(**{**vars(args), "mtp": False})
    own = argparse.Namespace(**{**vars(left), "model": args.draft, "quantize": None})
    context = None
    if granted is not None:
        try:
            plan = draft_plan(args, granted)
        except BudgetError as error:
            raise ValueError(f"--draft {args.draft}: {error}") from None
        if plan.streams:
            raise ValueError(
                f"--draft {args.draft} does not fit in {format_bytes(granted)}: a draft that is "
                "streamed from the disk makes nothing faster. Leave --draft out, or give more "
                "--ram"
            )
        # One byte less than the plan leaves the draft's embedding in the file, as the model's:
        # its memory is left for layers.
        context, own.ram = plan.context, plan.total_bytes - (plan.embedding == "pinned")
    with open_engine(own, context=context, threads=args.threads) as draft:
        taken = draft.plan().total_bytes
        if granted is not None:
            left.ram = max(1, granted - taken)
        try:
            engine = open_engine(left, context=args.context, threads=args.threads)
        except BudgetError as error:
            taken_in_words = f"{format_bytes(taken)} for --draft {args.draft}"
            raise ValueError(f"{error}; {taken_in_words} come on top of that") from None
        with engine:
            yield engine, draft


def draft_plan(args: argparse.Namespace, granted: int) -> "Plan":
    """The plan of --draft, before it is loaded."""
    from airllm.weights.plan_model import plan_model

    return plan_model(
        find(args, args.draft),
        backend=args.backend,
        kv_type=args.kv_type,
        activations=args.activations,
        mtp=False,
        ram_budget=granted or None,  # 0: nothing is left, which the refusal then explains
    )


class Runtime(TypedDict):
    """What an engine runs on; fields of --json."""

    backend: str  # "cpp" or "numpy"
    isa: str  # "avx512"; "numpy"
    threads: int


def operations(engine: "Engine") -> ModuleType:
    """The operations of the engine's backend. Not tensor_ops_hybrid: --backend may differ from what
    the process has chosen."""
    return import_module("tensor_ops_cpp" if engine.backend == "cpp" else "airllm.numpy_ops")


def runtime(engine: "Engine") -> Runtime:
    ops = operations(engine)
    return {
        "backend": engine.backend,
        "isa": ops.simd_level,
        "threads": ops.get_num_threads(),
    }


def in_words(runtime: Runtime) -> str:
    """ "cpp, avx512, 2 threads" """
    threads = runtime["threads"]
    return f"{runtime['backend']}, {runtime['isa']}, {threads} thread{'s' if threads > 1 else ''}"


def timings(generation: "Generation") -> dict[str, float]:
    return {
        "prefill_seconds": generation.prefill_seconds,
        "prefill_tokens_per_second": generation.prefill_tokens_per_second,
        "decode_seconds": generation.decode_seconds,
        "decode_tokens_per_second": generation.decode_tokens_per_second,
    }


def conversation(question: str, system: str | None = None) -> list[dict[str, str]]:
    """The messages of a conversation that begins with `question`."""
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": question}]


def request(messages: "Sequence[Message]", variables: Mapping[str, object]) -> "Prompt":
    """The prompt of a conversation; variables: for the chat template, see options.add_template."""
    if not variables:
        return messages
    from airllm.text.prompts import Chat

    return Chat(messages, variables)
