"""airllm demo: from nothing to an answer, with one command."""

import argparse
from dataclasses import asdict

from airllm.cli import console, generate, model, options, values
from airllm.engine.settings import Limits, Sampling

MODEL = "smollm2-135m"


def add(subparsers: options.Subparsers) -> None:
    parser = options.add_command(
        subparsers,
        "demo",
        run,
        help="fetch a small model, ask it a question, and show how fast it answers",
        description=f"Fetches a small chat model once ({MODEL}, 98 MB, Apache-2.0), asks it a "
        "question, and shows the backend, the speed and the memory that the answer took.",
        examples=["airllm demo", 'airllm demo --prompt "Why is the sky blue?"'],
    )
    parser.add_argument(
        "--prompt",
        type=values.text,
        default="What is the capital of France?",
        metavar="P",
        help='the question (default: "%(default)s")',
    )
    options.add_threads(parser)
    options.add_engine(parser)
    # Always the likeliest token, so that everybody's demo says the same.
    greedy = Sampling(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0)
    parser.set_defaults(
        model=MODEL, yes=True, lookahead=None, think=None, **asdict(greedy), **asdict(Limits())
    )
    options.add_output(parser, json="prompt, the fields of `generate --json`, and memory in bytes")


def fetch(*, quiet: bool) -> None:
    """Fetch the model, unless it is there."""
    from airllm import hub

    if hub.find_model(MODEL) is None:
        path = hub.pull(MODEL, progress=not quiet)
        console.log.info("the model is in %s, for this time and the next", path.parent)


def run(args: argparse.Namespace) -> int:
    fetch(quiet=args.quiet)
    with model.open_engine(args, context=args.context, threads=args.threads) as engine:
        request = model.conversation(args.prompt)
        if not args.json:
            console.write(f"> {args.prompt}\n")
        generation, said = generate.answer(engine, request, args)
        memory = engine.memory_usage()
        runtime = model.runtime(engine)
    if args.json:
        answer = generate.as_json(engine, generation, said)
        console.write_json({"prompt": args.prompt, **answer, "memory": memory})
        return 0
    print(
        f"\n{model.in_words(runtime)}: "
        f"prefill {generation.prefill_tokens_per_second:.1f} tokens/s, "
        f"decode {generation.decode_tokens_per_second:.1f} tokens/s, "
        f"{console.format_bytes(memory['resident'])} of memory"
    )
    console.log.debug(
        "of it weights %s, KV cache %s, buffers %s",
        *(console.format_bytes(memory[name]) for name in ("weights", "kv_cache", "buffers")),
    )
    console.log.info("to talk with it: airllm run %s", MODEL)
    return 0
